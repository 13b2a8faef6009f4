// What the tokenizer tests share: the real tokenizer's files (unpacked into the build folder), loaded once per program,
// and a small vocabulary for tests that break things.
#pragma once

#include <string>
#include <vector>

#include "base/system.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/tokenizer_json.h"

namespace saaz {

inline const fs::path kGoldenTokenizer = fs::path(SAAZ_BINARY_DIR) / "tests" / "golden-tokenizer" / "tokenizer.json";

inline Bytes bytes_of(std::string_view text) { return {reinterpret_cast<const std::byte*>(text.data()), text.size()}; }

inline const Tokenizer& real_tokenizer() {
  static const Tokenizer tokenizer = load_tokenizer(kGoldenTokenizer);
  return tokenizer;
}

/// pad eos bos unk, both turn tokens, "\n", "\n\n", 256 bytes, and a few pieces that merge: ids 0 to 6, 7, 8 to 263,
/// 264 on.
inline Vocabulary small_vocabulary() {
  Vocabulary out{.source = "small"};
  for (const char* text : {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"}) {
    out.pieces.push_back({text, PieceType::control});
  }
  out.pieces.push_back({"\n", PieceType::user_defined});
  out.pieces.push_back({"\n\n", PieceType::user_defined});
  for (int byte = 0; byte < 256; ++byte)
    out.pieces.push_back({byte_piece_text(static_cast<uint8_t>(byte)), PieceType::byte});
  for (const char* text : {"ab", "abc", "▁", "a", "b", "c", "س"}) out.pieces.push_back({text, PieceType::normal});
  out.pad = 0, out.eos = 1, out.bos = 2, out.unk = 3;
  out.pieces[3].type = PieceType::unknown;
  for (size_t id = 264; id < out.pieces.size(); ++id) out.pieces[id].score = 264.0f - static_cast<float>(id);
  out.merges = merges_from_pieces(out, PieceIndex(out.pieces, out.source));
  return out;
}

/// `vocabulary` as a GGUF file stores it (gemma3n.md 9.3).
inline GgufVocabulary gguf_of(const Vocabulary& vocabulary) {
  GgufVocabulary out{.source = "gguf"};
  out.bos = vocabulary.bos, out.eos = vocabulary.eos, out.unk = vocabulary.unk, out.pad = vocabulary.pad;
  for (const Piece& piece : vocabulary.pieces) {
    const bool by_name = is_gemma_placeholder(piece.text);
    const PieceType type = by_name || piece.type == PieceType::unknown ? PieceType::control : piece.type;
    std::string text = piece.text;
    if (type == PieceType::user_defined) {
      for (size_t at; (at = text.find(kSpaceMark)) != std::string::npos;) text.replace(at, kSpaceMark.size(), " ");
    }
    out.tokens.push_back(text);
    out.scores.push_back(piece.type == PieceType::normal ? piece.score : -1000.0f);
    out.token_types.push_back(static_cast<int32_t>(type));
  }
  return out;
}

}  // namespace saaz
