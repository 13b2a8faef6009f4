#include "data/protected_spans.h"

#include <algorithm>
#include <array>

#include "base/unicode.h"
#include "data/script.h"

namespace saaz {
namespace {

constexpr size_t npos = std::string_view::npos;
/// Spans other than fences end within so many bytes or are none, so that the search stays linear.
constexpr size_t kMaxSpanBytes = 1 << 14;
using Kind = ProtectedSpan::Kind;

size_t line_end(std::string_view text, size_t at) { return std::min(text.find('\n', at), text.size()); }

/// How often `c` stands at `at`, one after another.
size_t run_length(std::string_view text, size_t at, char c) {
  size_t n = 0;
  while (at + n < text.size() && text[at + n] == c) ++n;
  return n;
}

/// A fence opens a line with at most three blanks before it, and closes with at least as many characters, or with the
/// text. Returns the end of the block, or `at`.
size_t end_of_fence(std::string_view text, size_t at) {
  const size_t start = text.find_first_not_of(' ', at);
  if (start == npos || start - at > 3 || (text[start] != '`' && text[start] != '~')) return at;
  const size_t n = run_length(text, start, text[start]);
  if (n < 3) return at;
  for (size_t line = line_end(text, start); line < text.size(); line = line_end(text, line + 1)) {
    const size_t mark = text.find_first_not_of(' ', line + 1);
    if (mark == npos) return text.size();
    const size_t n_here = run_length(text, mark, text[start]);
    const size_t end = line_end(text, mark);
    const bool is_alone = text.substr(mark + n_here, end - mark - n_here).find_first_not_of(" \t\r") == npos;
    if (mark - line <= 4 && n_here >= n && is_alone) return end;
  }
  return text.size();
}

/// `n` backticks up to the next run of exactly `n`, within the paragraph.
size_t end_of_inline_code(std::string_view text, size_t at) {
  const size_t n = run_length(text, at, '`');
  text = text.substr(0, at + kMaxSpanBytes);
  const size_t paragraph = std::min(text.find("\n\n", at), text.size());
  for (size_t next = text.find('`', at + n); next < paragraph; next = text.find('`', next)) {
    const size_t n_here = run_length(text, next, '`');
    next += n_here;
    if (n_here == n) return next;
  }
  return at;
}

/// $$..$$, \(..\), \[..\], and $..$ on one line with no blank inside its marks.
size_t end_of_latex(std::string_view text, size_t at) {
  struct Marks {
    std::string_view open, close;
  };
  text = text.substr(0, at + kMaxSpanBytes);
  constexpr auto kMarks = std::to_array<Marks>({{"$$", "$$"}, {"\\(", "\\)"}, {"\\[", "\\]"}});
  for (const Marks& marks : kMarks) {
    if (!text.substr(at).starts_with(marks.open)) continue;
    const size_t close = text.find(marks.close, at + marks.open.size());
    return close == npos ? at : close + marks.close.size();
  }
  if (text[at] != '$' || at + 1 >= text.size() || is_space(static_cast<unsigned char>(text[at + 1]))) return at;
  const size_t close = text.find('$', at + 1);
  const bool is_closed = close < line_end(text, at) && close > at + 1 && text[close - 1] != ' ';
  return is_closed ? close + 1 : at;
}

bool starts_with_ignoring_case(std::string_view text, std::string_view prefix) {
  return text.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), text.begin(), [](char a, char b) {
           return a == (b >= 'A' && b <= 'Z' ? b + 32 : b);
         });
}

/// Up to a blank, a quote or Persian punctuation; marks at its end belong to the sentence.
size_t end_of_url(std::string_view text, size_t at) {
  constexpr auto kStarts = std::to_array<std::string_view>({"http://", "https://", "ftp://", "www."});
  const std::string_view rest = text.substr(at);
  if (std::none_of(kStarts.begin(), kStarts.end(), [&](auto s) { return starts_with_ignoring_case(rest, s); }))
    return at;
  size_t end = at;
  while (end < text.size()) {
    const CodePoint c = decode_utf8(text.substr(end));
    if (is_space(c.value) || std::u32string_view(U"<>\"«»“”،؛؟").find(c.value) != std::u32string_view::npos) break;
    end += static_cast<size_t>(c.length);
  }
  while (end > at && std::string_view(".,;:!?)]}'*").find(text[end - 1]) != npos) --end;
  return end;
}

/// From a Latin letter to the last one before a blank or anything Arabic: PDF, C++17, co-op, name@example.org.
size_t end_of_latin(std::string_view text, size_t at) {
  size_t end = at;
  for (size_t i = at; i < text.size();) {
    const CodePoint c = decode_utf8(text.substr(i));
    i += static_cast<size_t>(c.length);
    if (is_latin_letter(c.value) || is_ascii_digit(c.value)) {
      end = i;
    } else if (end == at || is_space(c.value) || is_arabic_script(c.value) ||
               std::u32string_view(U"،؛؟«»“”﴿﴾\"`").find(c.value) != std::u32string_view::npos) {
      break;
    }
  }
  return end;
}

bool is_arabic(std::string_view quoted) {
  size_t n_letters = 0, n_harakat = 0, n_words = 0, n_articles = 0;
  uint32_t before_before = ' ', before = ' ';
  for (size_t i = 0; i < quoted.size();) {
    const CodePoint c = decode_utf8(quoted.substr(i));
    i += static_cast<size_t>(c.length);
    n_letters += is_arabic_letter(c.value) ? 1 : 0;
    n_harakat += is_haraka(c.value) ? 1 : 0;
    n_words += !is_space(c.value) && is_space(before) ? 1 : 0;
    n_articles += c.value == U'ل' && before == U'ا' && is_space(before_before) ? 1 : 0;
    before_before = before, before = c.value;
  }
  return (n_harakat > 0 && n_harakat * 5 >= n_letters) || (n_words >= 2 && n_articles * 2 >= n_words);
}

size_t end_of_quoted_arabic(std::string_view text, size_t at) {
  struct Quotes {
    std::string_view open, close;
  };
  text = text.substr(0, at + kMaxSpanBytes);
  constexpr auto kQuotes = std::to_array<Quotes>({{"﴿", "﴾"}, {"«", "»"}, {"“", "”"}, {"\"", "\""}});
  for (const Quotes& quotes : kQuotes) {
    if (!text.substr(at).starts_with(quotes.open)) continue;
    const size_t start = at + quotes.open.size();
    const size_t close = text.find(quotes.close, start);
    if (close == npos || text.substr(at, close - at).find("\n\n") != npos) return at;
    const bool is_kept = quotes.open == "﴿" || is_arabic(text.substr(start, close - start));
    return is_kept ? close + quotes.close.size() : at;
  }
  return at;
}

/// The protected span that starts at `at`, if one does; else its end is `at`.
ProtectedSpan span_at(std::string_view text, size_t at) {
  const bool is_line_start = at == 0 || text[at - 1] == '\n';
  if (is_line_start)
    if (const size_t end = end_of_fence(text, at); end > at) return {at, end, Kind::code};
  switch (text[at]) {
    case '`':
      return {at, end_of_inline_code(text, at), Kind::code};
    case '$':
    case '\\':
      return {at, end_of_latex(text, at), Kind::latex};
    default:
      break;
  }
  if (const size_t end = end_of_url(text, at); end > at) return {at, end, Kind::url};
  if (is_latin_letter(decode_utf8(text.substr(at)).value)) return {at, end_of_latin(text, at), Kind::latin};
  return {at, end_of_quoted_arabic(text, at), Kind::arabic};
}

}  // namespace

std::vector<ProtectedSpan> find_protected_spans(std::string_view text) {
  std::vector<ProtectedSpan> spans;
  for (size_t at = 0; at < text.size();) {
    const ProtectedSpan span = span_at(text, at);
    if (span.end > at) {
      spans.push_back(span);
      at = span.end;
    } else if (text[at] == '`') {
      at += run_length(text, at, '`');  // its tail must not open what the whole run did not
    } else {
      at += static_cast<size_t>(decode_utf8(text.substr(at)).length);
    }
  }
  return spans;
}

std::optional<bool> is_right_to_left(std::string_view text) {
  const std::vector<ProtectedSpan> spans = find_protected_spans(text);
  auto span = spans.begin();
  for (size_t i = 0; i < text.size();) {
    while (span != spans.end() && span->end <= i) ++span;
    const bool is_inside = span != spans.end() && i >= span->begin;
    if (is_inside && span->kind != Kind::latin && span->kind != Kind::arabic) {
      i = span->end;
      continue;
    }
    const CodePoint c = decode_utf8(text.substr(i));
    if (is_arabic_letter(c.value)) return true;
    if (is_latin_letter(c.value)) return false;
    i += static_cast<size_t>(c.length);
  }
  return std::nullopt;
}

}  // namespace saaz
