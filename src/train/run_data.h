// The data of a run as its recipe asks for it: samples, what each update sees, and the largest micro-batch. Shared by
// the trainer and `saaz plan`, so that the plan is of the run.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/system.h"
#include "config/recipe.h"
#include "data/batcher.h"
#include "data/normalize_rows.h"

namespace saaz {

struct RunData {
  std::vector<Sample> samples, validation;
  std::vector<fs::path> files;       // that were read
  std::vector<std::string> skipped;  // reasons of rows left out
  NormalizedRows normalized;         // what data.normalize changed
};
/// bad_input naming the row, or when no training row is left.
RunData load_run_data(const Recipe& recipe, const Tokenizer& tokenizer);

/// Walks the updates of all epochs. With packing the number of updates depends on an epoch's order, so a step's place
/// is found by counting from the start: a resumed run sees what the uninterrupted one saw.
class UpdateOrder {
 public:
  /// `samples` outlive the object.
  UpdateOrder(std::span<const Sample> samples, const Recipe& recipe);

  /// Updates of the whole run: max_steps, or num_train_epochs times those of the first epoch, rounded up.
  int64_t n_updates() const { return n_updates_; }
  int64_t n_updates_of_first_epoch() const { return n_first_; }
  /// The micro-batches (sample indices) of update `step`, 0-based over the run; valid until the next call.
  std::span<const std::vector<int64_t>> update(int64_t step);
  /// Epochs done after `n_steps` updates.
  double epochs_after(int64_t n_steps);
  /// A micro-batch that needs as much memory as any of the run: the one with most tokens, every token scored. Of runs
  /// too long to be walked through, the longest samples together.
  PackedBatch largest_micro_batch();

 private:
  void seek(int64_t step);
  std::vector<int64_t> longest_samples() const;

  std::span<const Sample> samples_;
  BatchOptions options_;
  EpochPlan plan_;
  int64_t epoch_ = 0, begin_ = 0;  // the epoch of plan_, and its first update
  int64_t n_updates_ = 0, n_first_ = 0;
};

}  // namespace saaz
