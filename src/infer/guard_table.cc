#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <unordered_map>

#include "base/unicode.h"
#include "data/script.h"
#include "infer/guard.h"
#include "infer/text_stream.h"

namespace saaz {

namespace {

constexpr uint16_t kAlways = (1 << GuardState::kNumBefore) - 1;

/// The contexts in which the rules do not let a token's text follow.
uint16_t banned_after(std::string_view text, Digits digits) {
  uint16_t banned = 0;
  for (size_t b = 0; b < GuardState::kNumBefore; ++b) {
    GuardState state;
    if (b != static_cast<size_t>(GuardState::Before::line)) state.push('.');
    state.set_before(static_cast<GuardState::Before>(b));
    for (std::string_view rest = text; !rest.empty() && !state.is_free();) {
      const CodePoint c = decode_utf8(rest);
      if (!guard_allows(state.before(), c.value, digits)) {
        banned |= static_cast<uint16_t>(1 << b);
        break;
      }
      state.push(c.value);
      rest.remove_prefix(static_cast<size_t>(c.length));
    }
  }
  return banned;
}

/// The same text the Persian way: letters, digits, no noise.
std::string persian_spelling(std::string_view text, Digits digits) {
  std::string out;
  for (; !text.empty();) {
    const CodePoint point = decode_utf8(text);
    text.remove_prefix(static_cast<size_t>(point.length));
    uint32_t c = point.value;
    if (c == kTatweel || is_invisible_mark(c)) continue;
    if (c == kArabicYeh || c == kAlefMaksura) c = kPersianYeh;
    if (c == kArabicKaf) c = kPersianKaf;
    if (c == 0x06C1 || c == 0x06BE || c == 0x06D5) c = kHeh;
    if (is_arabic_digit(c) && digits != Digits::keep) c = c - 0x0660 + 0x06F0;
    if (is_ascii_digit(c) && digits == Digits::fa) c = c - '0' + 0x06F0;
    if (is_persian_digit(c) && digits == Digits::en) c = c - 0x06F0 + '0';
    const std::u32string_view letters = letters_of_presentation_form(c);
    for (const uint32_t letter : letters) append_utf8(out, letter);
    if (letters.empty()) append_utf8(out, c);
  }
  return out;
}

}  // namespace

GuardTable::GuardTable(const Tokenizer& tokenizer, const GuardOptions& options) : banned_(tokenizer.size(), 0) {
  std::vector<std::string> texts(tokenizer.size());
  std::unordered_map<std::string_view, int32_t> id_of;
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    const PieceType type = tokenizer.vocabulary().pieces[i].type;
    if (type == PieceType::unused || tokenizer.is_control(id)) continue;
    texts[i] = token_bytes(tokenizer, id);
    const bool is_part = type == PieceType::byte && static_cast<uint8_t>(texts[i][0]) >= 0x80;
    banned_[i] = is_part ? kAlways : banned_after(texts[i], options.digits);
    if (type != PieceType::byte) id_of.emplace(texts[i], id);
  }
  for (size_t i = 0; i < texts.size(); ++i) {
    if (banned_[i] == 0) continue;
    const auto it = id_of.find(persian_spelling(texts[i], options.digits));
    if (it != id_of.end() && it->second != static_cast<int32_t>(i))
      twins_.push_back({static_cast<int32_t>(i), it->second});
  }
}

bool GuardTable::allows(const GuardState& state, int32_t id) const {
  return state.is_free() || (banned_[static_cast<size_t>(id)] >> static_cast<int>(state.before()) & 1) == 0;
}

void GuardTable::apply(const GuardState& state, std::span<float> logits) const {
  if (state.is_free()) return;
  for (const Twin& twin : twins_) {
    if (allows(state, twin.from) || !allows(state, twin.to)) continue;
    float& to = logits[static_cast<size_t>(twin.to)];
    const float from = logits[static_cast<size_t>(twin.from)];
    const float larger = std::max(from, to), smaller = std::min(from, to);
    if (smaller > -std::numeric_limits<float>::infinity()) to = larger + std::log1p(std::exp(smaller - larger));
  }
  const auto bit = static_cast<uint16_t>(1 << static_cast<int>(state.before()));
  constexpr float kOut = -std::numeric_limits<float>::infinity();
  for (size_t i = 0, n = std::min(banned_.size(), logits.size()); i < n; ++i)
    logits[i] = (banned_[i] & bit) != 0 ? kOut : logits[i];
}

}  // namespace saaz
