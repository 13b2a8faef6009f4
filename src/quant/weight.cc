// The one scalar path from stored bytes to f32 for every weight format. It is the truth the vectorised kernels are
// tested against, so it favours plain order over speed. Sizes and pointers were checked when the weight was made
// (checkpoint/, or quantise_nf4), so here a wrong range is our own bug. Layouts: docs/formats.md 1 and 2.
#include "quant/weight.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "quant/blockwise.h"
#include "quant/gguf_blocks.h"
#include "quant/int8.h"

namespace saaz {

namespace {

const std::byte* bytes_of(const Weight& weight) { return static_cast<const std::byte*>(weight.data); }

void dequantise_f32(const Weight& weight, int64_t begin, int64_t n, float* out) {
  std::memcpy(out, bytes_of(weight) + begin * 4, static_cast<size_t>(n) * 4);
}

/// 16-bit elements, possibly at odd addresses of a mapped file.
template <float (*Convert)(uint16_t)>
void dequantise_half(const Weight& weight, int64_t begin, int64_t n, float* out) {
  const std::byte* at = bytes_of(weight) + begin * 2;
  for (int64_t i = 0; i < n; ++i) {
    uint16_t bits;
    std::memcpy(&bits, at + 2 * i, sizeof bits);
    out[i] = Convert(bits);
  }
}

void dequantise_blocks(const Weight& weight, int64_t begin, int64_t n, float* out) {
  const BlockSize size = block_size(weight.format);
  assert(begin % size.elements == 0 && n % size.elements == 0);
  const BlockDecoder decode = block_decoder(weight.format);
  const std::byte* block = bytes_of(weight) + begin / size.elements * size.bytes;
  for (int64_t done = 0; done < n; done += size.elements, block += size.bytes) decode(block, out + done);
}

float nf4_absmax(const Weight& weight, int64_t block) {
  if (weight.absmax) return weight.absmax[block];
  const float* map = weight.nested_map ? weight.nested_map : dynamic_map_signed().data();
  const float scaled = map[weight.absmax_codes[block]] * weight.nested_absmax[block / kNestedBlock];
  return scaled + weight.nested_offset;
}

float round_to(DType dtype, float x) {
  if (dtype == DType::bf16) return bf16_to_f32(f32_to_bf16(x));
  if (dtype == DType::f16) return f16_to_f32(f32_to_f16(x));
  return x;
}

void dequantise_nf4(const Weight& weight, int64_t begin, int64_t n, float* out) {
  const auto* codes = static_cast<const uint8_t*>(weight.data);
  const float* values = weight.quant_map ? weight.quant_map : kNf4Values.data();
  for (int64_t i = begin; i < begin + n;) {
    const int64_t block = i / kNf4Block;
    const int64_t block_end = std::min((block + 1) * kNf4Block, begin + n);
    const float absmax = nf4_absmax(weight, block);
    for (; i < block_end; ++i) {
      const int code = i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
      out[i - begin] = round_to(weight.dequantised_dtype, values[code] * absmax);
    }
  }
}

void dequantise_int8(const Weight& weight, int64_t begin, int64_t n, float* out) {
  const auto* codes = static_cast<const int8_t*>(weight.data);
  for (int64_t i = begin; i < begin + n;) {
    const int64_t row = i / weight.n_in, row_end = std::min((row + 1) * weight.n_in, begin + n);
    const float absmax = weight.row_absmax[row];
    for (; i < row_end; ++i) out[i - begin] = int8_value(codes[i], absmax);
  }
}

}  // namespace

const char* name_of(WeightFormat format) {
  static constexpr const char* kNames[] = {"f32",  "bf16", "f16",  "nf4",  "int8", "q4_0",
                                           "q5_0", "q8_0", "q4_k", "q5_k", "q6_k"};
  return kNames[static_cast<int>(format)];
}

BlockSize block_size(WeightFormat format) {
  static constexpr BlockSize kSizes[] = {{1, 4},   {1, 2},   {1, 2},     {2, 1},     {1, 1},    {32, 18},
                                         {32, 22}, {32, 34}, {256, 144}, {256, 176}, {256, 210}};
  return kSizes[static_cast<int>(format)];
}

Weight dense_weight(const Tensor& matrix) {
  assert(matrix.ndim == 2);
  Weight weight;
  weight.n_out = matrix.dim(0);
  weight.n_in = matrix.dim(1);
  weight.data = matrix.data;
  switch (matrix.dtype) {
    case DType::f32:
      weight.format = WeightFormat::f32;
      break;
    case DType::bf16:
      weight.format = WeightFormat::bf16;
      break;
    case DType::f16:
      weight.format = WeightFormat::f16;
      break;
    default:
      assert(false && "a dense weight is f32, bf16 or f16");
  }
  weight.dequantised_dtype = matrix.dtype;
  return weight;
}

void dequantise(const Weight& weight, int64_t begin, int64_t n, float* out) {
  assert(begin >= 0 && n >= 0 && begin + n <= weight.size());
  switch (weight.format) {
    case WeightFormat::f32:
      return dequantise_f32(weight, begin, n, out);
    case WeightFormat::bf16:
      return dequantise_half<bf16_to_f32>(weight, begin, n, out);
    case WeightFormat::f16:
      return dequantise_half<f16_to_f32>(weight, begin, n, out);
    case WeightFormat::nf4:
      return dequantise_nf4(weight, begin, n, out);
    case WeightFormat::int8:
      return dequantise_int8(weight, begin, n, out);
    default:
      return dequantise_blocks(weight, begin, n, out);
  }
}

}  // namespace saaz
