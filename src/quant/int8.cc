#include "quant/int8.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "base/check.h"

namespace saaz {

namespace {

constexpr float kLevels = 127.0f;
constexpr float kInverseSquare = 6.200012e-05f;  // 1 / 127^2, as bitsandbytes' kernels write it

float inverse_step(float absmax) { return absmax > 0 ? kLevels / absmax : 0.0f; }

int8_t code_of(float x, float inverse) { return static_cast<int8_t>(std::nearbyint(x * inverse)); }

}  // namespace

Weight Int8Matrix::view() const {
  Weight weight;
  weight.format = WeightFormat::int8;
  weight.n_out = n_out;
  weight.n_in = n_in;
  weight.data = codes.data();
  weight.row_absmax = row_absmax.data();
  return weight;
}

int64_t Int8Matrix::bytes() const { return static_cast<int64_t>(codes.size() + 4 * row_absmax.size()); }

Int8Matrix quantise_int8(const Weight& source) {
  Int8Matrix out{.n_out = source.n_out, .n_in = source.n_in};
  out.codes.resize(static_cast<size_t>(source.size()));
  out.row_absmax.resize(static_cast<size_t>(source.n_out));
  // Whole rows, and whole blocks of any format: 256 rows at a time begin at a multiple of every block.
  constexpr int64_t kRows = 256;
  std::vector<float> rows(static_cast<size_t>(std::min(kRows, source.n_out) * source.n_in));
  for (int64_t begin = 0; begin < source.n_out; begin += kRows) {
    const int64_t count = std::min(kRows, source.n_out - begin);
    dequantise(source, begin * source.n_in, count * source.n_in, rows.data());
    for (int64_t r = 0; r < count; ++r) {
      float* row = rows.data() + r * source.n_in;
      float absmax = 0;
      for (int64_t i = 0; i < source.n_in; ++i) {
        const float half = f16_to_f32(f32_to_f16(row[i]));
        check(std::isfinite(half), ExitCode::bad_input,
              "row {}, column {} of the matrix is {}: only values up to 65504 can be quantised to int8", begin + r, i,
              row[i]);
        row[i] = half;
        absmax = std::max(absmax, std::fabs(half));
      }
      const float inverse = inverse_step(absmax);
      out.row_absmax[static_cast<size_t>(begin + r)] = absmax;
      int8_t* codes = out.codes.data() + (begin + r) * source.n_in;
      for (int64_t i = 0; i < source.n_in; ++i) codes[i] = code_of(row[i], inverse);
    }
  }
  return out;
}

LlmInt8Row quantise_llm_int8_row(std::span<const float> x, float threshold) {
  LlmInt8Row out;
  out.codes.resize(x.size());
  std::vector<float> halves(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    halves[i] = f16_to_f32(f32_to_f16(x[i]));
    if (std::fabs(halves[i]) >= threshold) {
      out.outliers.push_back(static_cast<int32_t>(i));
      halves[i] = 0;
    }
    out.absmax = std::max(out.absmax, std::fabs(halves[i]));
  }
  const float inverse = inverse_step(out.absmax);
  for (size_t i = 0; i < x.size(); ++i) out.codes[i] = code_of(halves[i], inverse);
  return out;
}

float llm_int8_value(std::span<const float> x, const LlmInt8Row& row, int32_t integer_sum, const Weight& w, int64_t o) {
  const float scaled = static_cast<float>(integer_sum) * (row.absmax * w.row_absmax[o]) * kInverseSquare;
  if (row.outliers.empty()) return scaled;
  const int8_t* codes = static_cast<const int8_t*>(w.data) + o * w.n_in;
  float large = 0;
  for (const int32_t i : row.outliers) large += x[static_cast<size_t>(i)] * int8_value(codes[i], w.row_absmax[o]);
  return scaled + large;
}

void llm_int8_product(std::span<const float> x, const Weight& w, float threshold, std::span<float> y) {
  assert(w.format == WeightFormat::int8 && static_cast<int64_t>(x.size()) == w.n_in);
  const LlmInt8Row row = quantise_llm_int8_row(x, threshold);
  const auto* codes = static_cast<const int8_t*>(w.data);
  for (int64_t o = 0; o < w.n_out; ++o, codes += w.n_in) {
    int32_t sum = 0;  // at most 127^2 n_in: exact up to n_in = 133,000
    for (size_t i = 0; i < x.size(); ++i) sum += static_cast<int32_t>(row.codes[i]) * codes[i];
    y[static_cast<size_t>(o)] = llm_int8_value(x, row, sum, w, o);
  }
}

}  // namespace saaz
