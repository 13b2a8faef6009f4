// The gradients of attention on tensor cores (bf16, head_dim 256), in two passes without atomics. With p the
// probabilities, made again from lse, and delta = <dout, out> of a row:
//   dscores = p (dout v^T - delta),  dq = scale dscores k,  dk = scale dscores^T q,  dv = p^T dout.
// The query pass holds 64 rows (query, head) of one kv head and walks keys 32 at a time; the key pass holds 32 keys and
// walks rows, so dk and dv are summed over queries and heads in one fixed order. While one operand is in use the next
// one travels.
#include <cooperative_groups.h>

#include <cmath>

#include "backend/cuda/cuda_attention.cuh"
#include "backend/cuda/cuda_mma.cuh"

namespace saaz::cuda {
namespace {

constexpr int kThreads = 128, kColumnBlocks = kTileDim / 16;

/// What the probabilities of a row need. A row that is not there has p = 0.
struct RowStatistics {
  float lse_log2 = INFINITY, delta = 0;

  __device__ RowStatistics(const AttentionArgs<bf16>& args, int64_t index) {
    if (index < 0) return;
    lse_log2 = args.lse[index] * kLog2E;
    delta = args.delta[index];
  }
};

/// c = a b^T for 16 * m_blocks rows of tile a and 16 * n_blocks rows of tile b.
template <int m_blocks, int n_blocks>
__device__ inline void product_of_tiles(float (&c)[m_blocks][2 * n_blocks][4], uint32_t a, uint32_t b,
                                        const LaneAddress& left, const LaneAddress& right) {
#pragma unroll
  for (auto& row : c) {
#pragma unroll
    for (auto& block : row) block[0] = block[1] = block[2] = block[3] = 0;
  }
#pragma unroll
  for (int k = 0; k < kColumnBlocks; ++k) {
    Fragment x[m_blocks];
#pragma unroll
    for (int m = 0; m < m_blocks; ++m) x[m] = load_matrices(left.at(a, m, k));
#pragma unroll
    for (int n = 0; n < n_blocks; ++n) {
      const Fragment y = load_matrices(right.at(b, n, k));
#pragma unroll
      for (int m = 0; m < m_blocks; ++m) mma_pair(c[m][2 * n], c[m][2 * n + 1], x[m], y);
    }
  }
}

constexpr int kQueryRows = kAttentionTileRows, kQueryKeys = 32;
constexpr int kQuerySharedBytes = 2 * (kQueryRows + kQueryKeys) * kRowBytes;  // 96 KiB: q, dout, k, v

/// s becomes p (dp - delta), what a row does not see 0. first_key: position of this lane's first column.
__device__ inline void score_gradients(float (&s)[kQueryKeys / 8][4], const float (&dp)[kQueryKeys / 8][4],
                                       const RowStatistics (&row)[2], float scale_log2, bool all_seen, int first_key,
                                       const int (&position)[2], int window) {
#pragma unroll
  for (int j = 0; j < kQueryKeys / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int key = first_key + 8 * j + (e & 1), h = e >> 1;
      const bool seen = all_seen || (key <= position[h] && (window == 0 || key > position[h] - window));
      const float p = exp2_approximate(s[j][e] * scale_log2 - row[h].lse_log2);
      s[j][e] = seen ? p * (dp[j][e] - row[h].delta) : 0;
    }
  }
}

/// dq. Two blocks a multiprocessor on sm_90.
__global__ void __launch_bounds__(kThreads, 2) attention_backward_queries(const AttentionArgs<bf16> args) {
  if constexpr (!kHasMma) return;
  extern __shared__ uint4 shared[];
  const uint32_t queries = shared_address(shared), douts = queries + kQueryRows * kRowBytes;
  const uint32_t keys = douts + kQueryRows * kRowBytes, values = keys + kQueryKeys * kRowBytes;
  const AttentionTile tile = args.tiles[blockIdx.x / args.n_kv_heads];
  const int kv_head = static_cast<int>(blockIdx.x) % args.n_kv_heads;
  const AttentionSpan span = args.spans[tile.span];
  const AttentionRows rows(args, span, tile.begin, tile.end, kv_head);
  const AttentionKeys key_rows(args.n_kv_heads, span, tile.walk_begin, tile.walk_end, kv_head);
  const int lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * 16;
  const int row[2] = {first_row + lane / 4, first_row + lane / 4 + 8};
  const int position[2] = {rows.position(row[0]), rows.position(row[1])};
  const int last_position = rows.position(rows.n_rows - 1);
  const RowStatistics statistics[2] = {{args, rows.index(row[0])}, {args, rows.index(row[1])}};
  const LaneAddress left = left_address(lane), right = right_address(lane);
  const uint32_t warp_offset = static_cast<uint32_t>(first_row * kRowBytes);

  float dq[kTileDim / 8][4] = {};
  const int first_key = tile.walk_begin / kQueryKeys * kQueryKeys;
  load_tile<kQueryRows, kThreads>(queries, args.q, [&](int r) { return rows.index(r); });
  load_tile<kQueryRows, kThreads>(douts, args.dout, [&](int r) { return rows.index(r); });
  load_tile<kQueryKeys, kThreads>(values, args.v, key_rows.from(first_key));
  for (int key = first_key; key < tile.walk_end; key += kQueryKeys) {
    float s[1][kQueryKeys / 8][4], dp[1][kQueryKeys / 8][4];
    wait_for_copies();
    __syncthreads();  // the values are here; everyone is done with the keys before
    load_tile<kQueryKeys, kThreads>(keys, args.k, key_rows.from(key));
    product_of_tiles<1, kQueryKeys / 16>(dp, douts + warp_offset, values, left, right);
    wait_for_copies();
    __syncthreads();  // the keys are here; everyone is done with the values
    if (key + kQueryKeys < tile.walk_end) {
      load_tile<kQueryKeys, kThreads>(values, args.v, key_rows.from(key + kQueryKeys));
    }
    product_of_tiles<1, kQueryKeys / 16>(s, queries + warp_offset, keys, left, right);
    const bool all_seen =
        key + kQueryKeys - 1 <= rows.first_position && (args.window == 0 || key > last_position - args.window);
    score_gradients(s[0], dp[0], statistics, args.scale * kLog2E, all_seen, key + 2 * (lane & 3), position,
                    args.window);
#pragma unroll
    for (int k = 0; k < kQueryKeys / 16; ++k) {
      const Fragment a = as_left_operand(s[0][2 * k], s[0][2 * k + 1]);
#pragma unroll
      for (int c = 0; c < kColumnBlocks; ++c) {
        mma_pair(dq[2 * c], dq[2 * c + 1], a, load_matrices_transposed(left.at(keys, k, c)));
      }
    }
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (row[h] >= rows.n_rows) continue;
    bf16* to = args.dq.data + rows.index(row[h]) * kTileDim + 2 * (lane & 3);
#pragma unroll
    for (int j = 0; j < kTileDim / 8; ++j) {
      store_pair(to + 8 * j, args.dq.add, dq[j][2 * h], dq[j][2 * h + 1], args.scale);
    }
  }
}

constexpr int kKeys = kAttentionTileKeys;

/// The key pass with kRows rows (query, head) at a time: 64 where shared memory holds two such blocks (sm_90), else 32.
/// Scores: warps share out the rows and, where there are fewer blocks of 16 rows than warps, the keys. Gradients: each
/// warp has 64 columns of all keys.
template <int kRows>
struct KeyPass {
  static constexpr int kRowWarps = kRows / 16, kKeyWarps = kThreads / 32 / kRowWarps;
  static constexpr int kKeyBlocks = kKeys / 16 / kKeyWarps;  // blocks of 16 keys of a warp's scores
  // A matrix [keys, rows] of p or dscores; 16 bytes more a row spread its columns over the banks.
  static constexpr int kPitch = kRows * 2 + 16;
  static constexpr int kSharedBytes = 2 * (kKeys + kRows) * kRowBytes + 2 * kKeys * kPitch;
  using Scores = float[kKeyBlocks][2][4];  // transposed: keys down, rows across
  using Gradient = float[kKeys / 16][8][4];

  /// In place: s becomes p, dp becomes p (dp - delta). first_key, row: place of this lane's first element.
  static __device__ void differentiate(const AttentionArgs<bf16>& args, Scores& s, Scores& dp,
                                       const AttentionRows& rows, const RowStatistics (&statistics)[4], int first_key,
                                       int row) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {  // the lane's columns: row, row + 1, row + 8, row + 9
      const int position = rows.position(row + (n >> 1) * 8 + (n & 1));
#pragma unroll
      for (int m = 0; m < kKeyBlocks; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int key = first_key + 16 * m + 8 * h;
          float &score = s[m][n >> 1][2 * h + (n & 1)], &product = dp[m][n >> 1][2 * h + (n & 1)];
          const bool seen = key <= position && (args.window == 0 || key > position - args.window);
          const float p = exp2_approximate(score * (args.scale * kLog2E) - statistics[n].lse_log2);
          score = seen ? p : 0;
          product = score * (product - statistics[n].delta);
        }
      }
    }
  }

  /// The warp's part of a matrix [keys, rows], rounded. `to`: place of this lane's first element.
  static __device__ void store_scores(char* to, const Scores& s) {
#pragma unroll
    for (int m = 0; m < kKeyBlocks; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        char* at = to + 16 * m * kPitch + 16 * n;
        *reinterpret_cast<uint32_t*>(at) = pack(s[m][n][0], s[m][n][1]);
        *reinterpret_cast<uint32_t*>(at + 8 * kPitch) = pack(s[m][n][2], s[m][n][3]);
      }
    }
  }

  /// gradient += scores x for the warp's 64 columns of tile x.
  static __device__ void add_rows(Gradient& gradient, uint32_t scores, uint32_t x, const LaneAddress& address,
                                  int lane) {
    const uint32_t from = scores + static_cast<uint32_t>((lane & 15) * kPitch + (lane >> 4) * 16);
#pragma unroll
    for (int k = 0; k < kRows / 16; ++k) {
      Fragment a[kKeys / 16];
#pragma unroll
      for (int m = 0; m < kKeys / 16; ++m) {
        a[m] = load_matrices(from + static_cast<uint32_t>(16 * m * kPitch + 32 * k));
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const Fragment b = load_matrices_transposed(address.at(x, k, c));
#pragma unroll
        for (int m = 0; m < kKeys / 16; ++m) mma_pair(gradient[m][2 * c], gradient[m][2 * c + 1], a[m], b);
      }
    }
  }

  /// key_of(r): place of key r of the tile in the destination, -1 when there is none. column: the lane's first.
  template <class KeyOf>
  static __device__ void store_gradient(const AttentionDestination<bf16>& to, const Gradient& gradient, float scale,
                                        KeyOf key_of, int key, int column) {
    if (to.data == nullptr) return;
#pragma unroll
    for (int m = 0; m < kKeys / 16; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t index = key_of(key + 16 * m + 8 * h);
        if (index < 0) continue;
        bf16* at = to.data + index * kTileDim + column;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          store_pair(at + 8 * j, to.add, gradient[m][j][2 * h], gradient[m][j][2 * h + 1], scale);
        }
      }
    }
  }
};

/// The two blocks of a cluster add up what each has summed, in the first one: sum of the first, then of the second.
/// `spare`: shared memory for both, free in each block. Returns whether this block is the first.
template <class Gradient>
__device__ bool add_second_block(Gradient& dk, Gradient& dv, float* spare) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const auto cluster = cooperative_groups::this_cluster();
  constexpr int n = sizeof(Gradient) / sizeof(float);
  float *of_k = &dk[0][0][0], *of_v = &dv[0][0][0];
  const bool is_first = cluster.block_rank() == 0;
  __syncthreads();
  if (!is_first) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      spare[i * kThreads + threadIdx.x] = of_k[i];
      spare[(n + i) * kThreads + threadIdx.x] = of_v[i];
    }
  }
  cluster.sync();
  if (is_first) {
    const float* other = cluster.map_shared_rank(spare, 1);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      of_k[i] += other[i * kThreads + threadIdx.x];
      of_v[i] += other[(n + i) * kThreads + threadIdx.x];
    }
  }
  cluster.sync();  // the second block's memory was read
  return is_first;
#else
  return true;
#endif
}

/// dk and dv. kParts: blocks that share out a tile's rows, in steps by turns: 2 is a cluster (sm_90), whatever the
/// batch.
template <int kRows, int kParts>
__global__ void __launch_bounds__(kThreads, 2) attention_backward_keys(const AttentionArgs<bf16> args) {
  if constexpr (!kHasMma) return;
  using Pass = KeyPass<kRows>;
  extern __shared__ uint4 shared[];
  const uint32_t keys = shared_address(shared), values = keys + kKeys * kRowBytes;
  const uint32_t queries = values + kKeys * kRowBytes, douts = queries + kRows * kRowBytes;
  const uint32_t weights = douts + kRows * kRowBytes, dscores = weights + kKeys * Pass::kPitch;
  const int index = static_cast<int>(blockIdx.x) / kParts, part = static_cast<int>(blockIdx.x) % kParts;
  const AttentionTile tile = args.tiles[index / args.n_kv_heads];
  const int kv_head = index % args.n_kv_heads;
  const AttentionSpan span = args.spans[tile.span];
  const AttentionKeys key_of = AttentionKeys(args.n_kv_heads, span, tile.begin, tile.end, kv_head).from(tile.begin);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_row = warp % Pass::kRowWarps * 16, first_key = warp / Pass::kRowWarps * Pass::kKeyBlocks * 16;
  const int lane_key = first_key + lane / 4, lane_row = first_row + 2 * (lane & 3);
  const LaneAddress left = left_address(lane), right = right_address(lane);
  const uint32_t key_offset = static_cast<uint32_t>(first_key * kRowBytes);
  const uint32_t row_offset = static_cast<uint32_t>(first_row * kRowBytes);
  const uint32_t column_offset = static_cast<uint32_t>(warp * 128);
  char* lane_weights = reinterpret_cast<char*>(shared) + (weights - keys) + lane_key * Pass::kPitch + 2 * lane_row;

  typename Pass::Gradient dk = {}, dv = {};
  const int step = kRows / args.group, stride = kParts * step, first_query = tile.walk_begin + part * step;
  const auto rows_at = [&](int query) {
    return AttentionRows(args, span, query, min(query + step, tile.walk_end), kv_head);
  };
  const auto load_rows = [&](uint32_t to, const bf16* from, int query) {
    const AttentionRows rows = rows_at(query);
    load_tile<kRows, kThreads>(to, from, [&](int r) { return rows.index(r); });
  };
  load_tile<kKeys, kThreads>(keys, args.k, key_of);
  load_tile<kKeys, kThreads>(values, args.v, key_of);
  if (first_query < tile.walk_end) load_rows(queries, args.q, first_query);
  for (int query = first_query; query < tile.walk_end; query += stride) {
    const AttentionRows rows = rows_at(query);
    typename Pass::Scores s, dp;
    wait_for_copies();
    __syncthreads();  // the queries are here; everyone is done with dout, weights and dscores before
    load_rows(douts, args.dout, query);
    const RowStatistics statistics[4] = {{args, rows.index(lane_row)},
                                         {args, rows.index(lane_row + 1)},
                                         {args, rows.index(lane_row + 8)},
                                         {args, rows.index(lane_row + 9)}};
    product_of_tiles<Pass::kKeyBlocks, 1>(s, keys + key_offset, queries + row_offset, left, right);
    wait_for_copies();
    __syncthreads();  // dout is here
    product_of_tiles<Pass::kKeyBlocks, 1>(dp, values + key_offset, douts + row_offset, left, right);
    Pass::differentiate(args, s, dp, rows, statistics, tile.begin + lane_key, lane_row);
    Pass::store_scores(lane_weights, s);
    Pass::store_scores(lane_weights + kKeys * Pass::kPitch, dp);
    __syncthreads();  // weights and dscores are complete
    Pass::add_rows(dk, dscores, queries + column_offset, left, lane);
    __syncthreads();  // everyone is done with the queries
    if (query + stride < tile.walk_end) load_rows(queries, args.q, query + stride);
    Pass::add_rows(dv, weights, douts + column_offset, left, lane);
  }
  wait_for_copies();  // where no query sees the keys
  if constexpr (kParts == 2) {
    if (!add_second_block(dk, dv, reinterpret_cast<float*>(shared))) return;
  }
  const int column = warp * 64 + 2 * (lane & 3);
  Pass::store_gradient(args.dk, dk, args.scale, key_of, lane / 4, column);
  Pass::store_gradient(args.dv, dv, 1, key_of, lane / 4, column);
}

template <int kRows, int kParts>
void launch_keys(const AttentionArgs<bf16>& args, cudaStream_t stream) {
  constexpr int kSharedBytes = KeyPass<kRows>::kSharedBytes;
  static_assert(kParts == 1 || 2 * sizeof(typename KeyPass<kRows>::Gradient) * kThreads <= kSharedBytes);
  const auto kernel = attention_backward_keys<kRows, kParts>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
             "attention shared memory");
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kParts, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(args.n_tiles * args.n_kv_heads * kParts));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = kParts > 1 ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, args), "attention_backward_keys");
}

}  // namespace

void launch_attention_mma_backward_queries(const AttentionArgs<bf16>& args, cudaStream_t stream) {
  check_cuda(
      cudaFuncSetAttribute(attention_backward_queries, cudaFuncAttributeMaxDynamicSharedMemorySize, kQuerySharedBytes),
      "attention shared memory");
  attention_backward_queries<<<args.n_tiles * args.n_kv_heads, kThreads, kQuerySharedBytes, stream>>>(args);
  check_launch("attention_backward_queries");
}

void launch_attention_mma_backward_keys(const AttentionArgs<bf16>& args, cudaStream_t stream) {
  int device = 0, shared_bytes = 0, major = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory");
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
  if (shared_bytes < KeyPass<64>::kSharedBytes) return launch_keys<32, 1>(args, stream);
  if (major >= 9) return launch_keys<64, 2>(args, stream);
  launch_keys<64, 1>(args, stream);
}

}  // namespace saaz::cuda
