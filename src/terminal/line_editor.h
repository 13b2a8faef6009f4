// A message being typed: its text, the cursor, earlier messages. Enters: keys. Leaves: the text, and how to draw it.
// Invariant: the cursor stands between graphemes. Knows no terminal; the caller reads and writes.
#pragma once

#include <string>
#include <vector>

#include "terminal/bidi.h"
#include "terminal/key_reader.h"

namespace saaz {

class LineEditor {
 public:
  enum class Outcome { editing, done, cancelled, end_of_file };

  /// done: Enter, with the text not ended by a backslash (which continues it on the next line). cancelled: Ctrl+C.
  /// end_of_file: Ctrl+D in an empty text.
  Outcome press(const Press& press);
  const std::string& text() const { return text_; }
  size_t cursor() const { return cursor_; }  // bytes
  /// Empties the text, which becomes the newest of the history unless it is blank or the newest already.
  void remember();
  void clear();

 private:
  void insert(std::string_view text);
  void erase(size_t begin, size_t end);
  size_t before(size_t at) const;
  size_t after(size_t at) const;
  size_t word_before(size_t at) const;
  size_t word_after(size_t at) const;
  size_t line_start(size_t at) const;
  size_t line_end(size_t at) const;
  bool move_line(int step);
  void recall(size_t entry);

  std::string text_;
  size_t cursor_ = 0;
  std::vector<std::string> history_;
  size_t entry_ = 0;   // history_.size(): the text that is being typed
  std::string draft_;  // while an earlier message is shown
};

/// The lines of the screen, and where the cursor stands among them.
struct EditorView {
  std::vector<std::string> lines;
  int row = 0, column = 0;
};
/// Each line of the text has the direction of its own first strong letter. `prompt` stands at the left of the first.
EditorView view_of(const std::string& text, size_t cursor, std::string_view prompt, Bidi bidi, int columns);

}  // namespace saaz
