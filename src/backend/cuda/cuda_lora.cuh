// Room-private pieces of the LoRA kernels: a pair's product h b^T in fragments. A warp has some groups of 32 columns
// and takes rows 16 at a time; in the end a lane has eight neighbouring columns of two rows, 16 bytes each.
#pragma once

#include "backend/cuda/cuda_items.cuh"
#include "backend/cuda/cuda_mma.cuh"

namespace saaz::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kBlockRows = 16;  // of a product
constexpr int kGroup = 32;      // columns: of a row, four lanes hold eight neighbours each, 16 bytes

__device__ inline uint4 load_chunk(const bf16* p, bool present) {
  return present ? *reinterpret_cast<const uint4*>(p) : uint4{0, 0, 0, 0};
}
__device__ inline uint32_t load_pair(const bf16* p, bool present) {
  return present ? *reinterpret_cast<const uint32_t*>(p) : 0;
}
inline unsigned blocks_for(int64_t n) { return static_cast<unsigned>(ceil_div(n, kThreads)); }

/// c[16, 8] += h[16, R] b[8, R]^T
template <int R>
__device__ inline void multiply(float (&c)[4], const uint32_t (&h)[R / 8][2], const uint32_t (&b)[R / 8]) {
  if constexpr (R == 8)
    mma_narrow(c, h[0][0], h[0][1], b[0]);
  else
    mma(c, Fragment{h[0][0], h[0][1], h[1][0], h[1][1]}, b[0], b[1]);
}

/// b's rows [first, first + 32 kGroups) as right operands, in the order of columns in which a lane ends up with eight
/// neighbours. b: [N, R].
template <int R, int kGroups>
struct PairColumns {
  uint32_t b[kGroups][4][R / 8];

  __device__ void load(const bf16* from, int64_t first, int64_t n, int lane) {
    const int group = lane / 4, column = lane % 4;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t at = first + j * kGroup + 8 * (group / 2) + 2 * i + group % 2;
#pragma unroll
        for (int k = 0; k < R / 8; ++k) b[j][i][k] = load_pair(from + at * R + 8 * k + 2 * column, at < n);
      }
    }
  }
};
/// Rows [row, row + 16) of h [M, R] as left operand; zeros from `end` on.
template <int R>
struct PairRows {
  uint32_t h[R / 8][2];

  __device__ void load(const bf16* from, int64_t row, int64_t end, int lane) {
    const int group = lane / 4, column = lane % 4;
#pragma unroll
    for (int k = 0; k < R / 8; ++k) {
      const bf16* at = from + (row + group) * R + 8 * k + 2 * column;
      h[k][0] = load_pair(at, row + group < end);
      h[k][1] = load_pair(at + 8 * R, row + group + 8 < end);
    }
  }
};

/// a [R, K] and b [N, R] in bf16, or, kTransposed, as [K, R] and [R, N].
template <int R, bool kTransposed>
__global__ void __launch_bounds__(kThreads)
    round_pair(bf16* to_a, const float* a, int64_t n_in, bf16* to_b, const float* b, int64_t n_out) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < R * n_in) {
    to_a[i] = __float2bfloat16_rn(a[kTransposed ? i % R * n_in + i / R : i]);
    return;
  }
  i -= R * n_in;
  if (i < R * n_out) to_b[i] = __float2bfloat16_rn(b[kTransposed ? i % n_out * R + i / n_out : i]);
}

}  // namespace
}  // namespace saaz::cuda
