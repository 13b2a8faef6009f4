// What attention's kernels for sm_90a share: a block is two warpgroups that work and a third that fills the rings of
// what they walk; a multiprocessor has one block.
#pragma once

#include "backend/cuda/cuda_attention.cuh"
#include "backend/cuda/cuda_wgmma.cuh"

namespace saaz::cuda::wgmma {

inline constexpr int kWorkers = 2, kThreads = (kWorkers + 1) * kGroupThreads, kWorkerWarps = kWorkers * 4;
inline constexpr int kWorkerRegisters = 232, kFillerRegisters = 40;  // 168 a thread at the start
inline constexpr int kAlignment = 1024;                              // of a tile: the swizzle goes by address
static_assert(kWorkers * kRows == kAttentionWideRows && kRows == kAttentionWideKeys && kTileDim == kAttentionMmaDim);

/// The first aligned byte of the block's shared memory, of which kAlignment bytes more are asked for.
__device__ inline char* aligned_shared(void* shared) {
  return static_cast<char*>(shared) + (-shared_address(shared) & (kAlignment - 1));
}
__device__ inline int group_of_thread() { return static_cast<int>(threadIdx.x) / kGroupThreads; }
__device__ inline int thread_of_group() { return static_cast<int>(threadIdx.x) % kGroupThreads; }

/// Starts loading a tile that this warpgroup alone reads.
template <class RowOf>
__device__ inline void start_own_tile(uint32_t tile, const bf16* from, RowOf row_of) {
  load_tile<kGroupThreads>(tile, from, thread_of_group(), row_of);
}
/// Until the tiles that were started are here, for the whole warpgroup (which has barrier 1 + group).
__device__ inline void finish_own_tiles() {
  wait_for_copies();
  publish_to_products();
  meet(1 + group_of_thread(), kGroupThreads);
}

/// A block's rows (query, head), kRows for each worker, and the keys that they see.
struct KeyWalk {
  AttentionTile tile;
  AttentionSpan span;
  int kv_head, first_key, n_tiles;

  __device__ explicit KeyWalk(const AttentionArgs<bf16>& args)
      : tile(args.tiles[blockIdx.x / args.n_kv_heads]),
        span(args.spans[tile.span]),
        kv_head(static_cast<int>(blockIdx.x) % args.n_kv_heads),
        first_key(tile.walk_begin / kRows * kRows),
        n_tiles((tile.walk_end - first_key + kRows - 1) / kRows) {}
  /// Row r of warpgroup g is row kRows g + r of these.
  __device__ AttentionRows rows(const AttentionArgs<bf16>& args) const {
    return AttentionRows(args, span, tile.begin, tile.end, kv_head);
  }
};

/// The filling warpgroup's work: a walk's keys and values, in the order of their use.
template <class KeyRing, class ValueRing>
__device__ inline void fill_keys(const AttentionArgs<bf16>& args, const KeyRing& keys, const ValueRing& values) {
  const KeyWalk work(args);
  const AttentionKeys rows(args.n_kv_heads, work.span, work.tile.walk_begin, work.tile.walk_end, work.kv_head);
  Filler filler;
  for (int i = 0; i < work.n_tiles; ++i) {
    const auto load = [&](const bf16* from) {
      return [&, from](uint32_t tile) {
        load_tile<kGroupThreads>(tile, from, thread_of_group(), rows.from(work.first_key + i * kRows));
      };
    };
    filler.fill(keys, i, load(args.k));
    filler.fill(values, i, load(args.v));
  }
  filler.finish();
}

/// This lane's columns of the rows index[0] and index[1], -1: not there.
__device__ inline void store_gradient(const AttentionDestination<bf16>& to, const Sums& sums, float scale,
                                      const int64_t (&index)[2], int lane) {
  if (to.data == nullptr) return;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (index[h] < 0) continue;
    bf16* at = to.data + index[h] * kTileDim + 2 * (lane & 3);
#pragma unroll
    for (int j = 0; j < kColumnBlocks; ++j) {
      store_pair(at + 8 * j, to.add, sums[j][2 * h], sums[j][2 * h + 1], scale);
    }
  }
}

}  // namespace saaz::cuda::wgmma
