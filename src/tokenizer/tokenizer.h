// Tokenizer: text to token ids and back, as Hugging Face's Gemma tokenizer does it. Enters: a checked Vocabulary; text
// in which invalid UTF-8 bytes count as U+FFFD. Leaves: ids inside the vocabulary. Invariants: under
// ControlTokens::as_text no control id is ever produced; decode(encode(x)) = x for valid text without U+2581. Source:
// gemma3n.md 9.2.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/bpe.h"
#include "tokenizer/token_matcher.h"
#include "tokenizer/vocabulary.h"

namespace saaz {

/// How text that spells a control token is read. as_text: as ordinary characters, for anything a person or a file says.
/// parse: as the control token, as Hugging Face does by default; only for text that is trusted, or to compare with it.
enum class ControlTokens { as_text, parse };
/// yes: bos comes first, where the tokenizer's file says so.
enum class AddBos { no, yes };
/// yes: control tokens leave no text.
enum class SkipSpecial { no, yes };

/// A stretch of a prompt. Control tokens are recognised only inside `template_text`.
struct Segment {
  enum class Origin { template_text, user_text };
  enum class Loss { masked, trained };
  std::string text;
  Origin origin = Origin::user_text;
  Loss loss = Loss::masked;
};

/// A token and the segment in which its first byte lies.
struct SegmentToken {
  int32_t id = 0;
  uint32_t segment = 0;
};

class Tokenizer {
 public:
  explicit Tokenizer(Vocabulary vocabulary);
  Tokenizer(Tokenizer&&) = default;

  /// Ids of `text` (below 2 GiB).
  std::vector<int32_t> encode(std::string_view text, ControlTokens control, AddBos bos) const;
  /// Ids of the concatenated segments: those of encode(concatenation, parse), except that a control token must lie
  /// wholly inside adjacent template segments. So their number depends on the template segments alone. No bos is added.
  std::vector<SegmentToken> encode_segments(std::span<const Segment> segments) const;
  /// The text of `ids`; unknown ids leave none. A run of byte pieces that is not valid UTF-8 gives one U+FFFD for each
  /// byte.
  std::string decode(std::span<const int32_t> ids, SkipSpecial skip) const;

  size_t size() const { return vocabulary_.pieces.size(); }
  /// True for control tokens and the unknown token.
  bool is_control(int32_t id) const;
  /// The id of a control or user-defined token, by its text.
  std::optional<int32_t> find_token(std::string_view text) const;
  /// The ids that end an answer: eos, <eos> and <end_of_turn>, where the vocabulary has them; ascending.
  std::vector<int32_t> stop_ids() const;
  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  void append_tokens(std::string_view text, size_t begin, size_t end, const TokenMatcher& matcher,
                     std::vector<Symbol>& out) const;
  void append_fragment(std::string_view text, size_t begin, size_t end, std::vector<Symbol>& out) const;
  void append_code_point(std::string_view bytes, uint32_t code_point, size_t begin, std::vector<Symbol>& out) const;

  Vocabulary vocabulary_;
  MergeTable merges_;
  TokenMatcher all_tokens_, user_defined_, control_;
  std::vector<int32_t> id_of_code_point_;  // up to the highest with a piece; -1 = none
  std::vector<int32_t> id_of_byte_;
};

/// Decodes ids one by one. The pieces returned by all `push` calls and `finish`, put together, equal decode() of the
/// ids. Never splits a code point: byte pieces are held back until their run ends.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, SkipSpecial skip) : tokenizer_(tokenizer), skip_(skip) {}
  /// The text that became certain by `id`; often empty.
  std::string push(int32_t id);
  /// The text held back.
  std::string finish();
  bool holds_bytes() const { return !held_bytes_.empty(); }

 private:
  const Tokenizer& tokenizer_;
  SkipSpecial skip_;
  std::string held_bytes_;
};

/// A tokenizer from a file: tokenizer.json, or a SentencePiece model when the name ends in ".model". For a directory:
/// its tokenizer.json, else its tokenizer.model.
Tokenizer load_tokenizer(const std::filesystem::path& path);

}  // namespace saaz
