// Parts of trainer_state.json and row_losses.jsonl. Hugging Face's TrainerState takes no key it does not know, so what
// a resume needs beside its own lies where it keeps the states of callbacks.
#pragma once

#include <span>

#include "base/value.h"
#include "data/batcher.h"
#include "model/evaluate_loss.h"

namespace saaz {

/// Sums over the updates done so far, those of earlier sessions included.
struct RunSums {
  double loss = 0, seconds = 0;
  int64_t n_samples = 0;
  double unlogged_loss = 0;  // since the last entry of the log
  int64_t n_unlogged = 0;
  bool owes_look = false;  // a signal cut the validation and probes of this step short
};

/// The member "stateful_callbacks". `inputs`: what must not change until a resume.
Value stateful_callbacks(const Value& inputs, const RunSums& sums);
/// What `stateful_callbacks` put there ("inputs" and sums); nullptr in the state of another program.
const Value* find_own_state(const Value& trainer_state);
RunSums read_sums(const Value& own_state);

/// The entry with which Hugging Face's log ends. Rates are of the time spent in updates.
Value end_entry(const RunSums& sums, int64_t step, double epoch, double total_flos);

/// One line of row_losses.jsonl: each validation row's mean loss and scored tokens, and a digest of the rows, so that
/// two runs are compared pair by pair only over the same rows.
Value row_losses_entry(int64_t step, std::span<const Sample> rows, const EvalResult& result);

}  // namespace saaz
