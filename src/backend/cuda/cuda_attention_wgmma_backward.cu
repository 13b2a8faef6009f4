// The gradients of attention on sm_90a (bf16, head_dim 256), by the formulas and in the two passes of
// cuda_attention_backward.cu. A third warpgroup fills the rings of what a block walks.
// Query pass: two warpgroups of 64 rows (query, head), each making dq of its own; 64 keys at a time.
// Key pass: 64 keys; the first warpgroup makes p and sums dv, the second takes p from it and sums dk; 64 rows at a
// time.
#include <cooperative_groups.h>

#include <cmath>

#include "backend/cuda/cuda_attention.cuh"
#include "backend/cuda/cuda_wgmma.cuh"

namespace saaz::cuda {
namespace {

constexpr int kGroups = 2, kThreads = (kGroups + 1) * wgmma::kGroupThreads;
constexpr int kKeys = wgmma::kRows;
constexpr int kWorkerRegisters = 232, kFillerRegisters = 40;  // 168 a thread at the start
static_assert(kGroups * wgmma::kRows == kAttentionWideRows && kKeys == kAttentionWideKeys);

__device__ inline uint32_t aligned_shared(const void* shared) {
  return (shared_address(shared) + 1023) & ~1023u;  // the swizzle goes by address
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
/// This lane's columns of the rows index[0] and index[1], -1: not there.
__device__ inline void store_gradient(const AttentionDestination<bf16>& to, const wgmma::Sums& sums, float scale,
                                      const int64_t (&index)[2], int lane) {
  if (to.data == nullptr) return;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (index[h] < 0) continue;
    bf16* at = to.data + index[h] * kTileDim + 2 * (lane & 3);
#pragma unroll
    for (int j = 0; j < wgmma::kColumnBlocks; ++j) {
      store_pair(at + 8 * j, to.add, sums[j][2 * h], sums[j][2 * h + 1], scale);
    }
  }
}

// The query pass.

using KeyRing = wgmma::Ring<2>;
using ValueRing = wgmma::Ring<1>;
constexpr int kQueryTiles = 2 * kGroups + 3;
constexpr int kQuerySharedBytes =
    1024 + kQueryTiles * wgmma::kTileBytes + KeyRing::kBarrierBytes + ValueRing::kBarrierBytes;

/// A block's rows and the keys that it walks.
struct QueryWork {
  AttentionTile tile;
  AttentionSpan span;
  int kv_head, first_key, n_tiles;

  __device__ explicit QueryWork(const AttentionArgs<bf16>& args)
      : tile(args.tiles[blockIdx.x / args.n_kv_heads]),
        span(args.spans[tile.span]),
        kv_head(static_cast<int>(blockIdx.x) % args.n_kv_heads),
        first_key(tile.walk_begin / kKeys * kKeys),
        n_tiles((tile.walk_end - first_key + kKeys - 1) / kKeys) {}
  __device__ AttentionRows rows(const AttentionArgs<bf16>& args) const {
    return AttentionRows(args, span, tile.begin, tile.end, kv_head);
  }
};

__device__ inline void fill_keys(const AttentionArgs<bf16>& args, const KeyRing& keys, const ValueRing& values) {
  const QueryWork work(args);
  const AttentionKeys rows(args.n_kv_heads, work.span, work.tile.walk_begin, work.tile.walk_end, work.kv_head);
  wgmma::Filler filler;
  for (int i = 0; i < work.n_tiles; ++i) {
    const auto load = [&](const bf16* from) {
      return [&, from](uint32_t tile) {
        wgmma::load_tile<wgmma::kGroupThreads>(tile, from, threadIdx.x % wgmma::kGroupThreads,
                                               rows.from(work.first_key + i * kKeys));
      };
    };
    filler.fill(keys, i, load(args.k));
    filler.fill(values, i, load(args.v));
  }
  filler.finish();
}

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
  for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int h = e >> 1;
      s[j][e] = exp2_approximate(s[j][e] * scale_log2 - row.lse_log2[h]) * (dp[j][e] - row.delta[h]);
    }
  }
  const bool all_seen =
      tile_key + kKeys - 1 <= row.first_position && (args.window == 0 || tile_key > row.last_position - args.window);
  if (all_seen) return;
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j) {
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
  const QueryWork work(args);
  const AttentionRows rows = work.rows(args);
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16, thread = threadIdx.x % wgmma::kGroupThreads;
  const auto row_of = [&](int r) { return rows.index(group * wgmma::kRows + r); };
  wgmma::load_tile<wgmma::kGroupThreads>(queries, args.q, thread, row_of);
  wgmma::load_tile<wgmma::kGroupThreads>(douts, args.dout, thread, row_of);
  const RowStatistics statistics(args, rows, warp_row, lane);
  wait_for_copies();
  wgmma::publish_to_products();
  wgmma::meet(1 + group, wgmma::kGroupThreads);

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
    score_gradients(s, dp, statistics, args, work.first_key + i * kKeys, lane);
    wgmma::as_weights(dscores, s);
    wgmma::start_sums(dq, dscores, keys.tile(i));
  };
  start_keys(0);
  start_values(0);
  for (int i = 0; i + 1 < work.n_tiles; ++i) {
    differentiate(i);
    start_keys(i + 1);
    wgmma::wait_for_products<1>();  // dscores' registers are dp's now
    wgmma::hold(dq);
    keys.release(i);
    start_values(i + 1);
  }
  differentiate(work.n_tiles - 1);
  wgmma::wait_for_products<0>();
  wgmma::hold(dq);
  const AttentionRows to = QueryWork(args).rows(args);  // again: there are no registers to keep them
  const int64_t index[2] = {to.index(warp_row + lane / 4), to.index(warp_row + lane / 4 + 8)};
  store_gradient(args.dq, dq, args.scale, index, lane);
}

__global__ void __launch_bounds__(kThreads, 1) attention_backward_queries_wide(const AttentionArgs<bf16> args) {
  extern __shared__ uint4 shared[];
  const uint32_t queries = aligned_shared(shared), douts = queries + kGroups * wgmma::kTileBytes;
  const uint32_t keys = douts + kGroups * wgmma::kTileBytes, values = keys + 2 * wgmma::kTileBytes;
  const uint32_t barriers = values + wgmma::kTileBytes;
  const KeyRing key_ring{keys, barriers};
  const ValueRing value_ring{values, barriers + KeyRing::kBarrierBytes};
  if (threadIdx.x == 0) {
    key_ring.init(kGroups * 4);
    value_ring.init(kGroups * 4);
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / wgmma::kGroupThreads;
  if (group == kGroups) {
    wgmma::give_registers_up<kFillerRegisters>();
    fill_keys(args, key_ring, value_ring);
  } else {
    wgmma::take_registers<kWorkerRegisters>();
    const auto offset = static_cast<uint32_t>(group * wgmma::kTileBytes);
    query_gradients(args, key_ring, value_ring, queries + offset, douts + offset, group);
  }
}

// The key pass.

using RowRing = wgmma::Ring<2>;
constexpr int kStages = 2, kBothGroups = kGroups * wgmma::kGroupThreads;
constexpr int kKeyTiles = 2 + 2 * kStages;
constexpr int kWeightBytes = static_cast<int>(sizeof(wgmma::Scores)) * wgmma::kGroupThreads;
constexpr int kStatisticBytes = kStages * wgmma::kRows * static_cast<int>(sizeof(float));
constexpr int kKeySharedBytes =
    1024 + kKeyTiles * wgmma::kTileBytes + kWeightBytes + 2 * kStatisticBytes + 2 * RowRing::kBarrierBytes;
enum KeyBarrier : int { kWeightsMade = 1, kWeightsTaken, kTilesLoaded, kWalked };

/// What the key pass walks: tiles of queries and dout; lse and delta of their rows lie beside them. All four are 0 in a
/// row that is not there, which then adds nothing.
struct KeyWork {
  AttentionTile tile;
  AttentionSpan span;
  int kv_head, first_query, step, stride, n_tiles;
  RowRing queries, douts;
  float *lse, *delta;  // shared: kStages times kRows
  float4* weights;     // shared: Scores of each thread, the threads side by side

  __device__ AttentionRows rows(const AttentionArgs<bf16>& args, int i) const {
    const int query = first_query + i * stride;
    return AttentionRows(args, span, query, min(query + step, tile.walk_end), kv_head);
  }
};

__device__ inline void fill_rows(const AttentionArgs<bf16>& args, const KeyWork& work) {
  const int thread = threadIdx.x % wgmma::kGroupThreads;
  wgmma::Filler filler;
  for (int i = 0; i < work.n_tiles; ++i) {
    const AttentionRows rows = work.rows(args, i);
    const auto load = [&](const bf16* from, const float* statistic, float* to) {
      return [&, from, statistic, to](uint32_t tile) {
        wgmma::load_tile<wgmma::kGroupThreads>(tile, from, thread, [&](int r) { return rows.index(r); });
        if (thread >= wgmma::kRows) return;
        const int64_t index = rows.index(thread);
        copy_word_async(shared_address(to + i % kStages * wgmma::kRows + thread), statistic + max(index, int64_t{0}),
                        index >= 0);
      };
    };
    filler.fill(work.queries, i, load(args.q, args.lse, work.lse));
    filler.fill(work.douts, i, load(args.dout, args.delta, work.delta));
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
__device__ inline void value_gradients(wgmma::Sums& dv, const AttentionArgs<bf16>& args, const KeyWork& work,
                                       uint32_t keys) {
  const int lane = threadIdx.x % 32, thread = threadIdx.x % wgmma::kGroupThreads;
  const int warp_key = work.tile.begin + thread / 32 * 16;
  wgmma::Scores s;
  wgmma::Weights weights;
  const auto start_tile = [&](int i) {
    work.queries.wait_until_filled(i);
    wgmma::start_scores(s, keys, work.queries.tile(i));
  };
  const auto weigh = [&](int i) {
    wgmma::hold(s);
    const float* lse = work.lse + i % kStages * wgmma::kRows + 2 * (lane & 3);
    probabilities(s, args, work.rows(args, i), lse, warp_key, lane);
    work.queries.release(i);
    if (i > 0) wgmma::meet(kWeightsTaken, kBothGroups);
#pragma unroll
    for (int j = 0; j < wgmma::kRows / 8; ++j) {
      work.weights[j * wgmma::kGroupThreads + thread] = make_float4(s[j][0], s[j][1], s[j][2], s[j][3]);
    }
    wgmma::announce(kWeightsMade, kBothGroups);
    wgmma::as_weights(weights, s);
    work.douts.wait_until_filled(i);
    wgmma::start_sums(dv, weights, work.douts.tile(i));
  };
  if (work.n_tiles == 0) return;
  start_tile(0);
  wgmma::wait_for_products<0>();
  for (int i = 0; i + 1 < work.n_tiles; ++i) {
    weigh(i);
    start_tile(i + 1);
    wgmma::wait_for_products<0>();
    wgmma::hold(dv);
    work.douts.release(i);
  }
  weigh(work.n_tiles - 1);
  wgmma::wait_for_products<0>();
  wgmma::hold(dv);
}

/// dk of the block's keys.
__device__ inline void key_gradients(wgmma::Sums& dk, const KeyWork& work, uint32_t values) {
  const int lane = threadIdx.x % 32, thread = threadIdx.x % wgmma::kGroupThreads;
  wgmma::Scores dp;
  wgmma::Weights dscores;
  const auto start_tile = [&](int i) {
    work.douts.wait_until_filled(i);
    wgmma::start_scores(dp, values, work.douts.tile(i));
  };
  const auto differentiate = [&](int i) {
    wgmma::hold(dp);
    wgmma::meet(kWeightsMade, kBothGroups);
    const float* delta = work.delta + i % kStages * wgmma::kRows + 2 * (lane & 3);
#pragma unroll
    for (int j = 0; j < wgmma::kRows / 8; ++j) {
      const float4 p = work.weights[j * wgmma::kGroupThreads + thread];
      const float2 d = *reinterpret_cast<const float2*>(delta + 8 * j);
      dp[j][0] = p.x * (dp[j][0] - d.x), dp[j][1] = p.y * (dp[j][1] - d.y);
      dp[j][2] = p.z * (dp[j][2] - d.x), dp[j][3] = p.w * (dp[j][3] - d.y);
    }
    if (i + 1 < work.n_tiles) wgmma::announce(kWeightsTaken, kBothGroups);
    work.douts.release(i);
    wgmma::as_weights(dscores, dp);
    work.queries.wait_until_filled(i);
    wgmma::start_sums(dk, dscores, work.queries.tile(i));
  };
  if (work.n_tiles == 0) return;
  start_tile(0);
  wgmma::wait_for_products<0>();
  for (int i = 0; i + 1 < work.n_tiles; ++i) {
    differentiate(i);
    start_tile(i + 1);
    wgmma::wait_for_products<0>();
    wgmma::hold(dk);
    work.queries.release(i);
  }
  differentiate(work.n_tiles - 1);
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

/// The tile of this warpgroup's operand: keys of the first, values of the second.
__device__ inline void load_keys(uint32_t tile, const bf16* from, const AttentionKeys& key_of, int group) {
  wgmma::load_tile<wgmma::kGroupThreads>(tile, from, threadIdx.x % wgmma::kGroupThreads, key_of);
  wait_for_copies();
  wgmma::publish_to_products();
  wgmma::meet(kTilesLoaded + 2 * group, wgmma::kGroupThreads);
}

/// kParts: blocks that share out a tile's rows, in steps by turns: 2 is a cluster, whatever the batch.
template <int kParts>
__global__ void __launch_bounds__(kThreads, 1) attention_backward_keys_wide(const AttentionArgs<bf16> args) {
  extern __shared__ uint4 shared[];
  const uint32_t keys = aligned_shared(shared), queries = keys + 2 * wgmma::kTileBytes;
  const uint32_t douts = queries + kStages * wgmma::kTileBytes, weights = douts + kStages * wgmma::kTileBytes;
  char* base = reinterpret_cast<char*>(shared) + (keys - shared_address(shared));
  const uint32_t barriers = weights + kWeightBytes + 2 * kStatisticBytes;
  const int index = static_cast<int>(blockIdx.x) / kParts, part = static_cast<int>(blockIdx.x) % kParts;
  const AttentionTile tile = args.tiles[index / args.n_kv_heads];
  const int kv_head = index % args.n_kv_heads, step = wgmma::kRows / args.group, stride = kParts * step;
  const int first_query = tile.walk_begin + part * step;
  const KeyWork work{tile,
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
                     reinterpret_cast<float4*>(base + (weights - keys))};
  if (threadIdx.x == 0) {
    work.queries.init(kGroups * 4);
    work.douts.init(kGroups * 4);
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / wgmma::kGroupThreads;
  if (group == kGroups) {
    wgmma::give_registers_up<kFillerRegisters>();
    fill_rows(args, work);
    if constexpr (kParts == 2) {
      cooperative_groups::this_cluster().sync();
      cooperative_groups::this_cluster().sync();
    }
  } else {
    wgmma::take_registers<kWorkerRegisters>();
    const AttentionKeys key_of =
        AttentionKeys(args.n_kv_heads, work.span, tile.begin, tile.end, kv_head).from(tile.begin);
    const uint32_t own = keys + static_cast<uint32_t>(group * wgmma::kTileBytes);
    load_keys(own, group == 0 ? args.k : args.v, key_of, group);
    wgmma::Sums sums = {};
    if (group == 0) {
      value_gradients(sums, args, work, own);
    } else {
      key_gradients(sums, work, own);
    }
    if constexpr (kParts == 2) {
      if (!add_second_block(sums, reinterpret_cast<float*>(base))) return;
    }
    const int lane = threadIdx.x % 32, row = threadIdx.x % wgmma::kGroupThreads / 32 * 16 + lane / 4;
    const int64_t to[2] = {key_of(row), key_of(row + 8)};
    store_gradient(group == 0 ? args.dv : args.dk, sums, group == 0 ? 1 : args.scale, to, lane);
  }
}

}  // namespace

void launch_attention_wide_backward_queries(const AttentionArgs<bf16>& args, cudaStream_t stream) {
  check_cuda(cudaFuncSetAttribute(attention_backward_queries_wide, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  kQuerySharedBytes),
             "attention shared memory");
  attention_backward_queries_wide<<<args.n_tiles * args.n_kv_heads, kThreads, kQuerySharedBytes, stream>>>(args);
  check_launch("attention_backward_queries_wide");
}

void launch_attention_wide_backward_keys(const AttentionArgs<bf16>& args, cudaStream_t stream) {
  constexpr int kParts = 2;
  const auto kernel = attention_backward_keys_wide<kParts>;
  static_assert(kBothGroups * sizeof(wgmma::Sums) <= kKeySharedBytes - 1024);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kKeySharedBytes),
             "attention shared memory");
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kParts, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(args.n_tiles * args.n_kv_heads * kParts));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kKeySharedBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = kParts > 1 ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, args), "attention_backward_keys_wide");
}

}  // namespace saaz::cuda
