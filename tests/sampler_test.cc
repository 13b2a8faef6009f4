// Sampling against a reference written from the published formulas, step by step over the whole vocabulary in f64:
// which tokens stay, how often each is drawn, and how penalties move the logits.
#include "infer/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "base/error.h"

namespace saaz {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

std::vector<float> random_logits(size_t n, uint32_t seed, float spread) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(n);
  for (float& logit : logits) logit = normal(generator);
  return logits;
}

/// Probabilities after temperature, top-k, top-p and min-p, in that order; 0 for what is out.
std::vector<double> reference(const std::vector<float>& logits, const SamplingOptions& o) {
  const size_t n = logits.size();
  std::vector<double> scores(logits.begin(), logits.end());
  for (double& score : scores) score /= o.temperature;
  const auto probabilities = [&] {
    const double best = *std::max_element(scores.begin(), scores.end());
    std::vector<double> p(n);
    double total = 0;
    for (size_t i = 0; i < n; ++i) total += p[i] = std::exp(scores[i] - best);
    for (double& value : p) value /= total;
    return p;
  };
  if (o.top_k > 0 && static_cast<size_t>(o.top_k) < n) {
    std::vector<double> sorted = scores;
    std::sort(sorted.rbegin(), sorted.rend());
    for (double& score : scores)
      if (score < sorted[static_cast<size_t>(o.top_k) - 1]) score = kMinusInfinity;
  }
  if (o.top_p < 1) {
    const std::vector<double> p = probabilities();
    std::vector<size_t> order(n);
    for (size_t i = 0; i < n; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
    double before = 0;
    for (size_t i = 0; i < n; ++i) {
      if (i > 0 && before >= o.top_p) scores[order[i]] = kMinusInfinity;
      before += p[order[i]];
    }
  }
  if (o.min_p > 0) {
    const std::vector<double> p = probabilities();
    const double best = *std::max_element(p.begin(), p.end());
    for (size_t i = 0; i < n; ++i)
      if (p[i] < o.min_p * best) scores[i] = kMinusInfinity;
  }
  return probabilities();
}

TEST(Sampler, DrawsTheReferenceDistribution) {
  const std::vector<SamplingOptions> all = {
      {.temperature = 1},
      {.temperature = 0.7, .top_k = 10},
      {.temperature = 1.3, .top_p = 0.8},
      {.temperature = 0.9, .min_p = 0.1},
      {.temperature = 1.1, .top_k = 40, .top_p = 0.9, .min_p = 0.02},
      {.temperature = 2, .top_k = 1},
      {.temperature = 5, .top_k = 700, .top_p = 0.5},
      {.temperature = 1, .top_p = 0},
  };
  constexpr int kDraws = 6000;
  for (size_t which = 0; which < all.size(); ++which) {
    SamplingOptions options = all[which];
    options.seed = which + 1;
    const std::vector<float> logits = random_logits(1500, static_cast<uint32_t>(which), 2.5f);
    const std::vector<double> expected = reference(logits, options);
    std::map<int32_t, int> counts;
    Sampler sampler(options, 0, {});
    for (int i = 0; i < kDraws; ++i) ++counts[sampler.sample(logits)];
    double chi_squared = 0, rest_expected = 0, rest_found = 0;
    int degrees = 0;
    for (size_t id = 0; id < expected.size(); ++id) {
      const auto it = counts.find(static_cast<int32_t>(id));
      const double found = it == counts.end() ? 0 : it->second, mean = expected[id] * kDraws;
      if (expected[id] == 0) {
        EXPECT_EQ(found, 0) << "options " << which << " id " << id;
      } else if (mean < 10) {
        rest_expected += mean, rest_found += found;
      } else {
        chi_squared += (found - mean) * (found - mean) / mean;
        ++degrees;
      }
    }
    if (rest_expected > 10) chi_squared += (rest_found - rest_expected) * (rest_found - rest_expected) / rest_expected;
    // Mean degrees, variance twice that: six standard deviations are passed once in some 10^5 seeds, and seeds are
    // fixed.
    EXPECT_LT(chi_squared, degrees + 6 * std::sqrt(2.0 * degrees) + 6) << "options " << which;
  }
}

TEST(Sampler, GreedyTakesTheLowestIdOfEquals) {
  std::vector<float> logits(5000, -1.0f);
  logits[700] = logits[701] = logits[4999] = 3.0f;
  Sampler sampler({}, 0, {});
  EXPECT_EQ(sampler.sample(logits), 700);
  logits[2] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(sampler.sample(logits), 700);
}

TEST(Sampler, NothingFiniteIsAnError) {
  Sampler sampler({.temperature = 1}, 0, {});
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float value : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()})
    EXPECT_THROW(sampler.sample(std::vector<float>(100, value)), Error);
}

TEST(Sampler, PenaltiesAndBias) {
  const std::vector<int32_t> prompt = {1, 2, 2};
  Sampler sampler({.repetition_penalty = 2,
                   .presence_penalty = 0.5,
                   .frequency_penalty = 0.25,
                   .logit_bias = {{4, 10.0f}, {2, -1.0f}}},
                  0, prompt);
  for (const int32_t id : {2, 3, 3}) sampler.accept(id);
  std::vector<float> logits = {1, 1, -1, 4, 0, 1};
  sampler.adjust(logits);
  // 1: prompt only. 2: prompt and once in the answer. 3: twice in the answer. 4: bias.
  EXPECT_EQ(logits, (std::vector<float>{1, 0.5f, -2 - 0.75f - 1, 2 - 1, 10, 1}));
}

TEST(Sampler, DrawsDependOnSeedAndStreamAlone) {
  const std::vector<float> logits = random_logits(300, 1, 1);
  const auto draws = [&](uint64_t seed, uint64_t stream) {
    Sampler sampler({.temperature = 1, .seed = seed}, stream, {});
    std::vector<int32_t> out;
    for (int i = 0; i < 20; ++i) out.push_back(sampler.sample(logits));
    return out;
  };
  EXPECT_EQ(draws(1, 0), draws(1, 0));
  EXPECT_NE(draws(1, 0), draws(2, 0));
  EXPECT_NE(draws(1, 0), draws(1, 1));
  EXPECT_NE(draws(1, 0), draws((uint64_t{1} << 32) + 1, 0));
}

TEST(Sampler, LargestLogitsAndTheirSum) {
  for (const size_t n : {size_t{1}, size_t{7}, size_t{511}, size_t{512}, size_t{3000}}) {
    const std::vector<float> logits = random_logits(n, static_cast<uint32_t>(n), 3);
    std::vector<std::pair<int32_t, float>> sorted;
    double sum = 0;
    for (size_t i = 0; i < n; ++i) {
      sorted.emplace_back(static_cast<int32_t>(i), logits[i]);
      sum += std::exp(static_cast<double>(logits[i]));
    }
    std::sort(sorted.begin(), sorted.end(), [](auto& a, auto& b) { return a.second > b.second; });
    sorted.resize(std::min<size_t>(n, 5));
    EXPECT_EQ(largest_logits(logits, 5), sorted);
    // Each term is an f32 exponential: 2 eps of it; the sum and the logarithm are f64.
    EXPECT_NEAR(log_sum_exp(logits), std::log(sum), 4 * 0x1p-24);
  }
}

/// What Backend::find_candidates promises, the slow way.
Candidates candidates_of(const std::vector<float>& logits, const CandidateQuery& query) {
  std::vector<float> sorted = logits;
  std::sort(sorted.rbegin(), sorted.rend());
  const float kth = query.k > 0 ? sorted[static_cast<size_t>(query.k - 1)] : sorted.back();
  Candidates out{.complete = true};
  for (size_t id = 0; id < logits.size(); ++id)
    if (logits[id] >= kth && logits[id] >= sorted[0] - query.within)
      out.found.push_back({static_cast<int32_t>(id), logits[id]});
  return out;
}

/// The least that a head makes of LogitsWanted::likeliest.
std::vector<float> only_likeliest(std::vector<float> logits) {
  std::vector<float> sorted = logits;
  std::nth_element(sorted.begin(), sorted.begin() + kLikeliest - 1, sorted.end(), std::greater<>());
  for (float& x : logits) x = x < sorted[kLikeliest - 1] ? -std::numeric_limits<float>::infinity() : x;
  return logits;
}

TEST(Sampler, TheLikeliestAreEnoughForFew) {
  const auto wanted = [](const SamplingOptions& options, const std::vector<LogitChange>& changes = {}) {
    const CandidateQuery query = Sampler(options, 0, {}).query(5000);
    return logits_for({&query, 1}, changes);
  };
  const SamplingOptions few[] = {{},
                                 {.temperature = 1, .top_k = 64},
                                 {.temperature = 2, .top_k = 64, .top_p = 0.9, .min_p = 0.01},
                                 {.temperature = 0.7, .top_k = 1}};
  for (const SamplingOptions& options : few) {
    EXPECT_EQ(wanted(options), LogitsWanted::likeliest);
    EXPECT_EQ(wanted(options, {LogitChange{.row = 0, .id = 7}}), LogitsWanted::all);
    for (uint32_t seed = 0; seed < 20; ++seed) {
      std::vector<float> logits = random_logits(5000, seed, 4);
      for (size_t i = 0; i < logits.size(); i += 2) logits[i] = std::round(logits[i]);  // ties, with the last too
      Sampler whole(options, seed, {}), sparse(options, seed, {});
      for (int draw = 0; draw < 50; ++draw) ASSERT_EQ(sparse.sample(only_likeliest(logits)), whole.sample(logits));
    }
  }
  EXPECT_EQ(wanted({.temperature = 1, .top_k = 65}), LogitsWanted::all);
  EXPECT_EQ(wanted({.temperature = 1}), LogitsWanted::all);
  EXPECT_EQ(wanted({.temperature = 1, .min_p = 0.5}), LogitsWanted::all);
  const CandidateQuery greedy[] = {{.k = 1, .within = 0}, {.k = 1, .within = 0}}, nothing{};
  EXPECT_EQ(logits_for(greedy, {}), LogitsWanted::all);
  EXPECT_EQ(logits_for({&nothing, 1}, {}), LogitsWanted::all) << "log probabilities, a guard, a grammar";
}

TEST(Sampler, CandidatesAreEnough) {
  const std::vector<SamplingOptions> all = {
      {},
      {.repetition_penalty = 1.3},
      {.temperature = 1, .top_k = 64, .top_p = 0.95},
      {.temperature = 0.7, .top_k = 1},
      {.temperature = 1.5, .top_k = 400, .repetition_penalty = 0.8, .presence_penalty = 0.5, .frequency_penalty = 0.25},
      {.temperature = 0.1, .top_k = 400, .min_p = 1e-3},
      {.temperature = 0.5, .min_p = 0.2, .logit_bias = {{17, 9.0f}, {4, -3.0f}}}};
  for (uint32_t seed = 0; seed < 20; ++seed) {
    std::vector<float> logits = random_logits(5000, seed, 4);
    for (size_t i = 0; i < logits.size(); i += 3) logits[i] = std::round(logits[i]);  // ties
    for (const SamplingOptions& options : all) {
      const std::vector<int32_t> prompt = {4, 17, 1000};
      Sampler whole(options, seed, prompt), sparse(options, seed, prompt);
      for (Sampler* sampler : {&whole, &sparse})
        for (const int32_t id : {9, 17, 17, 2000}) sampler->accept(id);
      std::vector<float> adjusted = logits, changed = logits;
      whole.adjust(adjusted);
      std::vector<LogitChange> changes;
      sparse.append_changes(3, changes);
      for (const LogitChange& c : changes) {
        EXPECT_EQ(c.row, 3);
        float& x = changed[static_cast<size_t>(c.id)];
        x = x < 0 ? x * c.repetition : x / c.repetition;
        x = x - c.minus;
        x = x + c.plus;
      }
      ASSERT_EQ(changed, adjusted);
      const CandidateQuery query = sparse.query(5000);
      ASSERT_GE(query.within, 0);
      const Candidates found = candidates_of(changed, query);
      for (int draw = 0; draw < 50; ++draw) ASSERT_EQ(sparse.sample(found), whole.sample(adjusted)) << "seed " << seed;
    }
  }
  EXPECT_LT(Sampler({.temperature = 1, .top_p = 0.9}, 0, {}).query(5000).within, 0) << "its mass is over all tokens";
  EXPECT_LT(Sampler({.temperature = 1}, 0, {}).query(5000).within, 0);
}

}  // namespace
}  // namespace saaz
