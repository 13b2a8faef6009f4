// Vocabulary: what every tokenizer file says, in one form. Enters: pieces from tokenizer.json, GGUF or tokenizer.model.
// Leaves: pieces by id, and the merges in rank order. Invariant after `complete`: texts are unique, short, valid UTF-8;
// every byte has its piece; every merge joins two pieces into a third that is no control token. Source: gemma3n.md 9.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace saaz {

/// Numbered as GGUF and SentencePiece number them.
enum class PieceType : uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581, what a space becomes
constexpr size_t kMaxPieces = 1 << 21;
constexpr size_t kMaxPieceBytes = 1024;
constexpr size_t kMaxMissingIds = 4096;  // 3n leaves a hole between its vision and audio ids

struct Piece {
  std::string text;
  PieceType type = PieceType::unused;
  float score = 0;  // normal pieces: a higher score merges earlier
};

struct Merge {
  int32_t left = 0, right = 0, result = 0;
};

struct Vocabulary {
  std::string source;  // the file, for messages
  std::vector<Piece> pieces;
  std::vector<Merge> merges;  // best first
  std::optional<int32_t> bos, eos, unk, pad;
  bool add_bos = true;  // encode() may prepend bos
};

/// Text to id for the pieces that have a text (all but unused ones). Refers to `pieces`, which must outlive it
/// unchanged. Throws bad_input when two ids share a text.
class PieceIndex {
 public:
  PieceIndex(const std::vector<Piece>& pieces, const std::string& source);
  std::optional<int32_t> find(std::string_view text) const;

 private:
  struct Slot {
    int32_t id = -1;    // -1 = empty
    uint32_t hash = 0;  // spares most look-ups of the wrong text
  };
  size_t slot_of(std::string_view text, uint32_t hash) const;
  const std::vector<Piece>& pieces_;
  std::vector<Slot> slots_;  // open addressing
};

/// "<0x4A>" for 0x4A, and back.
std::string byte_piece_text(uint8_t byte);
std::optional<uint8_t> byte_of_piece(std::string_view text);

/// True for the turn and media markers of Gemma 3 and 3n, which tokenizer.model stores as user-defined pieces although
/// they steer the model: here they are control tokens.
bool is_gemma_control(std::string_view text);
/// True for the pieces that GGUF writers call control by their name alone, while the tokenizer matches them in any
/// text.
bool is_gemma_placeholder(std::string_view text);

/// The text llama.cpp gives to an id that no piece has.
std::string missing_piece_text(size_t id);

/// Checks the pieces and special ids; throws bad_input naming the source and the id.
void check_vocabulary(const Vocabulary& vocabulary);
/// The merges that a vocabulary implies (gemma3n.md 9.3): every split of a piece into two pieces, by the piece's score,
/// then the longest left half, then the longest right half, then id. User-defined pieces (runs of spaces, newlines,
/// tabs) count as the best score: Gemma's best normal piece has 0 as they do. Equals the list of the real
/// tokenizer.json, in order.
std::vector<Merge> merges_from_pieces(const Vocabulary& vocabulary, const PieceIndex& index);
/// Scores that order the normal pieces as `merges` does: 0, -1, -2, ... and then the pieces no merge makes, by id.
void scores_from_merges(Vocabulary& vocabulary);

/// The vocabulary of a GGUF file's header (tokenizer.ggml.*), as plain arrays of equal length.
struct GgufVocabulary {
  std::string source;
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> token_types;
  std::optional<int64_t> bos, eos, unk, pad;
  bool add_bos = true;
};
/// Spaces of user-defined tokens become the space mark again, `<unusedN>` and its like are matched in text as HF does.
Vocabulary vocabulary_from_gguf(GgufVocabulary gguf);

}  // namespace saaz
