#include "model/evaluate_loss.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend/plan.h"
#include "base/check.h"

namespace saaz {

namespace {

/// Sample indices [first, last) of each batch.
struct Range {
  size_t first, last;
};
std::vector<Range> cut_into_batches(std::span<const Sample> samples, int64_t max_batch_tokens) {
  std::vector<Range> out;
  int64_t n_tokens = 0;
  for (size_t i = 0; i < samples.size(); ++i) {
    const auto length = static_cast<int64_t>(samples[i].ids.size());
    if (out.empty() || n_tokens + length > max_batch_tokens) {
      out.push_back({i, i});
      n_tokens = 0;
    }
    out.back().last = i + 1;
    n_tokens += length;
  }
  return out;
}

PackedBatch pack_range(std::span<const Sample> samples, Range range) {
  std::vector<int64_t> indices(range.last - range.first);
  std::iota(indices.begin(), indices.end(), static_cast<int64_t>(range.first));
  return pack(samples, indices);
}

void check_lengths(const Model& model, std::span<const Sample> samples) {
  for (size_t i = 0; i < samples.size(); ++i)
    check(static_cast<int64_t>(samples[i].ids.size()) <= model.max_positions(), ExitCode::resource,
          "sample {} has {} tokens, but the model was loaded for {} positions: lower max_seq_length", i + 1,
          samples[i].ids.size(), model.max_positions());
}

/// Appends the figures of the batch's rows, and the sum of losses of each to `sums`.
void add_rows(const PackedBatch& packed, std::span<const float> losses, EvalResult& result, std::vector<double>& sums) {
  size_t at = 0;
  for (size_t row = 0; row + 1 < packed.seq_starts.size(); ++row) {
    double sum = 0;
    int64_t n = 0;
    for (int64_t t = packed.seq_starts[row]; t < packed.seq_starts[row + 1]; ++t) {
      if (packed.targets[static_cast<size_t>(t)] < 0) continue;
      sum += losses[at++];
      ++n;
    }
    sums.push_back(sum);
    result.row_tokens.push_back(n);
    result.row_losses.push_back(n == 0 ? 0 : sum / static_cast<double>(n));
  }
}

/// Of the ratio sum(losses) / sum(tokens), linearised: rows are independent, tokens inside a row are not.
double ratio_standard_error(const EvalResult& result, std::span<const double> sums) {
  if (sums.size() < 2) return 0;
  double squares = 0;
  for (size_t i = 0; i < sums.size(); ++i) {
    const double residual = sums[i] - result.loss_nats * static_cast<double>(result.row_tokens[i]);
    squares += residual * residual;
  }
  const auto n = static_cast<double>(sums.size());
  return std::sqrt(n / (n - 1) * squares) / static_cast<double>(result.n_tokens);
}

}  // namespace

PassBytes evaluation_bytes(const Backend& backend, const Model& model, std::span<const Sample> samples,
                           int64_t max_batch_tokens) {
  PlanBackend plan(backend);
  PassMemory measured;
  // Nothing runs, so trying all batches is cheap.
  for (const Range range : cut_into_batches(samples, max_batch_tokens)) {
    const PackedBatch packed = pack_range(samples, range);
    evaluate_pass(plan, measured, model, packed_batch(packed.ids, packed.seq_starts), packed.targets);
  }
  return measured.peak();
}

EvalResult evaluate_loss(Backend& backend, const Model& model, std::span<const Sample> samples,
                         int64_t max_batch_tokens) {
  PassMemory memory(backend, evaluation_bytes(backend, model, samples, max_batch_tokens));
  return evaluate_loss(backend, memory, model, samples, max_batch_tokens);
}

EvalResult evaluate_loss(Backend& backend, PassMemory& memory, const Model& model, std::span<const Sample> samples,
                         int64_t max_batch_tokens, const std::function<bool()>& wants_stop) {
  check_lengths(model, samples);
  const std::vector<Range> batches = cut_into_batches(samples, max_batch_tokens);
  EvalResult result;
  std::vector<double> sums;
  for (const Range range : batches) {
    if (wants_stop && wants_stop()) return result;
    const PackedBatch packed = pack_range(samples, range);
    const std::vector<float> losses =
        evaluate_pass(backend, memory, model, packed_batch(packed.ids, packed.seq_starts), packed.targets);
    add_rows(packed, losses, result, sums);
  }
  result.n_rows = static_cast<int64_t>(samples.size());
  result.n_tokens = std::accumulate(result.row_tokens.begin(), result.row_tokens.end(), int64_t{0});
  check(result.n_tokens > 0, ExitCode::bad_input, "no token of the {} samples is scored, so there is no loss",
        samples.size());
  const double total = std::accumulate(sums.begin(), sums.end(), 0.0);
  result.loss_nats = total / static_cast<double>(result.n_tokens);
  check(std::isfinite(result.loss_nats), ExitCode::diverged, "the loss over {} tokens is not finite", result.n_tokens);
  result.perplexity = std::exp(result.loss_nats);
  result.standard_error = ratio_standard_error(result, sums);
  return result;
}

}  // namespace saaz
