// dk and dv of attention on sm_90a (bf16, head_dim 256), by the formulas of cuda_attention_backward.cu: a block has 64
// keys and walks the rows (query, head) that see them, 64 at a time. The first warpgroup makes p and sums dv; the
// second takes p from it and sums dk: the sums of both would not fit one's registers. Rows are summed in one fixed
// order.
#include <cooperative_groups.h>

#include <cmath>

#include "backend/cuda/cuda_attention_wgmma.cuh"

namespace saaz::cuda {
namespace {

constexpr int kStages = 2, kBothGroups = wgmma::kWorkers * wgmma::kGroupThreads;
using RowRing = wgmma::Ring<kStages>;
constexpr int kTiles = 2 + 2 * kStages;
constexpr int kWeightBytes = static_cast<int>(sizeof(wgmma::Scores)) * wgmma::kGroupThreads;
constexpr int kStatisticBytes = kStages * wgmma::kRows * static_cast<int>(sizeof(float));
constexpr int kSharedBytes = wgmma::kAlignment + kTiles * wgmma::kTileBytes + kWeightBytes + 2 * kStatisticBytes +
                             2 * RowRing::kBarrierBytes + 2 * 8;
/// A barrier of both workers; those before are of finish_own_tiles.
constexpr int kWalked = 1 + wgmma::kWorkers;

/// What a block walks: tiles of queries and dout; lse and delta of their rows lie beside them. All four are 0 in a
/// row that is not there, which then adds nothing.
struct RowWalk {
  AttentionTile tile;
  AttentionSpan span;
  int kv_head, first_query, step, stride, n_tiles;
  RowRing queries, douts;
  float *lse, *delta;                    // shared: kStages times kRows
  float4* weights;                       // shared: Scores of each thread, the threads side by side
  uint32_t weights_made, weights_taken;  // barriers: of each step

  __device__ AttentionRows rows(const AttentionArgs<bf16>& args, int i) const {
    const int query = first_query + i * stride;
    return AttentionRows(args, span, query, min(query + step, tile.walk_end), kv_head);
  }
};

/// The filling warpgroup's work: the walk's tiles in the order of their use.
__device__ inline void fill_rows(const AttentionArgs<bf16>& args, const RowWalk& walk) {
  const int thread = wgmma::thread_of_group();
  wgmma::Filler filler;
  for (int i = 0; i < walk.n_tiles; ++i) {
    const AttentionRows rows = walk.rows(args, i);
    const auto load = [&](const bf16* from, const float* statistic, float* to) {
      return [&, from, statistic, to](uint32_t tile) {
        wgmma::load_tile<wgmma::kGroupThreads>(tile, from, thread, [&](int r) { return rows.index(r); });
        if (thread >= wgmma::kRows) return;
        const int64_t index = rows.index(thread);
        copy_word_async(shared_address(to + i % kStages * wgmma::kRows + thread), statistic + max(index, int64_t{0}),
                        index >= 0);
      };
    };
    filler.fill(walk.queries, i, load(args.q, args.lse, walk.lse));
    filler.fill(walk.douts, i, load(args.dout, args.delta, walk.delta));
  }
  filler.finish();
}

/// s, [keys, rows], becomes p; what a row does not see 0. statistics: lse of this lane's first two columns.
__device__ inline void probabilities(wgmma::Scores& s, const AttentionArgs<bf16>& args, const AttentionRows& rows,
                                     const float* statistics, int warp_key, int lane) {
  const bool all_seen = warp_key + 15 <= rows.first_position &&
                        (args.window == 0 || warp_key > rows.position(wgmma::kRows - 1) - args.window);
  const float scale_log2 = args.scale * kLog2E;
#pragma unroll
  for (int j = 0; j < wgmma::kRows / 8; ++j) {
    const float2 lse = *reinterpret_cast<const float2*>(statistics + 8 * j);
    const float of_even = lse.x * kLog2E, of_odd = lse.y * kLog2E;
    s[j][0] = exp2_approximate(s[j][0] * scale_log2 - of_even);
    s[j][1] = exp2_approximate(s[j][1] * scale_log2 - of_odd);
    s[j][2] = exp2_approximate(s[j][2] * scale_log2 - of_even);
    s[j][3] = exp2_approximate(s[j][3] * scale_log2 - of_odd);
  }
  if (all_seen) return;
#pragma unroll
  for (int j = 0; j < wgmma::kRows / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int key = warp_key + lane / 4 + 8 * (e >> 1), position = rows.position(8 * j + 2 * (lane & 3) + (e & 1));
      if (key > position || (args.window > 0 && key <= position - args.window)) s[j][e] = 0;
    }
  }
}

/// dv of the block's keys; p of each step is left for the other warpgroup.
__device__ inline void value_gradients(wgmma::Sums& dv, const AttentionArgs<bf16>& args, const RowWalk& walk,
                                       uint32_t keys) {
  const int lane = threadIdx.x % 32, thread = wgmma::thread_of_group();
  const int warp_key = walk.tile.begin + thread / 32 * 16;
  wgmma::Scores s;
  wgmma::Weights weights;
  const auto start_tile = [&](int i) {
    walk.queries.wait_until_filled(i);
    wgmma::start_scores(s, keys, walk.queries.tile(i));
  };
  const auto weigh = [&](int i) {
    wgmma::hold(s);
    const float* lse = walk.lse + i % kStages * wgmma::kRows + 2 * (lane & 3);
    probabilities(s, args, walk.rows(args, i), lse, warp_key, lane);
    walk.queries.release(i);
#pragma unroll
    for (int j = 0; j < wgmma::kRows / 8; ++j) {
      walk.weights[j * wgmma::kGroupThreads + thread] = make_float4(s[j][0], s[j][1], s[j][2], s[j][3]);
    }
    arrive(walk.weights_made);
    wgmma::as_weights(weights, s);
    walk.douts.wait_until_filled(i);
    wgmma::start_sums(dv, weights, walk.douts.tile(i));
  };
  if (walk.n_tiles == 0) return;
  start_tile(0);
  wgmma::wait_for_products<0>();
  for (int i = 0; i + 1 < walk.n_tiles; ++i) {
    weigh(i);
    start_tile(i + 1);
    wgmma::wait_for_products<0>();
    wgmma::hold(dv);
    wait(walk.weights_taken, i & 1);  // and delta of this step was read: its stage may be filled again
    walk.douts.release(i);
  }
  weigh(walk.n_tiles - 1);
  wgmma::wait_for_products<0>();
  wgmma::hold(dv);
}

/// dk of the block's keys.
__device__ inline void key_gradients(wgmma::Sums& dk, const RowWalk& walk, uint32_t values) {
  const int lane = threadIdx.x % 32, thread = wgmma::thread_of_group();
  wgmma::Scores dp;
  wgmma::Weights dscores;
  const auto start_tile = [&](int i) {
    walk.douts.wait_until_filled(i);
    wgmma::start_scores(dp, values, walk.douts.tile(i));
  };
  const auto differentiate = [&](int i) {
    wgmma::hold(dp);
    wait(walk.weights_made, i & 1);
    const float* delta = walk.delta + i % kStages * wgmma::kRows + 2 * (lane & 3);
#pragma unroll
    for (int j = 0; j < wgmma::kRows / 8; ++j) {
      const float4 p = walk.weights[j * wgmma::kGroupThreads + thread];
      const float2 d = *reinterpret_cast<const float2*>(delta + 8 * j);
      dp[j][0] = p.x * (dp[j][0] - d.x), dp[j][1] = p.y * (dp[j][1] - d.y);
      dp[j][2] = p.z * (dp[j][2] - d.x), dp[j][3] = p.w * (dp[j][3] - d.y);
    }
    arrive(walk.weights_taken);
    walk.douts.release(i);
    wgmma::as_weights(dscores, dp);
    walk.queries.wait_until_filled(i);
    wgmma::start_sums(dk, dscores, walk.queries.tile(i));
  };
  if (walk.n_tiles == 0) return;
  start_tile(0);
  wgmma::wait_for_products<0>();
  for (int i = 0; i + 1 < walk.n_tiles; ++i) {
    differentiate(i);
    start_tile(i + 1);
    wgmma::wait_for_products<0>();
    wgmma::hold(dk);
    walk.queries.release(i);
  }
  differentiate(walk.n_tiles - 1);
  wgmma::wait_for_products<0>();
  wgmma::hold(dk);
}

/// The two blocks of a cluster add up what each has summed, in the first one: sum of the first, then of the second.
/// `spare`: shared memory for the sums of both warpgroups, free in each block. Returns whether this block is the first.
__device__ inline bool add_second_block(wgmma::Sums& sums, float* spare) {
  const auto cluster = cooperative_groups::this_cluster();
  const bool is_first = cluster.block_rank() == 0;
  wgmma::meet(kWalked, kBothGroups);
  if (!is_first) {
#pragma unroll
    for (int j = 0; j < wgmma::kColumnBlocks; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) spare[(4 * j + e) * kBothGroups + threadIdx.x] = sums[j][e];
    }
  }
  cluster.sync();
  if (is_first) {
    const float* other = cluster.map_shared_rank(spare, 1);
#pragma unroll
    for (int j = 0; j < wgmma::kColumnBlocks; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[j][e] += other[(4 * j + e) * kBothGroups + threadIdx.x];
    }
  }
  cluster.sync();  // the second block's memory was read
  return is_first;
}

/// kParts: blocks that share out a tile's rows, in steps by turns: 2 is a cluster, whatever the batch.
template <int kParts>
__global__ void __launch_bounds__(wgmma::kThreads, 1) attention_backward_keys_wide(const AttentionArgs<bf16> args) {
  extern __shared__ uint4 shared[];
  char* base = wgmma::aligned_shared(shared);
  const uint32_t keys = shared_address(base), queries = keys + 2 * wgmma::kTileBytes;
  const uint32_t douts = queries + kStages * wgmma::kTileBytes, weights = douts + kStages * wgmma::kTileBytes;
  const uint32_t barriers = weights + kWeightBytes + 2 * kStatisticBytes;
  const int index = static_cast<int>(blockIdx.x) / kParts, part = static_cast<int>(blockIdx.x) % kParts;
  const AttentionTile tile = args.tiles[index / args.n_kv_heads];
  const int kv_head = index % args.n_kv_heads, step = wgmma::kRows / args.group, stride = kParts * step;
  const int first_query = tile.walk_begin + part * step;
  const RowWalk walk{tile,
                     args.spans[tile.span],
                     kv_head,
                     first_query,
                     step,
                     stride,
                     max(0, (tile.walk_end - first_query + stride - 1) / stride),
                     {queries, barriers},
                     {douts, barriers + RowRing::kBarrierBytes},
                     reinterpret_cast<float*>(base + (weights - keys) + kWeightBytes),
                     reinterpret_cast<float*>(base + (weights - keys) + kWeightBytes + kStatisticBytes),
                     reinterpret_cast<float4*>(base + (weights - keys)),
                     barriers + 2 * RowRing::kBarrierBytes,
                     barriers + 2 * RowRing::kBarrierBytes + 8};
  if (threadIdx.x == 0) {
    walk.queries.init(wgmma::kWorkerWarps);
    walk.douts.init(wgmma::kWorkerWarps);
    init_barrier(walk.weights_made, wgmma::kGroupThreads);
    init_barrier(walk.weights_taken, wgmma::kGroupThreads);
  }
  __syncthreads();
  const int group = wgmma::group_of_thread();
  if (group == wgmma::kWorkers) {
    wgmma::give_registers_up<wgmma::kFillerRegisters>();
    fill_rows(args, walk);
    if constexpr (kParts == 2) {
      cooperative_groups::this_cluster().sync();
      cooperative_groups::this_cluster().sync();
    }
  } else {
    wgmma::take_registers<wgmma::kWorkerRegisters>();
    const AttentionKeys key_of =
        AttentionKeys(args.n_kv_heads, walk.span, tile.begin, tile.end, kv_head).from(tile.begin);
    const uint32_t own = keys + static_cast<uint32_t>(group * wgmma::kTileBytes);
    wgmma::start_own_tile(own, group == 0 ? args.k : args.v, key_of);
    wgmma::finish_own_tiles();
    wgmma::Sums sums = {};
    if (group == 0) {
      value_gradients(sums, args, walk, own);
    } else {
      key_gradients(sums, walk, own);
    }
    if constexpr (kParts == 2) {
      if (!add_second_block(sums, reinterpret_cast<float*>(base))) return;
    }
    const int lane = threadIdx.x % 32, row = wgmma::thread_of_group() / 32 * 16 + lane / 4;
    const int64_t to[2] = {key_of(row), key_of(row + 8)};
    wgmma::store_gradient(group == 0 ? args.dv : args.dk, sums, group == 0 ? 1 : args.scale, to, lane);
  }
}

}  // namespace

void launch_attention_wide_backward_keys(const AttentionArgs<bf16>& args, cudaStream_t stream) {
  constexpr int kParts = 2;
  const auto kernel = attention_backward_keys_wide<kParts>;
  static_assert(kBothGroups * sizeof(wgmma::Sums) <= kSharedBytes - wgmma::kAlignment);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
             "attention shared memory");
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kParts, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(args.n_tiles * args.n_kv_heads * kParts));
  config.blockDim = dim3(wgmma::kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = kParts > 1 ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, args), "attention_backward_keys_wide");
}

}  // namespace saaz::cuda
