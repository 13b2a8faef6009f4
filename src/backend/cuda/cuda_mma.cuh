// Tensor-core building blocks (sm_80 and newer): 16 x 8 x 16 products of bf16 with f32 sums, the loads that lay out
// their operands, and asynchronous copies to shared memory. A tile of rows of kTileDim values lies in shared memory row
// by row; the 16-byte chunks of a row are permuted (chunk ^ row % 8) so that eight rows' chunks meet eight bank groups.
#pragma once

#include "backend/cuda/cuda_common.cuh"

namespace saaz::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
inline constexpr bool kHasMma = false;  // a kernel that needs it is then compiled empty, and never launched
#else
inline constexpr bool kHasMma = true;
#endif

inline constexpr int kTileDim = 256;
inline constexpr int kRowBytes = kTileDim * 2;
inline constexpr int kChunk = 8;  // values of 16 bytes

/// Operand registers of one product: a 16 x 16 matrix; or two 16 x 8 ones, the first in x[0..1], the second in x[2..3].
struct Fragment {
  uint32_t x[4];
};

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

/// Four 8 x 8 matrices; lanes 8 i .. 8 i + 7 give the row addresses of matrix i.
__device__ inline Fragment load_matrices(uint32_t address) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
               : "r"(address));
  return f;
}
__device__ inline Fragment load_matrices_transposed(uint32_t address) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
               : "r"(address));
  return f;
}

/// c[16, 8] += a[16, 16] b[16, 8]. c[0..1]: row lane / 4, columns 2 (lane % 4) and the next; c[2..3]: eight rows below.
__device__ inline void mma(float (&c)[4], const Fragment& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}
/// c[16, 8] += a[16, 8] b[8, 8]: a0 rows 0 .. 7, a1 rows 8 .. 15.
__device__ inline void mma_narrow(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b));
}
/// The transpose of an 8 x 8 matrix whose row lane / 4 holds its columns 2 (lane % 4) and the next in this lane.
__device__ inline uint32_t transposed_matrix(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
/// Two neighbouring column blocks at once.
__device__ inline void mma_pair(float (&c0)[4], float (&c1)[4], const Fragment& a, const Fragment& b) {
  mma(c0, a, b.x[0], b.x[1]);
  mma(c1, a, b.x[2], b.x[3]);
}

/// 16 bytes from global to shared memory, or 16 zero bytes; complete after wait_for_copies.
__device__ inline void copy_async(uint32_t to, const void* from, bool present) {
  const int bytes = present ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
               "r"(bytes)
               : "memory");
}
/// What is read once: it is to make room first, for code and what steps read again.
__device__ inline uint64_t read_once() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
/// 16 bytes that are read once.
__device__ inline void stream_async(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "l"(read_once())
               : "memory");
}
/// 4 bytes likewise.
__device__ inline void copy_word_async(uint32_t to, const float* from, bool present) {
  const int bytes = present ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)), "r"(bytes)
               : "memory");
}
/// This thread's copies since the last end are one batch.
__device__ inline void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Until no more than the last n batches of this thread's copies travel.
template <int n>
__device__ inline void wait_for_batches() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}
/// Until all of this thread's copies have landed; a barrier then makes the others' visible.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ inline float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// to[0], to[1] (+)= scale * two neighbouring sums.
__device__ inline void store_pair(bf16* to, bool add, float a, float b, float scale) {
  auto* pair = reinterpret_cast<__nv_bfloat162*>(to);
  a *= scale, b *= scale;
  if (add) {
    const float2 before = __bfloat1622float2(*pair);
    a += before.x, b += before.y;
  }
  *pair = __floats2bfloat162_rn(a, b);
}

/// Two values rounded to bf16, `low` in the lower half.
__device__ inline uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
/// Two blocks of 16 x 8 sums side by side as the left operand of a next product.
__device__ inline Fragment as_left_operand(const float (&c0)[4], const float (&c1)[4]) {
  return {pack(c0[0], c0[1]), pack(c0[2], c0[3]), pack(c1[0], c1[1]), pack(c1[2], c1[3])};
}

/// Where a lane reads fragments of tiles. Its row of a 16-row block is row % 8 == lane % 8 in each form, so the
/// permuted place of chunk 2 i + half needs only the four values of `column` and multiples of 128 bytes.
struct LaneAddress {
  uint32_t row;
  uint32_t column[4];

  /// Of a lane that reads row `row` of each block, and of each pair of chunks the first or second (`half`).
  __device__ LaneAddress(int row, int half) : row(static_cast<uint32_t>(row * kRowBytes)) {
#pragma unroll
    for (int i = 0; i < 4; ++i) column[i] = static_cast<uint32_t>(((2 * i + half) ^ (row & 7)) << 4);
  }
  /// Address of the 16 x 16 block: rows 16 * row_block .., columns 16 * column_block .. of a tile.
  __device__ uint32_t at(uint32_t tile, int row_block, int column_block) const {
    return tile + row + column[column_block & 3] + static_cast<uint32_t>(row_block * 16 * kRowBytes) +
           static_cast<uint32_t>((column_block >> 2) * 128);
  }
};
/// A tile's block [16 rows, 16 columns] as left operand; or, read transposed, as right operand [16 (k), 2 x 8 (n)].
__device__ inline LaneAddress left_address(int lane) { return {lane & 15, lane >> 4}; }
/// A tile's block [16 rows, 16 columns] as right operand whose rows are n (two blocks of 8) and columns k.
__device__ inline LaneAddress right_address(int lane) { return {(lane >> 4) * 8 + (lane & 7), (lane >> 3) & 1}; }

/// Starts copying kRows rows of kTileDim values into a tile. row_of(r): the row's index in `from`, or -1: zeros.
template <int kRows, int kThreads, class RowOf>
__device__ void load_tile(uint32_t tile, const bf16* from, RowOf row_of) {
  const int chunk = threadIdx.x % 32;
#pragma unroll 4
  for (int r = threadIdx.x / 32; r < kRows; r += kThreads / 32) {
    const int64_t row = row_of(r);
    copy_async(tile + static_cast<uint32_t>(r * kRowBytes + ((chunk ^ (r & 7)) << 4)),
               from + (row < 0 ? 0 : row * kTileDim) + chunk * kChunk, row >= 0);
  }
}

}  // namespace saaz::cuda
