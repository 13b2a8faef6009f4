// Sampling of the next token from logits. First the logits are adjusted: repetition penalty (as Hugging Face's),
// presence and frequency penalty (as OpenAI's), bias. Then, in Hugging Face's order: temperature, top-k, top-p, min-p,
// and a draw. A sampler belongs to one sequence: its draws depend on its seed and on how many it made, not on other
// sequences.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "backend/backend.h"

namespace saaz {

struct SamplingOptions {
  double temperature = 0;                             // 0: greedy
  int64_t top_k = 0;                                  // 0: off
  double top_p = 1;                                   // 1: off
  double min_p = 0;                                   // 0: off
  double repetition_penalty = 1;                      // 1: off; > 1 discourages tokens of the prompt and of the answer
  double presence_penalty = 0;                        // taken from the logits of tokens that the answer has
  double frequency_penalty = 0;                       // the same, for each time it has them
  std::vector<std::pair<int32_t, float>> logit_bias;  // added; ids distinct
  uint64_t seed = 0;
};

/// What is enough of the logits of a step's rows, of which samplers asked this. Only a step of one row leaves logits
/// out: those of more share one recording.
LogitsWanted logits_for(std::span<const CandidateQuery> queries, std::span<const LogitChange> changes);

class Sampler {
 public:
  Sampler(const SamplingOptions& options, uint64_t stream, std::span<const int32_t> prompt);
  /// Penalties and bias, in place.
  void adjust(std::span<float> logits) const;
  /// The next id. Greedy takes the lowest id of equals. Logits of -infinity are never drawn, nor are, when drawing,
  /// tokens of less than 2^-53 of the likeliest one's probability. diverged when no logit is finite.
  int32_t sample(std::span<const float> logits);
  /// The same from candidates that `query` asked for: of adjusted logits, and complete.
  int32_t sample(const Candidates& candidates);
  /// What is enough to sample from; within < 0: only all logits are.
  CandidateQuery query(int64_t vocab_size) const;
  /// What `adjust` changes in the given row, for Backend::find_candidates.
  void append_changes(int32_t row, std::vector<LogitChange>& to) const;
  /// The answer goes on with this id.
  void accept(int32_t id);

 private:
  struct Seen {
    bool in_prompt = false;
    int64_t n_in_answer = 0;
  };
  float penalty(int64_t n_in_answer) const;
  void consider(float logit, int32_t id, float best);
  float least_drawn(float best) const;
  int32_t draw();
  void keep_likeliest();
  void keep_mass();

  SamplingOptions options_;
  std::mt19937_64 generator_;
  std::unordered_map<int32_t, Seen> seen_;  // empty when no penalty asks for it
  bool counts_ = false;
  struct Choice {
    float raw, logit;  // logit: less the best, over the temperature
    int32_t id;
    double weight;  // exp(logit)
  };
  std::vector<Choice> choices_;
  std::vector<float> block_largest_;
};

/// log(sum of exp(logits)), in f64.
double log_sum_exp(std::span<const float> logits);
/// The k largest, best first, ties by id.
std::vector<std::pair<int32_t, float>> largest_logits(std::span<const float> logits, int64_t k);

}  // namespace saaz
