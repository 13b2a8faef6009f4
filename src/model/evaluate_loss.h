// Loss of a model on encoded samples: the one computation behind validation while training and `saaz eval`, so that the
// two give the same bits. Enters: samples in order. Leaves: token-weighted loss and the mean loss of each row.
// Invariant: a row's figures do not depend on which rows share its batch (kernels are row-independent); sums run in
// f64, in sample order.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "data/batcher.h"
#include "model/pass.h"

namespace saaz {

struct EvalResult {
  double loss_nats = 0;       // mean over all scored tokens
  double perplexity = 1;      // exp(loss_nats)
  double standard_error = 0;  // of loss_nats, with whole rows as the sampled units; 0 for fewer than two rows
  int64_t n_tokens = 0;       // scored
  int64_t n_rows = 0;
  std::vector<double> row_losses;   // [n_rows] mean in nats of each row's scored tokens; 0 where nothing is scored
  std::vector<int64_t> row_tokens;  // [n_rows] scored tokens of each row
};

/// Packs the samples in order into batches of at most `max_batch_tokens` tokens (at least one sample each) and runs
/// them without gradients through `model` and the adapter attached to it. Activation memory is the caller's, of at
/// least evaluation_bytes, or allocated for the call.
/// `wants_stop`, when given, is asked before each batch; once it says yes the call returns a result of no use.
/// bad_input when no token is scored; resource for a sample longer than the model's positions; diverged for a loss that
/// is not finite.
EvalResult evaluate_loss(Backend& backend, const Model& model, std::span<const Sample> samples,
                         int64_t max_batch_tokens);
EvalResult evaluate_loss(Backend& backend, PassMemory& memory, const Model& model, std::span<const Sample> samples,
                         int64_t max_batch_tokens, const std::function<bool()>& wants_stop = {});
PassBytes evaluation_bytes(const Backend& backend, const Model& model, std::span<const Sample> samples,
                           int64_t max_batch_tokens);

}  // namespace saaz
