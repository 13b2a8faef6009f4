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

void check_best(float best) {
  check(std::isfinite(best), ExitCode::diverged,
        "the model's logits are not finite: the weights or the adapter are damaged");
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

float Sampler::penalty(int64_t n_in_answer) const {
  return static_cast<float>(options_.presence_penalty + options_.frequency_penalty * static_cast<double>(n_in_answer));
}

void Sampler::adjust(std::span<float> logits) const {
  const auto repetition = static_cast<float>(options_.repetition_penalty);
  for (const auto& [id, seen] : seen_) {
    float& logit = logits[static_cast<size_t>(id)];
    if (repetition != 1) logit = logit < 0 ? logit * repetition : logit / repetition;
    if (seen.n_in_answer > 0) logit -= penalty(seen.n_in_answer);
  }
  for (const auto& [id, bias] : options_.logit_bias) logits[static_cast<size_t>(id)] += bias;
}

void Sampler::append_changes(int32_t row, std::vector<LogitChange>& to) const {
  const size_t first = to.size();
  for (const auto& [id, seen] : seen_) {
    LogitChange change{.row = row, .id = id, .repetition = static_cast<float>(options_.repetition_penalty)};
    if (seen.n_in_answer > 0) change.minus = penalty(seen.n_in_answer);
    to.push_back(change);
  }
  for (const auto& [id, bias] : options_.logit_bias) {
    const auto changed = std::find_if(to.begin() + static_cast<std::ptrdiff_t>(first), to.end(),
                                      [id = id](const LogitChange& c) { return c.id == id; });
    if (seen_.count(id) > 0)
      changed->plus = bias;
    else
      to.push_back({.row = row, .id = id, .plus = bias});
  }
}

/// Logits below this are not drawn.
float Sampler::least_drawn(float best) const {
  const auto temperature = static_cast<float>(options_.temperature);
  return std::nextafter(best - static_cast<float>(kLog2To53) * temperature, kMinusInfinity);
}

LogitsWanted logits_for(std::span<const CandidateQuery> queries, std::span<const LogitChange> changes) {
  if (queries.size() != 1 || !changes.empty()) return LogitsWanted::all;
  const auto [k, within] = queries[0];
  return within >= 0 && 0 < k && k <= kLikeliest ? LogitsWanted::likeliest : LogitsWanted::all;
}

CandidateQuery Sampler::query(int64_t vocab_size) const {
  if (options_.temperature == 0) return {.k = 1, .within = 0};
  constexpr int64_t kMostWanted = 512;
  const bool has_k = options_.top_k > 0 && options_.top_k < vocab_size && options_.top_k <= kMostWanted;
  const double below = 1.001 * options_.temperature;  // a little more than is asked for: `sample` looks again
  if (has_k) return {.k = static_cast<int32_t>(options_.top_k), .within = static_cast<float>(below * kLog2To53)};
  if (options_.min_p > 0 && options_.top_p >= 1 && options_.top_k == 0)
    return {.k = 0, .within = static_cast<float>(below * -std::log(std::min(1.0, options_.min_p)) + 1e-3)};
  return {};
}

void Sampler::consider(float logit, int32_t id, float best) {
  choices_.push_back({logit, (logit - best) / static_cast<float>(options_.temperature), id, 0});
}

int32_t Sampler::sample(const Candidates& candidates) {
  float best = kMinusInfinity;
  for (const Candidate& c : candidates.found) best = c.logit > best ? c.logit : best;
  check_best(best);
  if (options_.temperature == 0)
    return std::find_if(candidates.found.begin(), candidates.found.end(),
                        [best](const Candidate& c) { return c.logit == best; })
        ->id;
  const float least = least_drawn(best);
  choices_.clear();
  for (const Candidate& c : candidates.found)
    if (c.logit >= least) consider(c.logit, c.id, best);
  return draw();
}

int32_t Sampler::sample(std::span<const float> logits) {
  find_block_largest(logits, block_largest_);
  const auto best_block = std::max_element(block_largest_.begin(), block_largest_.end());
  const float best = *best_block;
  check_best(best);
  if (options_.temperature == 0) {
    const auto from = logits.begin() + (best_block - block_largest_.begin()) * static_cast<std::ptrdiff_t>(kBlock);
    return static_cast<int32_t>(std::find(from, logits.end(), best) - logits.begin());
  }
  const auto k = static_cast<size_t>(options_.top_k);
  float least = least_drawn(best);
  if (k > 0 && k < logits.size()) least = std::max(least, lower_bound_of_kth(block_largest_, k));
  choices_.clear();
  for_each_at_least(logits, block_largest_, least,
                    [&](size_t id) { consider(logits[id], static_cast<int32_t>(id), best); });
  return draw();
}

/// top-k of the choices, which are in the order of their ids, then the rest, then the draw.
int32_t Sampler::draw() {
  const auto k = static_cast<size_t>(options_.top_k);
  if (k > 0 && k < choices_.size()) {
    const auto kth = choices_.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(choices_.begin(), kth, choices_.end(),
                     [](const Choice& a, const Choice& b) { return a.raw > b.raw; });
    // Ties with the k-th stay, as in Hugging Face.
    std::erase_if(choices_, [at_least = kth->raw](const Choice& c) { return c.raw < at_least; });
    std::sort(choices_.begin(), choices_.end(), [](const Choice& a, const Choice& b) { return a.id < b.id; });
  }
  for (Choice& c : choices_) c.weight = std::exp(static_cast<double>(c.logit));
  keep_likeliest();
  double total = 0;
  for (const Choice& c : choices_) total += c.weight;
  double target = static_cast<double>(generator_() >> 11) * 0x1p-53 * total;
  for (const Choice& c : choices_) {
    target -= c.weight;
    if (target < 0) return c.id;
  }
  return choices_.back().id;
}

/// Leaves the choices that top-p and then min-p keep, likeliest first after top-p, else by id. At least one stays.
void Sampler::keep_likeliest() {
  if (options_.top_p < 1) keep_mass();
  if (options_.min_p > 0) std::erase_if(choices_, [this](const Choice& c) { return c.weight < options_.min_p; });
}

/// top-p. Few candidates are kept out of very many, mostly: so ever more of the likeliest are sorted, until it is
/// enough.
void Sampler::keep_mass() {
  const auto is_likelier = [](const Choice& a, const Choice& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  };
  double total = 0, before = 0;
  for (const Choice& c : choices_) total += c.weight;
  size_t kept = 0, n_sorted = 0;
  while (kept < choices_.size() && (kept == 0 || before < options_.top_p * total)) {
    if (kept == n_sorted) {
      const auto from = choices_.begin() + static_cast<std::ptrdiff_t>(n_sorted);
      n_sorted = std::min(choices_.size(), std::max<size_t>(256, 8 * n_sorted));
      const auto to = choices_.begin() + static_cast<std::ptrdiff_t>(n_sorted);
      if (to != choices_.end()) std::nth_element(from, to, choices_.end(), is_likelier);
      std::sort(from, to, is_likelier);
    }
    before += choices_[kept++].weight;
  }
  choices_.resize(kept);
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
