// Vec: the widest float vector of the instruction set this file is being compiled for (16 lanes AVX-512, 8 AVX2, 4
// SSE2), with the few operations the kernels need. Arithmetic is plain + - * / on vectors; only `fma` fuses, and only
// where the machine has it (SSE2 multiplies, then adds). Included by the kernel sources only. Invariant: everything
// here and in the *.inc.h files has internal linkage, so no code compiled for one instruction set can be linked into
// the common program.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace saaz::cpu {
namespace {

#if defined(__AVX512F__)
inline constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int64_t kLanes = 8;
#else
inline constexpr int64_t kLanes = 4;
#endif
typedef float VecF __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));

inline VecF load(const float* p) {
  VecF v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, VecF v) { __builtin_memcpy(p, &v, sizeof v); }
inline VecF broadcast(float x) { return x - VecF{}; }
inline VecI broadcast(int32_t x) { return x - VecI{}; }
inline VecF to_float(VecI v) { return __builtin_convertvector(v, VecF); }
inline VecI bits_of(VecF v) { return (VecI)v; }
inline VecF from_bits(VecI v) { return (VecF)v; }
inline VecF abs(VecF v) { return from_bits(bits_of(v) & broadcast(0x7fffffff)); }
inline VecI lane_indices() {
#if defined(__AVX512F__)
  return VecI{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX2__)
  return VecI{0, 1, 2, 3, 4, 5, 6, 7};
#else
  return VecI{0, 1, 2, 3};
#endif
}
/// Lanes [0, n) of v, zero elsewhere.
inline VecF keep_first(VecF v, int64_t n) {
  return from_bits(bits_of(v) & (lane_indices() < broadcast(static_cast<int32_t>(n))));
}

#if defined(__AVX512F__)
inline VecF fma(VecF a, VecF b, VecF c) { return _mm512_fmadd_ps(a, b, c); }
inline VecF max(VecF a, VecF b) { return _mm512_max_ps(a, b); }  // b when either is NaN
inline VecF min(VecF a, VecF b) { return _mm512_min_ps(a, b); }
inline VecF sqrt(VecF a) { return _mm512_sqrt_ps(a); }
inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
inline VecF load_first(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline void store_first(float* p, VecF v, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
#elif defined(__AVX2__)
inline VecF fma(VecF a, VecF b, VecF c) { return _mm256_fmadd_ps(a, b, c); }
inline VecF max(VecF a, VecF b) { return _mm256_max_ps(a, b); }
inline VecF min(VecF a, VecF b) { return _mm256_min_ps(a, b); }
inline VecF sqrt(VecF a) { return _mm256_sqrt_ps(a); }
inline __m256i first_lanes(int64_t n) { return (__m256i)(lane_indices() < broadcast(static_cast<int32_t>(n))); }
inline VecF load_first(const float* p, int64_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
inline void store_first(float* p, VecF v, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), v); }
#else
inline VecF fma(VecF a, VecF b, VecF c) { return a * b + c; }
inline VecF max(VecF a, VecF b) { return _mm_max_ps(a, b); }
inline VecF min(VecF a, VecF b) { return _mm_min_ps(a, b); }
inline VecF sqrt(VecF a) { return _mm_sqrt_ps(a); }
inline VecF load_first(const float* p, int64_t n) {
  VecF v{};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
inline void store_first(float* p, VecF v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}
#endif

/// Lanes [0, n) of memory, zero elsewhere; n = kLanes (a constant in the main loops) is a plain load.
inline VecF load(const float* p, int64_t n) { return n == kLanes ? load(p) : load_first(p, n); }
inline void store(float* p, VecF v, int64_t n) { n == kLanes ? store(p, v) : store_first(p, v, n); }

#if defined(__AVX512BF16__)
/// Twice kLanes bf16 values: memory [0, n), zero elsewhere.
inline __m512bh load(const uint16_t* p, int64_t n) {
  if (n == 2 * kLanes) return (__m512bh)_mm512_loadu_si512(p);
  return (__m512bh)_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << n) - 1), p);
}
/// Adds two products to each lane of c; values under 2^-126 count as zero.
inline VecF fma(__m512bh a, __m512bh b, VecF c) { return _mm512_dpbf16_ps(c, a, b); }
#endif

/// The four sums of the lanes of a, b, c and d. Each sum is one fixed tree over its own lanes: the upper half of the
/// vector is folded onto the lower one down to 8 lanes, then neighbours are paired, then the two halves meet.
inline __m128 sums_of_four(VecF a, VecF b, VecF c, VecF d) {
#if defined(__AVX2__) || defined(__AVX512F__)
#if defined(__AVX512F__)
  const auto fold = [](__m512 v) { return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)); };
  const __m256 a8 = fold(a), b8 = fold(b), c8 = fold(c), d8 = fold(d);
#else
  const __m256 a8 = a, b8 = b, c8 = c, d8 = d;
#endif
  const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(a8, b8), _mm256_hadd_ps(c8, d8));
  return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
#else
  __m128 a4 = a, b4 = b, c4 = c, d4 = d;
  _MM_TRANSPOSE4_PS(a4, b4, c4, d4);
  return _mm_add_ps(_mm_add_ps(a4, b4), _mm_add_ps(c4, d4));
#endif
}
inline float sum_of_lanes(VecF v) { return _mm_cvtss_f32(sums_of_four(v, VecF{}, VecF{}, VecF{})); }
inline float max_of_lanes(VecF v) {
  float largest = v[0];
  for (int64_t i = 1; i < kLanes; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
}

/// The next kLanes bytes (or 16-bit values) as integers.
#if defined(__AVX512F__)
inline __m128i load_bytes(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline VecI load_u8(const uint8_t* p) { return (VecI)_mm512_cvtepu8_epi32(load_bytes(p)); }
inline VecI load_i8(const uint8_t* p) { return (VecI)_mm512_cvtepi8_epi32(load_bytes(p)); }
inline VecI load_u16(const uint8_t* p) {
  return (VecI)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
#elif defined(__AVX2__)
inline __m128i load_bytes(const uint8_t* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }
inline VecI load_u8(const uint8_t* p) { return (VecI)_mm256_cvtepu8_epi32(load_bytes(p)); }
inline VecI load_i8(const uint8_t* p) { return (VecI)_mm256_cvtepi8_epi32(load_bytes(p)); }
inline VecI load_u16(const uint8_t* p) {
  return (VecI)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
#else
inline VecI load_u8(const uint8_t* p) { return VecI{p[0], p[1], p[2], p[3]}; }
inline VecI load_i8(const uint8_t* p) { return load_u8(p) << 24 >> 24; }
inline VecI load_u16(const uint8_t* p) {
  const __m128i values = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return (VecI)_mm_unpacklo_epi16(values, _mm_setzero_si128());
}
#endif

/// Calls f(i, count) for i = 0, kLanes, ...: count is kLanes but in the last call, which holds the rest.
template <class F>
[[gnu::flatten]] inline void for_lanes(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, kLanes);
  if (i < n) f(i, n - i);
}

/// Sum of term(i, count) over the lanes of a row, good to about 1e-7 relative to the sum of magnitudes at any length:
/// f32 lanes over pieces of fixed size, pieces in f64. term's lanes past `count` are ignored.
template <class F>
[[gnu::flatten]] inline double row_sum(int64_t n, F term) {
  constexpr int64_t kPiece = 32 * kLanes;
  double total = 0;
  int64_t i = 0;
  for (; i + kPiece <= n; i += kPiece) {
    VecF sums[4] = {};
    for (int64_t j = i; j < i + kPiece; j += 4 * kLanes) {
      for (int64_t s = 0; s < 4; ++s) sums[s] += term(j + s * kLanes, kLanes);
    }
    total += sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  VecF rest{};
  for (; i + kLanes <= n; i += kLanes) rest += term(i, kLanes);
  if (i < n) rest += keep_first(term(i, n - i), n - i);
  return total + sum_of_lanes(rest);
}

}  // namespace
}  // namespace saaz::cpu
