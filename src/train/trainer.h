// The training loop: recipe in, run folder out (adapter, checkpoints, trainer_state.json, events.jsonl, recipe.yaml).
// Semantics of batches, loss, schedule and clipping: docs/formats.md 6. A resumed run ends with the same adapter bytes
// as an uninterrupted one: data order is a function of the step, and parameters, optimizer states and the step number
// are stored exactly.
#pragma once

#include <functional>
#include <optional>

#include "base/value.h"
#include "config/recipe.h"
#include "lora/lora.h"

namespace saaz {

struct TrainOptions {
  enum class Start { fresh, resume };
  Start start = Start::fresh;
  std::optional<fs::path> checkpoint;                // resume from this one, not from the newest
  bool accept_changes = false;                       // resume although inputs changed; noted in the events
  int64_t max_memory_bytes = 0;                      // refuse a run that needs more (resource); 0: what is free
  int64_t max_gpu_memory_bytes = 0;                  // in use on the card, never more; 0: what it has
  std::function<void(const Value& event)> on_event;  // every line of events.jsonl, as it is written
  // Answers the recipe's eval.probes: an object that becomes a "probes" event. It must leave the model as it was, and
  // may return early after a stop signal. Needed when the recipe has probes.
  std::function<Value(Backend& backend, Model& model)> answer_probes;
  std::function<int64_t(const Backend& like, const Model& model)> probe_bytes;  // that a round takes while it lasts
};

struct TrainOutcome {
  int64_t n_steps = 0;  // optimizer steps done in all
  int64_t n_total_steps = 0;
  int signal = 0;  // SIGINT or SIGTERM stopped the run after saving; 0 = finished
  double last_loss = 0;
  std::optional<double> first_validation_loss, last_validation_loss;
  fs::path run;
};

/// Trains. Errors: usage (recipe, paths), bad_input (model, data), resource (memory, before step 1), in_use (the folder
/// holds another run or process), diverged (non-finite loss or gradient: nothing is updated or saved), verification
/// (resume).
TrainOutcome train(Backend& backend, const Recipe& recipe, const TrainOptions& options);

/// The spec of a recipe's adapter, and how its base is loaded.
LoraSpec lora_spec_of(const Recipe& recipe);
LoadOptions load_options_of(const Recipe& recipe);

}  // namespace saaz
