// The probes of a training run: fixed prompts that the model answers again and again, greedily, so that people see what
// it learns. Enters: the prompts' text and the base's tokenizer. Leaves: the body of a "probes" event: each prompt,
// its answer and the answer's health (data/text_health.h), and the health of all answers together. Invariant: the model
// and the training are as before; the same model gives the same answers.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "base/value.h"
#include "infer/engine.h"
#include "model/model.h"
#include "tokenizer/tokenizer.h"

namespace saaz {

class Probes {
 public:
  static constexpr int64_t kMaxNewTokens = 96;
  static constexpr size_t kMaxPrompts = 64;

  /// `text`: one prompt a line; blank lines and lines that start with "# " are left out. `name` starts the messages.
  /// bad_input when it is no UTF-8, has no prompt or too many, or one that leaves no room for an answer in
  /// `max_positions` tokens.
  Probes(Tokenizer tokenizer, std::string_view text, const std::string& name, int64_t max_positions);
  /// Once `stop_signal` is not 0 it returns early, with answers of no use.
  Value answer(Backend& backend, Model& model) const;

  /// What a round allocates while it lasts.
  int64_t bytes(const Backend& like, const Model& model) const;
  /// What a round takes at most, from a few tokens of each answer that really run.
  double seconds(Backend& backend, Model& model) const;

 private:
  EngineOptions options_for(const Model& model) const;
  std::vector<Completion> complete(Backend& backend, Model& model, int64_t max_tokens) const;

  Tokenizer tokenizer_;
  std::vector<std::string> prompts_;
  std::vector<std::vector<int32_t>> ids_;  // with the chat template
  int64_t max_length_ = 0;                 // of the longest prompt and its answer
};

}  // namespace saaz
