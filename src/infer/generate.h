// Generation: several prompts at once from one model, token by token, through a key/value cache. A sequence's ids do
// not depend on its neighbours: rows are independent in every kernel and each sequence has its own sampler.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "infer/sampler.h"
#include "model/pass.h"

namespace saaz {

struct GenerateOptions {
  SamplingOptions sampling;
  int64_t max_new_tokens = 256;
  std::vector<int32_t> stop_ids;  // not part of the answer
};

struct Answer {
  enum class Finish { stop, length, interrupted };
  std::vector<int32_t> ids;
  Finish finish = Finish::length;
};

/// Called with each new id of a sequence; return false to end that sequence.
using OnToken = std::function<bool(size_t sequence, int32_t id)>;

class Generator {
 public:
  static constexpr int64_t kMaxChunk = 256;

  /// Room for n_sequences of max_length tokens each (prompt and answer).
  Generator(Backend& backend, const Model& model, int64_t n_sequences, int64_t max_length);

  /// Answers all prompts (at most n_sequences of at least one token). resource when a prompt leaves no room for an
  /// answer.
  std::vector<Answer> generate(std::span<const std::vector<int32_t>> prompts, const GenerateOptions& options,
                               const OnToken& on_token);

 private:
  std::vector<float> prefill(size_t sequence, std::span<const int32_t> prompt);

  Backend& backend_;
  const Model& model_;
  int64_t max_length_;
  KvCache cache_;
  std::unique_ptr<PassMemory> memory_;
};

/// Work and store bytes of the largest inference pass of up to `n_tokens` tokens and `n_rows` rows of logits.
struct PassBytes {
  int64_t work = 0, store = 0;
};
PassBytes inference_bytes(const Model& model, int64_t n_tokens, int64_t n_rows);

}  // namespace saaz
