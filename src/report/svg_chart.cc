#include "report/svg_chart.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/markup.h"

namespace saaz {

namespace {

constexpr double kWidth = 600, kHeight = 380;
constexpr double kLeft = 66, kRight = 582, kTop = 66, kBottom = 330;  // of the plot
constexpr const char *kInk = "#1a1a1a", *kGrid = "#e4e4e4";

/// XML has no control characters.
std::string escape(std::string_view original) {
  std::string text(original);
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
  return escape_markup(text);
}

/// A range of data and the pixels it is drawn to.
struct Axis {
  double low = 0, high = 1, from = 0, to = 1;
  std::vector<double> ticks;
  double scale = 1;  // tick labels are value / scale
  double at(double v) const { return from + (v - low) / (high - low) * (to - from); }

  std::string tick_label(double v) const {
    const double distance = ticks.size() > 1 ? (ticks[1] - ticks[0]) / scale : 1;
    const int decimals = std::max(0, static_cast<int>(std::ceil(-std::log10(distance) - 1e-9)));
    std::string text = fmt::format("{:.{}f}", v / scale, decimals);
    constexpr size_t kGroup = 3;
    if (decimals == 0 && text.size() > kGroup + 1)
      for (size_t i = text.size() - kGroup; i > 0 && text[i - 1] != '-'; i -= std::min(i, kGroup)) text.insert(i, ",");
    return text;
  }
};

void extend(Axis& axis, const std::vector<double>& values, bool& is_empty) {
  for (const double v : values) {
    if (!std::isfinite(v)) continue;
    axis.low = is_empty ? v : std::min(axis.low, v);
    axis.high = is_empty ? v : std::max(axis.high, v);
    is_empty = false;
  }
}

Axis x_axis(const Chart& chart) {
  Axis axis{.from = kLeft, .to = kRight};
  bool is_empty = true;
  for (const Series& s : chart.series) extend(axis, s.x, is_empty);
  axis.low = std::min(axis.low, 0.0);
  if (axis.high <= axis.low) axis.high = axis.low + 1;
  axis.ticks = nice_ticks(axis.low, axis.high, 6);
  return axis;
}

Axis y_axis(const Chart& chart) {
  Axis axis{.from = kBottom, .to = kTop};
  bool is_empty = true;
  for (const Series& s : chart.series) extend(axis, s.y, is_empty);
  if (axis.high - axis.low < 1e-9 * std::abs(axis.high)) axis.low -= 0.5 * std::abs(axis.low), axis.high *= 1.5;
  if (axis.high <= axis.low) axis.high = axis.low + 1;
  const double margin = 0.05 * (axis.high - axis.low);
  axis.low = chart.from_zero ? 0 : axis.low - margin;
  axis.high += margin;
  axis.ticks = nice_ticks(axis.low, axis.high, 6);
  // Small and large numbers share a power of ten, which the label of the axis tells.
  const double largest = std::max(std::abs(axis.low), std::abs(axis.high));
  if (largest < 1e-2 || largest >= 1e5) axis.scale = std::pow(10, std::floor(std::log10(largest)));
  return axis;
}

std::string superscript(int n) {
  static constexpr const char* kDigits[] = {"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
  std::string out = n < 0 ? "⁻" : "";
  for (const char c : std::to_string(std::abs(n))) out += kDigits[c - '0'];
  return out;
}

std::string text(double x, double y, const char* anchor, const char* more, std::string_view content) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" {}>{}</text>\n", x, y, anchor, more,
                     escape(content));
}

std::string axes(const Chart& chart, const Axis& x, const Axis& y) {
  std::string out = fmt::format("<g stroke=\"{}\" stroke-width=\"1\">\n", kGrid);
  for (const double v : y.ticks)
    out += fmt::format("<line x1=\"{}\" y1=\"{:.1f}\" x2=\"{}\" y2=\"{:.1f}\"/>\n", kLeft, y.at(v), kRight, y.at(v));
  for (const double v : x.ticks)
    out += fmt::format("<line x1=\"{:.1f}\" y1=\"{}\" x2=\"{:.1f}\" y2=\"{}\"/>\n", x.at(v), kTop, x.at(v), kBottom);
  out += fmt::format("</g>\n<path d=\"M{} {}V{}H{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.2\"/>\n", kLeft, kTop,
                     kBottom, kRight, kInk);
  for (const double v : x.ticks) out += text(x.at(v), kBottom + 18, "middle", "class=\"x tick\"", x.tick_label(v));
  for (const double v : y.ticks) out += text(kLeft - 8, y.at(v) + 4, "end", "class=\"y tick\"", y.tick_label(v));
  out += text((kLeft + kRight) / 2, kHeight - 10, "middle", "font-size=\"13\"", chart.x_label);
  std::string label = chart.y_label;
  if (y.scale != 1) label += fmt::format(" (×10{})", superscript(static_cast<int>(std::lround(std::log10(y.scale)))));
  constexpr double kX = 16, kY = (kTop + kBottom) / 2;
  return out +
         text(kX, kY, "middle", fmt::format("font-size=\"13\" transform=\"rotate(-90 {} {})\"", kX, kY).c_str(), label);
}

/// Where a series has many points in one column of pixels, the lowest and the highest of them stand for all.
void thin_out(Series& s) {
  constexpr size_t kColumns = 600;
  if (s.x.size() <= 4 * kColumns) return;
  Series thin{.label = s.label, .colour = s.colour, .style = s.style};
  for (size_t column = 0; column < kColumns; ++column) {
    const auto begin = s.y.begin() + static_cast<int64_t>(column * s.y.size() / kColumns);
    const auto end = s.y.begin() + static_cast<int64_t>((column + 1) * s.y.size() / kColumns);
    auto [low, high] = std::minmax_element(begin, end);
    if (low > high) std::swap(low, high);
    for (const auto at : {low, high}) {
      thin.x.push_back(s.x[static_cast<size_t>(at - s.y.begin())]);
      thin.y.push_back(*at);
    }
  }
  s = std::move(thin);
}

std::string stroke(const Series& s) {
  using enum Series::Style;
  const std::string base = fmt::format("fill=\"none\" stroke=\"{}\" stroke-linejoin=\"round\" ", s.colour);
  switch (s.style) {
    case faint:
      return base + "stroke-width=\"1\" stroke-opacity=\"0.45\"";
    case dashed:
      return base + "stroke-width=\"1.3\" stroke-dasharray=\"5 4\"";
    case markers:
      return base + "stroke-width=\"1.5\"";
    case line:
      break;
  }
  return base + "stroke-width=\"2\"";
}

std::string curve(Series s, const Axis& x, const Axis& y) {
  thin_out(s);
  std::string path, dots;
  bool is_down = false;  // the pen
  for (size_t i = 0; i < s.x.size(); ++i) {
    const bool is_point = std::isfinite(s.x[i]) && std::isfinite(s.y[i]);
    if (is_point) path += fmt::format("{}{:.2f} {:.2f}", is_down ? "L" : "M", x.at(s.x[i]), y.at(s.y[i]));
    if (is_point && s.style == Series::Style::markers)
      dots +=
          fmt::format("<circle cx=\"{:.2f}\" cy=\"{:.2f}\" r=\"3.2\" fill=\"#ffffff\"/>\n", x.at(s.x[i]), y.at(s.y[i]));
    is_down = is_point;
  }
  if (path.empty()) return "";
  std::string out =
      fmt::format("<g class=\"series\" {}>\n<title>{}</title>\n<path d=\"{}\"/>\n", stroke(s), escape(s.label), path);
  return out + dots + "</g>\n";
}

std::string legend(const Chart& chart) {
  constexpr double kY = 46, kSample = 22, kGap = 6, kBetween = 20, kCharacter = 6.4;  // at 12 pixels, about
  double x = kLeft;
  std::string out;
  for (const Series& s : chart.series) {
    if (s.label.empty() || s.x.empty()) continue;
    out += fmt::format("<line x1=\"{:.1f}\" y1=\"{}\" x2=\"{:.1f}\" y2=\"{}\" {}/>\n", x, kY - 4, x + kSample, kY - 4,
                       stroke(s));
    if (s.style == Series::Style::markers)
      out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{}\" r=\"3.2\" fill=\"#ffffff\" stroke=\"{}\"/>\n",
                         x + kSample / 2, kY - 4, s.colour);
    out += text(x + kSample + kGap, kY, "start", "", s.label);
    x += kSample + kGap + kBetween + kCharacter * static_cast<double>(s.label.size());
  }
  return out;
}

}  // namespace

std::vector<double> nice_ticks(double low, double high, int n) {
  const double raw = (high - low) / n, power = std::pow(10, std::floor(std::log10(raw))), share = raw / power;
  const double distance = power * (share <= 1 ? 1 : share <= 2 ? 2 : share <= 5 ? 5 : 10);
  std::vector<double> out;
  for (double i = std::ceil(low / distance - 1e-9); i * distance <= high + 1e-9 * distance; ++i)
    out.push_back(i * distance + 0.0);  // -0 becomes 0
  return out;
}

std::string to_svg(const Chart& chart) {
  const Axis x = x_axis(chart), y = y_axis(chart);
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" role=\"img\" "
      "font-family=\"Helvetica, Arial, 'Liberation Sans', sans-serif\" font-size=\"12\" fill=\"{2}\">\n"
      "<title>{3}</title>\n<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n",
      kWidth, kHeight, kInk, escape(chart.title));
  out += text(kLeft, 22, "start", "font-size=\"15\" font-weight=\"bold\"", chart.title) + legend(chart);
  out += axes(chart, x, y);
  for (const Series& s : chart.series) out += curve(s, x, y);
  return out + "</svg>\n";
}

}  // namespace saaz
