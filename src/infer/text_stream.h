// TextStream: from token ids to pieces of text that are certain. Enters: ids one by one. Leaves: text that never splits
// a code point and never holds a part of a stop text, with the ids that end in it. Invariant: all pieces put together
// are decode() of the ids, cut before the first stop text.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "infer/request.h"
#include "tokenizer/tokenizer.h"

namespace saaz {

/// The bytes a token stands for: a byte piece's byte, other pieces' text with spaces; nothing for control tokens.
std::string token_bytes(const Tokenizer& tokenizer, int32_t id);

class TextStream {
 public:
  /// `tokenizer` may be null: no text then, and every id at once. `stop` outlives the stream.
  TextStream(const Tokenizer* tokenizer, const std::vector<std::string>& stop);

  /// Adds the text and tokens that became certain by this token to `delta`. Returns whether a stop text was found: then
  /// delta.stop names it and nothing may follow.
  bool push(TokenLogprob token, Delta& delta);
  /// The rest, when the answer ends without a stop text. Returns whether one was found in it.
  bool finish(Delta& delta);

 private:
  struct Held {
    TokenLogprob token;
    size_t begin, end;  // of its text in the answer; end unknown (npos) while its bytes wait for their run to end
  };
  bool take(const std::string& text, Delta& delta);
  void release(size_t end, Delta& delta);

  const std::vector<std::string>& stop_;
  std::optional<StreamDecoder> decoder_;
  std::string held_text_;  // decoded, may be the start of a stop text
  size_t n_released_ = 0;  // bytes given out
  std::deque<Held> held_;
};

}  // namespace saaz
