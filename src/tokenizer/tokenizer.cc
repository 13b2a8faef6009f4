// Encoding: control and user-defined tokens are cut out first, leftmost and longest; the fragments between them start
// as code points (bytes, where a code point has no piece) and are merged. Decoding: piece texts, spaces for marks,
// bytes joined. Enters: any bytes. Leaves: ids. Invariant: fragments never produce a control id, because no merge and
// no code point maps to one.
#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <cassert>
#include <set>

#include "base/check.h"
#include "base/system.h"
#include "base/unicode.h"
#include "tokenizer/sentencepiece_model.h"
#include "tokenizer/tokenizer_json.h"

namespace saaz {
namespace {

constexpr uint32_t kSpaceMarkCodePoint = 0x2581;

bool steers_the_model(PieceType type) { return type == PieceType::control || type == PieceType::unknown; }

template <class Wanted>
TokenMatcher matcher_of(const Vocabulary& vocabulary, Wanted wanted) {
  std::vector<TokenMatcher::Token> tokens;
  for (size_t id = 0; id < vocabulary.pieces.size(); ++id) {
    const Piece& piece = vocabulary.pieces[id];
    if (wanted(piece.type)) tokens.push_back({piece.text, static_cast<int32_t>(id)});
  }
  return TokenMatcher(std::move(tokens));
}

/// `text` with every invalid byte replaced by U+FFFD.
std::string valid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const CodePoint point = decode_utf8(text);
    if (point.valid) out += text.substr(0, point.length);
    if (!point.valid) append_utf8(out, point.value);
    text.remove_prefix(point.length);
  }
  return out;
}

std::vector<int32_t> ids_of(const std::vector<Symbol>& symbols) {
  std::vector<int32_t> ids;
  ids.reserve(symbols.size());
  for (const Symbol& symbol : symbols) ids.push_back(symbol.id);
  return ids;
}

}  // namespace

Tokenizer::Tokenizer(Vocabulary vocabulary)
    : vocabulary_(std::move(vocabulary)),
      merges_(vocabulary_.merges),
      all_tokens_(
          matcher_of(vocabulary_, [](PieceType t) { return t == PieceType::user_defined || steers_the_model(t); })),
      user_defined_(matcher_of(vocabulary_, [](PieceType t) { return t == PieceType::user_defined; })),
      control_(matcher_of(vocabulary_, steers_the_model)),
      id_of_code_point_(kSpaceMarkCodePoint + 1, -1),
      id_of_byte_(256, -1) {
  for (size_t id = 0; id < vocabulary_.pieces.size(); ++id) {
    const Piece& piece = vocabulary_.pieces[id];
    if (piece.type == PieceType::byte) id_of_byte_[byte_of_piece(piece.text).value()] = static_cast<int32_t>(id);
    if (piece.type != PieceType::normal && piece.type != PieceType::user_defined) continue;
    const CodePoint point = decode_utf8(piece.text);
    if (static_cast<size_t>(point.length) != piece.text.size()) continue;
    if (point.value >= id_of_code_point_.size()) id_of_code_point_.resize(point.value + 1, -1);
    id_of_code_point_[point.value] = static_cast<int32_t>(id);
  }
  id_of_code_point_[' '] = id_of_code_point_[kSpaceMarkCodePoint];
}

bool Tokenizer::is_control(int32_t id) const {
  return id >= 0 && static_cast<size_t>(id) < size() && steers_the_model(vocabulary_.pieces[id].type);
}

std::optional<int32_t> Tokenizer::find_token(std::string_view text) const {
  const auto match = all_tokens_.match(text);
  return match && match->length == text.size() ? std::optional(match->id) : std::nullopt;
}

std::vector<int32_t> Tokenizer::stop_ids() const {
  std::set<int32_t> ids;
  for (const auto id : {vocabulary_.eos, find_token("<eos>"), find_token("<end_of_turn>")}) {
    if (id) ids.insert(*id);
  }
  return {ids.begin(), ids.end()};
}

void Tokenizer::append_code_point(std::string_view bytes, uint32_t code_point, size_t begin,
                                  std::vector<Symbol>& out) const {
  const auto at = static_cast<uint32_t>(begin);
  if (code_point < id_of_code_point_.size() && id_of_code_point_[code_point] >= 0) {
    out.push_back({id_of_code_point_[code_point], at});
    return;
  }
  // A space without a piece falls back to the bytes of its mark, since the mark replaced it.
  for (const char c : code_point == ' ' ? kSpaceMark : bytes) out.push_back({id_of_byte_[static_cast<uint8_t>(c)], at});
}

void Tokenizer::append_fragment(std::string_view text, size_t begin, size_t end, std::vector<Symbol>& out) const {
  std::vector<Symbol> symbols;
  for (size_t at = begin; at < end;) {
    const CodePoint point = decode_utf8(text.substr(at));
    append_code_point(text.substr(at, point.length), point.value, at, symbols);
    at += point.length;
  }
  merge_symbols(merges_, symbols);
  out.insert(out.end(), symbols.begin(), symbols.end());
}

void Tokenizer::append_tokens(std::string_view text, size_t begin, size_t end, const TokenMatcher& matcher,
                              std::vector<Symbol>& out) const {
  size_t fragment = begin;
  for (size_t at = begin; at < end;) {
    const auto match = matcher.match(text.substr(at, end - at));
    if (!match) {
      ++at;
      continue;
    }
    append_fragment(text, fragment, at, out);
    out.push_back({match->id, static_cast<uint32_t>(at)});
    fragment = at += match->length;
  }
  append_fragment(text, fragment, end, out);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, ControlTokens control, AddBos bos) const {
  check(text.size() < 1u << 30, ExitCode::resource,
        "a text of {} bytes is too long to tokenise at once: the limit is 1 GiB", text.size());
  std::string repaired;
  if (find_invalid_utf8(text) != std::string_view::npos) text = repaired = valid_utf8(text);
  std::vector<Symbol> symbols;
  if (bos == AddBos::yes && vocabulary_.add_bos) symbols.push_back({vocabulary_.bos.value(), 0});
  append_tokens(text, 0, text.size(), control == ControlTokens::parse ? all_tokens_ : user_defined_, symbols);
  return ids_of(symbols);
}

std::vector<SegmentToken> Tokenizer::encode_segments(std::span<const Segment> segments) const {
  std::string text;
  std::vector<size_t> ends;  // of each segment in `text`
  for (const Segment& segment : segments) {
    text += valid_utf8(segment.text);
    ends.push_back(text.size());
  }
  check(text.size() < 1u << 30, ExitCode::resource, "a conversation of {} bytes is too long: the limit is 1 GiB",
        text.size());

  std::vector<Symbol> symbols;
  size_t done = 0, at = 0;  // text before `done` is tokenised; [done, at) has no control token
  for (size_t s = 0; s < segments.size(); ++s) {
    if (segments[s].origin == Segment::Origin::user_text) {
      at = ends[s];
      continue;
    }
    size_t template_end = ends[s];
    for (size_t n = s + 1; n < segments.size() && segments[n].origin == Segment::Origin::template_text; ++n)
      template_end = ends[n];
    while (at < ends[s]) {
      const auto match = control_.match(std::string_view(text).substr(at, template_end - at));
      if (!match) {
        ++at;
        continue;
      }
      append_tokens(text, done, at, user_defined_, symbols);
      symbols.push_back({match->id, static_cast<uint32_t>(at)});
      done = at += match->length;
    }
  }
  append_tokens(text, done, text.size(), user_defined_, symbols);

  std::vector<SegmentToken> out;
  out.reserve(symbols.size());
  uint32_t segment = 0;
  for (const Symbol& symbol : symbols) {
    while (symbol.begin >= ends[segment]) ++segment;
    out.push_back({symbol.id, segment});
  }
  return out;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, SkipSpecial skip) const {
  StreamDecoder decoder(*this, skip);
  std::string out;
  for (const int32_t id : ids) out += decoder.push(id);
  return out += decoder.finish();
}

std::string StreamDecoder::push(int32_t id) {
  const auto& pieces = tokenizer_.vocabulary().pieces;
  if (id < 0 || static_cast<size_t>(id) >= pieces.size() || pieces[id].type == PieceType::unused) return {};
  if (skip_ == SkipSpecial::yes && tokenizer_.is_control(id)) return {};
  const Piece& piece = pieces[id];
  if (piece.type == PieceType::byte) {
    held_bytes_ += static_cast<char>(byte_of_piece(piece.text).value());
    return {};
  }
  std::string out = finish();
  for (size_t at = 0; at < piece.text.size();) {
    const bool mark = std::string_view(piece.text).substr(at).starts_with(kSpaceMark);
    out += mark ? ' ' : piece.text[at];
    at += mark ? kSpaceMark.size() : 1;
  }
  return out;
}

std::string StreamDecoder::finish() {
  std::string out = std::move(held_bytes_);
  held_bytes_.clear();
  if (find_invalid_utf8(out) == std::string_view::npos) return out;
  // One replacement for each byte of the run, the valid ones too: as Hugging Face's byte fallback decoder does.
  std::string replaced;
  for (size_t i = 0; i < out.size(); ++i) append_utf8(replaced, 0xFFFD);
  return replaced;
}

Tokenizer load_tokenizer(const std::filesystem::path& path) {
  fs::path file = path;
  if (fs::is_directory(path)) {
    file = path / "tokenizer.json";
    if (!fs::exists(file)) file = path / "tokenizer.model";
    check(fs::exists(file), ExitCode::bad_input, "{}: no tokenizer.json and no tokenizer.model in this folder",
          path.string());
  }
  check(file.extension() == ".json" || file.extension() == ".model", ExitCode::bad_input,
        "'{}' is no tokenizer: give a model's folder, a .gguf file, a tokenizer.json or a tokenizer.model",
        printable(file.string()));
  const MappedFile mapped(file);
  return Tokenizer(file.extension() == ".model" ? read_sentencepiece_model(mapped.bytes(), file.string())
                                                : read_tokenizer_json(mapped.bytes(), file.string()));
}

}  // namespace saaz
