#include "infer/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace saaz {

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr size_t kBlock = 512;
constexpr double kLog2To53 = 36.7368005696771;  // a draw has 53 bits

/// The largest of the values, NaN aside; -infinity for none. Lanes, so that it is done several at a time.
float largest_of(std::span<const float> values) {
  constexpr size_t kLanes = 16;
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, kMinusInfinity);
  size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes)
    for (size_t j = 0; j < kLanes; ++j) lanes[j] = values[i + j] > lanes[j] ? values[i + j] : lanes[j];
  for (; i < values.size(); ++i) lanes[0] = values[i] > lanes[0] ? values[i] : lanes[0];
  return *std::max_element(lanes, lanes + kLanes);
}

void find_block_largest(std::span<const float> values, std::vector<float>& out) {
  out.clear();
  for (size_t at = 0; at < values.size(); at += kBlock)
    out.push_back(largest_of(values.subspan(at, std::min(kBlock, values.size() - at))));
}

/// At least k values are no smaller than this: the k-th largest of the blocks' largest.
float lower_bound_of_kth(const std::vector<float>& block_largest, size_t k) {
  if (k > block_largest.size()) return kMinusInfinity;
  std::vector<float> sorted = block_largest;
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(k - 1), sorted.end(), std::greater<>());
  return sorted[k - 1];
}

/// Calls use(id) for each value that is at least `least` and no -infinity, ascending.
template <class Use>
void for_each_at_least(std::span<const float> values, const std::vector<float>& block_largest, float least, Use use) {
  for (size_t b = 0; b < block_largest.size(); ++b) {
    if (!(block_largest[b] >= least) || block_largest[b] == kMinusInfinity) continue;
    for (size_t i = b * kBlock, end = std::min(values.size(), i + kBlock); i < end; ++i)
      if (values[i] >= least && values[i] != kMinusInfinity) use(i);
  }
}

}  // namespace

Sampler::Sampler(const SamplingOptions& options, uint64_t stream, std::span<const int32_t> prompt) : options_(options) {
  std::seed_seq seed{static_cast<uint32_t>(options.seed), static_cast<uint32_t>(options.seed >> 32),
                     static_cast<uint32_t>(stream)};
  generator_.seed(seed);
  counts_ = options.repetition_penalty != 1 || options.presence_penalty != 0 || options.frequency_penalty != 0;
  if (options.repetition_penalty != 1)
    for (const int32_t id : prompt) seen_[id].in_prompt = true;
}

void Sampler::accept(int32_t id) {
  if (counts_) ++seen_[id].n_in_answer;
}

void Sampler::adjust(std::span<float> logits) const {
  const auto repetition = static_cast<float>(options_.repetition_penalty);
  for (const auto& [id, seen] : seen_) {
    float& logit = logits[static_cast<size_t>(id)];
    if (repetition != 1) logit = logit < 0 ? logit * repetition : logit / repetition;
    if (seen.n_in_answer > 0)
      logit -= static_cast<float>(options_.presence_penalty +
                                  options_.frequency_penalty * static_cast<double>(seen.n_in_answer));
  }
  for (const auto& [id, bias] : options_.logit_bias) logits[static_cast<size_t>(id)] += bias;
}

int32_t Sampler::sample(std::span<const float> logits) {
  find_block_largest(logits, block_largest_);
  const auto best_block = std::max_element(block_largest_.begin(), block_largest_.end());
  const float best = *best_block;
  check(std::isfinite(best), ExitCode::diverged,
        "the model's logits are not finite: the weights or the adapter are damaged");
  if (options_.temperature == 0) {
    const auto from = logits.begin() + (best_block - block_largest_.begin()) * static_cast<std::ptrdiff_t>(kBlock);
    return static_cast<int32_t>(std::find(from, logits.end(), best) - logits.begin());
  }

  const auto temperature = static_cast<float>(options_.temperature);
  const auto k = static_cast<size_t>(options_.top_k);
  float least = std::nextafter(best - static_cast<float>(kLog2To53) * temperature, kMinusInfinity);
  if (k > 0 && k < logits.size()) least = std::max(least, lower_bound_of_kth(block_largest_, k));
  candidates_.clear();
  for_each_at_least(logits, block_largest_, least, [&](size_t id) {
    candidates_.push_back({(logits[id] - best) / temperature, static_cast<int32_t>(id), 0});
  });
  if (k > 0 && k < candidates_.size()) {
    const auto kth = candidates_.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(candidates_.begin(), kth, candidates_.end(),
                     [](const Candidate& a, const Candidate& b) { return a.logit > b.logit; });
    // Ties with the k-th stay, as in Hugging Face.
    std::erase_if(candidates_, [at_least = kth->logit](const Candidate& c) { return c.logit < at_least; });
    std::sort(candidates_.begin(), candidates_.end(),
              [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  }
  for (Candidate& c : candidates_) c.weight = std::exp(static_cast<double>(c.logit));
  keep_likeliest();
  double total = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  double target = static_cast<double>(generator_() >> 11) * 0x1p-53 * total;
  for (const Candidate& c : candidates_) {
    target -= c.weight;
    if (target < 0) return c.id;
  }
  return candidates_.back().id;
}

/// Leaves the candidates that top-p and then min-p keep, likeliest first after top-p, else by id. At least one stays.
void Sampler::keep_likeliest() {
  if (options_.top_p < 1) keep_mass();
  if (options_.min_p > 0) std::erase_if(candidates_, [this](const Candidate& c) { return c.weight < options_.min_p; });
}

/// top-p. Few candidates are kept out of very many, mostly: so ever more of the likeliest are sorted, until it is
/// enough.
void Sampler::keep_mass() {
  const auto is_likelier = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  };
  double total = 0, before = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  size_t kept = 0, n_sorted = 0;
  while (kept < candidates_.size() && (kept == 0 || before < options_.top_p * total)) {
    if (kept == n_sorted) {
      const auto from = candidates_.begin() + static_cast<std::ptrdiff_t>(n_sorted);
      n_sorted = std::min(candidates_.size(), std::max<size_t>(256, 8 * n_sorted));
      const auto to = candidates_.begin() + static_cast<std::ptrdiff_t>(n_sorted);
      if (to != candidates_.end()) std::nth_element(from, to, candidates_.end(), is_likelier);
      std::sort(from, to, is_likelier);
    }
    before += candidates_[kept++].weight;
  }
  candidates_.resize(kept);
}

double log_sum_exp(std::span<const float> logits) {
  const float best = largest_of(logits);
  double sum = 0;
  for (const float logit : logits) sum += static_cast<double>(std::exp(logit - best));
  return static_cast<double>(best) + std::log(sum);
}

std::vector<std::pair<int32_t, float>> largest_logits(std::span<const float> logits, int64_t k) {
  std::vector<float> block_largest;
  find_block_largest(logits, block_largest);
  std::vector<std::pair<int32_t, float>> out;
  for_each_at_least(logits, block_largest, lower_bound_of_kth(block_largest, static_cast<size_t>(k)),
                    [&](size_t id) { out.emplace_back(static_cast<int32_t>(id), logits[id]); });
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) {
    return a.second > b.second || (a.second == b.second && a.first < b.first);
  });
  if (out.size() > static_cast<size_t>(k)) out.resize(static_cast<size_t>(k));
  return out;
}

}  // namespace saaz
