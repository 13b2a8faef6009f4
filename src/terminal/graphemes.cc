#include "terminal/graphemes.h"

#include <utf8proc.h>

#include <algorithm>

#include "base/unicode.h"

namespace saaz {

std::vector<Grapheme> graphemes(std::string_view text) {
  std::vector<Grapheme> out;
  utf8proc_int32_t state = 0;
  uint32_t before = 0;
  for (size_t i = 0; i < text.size();) {
    const CodePoint point = decode_utf8(text.substr(i));
    const auto current = static_cast<utf8proc_int32_t>(point.value);
    const bool is_new =
        out.empty() || utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(before), current, &state) != 0;
    const int cells = utf8proc_charwidth(current);
    const size_t end = i + static_cast<size_t>(point.length);
    if (is_new) {
      out.push_back({i, end, cells});
    } else {
      out.back().end = end;
      out.back().cells = std::max(out.back().cells, cells);
    }
    before = point.value;
    i = end;
  }
  return out;
}

int cell_width(std::string_view text) {
  int cells = 0;
  for (const Grapheme& grapheme : graphemes(text)) cells += grapheme.cells;
  return cells;
}

}  // namespace saaz
