// y = x w^T with both operands rounded to bf16 (quant.compute_dtype: bf16). Products of two bf16 values are exact in
// f32; sums are f32. Two forms: by the machine's own bf16 dot product, two columns a lane, or by widening the operands
// and running the f32 tile. An element's order of additions is a function of K alone in either.
#pragma once

#include "backend/cpu/matmul.inc.h"

namespace saaz::cpu {
namespace {

struct Bf16Kernels {
  void (*dot)(const DotTask& task);
  void (*round)(int64_t n, uint16_t* y, const float* x);
};

/// x rounded to bf16 in the upper half of each lane, to nearest even.
inline VecI round_to_upper_half(VecF x) {
  typedef uint32_t VecU __attribute__((vector_size(kLanes * 4)));
  const VecU bits = (VecU)x, rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return (VecI)((x == x ? rounded : bits | 0x400000) & 0xffff0000);
}

void round_bf16_widened(int64_t n, uint16_t* y, const float* x) {
  for_lanes(n, [&](int64_t i, int64_t count) {
    const VecI rounded = round_to_upper_half(load(x + i, count)) >> 16;
    for (int64_t lane = 0; lane < count; ++lane) y[i + lane] = static_cast<uint16_t>(rounded[lane]);
  });
}

void dot_task_widened(const DotTask& t) {
  const Weight& w = *t.w;
  const auto* x = static_cast<const uint16_t*>(t.x);
  alignas(64) float strip[kStripRows * kDotStride];
  for_pieces(t, [&](const DotPiece& piece) {
    const auto row_of = [&](int64_t j) { return t.scratch + j * kDotStride; };
    dequantise_piece(w, piece, row_of, [&](int64_t j) {
      float* row = row_of(j);
      for_lanes(piece.k_count, [&](int64_t i, int64_t count) {
        store(row + i, from_bits(round_to_upper_half(load(row + i, count))), count);
      });
    });
    for (int64_t i = 0; i < t.m; i += kStripRows) {
      const int64_t m = t.m - i < kStripRows ? t.m - i : kStripRows;
      for (int64_t r = 0; r < m; ++r) {
        const auto* from = reinterpret_cast<const uint8_t*>(x + (i + r) * w.n_in + piece.k);
        dequantise_bf16(from, piece.k_count, strip + r * kDotStride);
      }
      dot_rows(t.y + i * t.ldy + piece.n, t.ldy, Rows{strip, kDotStride}, m, Rows{t.scratch, kDotStride}, piece.n_count,
               piece.k_count, piece.write);
    }
  });
}

inline constexpr Bf16Kernels kWidenedBf16 = {dot_task_widened, round_bf16_widened};

#if defined(__AVX512BF16__)
void round_bf16_native(int64_t n, uint16_t* y, const float* x) {
  for_lanes(n, [&](int64_t i, int64_t count) {
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(load(x + i, count));
    if (count == kLanes) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i), rounded);
    _mm256_mask_storeu_epi16(y + i, first_lanes(count), rounded);
  });
}

/// Rows of bf16 in a task's scratch, each on a cache line of its own; behind them one row of f32.
inline constexpr int64_t kHalvesStride = kDotChunk + 32;
static_assert(kDotRows * kHalvesStride / 2 + kDotStride <= kDotScratch);

void dot_task_native(const DotTask& t) {
  const Weight& w = *t.w;
  const auto* x = static_cast<const uint16_t*>(t.x);
  auto* halves = reinterpret_cast<uint16_t*>(t.scratch);
  float* row = t.scratch + kDotScratch - kDotStride;
  for_pieces(t, [&](const DotPiece& piece) {
    RowsOf<uint16_t> rows{static_cast<const uint16_t*>(w.data) + piece.n * w.n_in + piece.k, w.n_in};
    if (w.format != WeightFormat::bf16) {
      dequantise_piece(
          w, piece, [&](int64_t) { return row; },
          [&](int64_t j) { round_bf16_native(piece.k_count, halves + j * kHalvesStride, row); });
      rows = {halves, kHalvesStride};
    }
    dot_rows(t.y + piece.n, t.ldy, RowsOf<uint16_t>{x + piece.k, w.n_in}, t.m, rows, piece.n_count, piece.k_count,
             piece.write);
  });
}

inline constexpr Bf16Kernels kNativeBf16 = {dot_task_native, round_bf16_native};
#endif

}  // namespace
}  // namespace saaz::cpu
