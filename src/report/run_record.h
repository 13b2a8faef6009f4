// RunRecord: what a run folder tells about a run, in memory. Enters: our events.jsonl and recipe.yaml, or a
// trainer_state.json that Hugging Face's Trainer wrote. Leaves: typed rows that charts, the model card and comparisons
// are made of. Invariant: a record is a function of the events alone, so a resumed run's equals an uninterrupted one's.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "base/system.h"
#include "base/value.h"

namespace saaz {

inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

struct StepRecord {
  int64_t step = 0;
  double loss = kUnknown;  // nats a token
  double grad_norm = kUnknown, learning_rate = kUnknown;
  double epoch = kUnknown;
  int64_t n_tokens = 0;
  double seconds = 0;
  double time = 0;  // Unix seconds when the step was done
};

struct EvalRecord {
  int64_t step = 0;
  double loss = kUnknown;  // nats a token
  int64_t n_scored_tokens = 0;
  double time = 0;
};

struct RunRecord {
  enum class Status { running, stopped, finished };

  std::string name;  // of the folder
  Status status = Status::running;
  Value start;   // the first start event; null for a foreign run
  Value recipe;  // resolved; null for a foreign run
  std::vector<StepRecord> steps;
  std::vector<EvalRecord> evals;
  std::vector<Value> probes, samples, notes;  // the events: answers to the probes, rows of the data, notes and saves
  int64_t max_steps = 0;
  int64_t peak_bytes = 0;  // of resident memory, over all sessions
  double last_time = 0;    // Unix seconds of the last event

  /// Takes in one line of events.jsonl.
  void add(const Value& event);
  int64_t n_tokens() const;
  double seconds() const;  // spent in updates
  /// Of the middle update: the first ones of a session are slower.
  double median_tokens_per_s() const;
  /// Mean loss of the last tenth of the updates, which says more than one update's.
  double final_loss() const;
  const EvalRecord* best_eval() const;
};

/// "running" (or killed: events do not tell), "stopped" or "finished".
const char* name_of(RunRecord::Status status);

/// A run folder (ours or a Trainer's), a checkpoint-N folder, or a trainer_state.json itself. bad_input when there is
/// no run.
RunRecord read_run(const fs::path& path);
/// Whether `folder` holds what read_run reads.
bool is_run(const fs::path& folder);
/// The trainer_state.json that read_run reads when there are no events; empty when there is none.
fs::path find_trainer_state(const fs::path& folder);

/// The lines of a JSONL file in order; a last line that a crash cut short is left out.
std::vector<Value> read_json_lines(const fs::path& path);
/// A number of an object, or `otherwise` when it is absent or no number.
double number_or(const Value& object, std::string_view key, double otherwise = kUnknown);
/// A text of an object, or "".
std::string text_or_empty(const Value& object, std::string_view key);

}  // namespace saaz
