// A run in a terminal: figures, charts of Braille dots, the answers to the probes. Enters: a RunView and the terminal's
// size. Leaves: lines of text. Persian never shares a line with figures, so that a terminal that orders a line by
// itself does it right; text of a model cannot steer the terminal.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "serve/run_view.h"
#include "terminal/bidi.h"

namespace saaz {

struct TerminalSize {
  size_t columns = 80, rows = 24;
};

/// At most size.rows lines of at most size.columns columns.
std::vector<std::string> terminal_frame(const RunView& view, TerminalSize size, Bidi bidi);

/// `text` in lines of at most `columns` columns, broken between words where there are any; no control characters.
std::vector<std::string> wrapped(std::string_view text, size_t columns, Bidi bidi);

}  // namespace saaz
