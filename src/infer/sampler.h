// Sampling of the next token from logits, in Hugging Face's order: repetition penalty, temperature, top-k, top-p,
// min-p. A sampler belongs to one sequence: its draws depend on its seed and on how many it made, not on other
// sequences.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <utility>
#include <vector>

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

class Sampler {
 public:
  Sampler(const SamplingOptions& options, uint64_t stream);
  /// The next id; `seen` are the ids of the prompt and the answer so far. Greedy takes the lowest id of equals.
  /// diverged when no logit is finite.
  int32_t sample(std::span<const float> logits, std::span<const int32_t> seen);

 private:
  struct Candidate {
    float logit;
    int32_t id;
  };
  void keep_candidates(std::vector<Candidate>& candidates) const;

  SamplingOptions options_;
  std::mt19937_64 generator_;
  std::vector<float> logits_;
};

}  // namespace saaz
