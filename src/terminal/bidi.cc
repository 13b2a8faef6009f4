#include "terminal/bidi.h"

#include <fribidi.h>

#include <algorithm>
#include <charconv>

#include "base/check.h"
#include "base/unicode.h"
#include "terminal/graphemes.h"

namespace saaz {
namespace {

struct CodePoints {
  std::vector<FriBidiChar> values;
  size_t first = 0, last = 0;  // those of the line
};

CodePoints decode(std::string_view paragraph, size_t begin, size_t end) {
  CodePoints out;
  for (size_t i = 0; i < paragraph.size();) {
    if (i == begin) out.first = out.values.size();
    if (i == end) out.last = out.values.size();
    const CodePoint point = decode_utf8(paragraph.substr(i));
    out.values.push_back(point.value);
    i += static_cast<size_t>(point.length);
  }
  if (begin >= paragraph.size()) out.first = out.values.size();
  if (end >= paragraph.size()) out.last = out.values.size();
  return out;
}

/// Zero-width characters have done their work once letters are shaped; not every terminal hides them. Ligatures leave a
/// filler.
bool is_left_out(FriBidiChar c) {
  return c == FRIBIDI_CHAR_FILL || (c >= 0x200B && c <= 0x200F) || (c >= 0x202A && c <= 0x202E) ||
         (c >= 0x2066 && c <= 0x2069);
}

}  // namespace

VisualLine visual_line(std::string_view paragraph, size_t begin, size_t end, Direction base) {
  CodePoints points = decode(paragraph, begin, end);
  const auto n = static_cast<FriBidiStrIndex>(points.values.size());
  const auto n_line = static_cast<FriBidiStrIndex>(points.last - points.first);
  VisualLine out;
  if (n_line == 0) return out;
  std::vector<FriBidiCharType> types(points.values.size());
  std::vector<FriBidiBracketType> brackets(points.values.size());
  std::vector<FriBidiLevel> levels(points.values.size());
  std::vector<FriBidiArabicProp> joins(points.values.size());
  fribidi_get_bidi_types(points.values.data(), n, types.data());
  fribidi_get_bracket_types(points.values.data(), n, types.data(), brackets.data());
  FriBidiParType direction = base == Direction::rtl ? FRIBIDI_PAR_RTL : FRIBIDI_PAR_LTR;
  const FriBidiLevel deepest =
      fribidi_get_par_embedding_levels_ex(types.data(), brackets.data(), n, &direction, levels.data());
  check(deepest != 0, ExitCode::resource, "out of memory while ordering a line of {} characters", n);
  fribidi_get_joining_types(points.values.data(), n, joins.data());
  fribidi_join_arabic(types.data(), n, levels.data(), joins.data());
  fribidi_shape(FRIBIDI_FLAGS_DEFAULT | FRIBIDI_FLAGS_ARABIC, levels.data(), n, joins.data(), points.values.data());

  std::vector<FriBidiStrIndex> order(points.values.size());  // where each place of the line came from
  for (FriBidiStrIndex i = 0; i < n; ++i) order[static_cast<size_t>(i)] = i;
  const FriBidiLevel reordered =
      fribidi_reorder_line(FRIBIDI_FLAGS_DEFAULT, types.data(), n_line, static_cast<FriBidiStrIndex>(points.first),
                           direction, levels.data(), points.values.data(), order.data());
  check(reordered != 0, ExitCode::resource, "out of memory while ordering a line of {} characters", n_line);
  std::vector<size_t> bytes_before(static_cast<size_t>(n_line));
  for (size_t i = 0; i < static_cast<size_t>(n_line); ++i) {
    bytes_before[i] = out.text.size();
    const FriBidiChar c = points.values[points.first + i];
    if (!is_left_out(c)) append_utf8(out.text, c);
  }
  // The cell of every byte, then of every code point by where it went.
  std::vector<int> cell_of_byte(out.text.size() + 1);
  int cell = 0;
  for (const Grapheme& grapheme : graphemes(out.text)) {
    std::fill(cell_of_byte.begin() + static_cast<ptrdiff_t>(grapheme.begin),
              cell_of_byte.begin() + static_cast<ptrdiff_t>(grapheme.end), cell);
    cell += grapheme.cells;
  }
  cell_of_byte[out.text.size()] = cell;
  out.cells.resize(static_cast<size_t>(n_line));
  for (size_t i = 0; i < static_cast<size_t>(n_line); ++i) {
    const size_t from = static_cast<size_t>(order[points.first + i]) - points.first;
    out.cells[from] = cell_of_byte[bytes_before[i]];
  }
  return out;
}

Bidi bidi_of(const TerminalNames& names) {
  int vte = 0;
  std::from_chars(names.vte_version.data(), names.vte_version.data() + names.vte_version.size(), vte);
  const bool knows_directions = vte >= 5800 || !names.mlterm.empty();  // VTE 0.58: its first with bidi
  if (knows_directions) return names.tmux.empty() ? Bidi::directed : Bidi::padded;
  return names.term_program == "Apple_Terminal" ? Bidi::padded : Bidi::visual;
}

}  // namespace saaz
