// What the attention sources share: the work list, the arguments of all kernels, and the entries to the tensor-core
// kernels. A block of those works on rows (query, head), all heads of one kv head together: row r of a tile is head
// kv_head * group + r % group of query begin + r / group.
#pragma once

#include "backend/cuda/cuda_common.cuh"

namespace saaz::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

/// One block's work: queries [begin, end) of a span and the positions [walk_begin, walk_end) of the keys that they see;
/// in the key pass of backward, keys (positions) and the queries that see them.
struct AttentionTile {
  int32_t span, begin, end, walk_begin, walk_end;
  int32_t partial;  // where a part of the keys leaves its sums for the merge; -1: all keys are here
};
/// A span whose keys were split: its parts, in the order of the keys.
struct AttentionMerge {
  int32_t span, first_partial, n_partials;
};

template <class T>
struct AttentionDestination {
  T* data = nullptr;  // null: not wanted
  bool add = false;
};

template <class T>
struct AttentionArgs {
  const T *q = nullptr, *k = nullptr, *v = nullptr, *dout = nullptr;
  T* out = nullptr;
  float* lse = nullptr;    // [T, H]; forward: null = not wanted
  float* delta = nullptr;  // [T, H]: <dout, out> of each row
  AttentionDestination<T> dq, dk, dv;
  const AttentionSpan* spans = nullptr;
  const AttentionTile* tiles = nullptr;
  int n_tiles = 0;
  int n_heads = 0, n_kv_heads = 0, head_dim = 0, window = 0;
  int group = 1;          // query heads of a kv head
  int group_inverse = 0;  // 65536 / group + 1
  float scale = 1;        // above 0
};

/// Sums of the parts of split spans: for part p and kv head h, slot p * n_kv_heads + h of kAttentionTileRows rows.
struct AttentionPartials {
  float* sums = nullptr;         // [slots, kAttentionTileRows, 256], not yet divided
  float2* statistics = nullptr;  // [slots, kAttentionTileRows]: largest score (times log2 e), sum of weights
  const AttentionMerge* merges = nullptr;
  int n_merges = 0, most_rows = 0;  // rows: n_queries * group of the longest merged span
};

inline constexpr int kAttentionTileRows = 64;    // rows of a query tile, forward and dq
inline constexpr int kAttentionTileKeys = 32;    // keys of a key tile (dk, dv)
inline constexpr int kAttentionSplitKeys = 128;  // keys of a part, where a span is split
inline constexpr int kAttentionMaxGroup = 32;
inline constexpr int kAttentionMmaDim = 256;
inline constexpr int kAttentionWideRows = 128;  // the same two for the kernels of sm_90a
inline constexpr int kAttentionWideKeys = 64;

// bf16, head_dim 256, group <= kAttentionMaxGroup, sm_80 and newer, 16-byte aligned tensors.
void launch_attention_mma(const AttentionArgs<bf16>& args, const AttentionPartials& partials, cudaStream_t stream);
void launch_attention_mma_backward_queries(const AttentionArgs<bf16>& args, cudaStream_t stream);
void launch_attention_mma_backward_keys(const AttentionArgs<bf16>& args, cudaStream_t stream);
// The same on compute capability 9.0 alone, without partial tiles.
void launch_attention_wide(const AttentionArgs<bf16>& args, cudaStream_t stream);
void launch_attention_wide_backward_queries(const AttentionArgs<bf16>& args, cudaStream_t stream);
void launch_attention_wide_backward_keys(const AttentionArgs<bf16>& args, cudaStream_t stream);

/// The rows (query, head) of a tensor-core tile that starts at query `begin` of a span.
struct AttentionRows {
  int n_rows, group, inverse, n_heads, first_position;
  int64_t first;  // (token, head) index of row 0

  __device__ AttentionRows(const AttentionArgs<bf16>& args, const AttentionSpan& span, int begin, int end, int kv_head)
      : n_rows((end - begin) * args.group),
        group(args.group),
        inverse(args.group_inverse),
        n_heads(args.n_heads),
        first_position(static_cast<int>(span.first_position) + begin),
        first((span.q_begin + begin) * args.n_heads + kv_head * args.group) {}
  __device__ int query(int r) const { return r * inverse >> 16; }  // r / group, exact for r * group < 65536
  __device__ int position(int r) const { return first_position + query(r); }
  /// The row's index in tensors [T * H, ...]; -1 past the last row.
  __device__ int64_t index(int r) const {
    if (r >= n_rows) return -1;
    const int q = query(r);
    return first + static_cast<int64_t>(q) * n_heads + (r - q * group);
  }
};

/// Row in k and v, as [rows * KV, ...], of positions first + r; -1 outside [begin, end).
struct AttentionKeys {
  int first, begin, end, capacity, n_kv_heads, kv_head;
  int64_t kv_begin;

  __device__ AttentionKeys(int n_kv_heads, const AttentionSpan& span, int begin, int end, int kv_head)
      : first(0),
        begin(begin),
        end(end),
        capacity(static_cast<int>(span.kv_capacity)),
        n_kv_heads(n_kv_heads),
        kv_head(kv_head),
        kv_begin(span.kv_begin) {}
  __device__ AttentionKeys from(int position) const {
    AttentionKeys keys = *this;
    keys.first = position;
    return keys;
  }
  __device__ int64_t operator()(int r) const {
    const int p = first + r;
    if (p < begin || p >= end) return -1;
    return (kv_begin + (p < capacity ? p : p % capacity)) * n_kv_heads + kv_head;
  }
};

}  // namespace saaz::cuda
