// What a run needs, before it starts: memory by kind, work, disk, and, from a few micro-batches that really run, time.
// Enters: a recipe and the backend it will run on. Leaves: figures of the very code that trains, run on a backend that
// only counts. Bounds: memory within 5 % of the run's measured peak (tests/plan_test.cc); time as stated with it.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "config/recipe.h"
#include "model/pass.h"
#include "train/pass_cost.h"
#include "train/run_data.h"

namespace saaz {

/// What a round of the recipe's probes costs (eval/probes.h): bytes while it lasts, and seconds at most.
struct ProbeCosts {
  std::function<int64_t(const Backend& like, const Model& model)> bytes;
  std::function<double(Backend& backend, Model& model)> seconds;
};

struct RunPlan {
  using Parts = std::vector<std::pair<std::string, int64_t>>;  // kind, bytes
  Parts host;                                                  // of the process's resident memory
  Parts device;         // of the GPU's memory, as its driver counts; empty on a CPU
  Residence residence;  // there
  Recompute recompute;
  int64_t n_parameters = 0, n_samples = 0, n_validation_samples = 0;
  int64_t n_updates = 0, n_validations = 0, n_probe_rounds = 0, n_checkpoints = 0;
  double n_epochs = 0;
  int64_t largest_micro_batch = 0, epoch_tokens = 0, epoch_scored = 0;   // tokens
  double run_tokens = 0, run_flops = 0;                                  // of all updates
  double validation_flops = 0;                                           // of one validation
  int64_t checkpoint_bytes = 0, run_folder_bytes = 0, merged_bytes = 0;  // on disk; of the folder at its largest

  int64_t host_bytes() const { return sum(host); }
  int64_t device_bytes() const { return sum(device); }
  static int64_t sum(const Parts& parts);
};

/// What the machine has to give; checked before step 1.
struct MemoryLimits {
  int64_t host = 0;               // bytes that the process may have in all
  std::optional<int64_t> device;  // bytes that may be in use on the GPU, by all programs
};
bool fits(const RunPlan& plan, const MemoryLimits& limits);

/// Seconds, measured by micro-batches spread over the lengths of the run's.
struct RunTime {
  double load = 0, update = 0, validation = 0, probe_round = 0, total = 0;
  double tokens_per_s = 0;
  double relative_error = 0;  // of the total, from the spread of the trials; other work on the machine comes on top
  int64_t n_trials = 0;
  int64_t peak_bytes = 0;  // of resident memory after the largest micro-batch ran
};

/// Overrides that make a recipe smaller, as --set takes them, and what it needs then (memory only).
struct SmallerRun {
  std::vector<std::string> changes;
  RunPlan plan;
};

class Planner {
 public:
  /// Opens the base and loads the data. Errors as of train(). device_limit: as MemoryLimits::device, with a GPU.
  /// `probes`: empty without eval.probes.
  Planner(const Recipe& recipe, const Backend& backend, std::optional<int64_t> device_limit, ProbeCosts probes = {});

  RunPlan plan() const;
  /// The smallest change under which the run fits; nothing when none of those tried does. Tried, the harmless first:
  /// recompute: layer, smaller micro-batches with as many samples an update, 8-bit optimizer states, NF4 weights,
  /// shorter samples.
  std::optional<SmallerRun> smallest_change(const MemoryLimits& limits) const;
  /// Loads the model on `backend` and trains on micro-batches, for about `seconds`; nothing is kept. A stop signal ends
  /// it early.
  RunTime measure(Backend& backend, const RunPlan& plan, double seconds) const;

 private:
  RunPlan plan_memory(const Recipe& recipe) const;
  void count_work(RunPlan& plan) const;

  const Recipe& recipe_;
  const Backend& backend_;
  std::optional<int64_t> device_limit_;
  ProbeCosts probes_;
  BaseModel base_;
  RunData data_;
  int64_t resident_bytes_ = 0, peak_bytes_ = 0;  // of this process once the data was loaded
};

}  // namespace saaz
