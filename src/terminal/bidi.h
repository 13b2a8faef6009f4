// Right-to-left text in a terminal. Enters: a paragraph in logical order. Leaves: one line of it in the order the cells
// are drawn from left to right, Arabic letters as presentation forms. UAX #9 and shaping are fribidi's. Invariant: no
// character of direction is ever added; what leaves is for the screen, never for a file.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace saaz {

enum class Direction { ltr, rtl };

/// Who puts right-to-left text in order, and who moves it to the right.
enum class Bidi {
  off,       // nobody: logical order at the left
  visual,    // we do both: for terminals that draw cells as they come
  padded,    // the terminal reorders, blanks before the text move it
  directed,  // the terminal does both, told the direction of each line by SCP (ECMA-48 8.3.111)
};

struct VisualLine {
  std::string text;
  /// [code points of the line] the cell of each from the left; those of ligatures share one.
  std::vector<int> cells;
};

/// Bytes [begin, end) of `paragraph` as one line. `begin` and `end` lie on the borders of code points.
VisualLine visual_line(std::string_view paragraph, size_t begin, size_t end, Direction base);

/// What a terminal is, from the environment's TERM_PROGRAM, VTE_VERSION, MLTERM and TMUX (empty: not set).
struct TerminalNames {
  std::string_view term_program, vte_version, mlterm, tmux;
};
/// GNOME's terminals and mlterm take directions, Apple's reorders alone, the others draw cells as they come; tmux hands
/// on cells and swallows directions.
Bidi bidi_of(const TerminalNames& names);

}  // namespace saaz
