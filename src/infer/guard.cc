#include "infer/guard.h"

#include <utility>

#include "base/unicode.h"
#include "data/script.h"

namespace saaz {

namespace {

using Before = GuardState::Before;

constexpr uint32_t kZwj = 0x200D, kEmojiForm = 0xFE0F;

/// Letters and marks that Persian text is written with.
bool is_persian(uint32_t c) {
  static constexpr std::u32string_view kLetters = U"ءآأؤإئابةتثجحخدذرزسشصضطظعغفقلمنهوپچژکگیۀ";
  return kLetters.find(c) != std::u32string_view::npos || is_within(c, 0x064B, 0x0655) || c == 0x0670;
}

bool is_persian_mark(uint32_t c) {
  return c == 0x060C || c == 0x061B || c == 0x061F || is_within(c, 0x066A, 0x066C) || c == 0xFD3E || c == 0xFD3F ||
         c == 0xFDFC;
}

bool is_greek_letter(uint32_t c) { return is_within(c, 0x0391, 0x03C9); }

/// Punctuation, arrows, mathematical and other signs, emoji.
bool is_sign(uint32_t c) {
  const bool is_punctuation = is_within(c, 0x2010, 0x2027) || is_within(c, 0x2030, 0x205E);
  return is_within(c, 0xA1, 0xBF) || c == 0xD7 || c == 0xF7 || is_punctuation || is_within(c, 0x2070, 0x20CF) ||
         is_within(c, 0x2100, 0x2BFF) || is_within(c, 0x1F000, 0x1FAFF);
}

Before before_after(Before before, uint32_t c) {
  if (c == '\n') return Before::line;
  if (c == kZwnj) return Before::half_space;
  if (is_latin_letter(c)) return Before::latin;
  if (is_persian(c) || is_arabic_letter(c)) return Before::arabic;
  if (before == Before::latin && !is_space(c) && !is_persian_mark(c)) return Before::latin;
  if (is_ascii_digit(c)) {
    if (before == Before::line) return Before::list_digit;
    return before == Before::list_digit ? Before::list_digits : Before::digit;
  }
  if (is_persian_digit(c) || is_arabic_digit(c)) return Before::digit;
  if (is_greek_letter(c)) return Before::greek;
  if (c >= 0x2190 && (is_sign(c) || c == kZwj || c == kEmojiForm)) return Before::symbol;
  return c == ' ' && before == Before::line ? Before::line : Before::open;
}

}  // namespace

bool guard_allows(Before before, uint32_t c, Digits digits) {
  if (before == Before::half_space) return is_persian(c) || is_persian_digit(c);
  const bool is_list_digit = before == Before::list_digit || before == Before::list_digits;
  if (is_list_digit && digits == Digits::fa)  // a number that opens a line: only Markdown's own form of it
    return c == '.' || c == ')' || (before == Before::list_digit && is_ascii_digit(c));
  if (c == '\n' || c == '\t' || c == ' ') return true;
  if (is_ascii_digit(c)) return digits != Digits::fa || before == Before::latin || before == Before::line;
  if (is_persian_digit(c)) return digits != Digits::en;
  if (is_arabic_digit(c)) return digits == Digits::keep;
  if (is_latin_letter(c)) return before != Before::arabic;
  if (c < 0x80) return c > 0x20 && c != 0x7F;
  if (c == kZwnj) return before == Before::arabic || before == Before::digit || before == Before::latin;
  if (c == kZwj || c == kEmojiForm) return before == Before::symbol;
  if (is_greek_letter(c)) return before != Before::greek;
  return is_persian(c) || is_persian_mark(c) || (is_sign(c) && !is_invisible_mark(c));
}

void GuardState::push(std::string_view text) {
  while (!text.empty()) {
    const CodePoint c = decode_utf8(text);
    push(c.value);
    text.remove_prefix(static_cast<size_t>(c.length));
  }
}

void GuardState::push(uint32_t c) {
  if (mode_ == Mode::prose)
    push_prose(c);
  else if (mode_ == Mode::inline_code || mode_ == Mode::fence)
    push_code(c);
  else
    push_latex(c);
  if (c == '\n')
    line_starts_ = true;
  else if (c != ' ')
    line_starts_ = false;
  last_ = c;
}

void GuardState::push_prose(uint32_t c) {
  const bool opens_fence = c == '~' && (line_starts_ || (run_ > 0 && mark_ == '~'));
  if (c == '`' || opens_fence) {
    if (run_ == 0) run_starts_line_ = line_starts_;
    run_ = run_ > 0 && mark_ == c ? run_ + 1 : 1;
    mark_ = c;
    return;
  }
  if (run_ > 0) {
    open_ = std::exchange(run_, 0);
    before_ = Before::open;
    if (run_starts_line_ && open_ >= 3)
      mode_ = Mode::fence;
    else if (mark_ == '`')
      mode_ = Mode::inline_code;
    if (mode_ != Mode::prose) return push_code(c);
  }
  if (c == '$') {
    mode_ = Mode::dollar;
  } else if (last_ == '\\' && (c == '(' || c == '[')) {
    mode_ = Mode::bracket;
    mark_ = c == '(' ? ')' : ']';
  }
  before_ = mode_ == Mode::prose ? before_after(before_, c) : Before::open;
}

/// Inline code ends with as many marks as opened it, or with its paragraph; a fence with a line of at least as many.
void GuardState::push_code(uint32_t c) {
  if (mode_ == Mode::inline_code) {
    run_ = c == '`' ? run_ + 1 : 0;
    const bool ends_paragraph = c == '\n' && last_ == '\n';
    if (run_ < open_ && !ends_paragraph) return;
    before_ = ends_paragraph ? Before::line : Before::open;
    mode_ = Mode::prose;
    run_ = 0;
    return;
  }
  if (c == mark_ && (line_starts_ || run_ > 0)) {
    ++run_;
    return;
  }
  const bool closed = run_ >= open_ && c == '\n';
  if (c != ' ' || run_ < open_) run_ = 0;
  if (!closed) return;
  mode_ = Mode::prose;
  before_ = Before::line;
}

void GuardState::push_latex(uint32_t c) {
  before_ = Before::open;
  if (mode_ == Mode::dollar) {
    if (c == '$' && last_ == '$')
      mode_ = Mode::double_dollar;
    else if (c == '$' || c == '\n')
      mode_ = Mode::prose;
  } else if (mode_ == Mode::double_dollar) {
    if (c == '$' && last_ == '$') mode_ = Mode::prose;
  } else if (c == mark_ && last_ == '\\') {
    mode_ = Mode::prose;
  }
  if (c == '\n') before_ = Before::line;
}

}  // namespace saaz
