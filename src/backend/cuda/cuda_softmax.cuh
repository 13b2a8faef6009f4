// The online softmax of attention, on scores as a warp's sums lie (cuda_mma.cuh): 16 rows by 8 columns a block, four
// values a lane. Source: FlashAttention-2 (Dao 2023).
#pragma once

#include <cmath>

#include "backend/cuda/cuda_mma.cuh"

namespace saaz::cuda {

/// One warp's 16 rows: lanes hold two each, lane / 4 and eight below; [0] and [1] are these two.
struct RowStatistics {
  float largest[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};  // over this lane's columns
};

/// Scores of keys that a row does not see become -infinity. first_key: position of this lane's first column.
template <int kBlocks>
__device__ inline void mask_tile(float (&s)[kBlocks][4], int first_key, const int (&position)[2], int window) {
#pragma unroll
  for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int key = first_key + 8 * j + (e & 1), at = position[e >> 1];
      if (key > at || (window > 0 && key <= at - window)) s[j][e] = -INFINITY;
    }
  }
}

/// The online softmax: scores become weights relative to the new maxima; earlier sums are to be scaled by `correction`.
template <int kBlocks>
__device__ inline void weigh_tile(float (&s)[kBlocks][4], RowStatistics& row, float (&correction)[2],
                                  float scale_log2) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float largest = row.largest[h];
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) largest = fmaxf(largest, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    const float base = largest == -INFINITY ? 0 : largest * scale_log2;  // no key seen yet: all weights 0
    correction[h] = exp2_approximate(row.largest[h] * scale_log2 - base);
    row.largest[h] = largest;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
      for (int e = 2 * h; e < 2 * h + 2; ++e) {
        s[j][e] = exp2_approximate(s[j][e] * scale_log2 - base);
        sum += s[j][e];
      }
    }
    row.sum[h] = row.sum[h] * correction[h] + sum;
  }
}

template <int kBlocks>
__device__ inline void rescale(float (&sums)[kBlocks][4], const float (&correction)[2]) {
  if (!__any_sync(0xffffffffu, correction[0] != 1 || correction[1] != 1)) return;
#pragma unroll
  for (auto& block : sums) {
#pragma unroll
    for (int e = 0; e < 4; ++e) block[e] *= correction[e >> 1];
  }
}

}  // namespace saaz::cuda
