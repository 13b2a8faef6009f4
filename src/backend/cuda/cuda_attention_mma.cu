// Attention on tensor cores (bf16, head_dim 256), FlashAttention-2's way: a block holds 64 rows (query, head) of one kv
// head and walks its keys 64 at a time with running maxima and sums in f32 registers; the values of a tile travel while
// its scores are computed, the next keys while the values are weighed. Key tiles start at multiples of 64 positions,
// and a key that a row does not see adds exact zeros, so a row's bits do not depend on the rows beside it. A short span
// with many keys (decoding) is split into parts of 128 keys, one block each; `merge_parts` joins them in order.
// 96 KiB of shared memory: two blocks a multiprocessor on sm_90, one on sm_86, sm_89 and sm_120.
#include <cmath>

#include "backend/cuda/cuda_attention.cuh"
#include "backend/cuda/cuda_mma.cuh"
#include "backend/cuda/cuda_softmax.cuh"

namespace saaz::cuda {
namespace {

constexpr int kRows = kAttentionTileRows, kKeys = 64, kThreads = 128;
constexpr int kColumnBlocks = kTileDim / 16;
constexpr int kSharedBytes = (kRows + 2 * kKeys) * kRowBytes;
static_assert(kThreads / 32 * 16 == kRows && kAttentionSplitKeys % kKeys == 0 && kTileDim == kAttentionMmaDim);

using Scores = float[kKeys / 8][4];
using Sums = float[kTileDim / 8][4];

/// s = q k^T for the warp's 16 rows and a tile's keys.
__device__ inline void score_tile(Scores& s, uint32_t queries, uint32_t keys, const LaneAddress& left,
                                  const LaneAddress& right) {
#pragma unroll
  for (auto& block : s) block[0] = block[1] = block[2] = block[3] = 0;
#pragma unroll
  for (int c = 0; c < kColumnBlocks; ++c) {
    const Fragment a = load_matrices(left.at(queries, 0, c));
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) mma_pair(s[2 * n], s[2 * n + 1], a, load_matrices(right.at(keys, n, c)));
  }
}

/// sums += weights v.
__device__ inline void add_values(Sums& sums, const Scores& weights, uint32_t values, const LaneAddress& address) {
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k) {
    const Fragment a = as_left_operand(weights[2 * k], weights[2 * k + 1]);
#pragma unroll
    for (int c = 0; c < kColumnBlocks; ++c) {
      mma_pair(sums[2 * c], sums[2 * c + 1], a, load_matrices_transposed(address.at(values, k, c)));
    }
  }
}

/// Row r's results from this lane: its columns of the output, and lse. h: which of the lane's two rows it is.
__device__ inline void store_row(const AttentionArgs<bf16>& args, const Sums& sums, float largest, float sum, int h,
                                 int64_t index, int lane) {
  const float inverse = 1 / sum;
  bf16* out = args.out + index * kTileDim + 2 * (lane & 3);
#pragma unroll
  for (int j = 0; j < kTileDim / 8; ++j) {
    *reinterpret_cast<uint32_t*>(out + 8 * j) = pack(sums[j][2 * h] * inverse, sums[j][2 * h + 1] * inverse);
  }
  if (args.lse != nullptr && (lane & 3) == 0) args.lse[index] = largest * args.scale + logf(sum);
}

__device__ inline void store_partial(const AttentionPartials& partials, const Sums& sums, float2 statistics, int h,
                                     int64_t row, int lane) {
  float* to = partials.sums + row * kTileDim + 2 * (lane & 3);
#pragma unroll
  for (int j = 0; j < kTileDim / 8; ++j) {
    *reinterpret_cast<float2*>(to + 8 * j) = make_float2(sums[j][2 * h], sums[j][2 * h + 1]);
  }
  if ((lane & 3) == 0) partials.statistics[row] = statistics;
}

__global__ void __launch_bounds__(kThreads, 2)
    attention_forward(const AttentionArgs<bf16> args, const AttentionPartials partials) {
  if constexpr (!kHasMma) return;
  extern __shared__ uint4 shared[];
  const uint32_t queries = shared_address(shared);
  const uint32_t keys = queries + kRows * kRowBytes, values = keys + kKeys * kRowBytes;
  const AttentionTile tile = args.tiles[blockIdx.x / args.n_kv_heads];
  const int kv_head = static_cast<int>(blockIdx.x) % args.n_kv_heads;
  const AttentionSpan span = args.spans[tile.span];
  const AttentionRows rows(args, span, tile.begin, tile.end, kv_head);
  const AttentionKeys key_rows(args.n_kv_heads, span, tile.walk_begin, tile.walk_end, kv_head);
  const int lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * 16;
  const int row[2] = {first_row + lane / 4, first_row + lane / 4 + 8};
  const int position[2] = {rows.position(row[0]), rows.position(row[1])};
  const int last_position = rows.position(rows.n_rows - 1);
  const LaneAddress left = left_address(lane), right = right_address(lane);
  const bool has_rows = first_row < rows.n_rows;  // of this warp: a short span leaves some without

  Sums sums = {};
  RowStatistics statistics;
  const int first_key = tile.walk_begin / kKeys * kKeys;
  load_tile<kRows, kThreads>(queries, args.q, [&](int r) { return rows.index(r); });
  load_tile<kKeys, kThreads>(keys, args.k, key_rows.from(first_key));
  for (int key = first_key; key < tile.walk_end; key += kKeys) {
    Scores s;
    wait_for_copies();
    __syncthreads();  // the keys are here; everyone is done with the values before
    load_tile<kKeys, kThreads>(values, args.v, key_rows.from(key));
    if (has_rows) {
      score_tile(s, queries + static_cast<uint32_t>(first_row * kRowBytes), keys, left, right);
      const bool all_seen =
          key + kKeys - 1 <= rows.first_position && (args.window == 0 || key > last_position - args.window);
      if (!all_seen) mask_tile(s, key + 2 * (lane & 3), position, args.window);
      float correction[2];
      weigh_tile(s, statistics, correction, args.scale * kLog2E);
      rescale(sums, correction);
    }
    wait_for_copies();
    __syncthreads();  // the values are here; everyone is done with the keys
    if (key + kKeys < tile.walk_end) load_tile<kKeys, kThreads>(keys, args.k, key_rows.from(key + kKeys));
    if (has_rows) add_values(sums, s, values, left);
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = statistics.sum[h];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (row[h] >= rows.n_rows) continue;
    if (tile.partial < 0) {
      store_row(args, sums, statistics.largest[h], sum, h, rows.index(row[h]), lane);
    } else {
      const int64_t slot = static_cast<int64_t>(tile.partial) * args.n_kv_heads + kv_head;
      const float2 pair = make_float2(statistics.largest[h] * args.scale * kLog2E, sum);
      store_partial(partials, sums, pair, h, slot * kRows + row[h], lane);
    }
  }
}

/// One row of a split span, a block of kTileDim / 4 threads. Grid: rows, kv heads, split spans.
__global__ void __launch_bounds__(kTileDim / 4)
    merge_parts(const AttentionArgs<bf16> args, const AttentionPartials partials) {
  const AttentionMerge merge = partials.merges[blockIdx.z];
  const int row = blockIdx.x, kv_head = blockIdx.y;
  const AttentionSpan span = args.spans[merge.span];
  const AttentionRows rows(args, span, 0, static_cast<int>(span.n_queries), kv_head);
  if (row >= rows.n_rows) return;
  const auto place = [&](int part) {
    return ((static_cast<int64_t>(merge.first_partial) + part) * args.n_kv_heads + kv_head) * kRows + row;
  };
  float largest = -INFINITY;  // finite in the end: a query sees its own key
  for (int part = 0; part < merge.n_partials; ++part) largest = fmaxf(largest, partials.statistics[place(part)].x);
  float4 out = make_float4(0, 0, 0, 0);
  float sum = 0;
  for (int part = 0; part < merge.n_partials; ++part) {
    const float2 statistics = partials.statistics[place(part)];
    const float weight = exp2_approximate(statistics.x - largest);
    const float4 x = reinterpret_cast<const float4*>(partials.sums + place(part) * kTileDim)[threadIdx.x];
    sum += weight * statistics.y;
    out = make_float4(out.x + weight * x.x, out.y + weight * x.y, out.z + weight * x.z, out.w + weight * x.w);
  }
  const float inverse = 1 / sum;
  const int64_t index = rows.index(row);
  reinterpret_cast<uint2*>(args.out + index * kTileDim)[threadIdx.x] =
      make_uint2(pack(out.x * inverse, out.y * inverse), pack(out.z * inverse, out.w * inverse));
  if (args.lse != nullptr && threadIdx.x == 0) args.lse[index] = largest / kLog2E + logf(sum);
}

}  // namespace

void launch_attention_mma(const AttentionArgs<bf16>& args, const AttentionPartials& partials, cudaStream_t stream) {
  check_cuda(cudaFuncSetAttribute(attention_forward, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
             "attention shared memory");
  attention_forward<<<args.n_tiles * args.n_kv_heads, kThreads, kSharedBytes, stream>>>(args, partials);
  check_launch("attention_forward");
  if (partials.n_merges == 0) return;
  const dim3 grid(partials.most_rows, args.n_kv_heads, partials.n_merges);
  merge_parts<<<grid, kTileDim / 4, 0, stream>>>(args, partials);
  check_launch("merge_parts");
}

}  // namespace saaz::cuda
