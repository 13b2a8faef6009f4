// dq of attention on sm_90a (bf16, head_dim 256), by the formulas of cuda_attention_backward.cu: two warpgroups of 64
// rows (query, head) each walk the keys of 128 rows, 64 keys at a time. While dq grows, the next tile's scores are
// under way.
#include <cmath>

#include "backend/cuda/cuda_attention_wgmma.cuh"

namespace saaz::cuda {
namespace {

using KeyRing = wgmma::Ring<2>;
using ValueRing = wgmma::Ring<1>;
constexpr int kTiles = 2 * wgmma::kWorkers + 3;
constexpr int kSharedBytes =
    wgmma::kAlignment + kTiles * wgmma::kTileBytes + KeyRing::kBarrierBytes + ValueRing::kBarrierBytes;

/// What a lane's two rows (warp_row + lane / 4 and 8 below, of the block) need for their probabilities.
struct RowStatistics {
  float lse_log2[2] = {INFINITY, INFINITY}, delta[2] = {0, 0};  // a row that is not there has p = 0
  int position[2], first_position, last_position;               // of the rows, and of the warp's

  __device__ RowStatistics(const AttentionArgs<bf16>& args, const AttentionRows& rows, int warp_row, int lane)
      : first_position(rows.position(warp_row)), last_position(rows.position(warp_row + 15)) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = warp_row + lane / 4 + 8 * h;
      const int64_t index = rows.index(row);
      position[h] = rows.position(row);
      if (index >= 0) lse_log2[h] = args.lse[index] * kLog2E, delta[h] = args.delta[index];
    }
  }
};

/// s becomes p (dp - delta), what a row does not see 0. tile_key: the tile's first key.
__device__ inline void score_gradients(wgmma::Scores& s, const wgmma::Scores& dp, const RowStatistics& row,
                                       const AttentionArgs<bf16>& args, int tile_key, int lane) {
  const float scale_log2 = args.scale * kLog2E;
#pragma unroll
  for (int j = 0; j < wgmma::kRows / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int h = e >> 1;
      s[j][e] = exp2_approximate(s[j][e] * scale_log2 - row.lse_log2[h]) * (dp[j][e] - row.delta[h]);
    }
  }
  const bool all_seen = tile_key + wgmma::kRows - 1 <= row.first_position &&
                        (args.window == 0 || tile_key > row.last_position - args.window);
  if (all_seen) return;
#pragma unroll
  for (int j = 0; j < wgmma::kRows / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int key = tile_key + 8 * j + 2 * (lane & 3) + (e & 1), position = row.position[e >> 1];
      if (key > position || (args.window > 0 && key <= position - args.window)) s[j][e] = 0;
    }
  }
}

/// dq of the rows [64 group, 64 group + 64) of the block; queries, douts: their tiles.
__device__ inline void query_gradients(const AttentionArgs<bf16>& args, const KeyRing& keys, const ValueRing& values,
                                       uint32_t queries, uint32_t douts, int group) {
  const wgmma::KeyWalk walk(args);
  const AttentionRows rows = walk.rows(args);
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
  const auto row_of = [&](int r) { return rows.index(group * wgmma::kRows + r); };
  wgmma::start_own_tile(queries, args.q, row_of);
  wgmma::start_own_tile(douts, args.dout, row_of);
  const RowStatistics statistics(args, rows, warp_row, lane);
  wgmma::finish_own_tiles();

  wgmma::Sums dq = {};
  wgmma::Scores s, dp;
  wgmma::Weights dscores;
  const auto start_keys = [&](int i) {
    keys.wait_until_filled(i);
    wgmma::start_scores(s, queries, keys.tile(i));
  };
  const auto start_values = [&](int i) {
    values.wait_until_filled(i);
    wgmma::start_scores(dp, douts, values.tile(i));
  };
  const auto differentiate = [&](int i) {
    wgmma::wait_for_products<0>();
    wgmma::hold(s), wgmma::hold(dp);
    values.release(i);
    score_gradients(s, dp, statistics, args, walk.first_key + i * wgmma::kRows, lane);
    wgmma::as_weights(dscores, s);
    wgmma::start_sums(dq, dscores, keys.tile(i));
  };
  start_keys(0);
  start_values(0);
  for (int i = 0; i + 1 < walk.n_tiles; ++i) {
    differentiate(i);
    start_keys(i + 1);
    wgmma::wait_for_products<1>();  // dscores' registers are dp's now
    wgmma::hold(dq);
    keys.release(i);
    start_values(i + 1);
  }
  differentiate(walk.n_tiles - 1);
  wgmma::wait_for_products<0>();
  wgmma::hold(dq);
  const AttentionRows to = wgmma::KeyWalk(args).rows(args);  // again: there are no registers to keep them
  const int64_t index[2] = {to.index(warp_row + lane / 4), to.index(warp_row + lane / 4 + 8)};
  wgmma::store_gradient(args.dq, dq, args.scale, index, lane);
}

__global__ void __launch_bounds__(wgmma::kThreads, 1) attention_backward_queries_wide(const AttentionArgs<bf16> args) {
  extern __shared__ uint4 shared[];
  const uint32_t queries = shared_address(wgmma::aligned_shared(shared));
  const uint32_t douts = queries + wgmma::kWorkers * wgmma::kTileBytes;
  const uint32_t keys = douts + wgmma::kWorkers * wgmma::kTileBytes, values = keys + 2 * wgmma::kTileBytes;
  const uint32_t barriers = values + wgmma::kTileBytes;
  const KeyRing key_ring{keys, barriers};
  const ValueRing value_ring{values, barriers + KeyRing::kBarrierBytes};
  if (threadIdx.x == 0) {
    key_ring.init(wgmma::kWorkerWarps);
    value_ring.init(wgmma::kWorkerWarps);
  }
  __syncthreads();
  const int group = wgmma::group_of_thread();
  if (group == wgmma::kWorkers) {
    wgmma::give_registers_up<wgmma::kFillerRegisters>();
    wgmma::fill_keys(args, key_ring, value_ring);
  } else {
    wgmma::take_registers<wgmma::kWorkerRegisters>();
    const auto offset = static_cast<uint32_t>(group * wgmma::kTileBytes);
    query_gradients(args, key_ring, value_ring, queries + offset, douts + offset, group);
  }
}

}  // namespace

void launch_attention_wide_backward_queries(const AttentionArgs<bf16>& args, cudaStream_t stream) {
  check_cuda(
      cudaFuncSetAttribute(attention_backward_queries_wide, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
      "attention shared memory");
  attention_backward_queries_wide<<<args.n_tiles * args.n_kv_heads, wgmma::kThreads, kSharedBytes, stream>>>(args);
  check_launch("attention_backward_queries_wide");
}

}  // namespace saaz::cuda
