// A line chart in text: each character cell of the terminal is two dots wide and four high (the Braille block).
// Enters: points with ascending x. Leaves: lines of text, as tall as asked for, with the smallest and largest value at
// their left. Invariant: every line has the same number of columns, and every point in range lights a dot.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace saaz {

using ChartPoint = std::pair<double, double>;  // x, y; a y that is not finite is left out

struct BrailleSize {
  size_t columns = 60, rows = 6;  // of the whole chart, labels included; at least 16 and 2
};

/// Empty without a finite point.
std::vector<std::string> braille_chart(std::span<const ChartPoint> points, BrailleSize size);

}  // namespace saaz
