// A row of activations as 8-bit codes, block by block (--compute-dtype int8). Enters: f32. Leaves: what the products
// read: codes in two widths, scales, and sums of codes. Nearest even; what is not finite stays so, in the scale.
#pragma once

#include "backend/cpu/kernels.h"
#include "backend/cpu/vec.h"

namespace saaz::cpu {
namespace {

/// One row of rounded activations, K long: kInt8BlockBytes a block.
struct Int8Row {
  const int16_t* codes;   // [K]
  const float* scales;    // [K / 32]
  const float* sums;      // [K / 32]: sum of the block's codes, times its scale
  const int8_t* bytes;    // [K]: the codes again
  const int32_t* halves;  // [K / 16]: sums of 16 codes
};
inline Int8Row int8_row(const void* x, int64_t row, int64_t k) {
  const auto* at = static_cast<const char*>(x) + row * (k / kInt8Block) * kInt8BlockBytes;
  const int64_t n_blocks = k / kInt8Block;
  const auto* scales = reinterpret_cast<const float*>(at + 2 * k);
  const auto* bytes = reinterpret_cast<const int8_t*>(scales + 2 * n_blocks);
  return {reinterpret_cast<const int16_t*>(at), scales, scales + n_blocks, bytes,
          reinterpret_cast<const int32_t*>(bytes + k)};
}

inline float largest_of_four(__m128 v) {
  v = _mm_max_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps(v, v, 1)));
}
inline int32_t sum_of_four(__m128i v) {
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1)));
}

/// The largest magnitude of a block; NaN when one of its numbers is.
inline float block_absmax(const float* x) {
  const __m128 magnitude = _mm_castsi128_ps(_mm_set1_epi32(0x7fffffff));
  __m128 largest = _mm_setzero_ps(), not_numbers = largest;
  for (int64_t i = 0; i < kInt8Block; i += 4) {
    const __m128 v = _mm_loadu_ps(x + i);
    largest = _mm_max_ps(_mm_and_ps(v, magnitude), largest);
    not_numbers = _mm_or_ps(not_numbers, _mm_cmpunord_ps(v, v));
  }
  return _mm_movemask_ps(not_numbers) == 0 ? largest_of_four(largest) : __builtin_nanf("");
}

/// 16 codes of a half block in both widths; returns their sum.
inline int32_t round_half(const float* x, __m128 inverse, int16_t* codes, int8_t* bytes) {
  __m128i quarters[4];
  for (int q = 0; q < 4; ++q) quarters[q] = _mm_cvtps_epi32(_mm_mul_ps(_mm_loadu_ps(x + 4 * q), inverse));
  const __m128i low = _mm_packs_epi32(quarters[0], quarters[1]), high = _mm_packs_epi32(quarters[2], quarters[3]);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), low);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 8), high);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), _mm_packs_epi16(low, high));
  return sum_of_four(_mm_add_epi32(_mm_add_epi32(quarters[0], quarters[1]), _mm_add_epi32(quarters[2], quarters[3])));
}

/// A row is rounded anew for each of its products: this runs a hundred times a token.
void round_int8(int64_t k, void* to, const float* x) {
  const Int8Row row = int8_row(to, 0, k);
  auto* codes = const_cast<int16_t*>(row.codes);
  auto *scales = const_cast<float*>(row.scales), *sums = const_cast<float*>(row.sums);
  auto* bytes = const_cast<int8_t*>(row.bytes);
  auto* halves = const_cast<int32_t*>(row.halves);
  for (int64_t b = 0; b < k / kInt8Block; ++b, x += kInt8Block, codes += kInt8Block, bytes += kInt8Block) {
    const float absmax = block_absmax(x);
    const __m128 inverse = _mm_set1_ps(absmax > 0 ? 127.0f / absmax : 0.0f);
    halves[2 * b] = round_half(x, inverse, codes, bytes);
    halves[2 * b + 1] = round_half(x + 16, inverse, codes + 16, bytes + 16);
    scales[b] = absmax / 127.0f;
    sums[b] = static_cast<float>(halves[2 * b] + halves[2 * b + 1]) * scales[b];
  }
}

}  // namespace
}  // namespace saaz::cpu
