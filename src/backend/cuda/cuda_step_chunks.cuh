// Step: one warp's part of a product of few rows: what it has of a weight in registers, x in shared memory.
// Room-private.
#pragma once

#include "backend/cuda/cuda_mma.cuh"
#include "backend/step.h"
#include "quant/blockwise.h"

namespace saaz::cuda {

inline constexpr int kLoads = 8;  // of a batch

__device__ inline float gelu_of(float x) {
  const float u = 0.7978845608f * x * (1.0f + 0.044715f * x * x);
  return x / (1.0f + __expf(fminf(-2.0f * u, 80.0f)));
}

__device__ inline uint4 stream_load(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p), "l"(read_once()));
  return v;
}
__device__ inline uint2 stream_load(const uint2* p) {
  uint2 v;
  asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v2.u32 {%0, %1}, [%2], %3;"
               : "=r"(v.x), "=r"(v.y)
               : "l"(p), "l"(read_once()));
  return v;
}
__device__ inline uint32_t stream_load(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.global.L2::cache_hint.u32 %0, [%1], %2;" : "=r"(v) : "l"(p), "l"(read_once()));
  return v;
}

/// A weight as the kernel reads it.
struct Matrix {
  const void* data = nullptr;
  const uint8_t* codes = nullptr;  // of the scales
  const float* nested = nullptr;   // null: `scales` are not doubly quantised
  const float* scales = nullptr;
  float offset = 0;
};
inline Matrix matrix_of(const Weight& w) {
  return {w.data, w.absmax_codes, w.absmax != nullptr ? nullptr : w.nested_absmax, w.absmax, w.nested_offset};
}

/// This lane's parts of a batch. bf16: 8 values of row lane / 4 in each of 8 chunks. NF4: 16 codes (.x, .y) of row
/// lane / 4 in each of 4 chunks, then of the row 8 below. In .z the scales in the same order; or, of each row, the
/// chunks' codes, and what these are nested in.
using Batch = uint4[kLoads];
inline constexpr int kNf4Chunks = kLoads / 2;

/// upper, lower: the first chunks of the lane's two rows.
__device__ inline void load_nf4(Batch& to, const Matrix& w, int64_t upper, int64_t lower) {
  const auto* codes = static_cast<const uint2*>(w.data) + upper * 4 + threadIdx.x % 4;
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
    const uint2 raw = stream_load(codes + (u / kNf4Chunks * (lower - upper) + u % kNf4Chunks) * 4);
    to[u].x = raw.x, to[u].y = raw.y;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t first = half == 0 ? upper : lower;
    if (w.nested != nullptr) {
      to[half].z = __ldg(reinterpret_cast<const uint32_t*>(w.codes + first));
      to[2 + half].z = __float_as_uint(__ldg(w.nested + first / kNestedBlock));
    } else {
      const float4 scales = __ldg(reinterpret_cast<const float4*>(w.scales + first));
      to[4 * half].z = __float_as_uint(scales.x), to[4 * half + 1].z = __float_as_uint(scales.y);
      to[4 * half + 2].z = __float_as_uint(scales.z), to[4 * half + 3].z = __float_as_uint(scales.w);
    }
  }
}

/// x's fragments of a chunk, for rows lane / 4 and (wide) 8 more.
template <bool kWide>
struct RowFragments {
  const char* first;
  int stride;
  bool has_first, has_second;
  __device__ RowFragments(const char* rows, int stride, int n_rows)
      : first(rows + threadIdx.x % 32 / 4 * stride),
        stride(stride),
        has_first(threadIdx.x % 32 / 4 < n_rows),
        has_second(threadIdx.x % 32 / 4 + 8 < n_rows) {}
  __device__ uint4 a(int offset) const {
    return has_first ? *reinterpret_cast<const uint4*>(first + offset) : make_uint4(0, 0, 0, 0);
  }
  __device__ uint4 b(int offset) const {
    if (!kWide || !has_second) return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4*>(first + 8 * stride + offset);
  }
};

/// Sums of a tile in a warp. bf16: v[2 i + j] is of x's row lane / 4 + 8 i and the tile's row lane % 4 * 2 + j. NF4:
/// v[2 i + j] of the tile's row lane / 4 + 8 i and x's row lane % 4 * 2 + j; v[4 ..] of x's rows 8 and more.
template <bool kWide>
using Sums = float[kWide ? 8 : 4];

/// sums += x w^T over a batch; x begins with its first chunk and has `n` of its chunks. In two chains: a product waits
/// for the one before it in its chain.
template <bool kWide>
__device__ inline void add_bf16(Sums<kWide>& sums, const Batch& raw, const RowFragments<kWide>& x, int n) {
  const int lane_offset = threadIdx.x % 4 * 16;
  float first[4] = {}, second[4] = {};
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
    if (u >= n) continue;
    const uint4 a = x.a(u * 64 + lane_offset), b = x.b(u * 64 + lane_offset);
    mma(first, {a.x, b.x, a.y, b.y}, raw[u].x, raw[u].y);
    mma(second, {a.z, b.z, a.w, b.w}, raw[u].z, raw[u].w);
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) sums[e] += first[e] + second[e];
}

/// A pair of values for each byte of codes, once for each lane, 256 bytes apart: what pair_of finds.
inline constexpr int kCodeTableBytes = 256 * 256;
/// By all kThreads of a block. table: in shared memory; values: those of NF4; kStride: bytes between pairs.
template <int kThreads, int kStride = 256>
__device__ inline void fill_pairs(uint32_t table, const float* values) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < 256 * 8; i += kThreads) {
    const uint32_t pair = pack(values[i >> 7], values[i >> 3 & 15]);
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(table + (i >> 3) * kStride + (i & 7) * 16), "r"(pair)
                 : "memory");
  }
}
/// The pair of values of byte `i` of a word of codes: that byte times 256, and the lane's column.
__device__ inline uint32_t pair_of(const char* table, uint32_t word, int i) {
  const uint32_t at = __byte_perm(word, threadIdx.x % 32 * 4, 0x5504 | i << 4);
  return *reinterpret_cast<const uint32_t*>(table + at);
}
/// The same where `column` is the shared address of the lane's column of a table that begins at a multiple of 64 KiB.
__device__ inline uint32_t pair_at(uint32_t column, uint32_t word, int i) {
  uint32_t pair;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(pair) : "r"(__byte_perm(word, column, 0x7604 | i << 4)));
  return pair;
}

__device__ inline float scale_of(const Batch& raw, const Matrix& w, const float* map, int half, int chunk) {
  if (w.nested == nullptr) return __uint_as_float(raw[4 * half + chunk].z);
  const uint32_t code = raw[half].z >> (8 * chunk) & 255;
  return map[code] * __uint_as_float(raw[2 + half].z) + w.offset;
}

/// The sum of a batch's four blocks, which is then added to the sum of the batches.
__device__ inline float sum_of_blocks(const float (&x)[kNf4Chunks]) {
  return __fadd_rn(__fadd_rn(x[0], x[1]), __fadd_rn(x[2], x[3]));
}

template <bool kWide>
__device__ inline void add_nf4(Sums<kWide>& sums, const Batch& raw, const RowFragments<kWide>& x, const Matrix& w,
                               const char* table, const float* map) {
  const int lane_offset = threadIdx.x % 4 * 32;
  float of_blocks[kWide ? 8 : 4][kNf4Chunks];
#pragma unroll
  for (int c = 0; c < kNf4Chunks; ++c) {
    float of_block[4] = {}, of_wide[4] = {};
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const uint32_t upper = part == 0 ? raw[c].x : raw[c].y;
      const uint32_t lower = part == 0 ? raw[kNf4Chunks + c].x : raw[kNf4Chunks + c].y;
      const int offset = c * 128 + lane_offset + part * 16;
      const uint4 a = x.a(offset), b = x.b(offset);
      const Fragment first = {pair_of(table, upper, 0), pair_of(table, lower, 0), pair_of(table, upper, 1),
                              pair_of(table, lower, 1)};
      const Fragment second = {pair_of(table, upper, 2), pair_of(table, lower, 2), pair_of(table, upper, 3),
                               pair_of(table, lower, 3)};
      mma(of_block, first, a.x, a.y);
      mma(of_block, second, a.z, a.w);
      if (kWide) mma(of_wide, first, b.x, b.y), mma(of_wide, second, b.z, b.w);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float scale = scale_of(raw, w, map, half, c);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        of_blocks[2 * half + j][c] = __fmul_rn(scale, of_block[2 * half + j]);
        if (kWide) of_blocks[4 + 2 * half + j][c] = __fmul_rn(scale, of_wide[2 * half + j]);
      }
    }
  }
#pragma unroll
  for (int e = 0; e < (kWide ? 8 : 4); ++e) sums[e] = __fadd_rn(sums[e], sum_of_blocks(of_blocks[e]));
}

/// f(x's row, the tile's row, which of the sums) for this lane's.
template <bool kWide, class F>
__device__ inline void for_sums(bool nf4, F f) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int e = 0; e < (kWide ? 8 : 4); ++e) {
    const int by_lane = lane / 4 + e % 4 / 2 * 8, by_column = lane % 4 * 2 + e % 2;
    if (nf4)
      f(by_column + e / 4 * 8, by_lane, e);
    else if (e < (kWide ? 4 : 2))
      f(by_lane, by_column, e);
  }
}

}  // namespace saaz::cuda
