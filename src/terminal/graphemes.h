// What a person sees as one character, and how many cells of a terminal it takes. Enters: UTF-8; an invalid byte counts
// as a character of one cell. Wraps utf8proc (UAX #29 clusters, East Asian widths).
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace saaz {

struct Grapheme {
  size_t begin = 0, end = 0;  // bytes
  int cells = 0;              // 0, 1 or 2
};

/// The graphemes of `text`, which cover it: a letter with its marks, an emoji with its joiners.
std::vector<Grapheme> graphemes(std::string_view text);
/// The cells of all graphemes.
int cell_width(std::string_view text);

}  // namespace saaz
