// The terminal of `saaz chat`: messages are typed on it with a line editor, answers are laid out for it. Enters: keys.
// Leaves: whole messages; answers as they are made. Invariant: the terminal's mode is put back when a Prompt ends, and
// nothing typed shows while an answer is written.
#pragma once

#include <signal.h>
#include <termios.h>

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "terminal/line_editor.h"
#include "terminal/text_layout.h"

namespace saaz {

/// What --bidi names.
enum class BidiChoice { automatic, terminal, visual, off };
/// The choice, and what this terminal is by its environment.
Bidi bidi_for(BidiChoice choice);
/// "directed: the terminal orders and aligns lines", for `saaz doctor`.
std::string describe(Bidi bidi);

class Prompt {
 public:
  explicit Prompt(Bidi bidi);
  ~Prompt();
  Prompt(const Prompt&) = delete;
  Prompt& operator=(const Prompt&) = delete;

  /// A message; nothing at the end of the input or after a stop signal.
  std::optional<std::string> read();
  /// Whether Ctrl+C was pressed since the last message. While a Prompt lives, SIGINT does nothing else.
  static bool was_interrupted();

 private:
  enum class Mode { as_it_was, quiet, editing };
  void set_mode(Mode mode);
  std::optional<char> read_byte();
  void draw();

  Bidi bidi_;
  termios before_{};
  struct sigaction interrupt_before_ {};
  LineEditor editor_;
  KeyReader keys_;
  int row_ = 0;  // of the cursor in what is drawn
  std::string bytes_;
};

/// Writes an answer to stdout: laid out for a terminal, as it is elsewhere.
class AnswerPrinter {
 public:
  explicit AnswerPrinter(Bidi bidi);
  void push(std::string_view text);
  void finish();

 private:
  TextLayout layout_;
};

}  // namespace saaz
