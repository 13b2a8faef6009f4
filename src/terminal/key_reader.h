// Bytes of a terminal in raw mode to keys. Enters: bytes one by one. Leaves: keys; a sequence that means nothing here
// leaves none. Pasted text (bracketed paste) is text, whatever it holds.
#pragma once

#include <optional>
#include <string>

namespace saaz {

enum class Key {
  text,  // of Press::text
  enter,
  new_line,  // Alt+Enter, Ctrl+J
  backspace,
  erase,
  left,
  right,
  word_left,
  word_right,
  up,
  down,
  home,
  end,
  erase_line_before,
  erase_line_after,
  erase_word_before,
  interrupt,    // Ctrl+C
  end_of_file,  // Ctrl+D
  redraw,       // Ctrl+L
};

struct Press {
  Key key = Key::text;
  std::string text = {};  // valid UTF-8: whole code points, no control characters but newline and tab
};

class KeyReader {
 public:
  std::optional<Press> push(char byte);

 private:
  std::optional<Press> push_control(char byte);
  std::optional<Press> push_sequence(char byte);

  std::string pending_;  // an escape sequence, or the bytes of a code point
  bool is_pasting_ = false;
};

}  // namespace saaz
