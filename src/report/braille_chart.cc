#include "report/braille_chart.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>

#include "base/check.h"
#include "base/unicode.h"

namespace saaz {
namespace {

constexpr size_t kLabelColumns = 9;
constexpr uint32_t kBraille = 0x2800;

/// The bit of a dot in its cell, by its column and row there.
constexpr uint8_t kDots[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};

class Canvas {
 public:
  Canvas(size_t columns, size_t rows) : columns_(columns), rows_(rows), cells_(columns * rows) {}
  int64_t width() const { return static_cast<int64_t>(columns_) * 2; }
  int64_t height() const { return static_cast<int64_t>(rows_) * 4; }

  void light(int64_t x, int64_t y) {
    cells_[static_cast<size_t>(y / 4) * columns_ + static_cast<size_t>(x / 2)] |= kDots[y % 4][x % 2];
  }
  void connect(int64_t x0, int64_t y0, int64_t x1, int64_t y1) {
    const int64_t n = std::max({std::abs(x1 - x0), std::abs(y1 - y0), int64_t{1}});
    for (int64_t i = 0; i <= n; ++i) light(x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n);
  }
  std::string row(size_t r) const {
    std::string out;
    for (size_t c = 0; c < columns_; ++c) append_utf8(out, kBraille + cells_[r * columns_ + c]);
    return out;
  }

 private:
  size_t columns_, rows_;
  std::vector<uint8_t> cells_;
};

std::string label(double value) { return fmt::format("{:>{}.3g}", value, kLabelColumns - 2); }

}  // namespace

std::vector<std::string> braille_chart(std::span<const ChartPoint> points, BrailleSize size) {
  double low = std::numeric_limits<double>::infinity(), high = -low, first = low, last = -low;
  for (const auto& [x, y] : points) {
    if (!std::isfinite(y)) continue;
    low = std::min(low, y), high = std::max(high, y);
    first = std::min(first, x), last = std::max(last, x);
  }
  if (low > high) return {};
  Canvas canvas(std::max<size_t>(size.columns, 16) - kLabelColumns, std::max<size_t>(size.rows, 2));
  const auto place = [](double value, double from, double to, int64_t n) {
    return to > from ? std::llround((value - from) / (to - from) * static_cast<double>(n - 1)) : (n - 1) / 2;
  };
  int64_t x0 = -1, y0 = 0;
  for (const auto& [x, y] : points) {
    if (!std::isfinite(y)) continue;
    const int64_t x1 = place(x, first, last, canvas.width());
    const int64_t y1 = canvas.height() - 1 - place(y, low, high, canvas.height());
    x0 < 0 ? canvas.light(x1, y1) : canvas.connect(x0, y0, x1, y1);
    x0 = x1, y0 = y1;
  }
  std::vector<std::string> lines;
  const size_t n_rows = std::max<size_t>(size.rows, 2);
  for (size_t r = 0; r < n_rows; ++r) {
    const bool is_labelled = r == 0 || r + 1 == n_rows;
    lines.push_back((is_labelled ? label(r == 0 ? high : low) + " ┤" : std::string(kLabelColumns - 1, ' ') + "│") +
                    canvas.row(r));
  }
  return lines;
}

}  // namespace saaz
