// One chart as an SVG file: lines over numeric axes with round ticks, a light grid and a legend above the plot. Made
// for papers: dark on white, readable at 600 pixels, no scripts, no outside fonts.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace saaz {

struct Series {
  enum class Style { line, faint, markers, dashed };
  std::string label;  // in the legend; empty: not there
  const char* colour = "";
  Style style = Style::line;
  std::vector<double> x, y;  // equal lengths; a point that is not finite interrupts the line
};

struct Chart {
  std::string title, x_label, y_label;
  bool from_zero = false;      // the y axis begins at 0
  std::vector<Series> series;  // drawn in order
};

/// Colours that differ for colour-blind readers, too (Okabe and Ito).
inline constexpr const char *kBlue = "#0072b2", *kOrange = "#d55e00", *kGreen = "#009e73";

std::string to_svg(const Chart& chart);

/// Round numbers from `low` to `high`: about `n` of them, 1, 2 or 5 times a power of ten apart.
std::vector<double> nice_ticks(double low, double high, int n);

}  // namespace saaz
