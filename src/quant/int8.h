// LLM.int8() (Dettmers et al. 2022) as bitsandbytes computes it, scalar truth: weights in 8 bits with one scale a row,
// and the product whose activations are rounded to 8 bits but for outliers. In: any weight; rows of f32 activations.
// Out: codes and scales bit-equal to bitsandbytes'. Source: docs/formats.md 1.8.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "quant/weight.h"

namespace saaz {

/// Activations of at least this magnitude are outliers in the source system's recipe (llm_int8_threshold).
inline constexpr float kLlmInt8Threshold = 6.0f;

inline constexpr float kInverseLevels = 7.874015718698502e-3f;  // 1 / 127

/// code * absmax / 127 in the order of operations of int8_vectorwise_dequant.
inline float int8_value(int8_t code, float absmax) { return static_cast<float>(code) * absmax * kInverseLevels; }

/// An owned int8 matrix; `view()` is valid while it lives (moves keep it valid).
struct Int8Matrix {
  int64_t n_out = 0, n_in = 0;
  std::vector<int8_t> codes;      // [n_out, n_in]
  std::vector<float> row_absmax;  // [n_out], of the values rounded to f16
  Weight view() const;
  int64_t bytes() const;
};
/// Values are rounded to f16 first, as there. bad_input naming row and column for a value that f16 cannot hold.
Int8Matrix quantise_int8(const Weight& source);

/// One activation row [n_in] as the product sees it: 8-bit codes of what is below the threshold, and the outliers.
struct LlmInt8Row {
  std::vector<int8_t> codes;      // 0 at outliers
  float absmax = 0;               // of the values that are no outliers, rounded to f16
  std::vector<int32_t> outliers;  // their columns, ascending
};
LlmInt8Row quantise_llm_int8_row(std::span<const float> x, float threshold);

/// Output o of the product of row x: its integer sum scaled, then the outliers' columns times the dequantised weight.
float llm_int8_value(std::span<const float> x, const LlmInt8Row& row, int32_t integer_sum, const Weight& w, int64_t o);

/// y[n_out] = one row's product with an int8 weight: exact integer sums, scaled; then the outliers' columns times the
/// dequantised weight in f32. A row's outliers are its own (bitsandbytes: those of all rows of the call), so a row's
/// result is the one bitsandbytes gives for it alone.
void llm_int8_product(std::span<const float> x, const Weight& w, float threshold, std::span<float> y);

}  // namespace saaz
