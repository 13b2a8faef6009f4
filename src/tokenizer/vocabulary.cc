// Checks and derived parts of a Vocabulary: the text index, byte pieces, the merges that pieces and scores imply, and
// the GGUF form. Enters: untrusted pieces. Leaves: checked ones, or one bad_input Error that names the file and the id.
// Invariant: no step is worse than linear in the bytes of the pieces times kMaxPieceBytes.
#include "tokenizer/vocabulary.h"

#include <algorithm>
#include <bit>
#include <bitset>
#include <charconv>
#include <cmath>
#include <functional>
#include <tuple>

#include "base/check.h"
#include "base/unicode.h"

namespace saaz {

namespace {
uint32_t hash_of(std::string_view text) { return static_cast<uint32_t>(std::hash<std::string_view>{}(text)); }
}  // namespace

PieceIndex::PieceIndex(const std::vector<Piece>& pieces, const std::string& source)
    : pieces_(pieces), slots_(std::bit_ceil(pieces.size() + pieces.size() / 2 + 1)) {
  for (size_t id = 0; id < pieces.size(); ++id) {
    if (pieces[id].type == PieceType::unused) continue;
    const uint32_t hash = hash_of(pieces[id].text);
    Slot& slot = slots_[slot_of(pieces[id].text, hash)];
    if (slot.id >= 0) {
      fail(ExitCode::bad_input, "{}: piece '{}' has two ids, {} and {}: ids must be unique", source,
           printable(pieces[id].text), slot.id, id);
    }
    slot = {static_cast<int32_t>(id), hash};
  }
}

size_t PieceIndex::slot_of(std::string_view text, uint32_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = hash & mask;
  while (slots_[slot].id >= 0 && (slots_[slot].hash != hash || pieces_[slots_[slot].id].text != text))
    slot = (slot + 1) & mask;
  return slot;
}

std::optional<int32_t> PieceIndex::find(std::string_view text) const {
  const int32_t id = slots_[slot_of(text, hash_of(text))].id;
  return id < 0 ? std::nullopt : std::optional(id);
}

std::string byte_piece_text(uint8_t byte) { return fmt::format("<0x{:02X}>", byte); }

std::optional<uint8_t> byte_of_piece(std::string_view text) {
  uint8_t byte = 0;
  if (text.size() != 6) return std::nullopt;
  std::from_chars(text.data() + 3, text.data() + 5, byte, 16);
  return text == byte_piece_text(byte) ? std::optional(byte) : std::nullopt;
}

bool is_gemma_control(std::string_view text) {
  static constexpr std::string_view kNames[] = {"<pad>",
                                                "<eos>",
                                                "<bos>",
                                                "<start_of_turn>",
                                                "<end_of_turn>",
                                                "<start_of_image>",
                                                "<end_of_image>",
                                                "<start_of_audio>",
                                                "<end_of_audio>",
                                                "<image_soft_token>",
                                                "<audio_soft_token>"};
  return std::find(std::begin(kNames), std::end(kNames), text) != std::end(kNames);
}

bool is_gemma_placeholder(std::string_view text) {
  return text == "<mask>" || text == "<2mass>" || text == "[@BOS@]" || text.starts_with("<unused");
}

std::string missing_piece_text(size_t id) { return fmt::format("[PAD{}]", id); }

namespace {

void check_piece(const Vocabulary& vocabulary, size_t id) {
  const Piece& piece = vocabulary.pieces[id];
  check(!piece.text.empty(), ExitCode::bad_input, "{}: piece {} is empty", vocabulary.source, id);
  check(piece.text.size() <= kMaxPieceBytes, ExitCode::bad_input, "{}: piece {} is {} bytes long, the limit is {}",
        vocabulary.source, id, piece.text.size(), kMaxPieceBytes);
  // Not `check`: its arguments are made for every piece, and there are hundreds of thousands.
  if (const size_t invalid = find_invalid_utf8(piece.text); invalid != std::string_view::npos) {
    fail(ExitCode::bad_input, "{}: piece {} ('{}') is not valid UTF-8 at its byte {}", vocabulary.source, id,
         printable(piece.text), invalid);
  }
  if (!std::isfinite(piece.score)) {
    fail(ExitCode::bad_input, "{}: piece {} ('{}') has the score {}, which is no finite number", vocabulary.source, id,
         printable(piece.text), piece.score);
  }
}

void check_special_id(const Vocabulary& vocabulary, std::optional<int32_t> id, std::string_view name) {
  check(!id || (*id >= 0 && static_cast<size_t>(*id) < vocabulary.pieces.size()), ExitCode::bad_input,
        "{}: the {} id {} is outside the vocabulary of {} pieces", vocabulary.source, name, id.value_or(0),
        vocabulary.pieces.size());
}

/// A half or a result of a merge may be one of these; bytes and control tokens never are.
bool is_mergeable(PieceType type) { return type == PieceType::normal || type == PieceType::user_defined; }

struct RankedMerge {
  Merge merge;
  float score = 0;
  size_t left_points = 0, right_points = 0;  // code points of the halves
};

/// Appends the splits of piece `id` into two mergeable pieces.
void append_splits(const Vocabulary& vocabulary, const PieceIndex& index, int32_t id, float score,
                   std::vector<RankedMerge>& out) {
  const std::string_view text = vocabulary.pieces[id].text;
  std::vector<size_t> starts;  // byte offset of each code point
  for (size_t at = 0; at < text.size(); at += decode_utf8(text.substr(at)).length) starts.push_back(at);
  for (size_t i = 1; i < starts.size(); ++i) {
    const auto left = index.find(text.substr(0, starts[i]));
    if (!left || !is_mergeable(vocabulary.pieces[*left].type)) continue;
    const auto right = index.find(text.substr(starts[i]));
    if (!right || !is_mergeable(vocabulary.pieces[*right].type)) continue;
    out.push_back({{*left, *right, id}, score, i, starts.size() - i});
  }
}

}  // namespace

void check_vocabulary(const Vocabulary& vocabulary) {
  const auto& pieces = vocabulary.pieces;
  check(!pieces.empty() && pieces.size() <= kMaxPieces, ExitCode::bad_input, "{}: {} pieces; expected 1 to {}",
        vocabulary.source, pieces.size(), kMaxPieces);
  std::bitset<256> bytes;
  for (size_t id = 0; id < pieces.size(); ++id) {
    check_piece(vocabulary, id);
    if (pieces[id].type != PieceType::byte) continue;
    const auto byte = byte_of_piece(pieces[id].text);
    check(byte.has_value(), ExitCode::bad_input, "{}: piece {} is marked as a byte, but its text is '{}'",
          vocabulary.source, id, printable(pieces[id].text));
    bytes.set(*byte);
  }
  for (int byte = 0; byte < 256; ++byte) {
    check(bytes[byte], ExitCode::bad_input, "{}: the byte piece '{}' is missing: byte fallback needs all 256",
          vocabulary.source, byte_piece_text(static_cast<uint8_t>(byte)));
  }
  check_special_id(vocabulary, vocabulary.bos, "bos");
  check_special_id(vocabulary, vocabulary.eos, "eos");
  check_special_id(vocabulary, vocabulary.unk, "unk");
  check_special_id(vocabulary, vocabulary.pad, "pad");
  check(!vocabulary.add_bos || vocabulary.bos, ExitCode::bad_input, "{}: a bos token is to be added, but none is named",
        vocabulary.source);
}

std::vector<Merge> merges_from_pieces(const Vocabulary& vocabulary, const PieceIndex& index) {
  const auto& pieces = vocabulary.pieces;
  float highest = 0;  // user-defined runs share the best normal piece's score
  for (const Piece& piece : pieces) {
    if (piece.type == PieceType::normal) highest = std::max(highest, piece.score);
  }
  std::vector<RankedMerge> ranked;
  for (size_t id = 0; id < pieces.size(); ++id) {
    if (!is_mergeable(pieces[id].type)) continue;
    append_splits(vocabulary, index, static_cast<int32_t>(id),
                  pieces[id].type == PieceType::normal ? pieces[id].score : highest, ranked);
  }
  std::stable_sort(ranked.begin(), ranked.end(), [](const RankedMerge& a, const RankedMerge& b) {
    return std::tie(a.score, a.left_points, a.right_points) > std::tie(b.score, b.left_points, b.right_points);
  });
  std::vector<Merge> merges;
  merges.reserve(ranked.size());
  for (const RankedMerge& item : ranked) merges.push_back(item.merge);
  return merges;
}

void scores_from_merges(Vocabulary& vocabulary) {
  std::vector<bool> scored(vocabulary.pieces.size(), false);
  int64_t next = 0;
  const auto score = [&](size_t id) {
    if (vocabulary.pieces[id].type != PieceType::normal || scored[id]) return;
    scored[id] = true;
    vocabulary.pieces[id].score = static_cast<float>(-next++);
  };
  for (const Merge& merge : vocabulary.merges) score(merge.result);
  for (size_t id = 0; id < vocabulary.pieces.size(); ++id) score(id);
}

namespace {

PieceType type_from_gguf(const GgufVocabulary& gguf, size_t id) {
  const int32_t type = gguf.token_types[id];
  check(type >= 1 && type <= 6, ExitCode::bad_input, "{}: tokenizer.ggml.token_type[{}] is {}; expected 1 to 6",
        gguf.source, id, type);
  if (is_gemma_control(gguf.tokens[id])) return PieceType::control;
  const bool placeholder = type == 3 && is_gemma_placeholder(gguf.tokens[id]);
  return placeholder ? PieceType::user_defined : static_cast<PieceType>(type);
}

std::string replace_spaces(std::string_view text) {
  std::string out;
  for (const char c : text) c == ' ' ? out += kSpaceMark : out += c;
  return out;
}

std::optional<int32_t> narrow_id(const GgufVocabulary& gguf, std::optional<int64_t> id, std::string_view key) {
  if (!id) return std::nullopt;
  check(*id >= 0 && static_cast<uint64_t>(*id) < gguf.tokens.size(), ExitCode::bad_input,
        "{}: tokenizer.ggml.{} is {}, outside the vocabulary of {} tokens", gguf.source, key, *id, gguf.tokens.size());
  return static_cast<int32_t>(*id);
}

}  // namespace

Vocabulary vocabulary_from_gguf(GgufVocabulary gguf) {
  check(gguf.tokens.size() <= kMaxPieces, ExitCode::bad_input, "{}: {} tokens; at most {} are supported", gguf.source,
        gguf.tokens.size(), kMaxPieces);
  check(gguf.scores.size() == gguf.tokens.size() && gguf.token_types.size() == gguf.tokens.size(), ExitCode::bad_input,
        "{}: tokenizer.ggml has {} tokens, {} scores and {} token types: the three must be of equal length",
        gguf.source, gguf.tokens.size(), gguf.scores.size(), gguf.token_types.size());
  Vocabulary out{.source = gguf.source, .add_bos = gguf.add_bos};
  out.bos = narrow_id(gguf, gguf.bos, "bos_token_id");
  out.eos = narrow_id(gguf, gguf.eos, "eos_token_id");
  out.unk = narrow_id(gguf, gguf.unk, "unknown_token_id");
  out.pad = narrow_id(gguf, gguf.pad, "padding_token_id");
  out.pieces.reserve(gguf.tokens.size());
  for (size_t id = 0; id < gguf.tokens.size(); ++id) {
    const PieceType type = type_from_gguf(gguf, id);
    std::string text = type == PieceType::user_defined ? replace_spaces(gguf.tokens[id]) : std::move(gguf.tokens[id]);
    out.pieces.push_back({std::move(text), type, gguf.scores[id]});
  }
  if (out.unk) out.pieces[*out.unk].type = PieceType::unknown;
  check_vocabulary(out);
  const PieceIndex index(out.pieces, out.source);
  out.merges = merges_from_pieces(out, index);
  return out;
}

}  // namespace saaz
