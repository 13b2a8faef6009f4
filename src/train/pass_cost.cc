#include "train/pass_cost.h"

#include <algorithm>

namespace saaz {

double PassCost::of(const Sample& sample) const {
  const auto n = static_cast<double>(sample.ids.size());
  return token * n + square * n * n + scored * static_cast<double>(sample.n_scored());
}

double PassCost::of(std::span<const Sample> samples, std::span<const int64_t> indices) const {
  double out = 0;
  for (const int64_t i : indices) out += of(samples[static_cast<size_t>(i)]);
  return out;
}

PassCost fit_pass_cost(int64_t length, const CountFlops& count) {
  const auto flops = [&](int64_t n_tokens, int64_t n_scored) {
    const std::vector<int32_t> ids(static_cast<size_t>(n_tokens), 0);
    std::vector<int32_t> targets(static_cast<size_t>(n_tokens), -1);
    std::fill_n(targets.begin(), n_scored, 0);
    return count(packed_batch(ids, std::vector<int64_t>{0, n_tokens}), targets);
  };
  const int64_t half = std::max<int64_t>(1, length / 2);
  const auto n = static_cast<double>(length), h = static_cast<double>(half);
  const double whole = flops(length, length);
  PassCost cost;
  cost.scored = length > half ? (whole - flops(length, half)) / (n - h) : 0;
  const double body = whole / n - cost.scored, half_body = flops(half, half) / h - cost.scored;
  cost.square = length > half ? (body - half_body) / (n - h) : 0;
  cost.token = body - cost.square * n;
  return cost;
}

}  // namespace saaz
