#include "terminal/line_editor.h"

#include <algorithm>

#include "base/unicode.h"
#include "data/protected_spans.h"
#include "terminal/graphemes.h"
#include "terminal/text_layout.h"

namespace saaz {

size_t LineEditor::before(size_t at) const {
  const std::vector<Grapheme> all = graphemes(std::string_view(text_).substr(0, at));
  return all.empty() ? 0 : all.back().begin;
}
size_t LineEditor::after(size_t at) const {
  const std::vector<Grapheme> all = graphemes(std::string_view(text_).substr(at));
  return all.empty() ? text_.size() : at + all.front().end;
}
size_t LineEditor::word_before(size_t at) const {
  while (at > 0 && (text_[at - 1] == ' ' || text_[at - 1] == '\n')) --at;
  while (at > 0 && text_[at - 1] != ' ' && text_[at - 1] != '\n') --at;
  return at;
}
size_t LineEditor::word_after(size_t at) const {
  while (at < text_.size() && (text_[at] == ' ' || text_[at] == '\n')) ++at;
  while (at < text_.size() && text_[at] != ' ' && text_[at] != '\n') ++at;
  return at;
}
size_t LineEditor::line_start(size_t at) const { return at == 0 ? 0 : text_.rfind('\n', at - 1) + 1; }
size_t LineEditor::line_end(size_t at) const { return std::min(text_.find('\n', at), text_.size()); }

void LineEditor::insert(std::string_view text) {
  text_.insert(cursor_, text);
  cursor_ += text.size();
}

void LineEditor::erase(size_t begin, size_t end) {
  text_.erase(begin, end - begin);
  cursor_ = begin;
}

/// To the same place of the line above (-1) or below (1), counted in graphemes; false at the border of the text.
bool LineEditor::move_line(int step) {
  const size_t start = line_start(cursor_), end = line_end(cursor_);
  if (step < 0 ? start == 0 : end == text_.size()) return false;
  const size_t place = graphemes(std::string_view(text_).substr(start, cursor_ - start)).size();
  const size_t target = step < 0 ? line_start(start - 1) : end + 1;
  const std::vector<Grapheme> line = graphemes(std::string_view(text_).substr(target, line_end(target) - target));
  cursor_ = target + (place < line.size() ? line[place].begin : line_end(target) - target);
  return true;
}

void LineEditor::recall(size_t entry) {
  if (entry_ == history_.size()) draft_ = text_;
  entry_ = entry;
  text_ = entry == history_.size() ? draft_ : history_[entry];
  cursor_ = text_.size();
}

void LineEditor::clear() {
  text_.clear();
  draft_.clear();
  cursor_ = 0;
  entry_ = history_.size();
}

void LineEditor::remember() {
  const bool is_new = history_.empty() || history_.back() != text_;
  if (is_new && !strip_like_python(text_).empty()) history_.push_back(text_);
  clear();
}

LineEditor::Outcome LineEditor::press(const Press& press) {
  switch (press.key) {
    case Key::text:
      insert(press.text);
      break;
    case Key::enter:
      if (cursor_ > 0 && text_[cursor_ - 1] == '\\') {
        erase(cursor_ - 1, cursor_);
        insert("\n");
        break;
      }
      return Outcome::done;
    case Key::new_line:
      insert("\n");
      break;
    case Key::backspace:
      erase(before(cursor_), cursor_);
      break;
    case Key::end_of_file:
      if (text_.empty()) return Outcome::end_of_file;
      [[fallthrough]];
    case Key::erase:
      erase(cursor_, after(cursor_));
      break;
    case Key::left:
      cursor_ = before(cursor_);
      break;
    case Key::right:
      cursor_ = after(cursor_);
      break;
    case Key::word_left:
      cursor_ = word_before(cursor_);
      break;
    case Key::word_right:
      cursor_ = word_after(cursor_);
      break;
    case Key::up:
      if (!move_line(-1) && entry_ > 0) recall(entry_ - 1);
      break;
    case Key::down:
      if (!move_line(1) && entry_ < history_.size()) recall(entry_ + 1);
      break;
    case Key::home:
      cursor_ = line_start(cursor_);
      break;
    case Key::end:
      cursor_ = line_end(cursor_);
      break;
    case Key::erase_line_before:
      erase(line_start(cursor_), cursor_);
      break;
    case Key::erase_line_after:
      erase(cursor_, line_end(cursor_));
      break;
    case Key::erase_word_before:
      erase(word_before(cursor_), cursor_);
      break;
    case Key::interrupt:
      return Outcome::cancelled;
    case Key::redraw:
      break;
  }
  return Outcome::editing;
}

namespace {

/// The cell of `cursor` in the line [begin, end): where the next letter will stand.
int cursor_cell(std::string_view line, size_t begin, size_t end, size_t cursor, Direction base, Bidi bidi,
                int columns) {
  if (bidi != Bidi::visual) {
    const int before = cell_width(line.substr(begin, cursor - begin));
    const bool is_padded = bidi == Bidi::padded && base == Direction::rtl;
    return is_padded ? std::max(columns - cell_width(line.substr(begin, end - begin)), 0) + before : before;
  }
  const VisualLine visual = visual_line(line, begin, end, base);
  const int width = cell_width(visual.text), pad = base == Direction::rtl ? std::max(columns - width, 0) : 0;
  size_t place = 0;
  for (size_t i = begin; i < cursor; i += static_cast<size_t>(decode_utf8(line.substr(i)).length)) ++place;
  if (place < visual.cells.size()) return pad + visual.cells[place];
  return base == Direction::rtl ? std::max(pad - 1, 0) : width;
}

}  // namespace

EditorView view_of(const std::string& text, size_t cursor, std::string_view prompt, Bidi bidi, int columns) {
  EditorView view;
  const int indent = cell_width(prompt), width = std::max(columns - indent - 1, 4);
  Direction direction = Direction::ltr;
  for (size_t start = 0; start <= text.size();) {
    const size_t stop = std::min(text.find('\n', start), text.size());
    const std::string_view line = std::string_view(text).substr(start, stop - start);
    if (const std::optional<bool> is_rtl = is_right_to_left(line))
      direction = *is_rtl ? Direction::rtl : Direction::ltr;
    size_t begin = 0;
    for (const size_t end : wrap(line, width)) {
      const bool is_last = end == line.size();
      if (cursor >= start + begin && (cursor < start + end || (is_last && cursor == start + end))) {
        view.row = static_cast<int>(view.lines.size());
        view.column =
            std::min(indent + cursor_cell(line, begin, end, cursor - start, direction, bidi, width), columns - 1);
      }
      const std::string margin =
          view.lines.empty() ? std::string(prompt) : std::string(static_cast<size_t>(indent), ' ');
      view.lines.push_back(std::string(direction_mark(direction, bidi)) + margin +
                           draw_line(line, begin, end, direction, bidi, width));
      begin = end;
    }
    start = stop + 1;
  }
  return view;
}

}  // namespace saaz
