#include "terminal/text_layout.h"

#include <algorithm>

#include "data/protected_spans.h"
#include "terminal/graphemes.h"

namespace saaz {
namespace {

constexpr std::string_view kClearLine = "\r\x1b[K", kRtlLine = "\x1b[2 k", kDefaultLine = "\x1b[0 k";

/// The marks a fence of code begins with: three or more ` or ~ after at most three blanks.
std::string_view fence_marks(std::string_view line) {
  const size_t start = line.find_first_not_of(' ');
  if (start == std::string_view::npos || start > 3 || (line[start] != '`' && line[start] != '~')) return {};
  const size_t end = std::min(line.find_first_not_of(line[start], start), line.size());
  return end - start >= 3 ? line.substr(start, end - start) : std::string_view();
}

/// What of an unfinished line decides its direction: open code and half an address would lend their letters.
std::string_view settled(std::string_view line) {
  if (std::count(line.begin(), line.end(), '`') % 2 == 1) return line.substr(0, line.rfind('`'));
  const size_t word = line.find_last_of(' ') + 1;
  for (const std::string_view start : {"http://", "https://", "www."})
    if (word < line.size() && start.starts_with(line.substr(word))) return line.substr(0, word);
  return line;
}

std::string_view without_blanks_at_end(std::string_view text) { return text.substr(0, text.find_last_not_of(' ') + 1); }

}  // namespace

std::vector<size_t> wrap(std::string_view paragraph, int columns) {
  std::vector<size_t> ends;
  size_t begin = 0, after_blank = 0;
  int cells = 0, cells_at_blank = 0;
  for (const Grapheme& grapheme : graphemes(paragraph)) {
    const bool is_blank = paragraph[grapheme.begin] == ' ';
    if (cells + grapheme.cells > columns && !is_blank) {  // blanks may hang over the border
      const bool in_word = after_blank <= begin;
      ends.push_back(in_word ? grapheme.begin : after_blank);
      cells = in_word ? 0 : cells - cells_at_blank;
      begin = ends.back();
    }
    cells += grapheme.cells;
    if (is_blank) after_blank = grapheme.end, cells_at_blank = cells;
  }
  ends.push_back(paragraph.size());
  return ends;
}

std::string_view direction_mark(Direction base, Bidi bidi) {
  if (bidi != Bidi::directed) return {};
  return base == Direction::rtl ? kRtlLine : kDefaultLine;
}

std::string draw_line(std::string_view paragraph, size_t begin, size_t end, Direction base, Bidi bidi, int columns) {
  const std::string_view text = without_blanks_at_end(paragraph.substr(begin, end - begin));
  end = begin + text.size();
  const std::string drawn = bidi == Bidi::visual ? visual_line(paragraph, begin, end, base).text : std::string(text);
  if (base == Direction::ltr || bidi == Bidi::off || bidi == Bidi::directed) return drawn;
  return std::string(static_cast<size_t>(std::max(columns - cell_width(drawn), 0)), ' ') + drawn;
}

/// By the first strong letter of `prose`, a beginning of the line; once found it stays.
Direction TextLayout::direction_by(std::string_view prose) {
  if (!fence_.empty() || !fence_marks(line_).empty()) return Direction::ltr;
  if (!line_direction_)
    if (const std::optional<bool> is_rtl = is_right_to_left(prose))
      line_direction_ = *is_rtl ? Direction::rtl : Direction::ltr;
  return line_direction_.value_or(last_direction_);
}

/// Draws what is new of the open line, finished lines of the screen first.
std::string TextLayout::draw_open_line(Direction direction) {
  std::string out;
  const int width = columns_ - 1;  // a full last column would leave the cursor in doubt
  const std::string_view open = std::string_view(line_).substr(drawn_until_);
  const std::vector<size_t> ends = wrap(open, width);
  size_t begin = drawn_until_;
  for (size_t i = 0; i < ends.size(); ++i) {
    const size_t end = drawn_until_ + ends[i];
    if (i > 0) out += '\n';
    out += kClearLine;
    out += direction_mark(direction, bidi_);
    out += draw_line(line_, begin, end, direction, bidi_, width);
    if (i + 1 < ends.size()) begin = end;
  }
  drawn_until_ = begin;
  return out;
}

std::string TextLayout::end_line() {
  const Direction before = direction_by(settled(line_)), direction = direction_by(line_);
  std::string out = direction == before ? "" : draw_open_line(direction);
  out += '\n';
  out += direction_mark(Direction::ltr, bidi_);
  const std::string_view marks = fence_marks(line_);
  if (fence_.empty()) {
    fence_ = marks;
  } else if (marks.size() >= fence_.size() && marks[0] == fence_[0]) {
    fence_.clear();
  }
  if (line_direction_) last_direction_ = *line_direction_;
  line_.clear();
  line_direction_.reset();
  drawn_until_ = 0;
  return out;
}

std::string TextLayout::push(std::string_view text) {
  if (bidi_ == Bidi::off) return std::string(text);
  std::string out;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    for (const char c : text.substr(0, end)) line_ += c == '\t' ? ' ' : c;
    if (end > 0) out += draw_open_line(direction_by(settled(line_)));
    if (end == text.size()) break;
    out += end_line();
    text.remove_prefix(end + 1);
  }
  return out;
}

std::string TextLayout::finish() {
  if (bidi_ == Bidi::off) return "\n";
  return line_.empty() ? "" : end_line();
}

}  // namespace saaz
