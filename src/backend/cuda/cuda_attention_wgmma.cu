// Attention on sm_90a (bf16, head_dim 256), for spans of more than kAttentionTileRows rows: two warpgroups of 64 rows
// (query, head) each walk the keys of 128 rows, 64 keys at a time; a third fills the rings of keys and values. A
// warpgroup multiplies the next tile's scores while it weighs the last one's values, and makes weights while values are
// weighed. The bits of a row depend on its span alone, as in cuda_attention_mma.cu.
#include <cmath>

#include "backend/cuda/cuda_attention_wgmma.cuh"
#include "backend/cuda/cuda_softmax.cuh"

namespace saaz::cuda {
namespace {

constexpr int kStages = 2, kKeys = wgmma::kRows, kTiles = wgmma::kWorkers + 2 * kStages;
using Ring = wgmma::Ring<kStages>;
constexpr int kSharedBytes = wgmma::kAlignment + kTiles * wgmma::kTileBytes + 2 * Ring::kBarrierBytes;

/// Row results from this lane: its columns of the output, and lse. h: which of the lane's two rows it is.
__device__ inline void store_row(const AttentionArgs<bf16>& args, const wgmma::Sums& sums, float largest, float sum,
                                 int h, int64_t index, int lane) {
  const float inverse = 1 / sum;
  bf16* out = args.out + index * kTileDim + 2 * (lane & 3);
#pragma unroll
  for (int j = 0; j < wgmma::kColumnBlocks; ++j) {
    *reinterpret_cast<uint32_t*>(out + 8 * j) = pack(sums[j][2 * h] * inverse, sums[j][2 * h + 1] * inverse);
  }
  if (args.lse != nullptr && (lane & 3) == 0) args.lse[index] = largest * args.scale + logf(sum);
}

/// The rows [64 group, 64 group + 64) of the block. queries: their tile.
__device__ inline void attend(const AttentionArgs<bf16>& args, const Ring& keys, const Ring& values, uint32_t queries,
                              int group) {
  const wgmma::KeyWalk walk(args);
  const AttentionRows rows = walk.rows(args);
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
  const int row[2] = {warp_row + lane / 4, warp_row + lane / 4 + 8};
  const int position[2] = {rows.position(row[0]), rows.position(row[1])};
  const int first_position = rows.position(warp_row), last_position = rows.position(warp_row + 15);
  wgmma::start_own_tile(queries, args.q, [&](int r) { return rows.index(group * wgmma::kRows + r); });
  wgmma::finish_own_tiles();

  wgmma::Sums sums = {};
  wgmma::Scores s;
  wgmma::Weights weights;
  RowStatistics statistics;
  float correction[2];
  const auto weigh = [&](int i) {
    const int key = walk.first_key + i * kKeys;
    const bool all_seen = key + kKeys - 1 <= first_position && (args.window == 0 || key > last_position - args.window);
    if (!all_seen) mask_tile(s, key + 2 * (lane & 3), position, args.window);
    weigh_tile(s, statistics, correction, args.scale * kLog2E);
  };
  keys.wait_until_filled(0);
  wgmma::start_scores(s, queries, keys.tile(0));
  wgmma::wait_for_products<0>();
  wgmma::hold(s);
  keys.release(0);
  weigh(0);
  wgmma::as_weights(weights, s);
  for (int i = 1; i < walk.n_tiles; ++i) {
    keys.wait_until_filled(i);
    wgmma::start_scores(s, queries, keys.tile(i));
    values.wait_until_filled(i - 1);
    wgmma::start_sums(sums, weights, values.tile(i - 1));
    wgmma::wait_for_products<1>();
    wgmma::hold(s);
    keys.release(i);
    weigh(i);
    wgmma::wait_for_products<0>();
    wgmma::hold(sums);
    values.release(i - 1);
    rescale(sums, correction);
    wgmma::as_weights(weights, s);
  }
  values.wait_until_filled(walk.n_tiles - 1);
  wgmma::start_sums(sums, weights, values.tile(walk.n_tiles - 1));
  wgmma::wait_for_products<0>();
  wgmma::hold(sums);

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = statistics.sum[h];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (row[h] >= rows.n_rows) continue;
    store_row(args, sums, statistics.largest[h], sum, h, rows.index(row[h]), lane);
  }
}

__global__ void __launch_bounds__(wgmma::kThreads, 1) attention_forward_wide(const AttentionArgs<bf16> args) {
  extern __shared__ uint4 shared[];
  const uint32_t queries = shared_address(wgmma::aligned_shared(shared));
  const uint32_t keys = queries + wgmma::kWorkers * wgmma::kTileBytes, values = keys + kStages * wgmma::kTileBytes;
  const uint32_t barriers = values + kStages * wgmma::kTileBytes;
  const Ring key_ring{keys, barriers}, value_ring{values, barriers + Ring::kBarrierBytes};
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
    attend(args, key_ring, value_ring, queries + static_cast<uint32_t>(group * wgmma::kTileBytes), group);
  }
}

}  // namespace

void launch_attention_wide(const AttentionArgs<bf16>& args, cudaStream_t stream) {
  check_cuda(cudaFuncSetAttribute(attention_forward_wide, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
             "attention shared memory");
  attention_forward_wide<<<args.n_tiles * args.n_kv_heads, wgmma::kThreads, kSharedBytes, stream>>>(args);
  check_launch("attention_forward_wide");
}

}  // namespace saaz::cuda
