#include "infer/sampler.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "base/check.h"

namespace saaz {

Sampler::Sampler(const SamplingOptions& options, uint64_t stream) : options_(options) {
  std::seed_seq seed{static_cast<uint32_t>(options.seed), static_cast<uint32_t>(options.seed >> 32),
                     static_cast<uint32_t>(stream)};
  generator_.seed(seed);
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> seen) {
  logits_.assign(logits.begin(), logits.end());
  if (options_.repetition_penalty != 1) {
    const auto penalty = static_cast<float>(options_.repetition_penalty);
    for (const int32_t id : std::unordered_set<int32_t>(seen.begin(), seen.end())) {
      float& logit = logits_[static_cast<size_t>(id)];
      logit = logit < 0 ? logit * penalty : logit / penalty;
    }
  }
  const auto best = std::max_element(logits_.begin(), logits_.end(),
                                     [](float a, float b) { return a < b || (std::isnan(a) && !std::isnan(b)); });
  check(std::isfinite(*best), ExitCode::diverged,
        "the model's logits are not finite: the weights or the adapter are damaged");
  if (options_.temperature == 0) return static_cast<int32_t>(best - logits_.begin());

  const auto temperature = static_cast<float>(options_.temperature);
  std::vector<Candidate> candidates;
  candidates.reserve(logits_.size());
  for (size_t id = 0; id < logits_.size(); ++id)
    if (!std::isnan(logits_[id])) candidates.push_back({logits_[id] / temperature, static_cast<int32_t>(id)});
  keep_candidates(candidates);

  double total = 0;
  for (const Candidate& c : candidates) total += std::exp(static_cast<double>(c.logit - candidates[0].logit));
  double target = static_cast<double>(generator_() >> 11) * 0x1p-53 * total;
  for (const Candidate& c : candidates) {
    target -= std::exp(static_cast<double>(c.logit - candidates[0].logit));
    if (target < 0) return c.id;
  }
  return candidates.back().id;
}

/// Leaves the candidates that top-k, top-p and min-p keep, best first. At least one stays.
void Sampler::keep_candidates(std::vector<Candidate>& candidates) const {
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  };
  const auto k = static_cast<size_t>(options_.top_k);
  if (k > 0 && k < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(k), candidates.end(), better);
    // Ties with the k-th stay, as in Hugging Face.
    const float kth =
        std::min_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(k), [](auto& a, auto& b) {
          return a.logit < b.logit;
        })->logit;
    std::erase_if(candidates, [kth](const Candidate& c) { return c.logit < kth; });
  }
  std::sort(candidates.begin(), candidates.end(), better);
  const auto weight = [&](size_t i) {
    return std::exp(static_cast<double>(candidates[i].logit - candidates[0].logit));
  };
  if (options_.top_p < 1) {
    double total = 0, before = 0;
    for (size_t i = 0; i < candidates.size(); ++i) total += weight(i);
    size_t kept = 0;
    while (kept < candidates.size() && (kept == 0 || before < options_.top_p * total)) before += weight(kept++);
    candidates.resize(kept);
  }
  if (options_.min_p > 0) {
    size_t kept = 1;
    while (kept < candidates.size() && weight(kept) >= options_.min_p) ++kept;
    candidates.resize(kept);
  }
}

}  // namespace saaz
