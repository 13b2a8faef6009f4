// Lines of a terminal out of text that is still being written. Enters: pieces of UTF-8 that end on code points. Leaves:
// what to write to the terminal. Each line of the text is a block with the direction of its first strong letter of
// prose (data/protected_spans.h); fenced code is left to right. Only the last line of the screen is ever drawn again,
// so that letters join and order themselves as they come. Invariant: no line is wider than the terminal.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "terminal/bidi.h"

namespace saaz {

/// Where the lines of `paragraph` end when none is wider than `columns`: after the blanks at the border of a word, or
/// within a word that is longer than a line. The last end is paragraph.size().
std::vector<size_t> wrap(std::string_view paragraph, int columns);

/// What tells the terminal the direction of the line that begins here; empty but for Bidi::directed.
std::string_view direction_mark(Direction base, Bidi bidi);
/// Bytes [begin, end) of `paragraph` as one line of `columns` cells.
std::string draw_line(std::string_view paragraph, size_t begin, size_t end, Direction base, Bidi bidi, int columns);

class TextLayout {
 public:
  /// `columns`: the width of the terminal, at least 8.
  TextLayout(Bidi bidi, int columns) : bidi_(bidi), columns_(columns) {}

  /// What to write now.
  std::string push(std::string_view text);
  /// The end of the text: what to write so that the next output begins on a new line.
  std::string finish();

 private:
  std::string draw_open_line(Direction direction);
  std::string end_line();
  Direction direction_by(std::string_view prose);

  Bidi bidi_;
  int columns_;
  std::string line_;        // of the text
  size_t drawn_until_ = 0;  // bytes of line_ in finished lines of the screen
  std::optional<Direction> line_direction_;
  Direction last_direction_ = Direction::ltr;
  std::string fence_;  // the marks that opened a block of code, while it is open
};

}  // namespace saaz
