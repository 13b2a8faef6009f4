// Weight: a frozen matrix [n_out, n_in] in any storage format, a view of bytes it does not own (a mapped file or an
// owned buffer kept by the model). Row-major; row r holds the n_in inputs of output r. Byte layouts: docs/formats.md.
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace saaz {

enum class WeightFormat : uint8_t { f32, bf16, f16, nf4, int8, q4_0, q5_0, q8_0, q4_k, q5_k, q6_k };

const char* name_of(WeightFormat format);
/// Elements per block and bytes per block: f32 1/4, bf16 1/2, f16 1/2, nf4 2/1 and int8 1/1 (codes only), q4_0 32/18,
/// q5_0 32/22, q8_0 32/34, q4_k 256/144, q5_k 256/176, q6_k 256/210.
struct BlockSize {
  int64_t elements, bytes;
};
BlockSize block_size(WeightFormat format);

struct Weight {
  WeightFormat format = WeightFormat::f32;
  int64_t n_out = 0, n_in = 0;
  const void* data = nullptr;  // blocks, row after row
  // NF4 only (formats.md 1): blocks of 64 over the flattened matrix. With double quantisation
  // absmax_codes/nested_absmax/ nested_offset are set; else absmax.
  const float* absmax = nullptr;          // [ceil(n/64)]
  const uint8_t* absmax_codes = nullptr;  // [ceil(n/64)]
  const float* nested_absmax = nullptr;   // [ceil(n/64/256)]
  float nested_offset = 0;
  // The maps a file brings along (FP4, or another book of codes); null: NF4's values, the signed dynamic map.
  const float* quant_map = nullptr;      // [16]
  const float* nested_map = nullptr;     // [256]
  DType dequantised_dtype = DType::f32;  // NF4: one rounding to this dtype after code * absmax (bf16, f16 or f32)
  // int8 only (formats.md 1.8): value = code * row_absmax[row] * (1/127).
  const float* row_absmax = nullptr;  // [n_out]

  bool empty() const { return data == nullptr; }
  int64_t size() const { return n_out * n_in; }
};

/// A view of a dense tensor [n_out, n_in] of f32, bf16 or f16.
Weight dense_weight(const Tensor& matrix);

/// Scalar truth: elements [begin, begin + n) of the flattened matrix as f32. For block formats begin and n are
/// multiples of the block's elements (nf4: of 2, any other: see block_size) unless the range ends at the matrix's end.
void dequantise(const Weight& weight, int64_t begin, int64_t n, float* out);

}  // namespace saaz
