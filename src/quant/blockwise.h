// Blockwise formats, scalar truth (bit-exact): NF4 with double quantisation and the 256-entry dynamic 8-bit maps of
// bitsandbytes (docs/formats.md 1 and 3), and the GGUF block formats (formats.md 2). Vectorised twins live in backend/.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "quant/weight.h"

namespace saaz {

inline constexpr int64_t kNf4Block = 64, kNestedBlock = 256;

/// The 16 NF4 values (exact f32) and the 15 thresholds between them.
extern const std::array<float, 16> kNf4Values;
extern const std::array<float, 15> kNf4Thresholds;

/// The dynamic 8-bit maps, ascending. Signed: absmax codes and AdamW's first moment; unsigned: second moment.
const std::array<float, 256>& dynamic_map_signed();
const std::array<float, 256>& dynamic_map_unsigned();
/// Index of the nearest map value (exact tie: the lower index).
uint8_t nearest_code(const std::array<float, 256>& map, float x);

struct Nf4Options {
  bool double_quant = true;
};

/// An owned NF4 matrix; `view()` is valid while it lives (moves keep it valid).
struct Nf4Matrix {
  int64_t n_out = 0, n_in = 0;
  DType dequantised_dtype = DType::f32;
  std::vector<uint8_t> codes;         // [ceil(n/2)], element 2k in the high nibble
  std::vector<float> absmax;          // without double quantisation
  std::vector<uint8_t> absmax_codes;  // with
  std::vector<float> nested_absmax;
  float nested_offset = 0;
  Weight view() const;
  int64_t bytes() const;
};
/// Quantises rows fetched by `rows(begin_element, n, out)` piece by piece (no full f32 copy). dequantised_dtype: the
/// dtype the values are rounded to on dequantisation (bf16 for a bf16 base, else f32).
Nf4Matrix quantise_nf4(const Weight& source, Nf4Options options, DType dequantised_dtype);

/// Encoders used by tests and export: n a multiple of the block.
void quantise_q8_0(const float* x, int64_t n, std::byte* out);
void quantise_q4_0(const float* x, int64_t n, std::byte* out);
void quantise_q5_0(const float* x, int64_t n, std::byte* out);

}  // namespace saaz
