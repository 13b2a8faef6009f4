// Step: up's product for the columns that a sparse gate lets through, one row, NF4. A tile is eight of up's rows, so
// that more blocks share them: the left operand has a block of scales of each in its upper half and the next block in
// its lower one, x has these in two columns, and of the four sums two are taken. A block lists those columns alone that
// are its own. Room-private.
#pragma once

#include "backend/cuda/cuda_step_products.cuh"

namespace saaz::cuda::sparse {

inline constexpr int kGateThreads = 1024;
inline constexpr int kThreads = 512, kWarps = kThreads / 32, kVirtual = kGateThreads / kThreads;
inline constexpr int kGroup = 8;                       // warps that share a tile
inline constexpr int kMostItems = 2, kItemValues = 8;  // of a thread of kGateThreads, of an item
inline constexpr int64_t kMostSparseRows = 4;
inline constexpr int64_t kItemsWidth = kGateThreads * kItemValues;

/// gelu of what the gate is over its row's cut.
__device__ inline float sparse_factor(float over) {
  const float u = 0.7978845608f * over * (1.0f + 0.044715f * over * over);
  return over / (1.0f + expf(-2.0f * u));
}
/// That times up; nothing where the gate is below.
__device__ inline float sparse_gated(float over, float up) {
  if (over <= 0.0f) return 0.0f;  // NaN passes
  return up * sparse_factor(over);
}

inline constexpr int kRowTile = 8, kMostOwn = 256;  // columns
inline constexpr int kPairStride = 128;             // of a byte's pairs, one for each lane

struct RowArguments {
  Matrix up;  // doubly quantised
  const bf16 *x, *gate;
  bf16* y;
  const float* map;
  float values[16];
  float sparsity_z, of_width;  // 1 / n_out
  int n_out, n_in, n_chunks;
};

struct RowShared {
  uint32_t pairs[256 * kPairStride / 4];
  float map[256];
  uint8_t open[kMostItems * kGateThreads];  // a bit for each column
  float of_warp[2][kVirtual * kWarps];
  int counts[kWarps];
  float sums[kWarps][kRowTile];
  uint16_t own[kMostOwn];
  uint4 gate[kMostItems * kGateThreads];
  // then x
};

__device__ inline int warp_total(int x) {
  int sum;
  asm volatile("redux.sync.add.s32 %0, %1, 0xffffffff;" : "=r"(sum) : "r"(x));
  return sum;
}

/// As virtual_sum: both of a warp's sums in one tree, the first in the lower lanes. of_warp: used once.
__device__ inline float row_total(const float (&of_thread)[kVirtual], float (&of_warp)[kVirtual * kWarps], int warp) {
  static_assert(kVirtual == 2);
  const int lane = threadIdx.x % 32;
  const bool low = lane < 16;
  float sum = (low ? of_thread[0] : of_thread[1]) + __shfl_xor_sync(0xffffffffu, low ? of_thread[1] : of_thread[0], 16);
#pragma unroll
  for (int d = 8; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (lane % 16 == 0) of_warp[lane / 16 * kWarps + warp] = sum;
  __syncthreads();
  return warp_sum(of_warp[lane]);
}

/// The row of the gate in shared memory, where a thread reads what it copied itself: item j is of virtual thread j % 2
/// of those that GateValues has. Loops over items are kept as loops: the code is run once, cold.
struct RowOfGate {
  uint4* items;
  int width;
  float of_width;  // 1 / width, a power of two: to multiply is to divide

  __device__ int n_items() const { return width / (kThreads * kItemValues); }
  __device__ void copy(const bf16* gate) const {
#pragma unroll
    for (int j = 0; j < kVirtual * kMostItems; ++j)
      if (j < n_items()) copy_async(shared_address(items + at(j)), gate + at(j) * kItemValues, true);
  }
  __device__ static int at(int j) { return static_cast<int>(threadIdx.x) + j * kThreads; }
  /// As cut_of.
  __device__ float cut(RowShared& s, float sparsity_z, int warp) const {
    float sums[kVirtual] = {}, squares[kVirtual] = {};
    each_pair([&](float x, int v) { sums[v] += x; });
    const float mean = __fmul_rn(row_total(sums, s.of_warp[0], warp), of_width);
    each_pair([&](float x, int v) { squares[v] += (x - mean) * (x - mean); });
    return mean + sqrtf(__fmul_rn(row_total(squares, s.of_warp[1], warp), of_width)) * sparsity_z;
  }
  /// A bit for each of the thread's columns that the cut lets through, by item and place in it.
  __device__ uint32_t open(RowShared& s, float cut) const {
    uint32_t all = 0;
#pragma unroll 1
    for (int j = 0; j < n_items(); ++j) {
      const uint4 raw = items[at(j)];
      uint32_t of_item = 0;
#pragma unroll
      for (int i = 0; i < kItemValues; ++i) of_item |= value(raw, i) <= cut ? 0u : 1u << i;  // NaN passes
      s.open[at(j)] = static_cast<uint8_t>(of_item);
      all |= of_item << j * kItemValues;
    }
    return all;
  }

 private:
  __device__ static float value(const uint4& raw, int i) { return to_f32(reinterpret_cast<const bf16*>(&raw)[i]); }
  template <class F>
  __device__ void each_pair(F f) const {
#pragma unroll 1
    for (int j = 0; j < n_items(); j += kVirtual) {
      const uint4 raw[kVirtual] = {items[at(j)], items[at(j + 1)]};
#pragma unroll
      for (int i = 0; i < kItemValues; ++i)
#pragma unroll
        for (int v = 0; v < kVirtual; ++v) f(value(raw[v], i), v);
    }
  }
};

/// The block's columns of those that are open, in s.own; returns how many. All land in shared memory: a barrier.
__device__ inline int list_own(RowShared& s, uint32_t open, int warp) {
  const int lane = threadIdx.x % 32, count = __popc(open);
  int before = 0;
#pragma unroll
  for (int k = 0; k < 6; ++k) before += __popc(__ballot_sync(0xffffffffu, count >> k & 1) & ((1u << lane) - 1)) << k;
  if (lane == 31) s.counts[warp] = before + count;
  __syncthreads();
  const int of_warp = lane < kWarps ? s.counts[lane] : 0;
  before += warp_total(lane < warp ? of_warp : 0);
  const int n_open = warp_total(of_warp), of_all = static_cast<int>(gridDim.x) * kRowTile;
  int most = kRowTile;
#pragma unroll 1
  for (int covered = of_all; covered < n_open; covered += of_all) most += kRowTile;
  const int begin = static_cast<int>(blockIdx.x) * most;
  int place = before - begin;
  if (place < most && place + count > 0) {
#pragma unroll 1
    for (; open != 0; open &= open - 1, ++place) {
      const unsigned bit = __ffs(static_cast<int>(open)) - 1u, item = bit / kItemValues;
      if (place >= 0 && place < most)
        s.own[place] = static_cast<uint16_t>((threadIdx.x + item * kThreads) * kItemValues + bit % kItemValues);
    }
  }
  wait_for_copies();
  __syncthreads();
  return max(0, min(most, n_open - begin));
}

/// As clear_inactive, by the threads from `first` on.
__device__ inline void clear_closed(bf16* y, const uint8_t* open, int width, int first) {
  const unsigned share = (width + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * share;
  const unsigned end = min(static_cast<unsigned>(width), begin + share);
#pragma unroll 1
  for (unsigned n = begin + threadIdx.x - first; n < end; n += kThreads - first)
    if ((open[n / 8] >> n % 8 & 1) == 0) y[n] = __float2bfloat16_rn(0.0f);
}

/// What a lane has of row lane / 4 of a tile in a warp's batch: 16 codes of each block, and what makes their scales.
struct RowBatch {
  uint2 codes[kNf4Chunks];
  uint32_t scales;
  float nested;
  __device__ RowBatch(const Matrix& up, uint32_t first) {
    const auto* from = static_cast<const uint2*>(up.data) + first * 4 + threadIdx.x % 4;
#pragma unroll
    for (int c = 0; c < kNf4Chunks; ++c) codes[c] = stream_load(from + c * 4);
    scales = __ldg(reinterpret_cast<const uint32_t*>(up.codes + first));
    nested = __ldg(up.nested + first / kNestedBlock);
  }
  /// Of lanes lane % 4 == 0: the sum over the batch. x: shared memory, from the batch's first column on.
  __device__ float sum(const RowShared& s, const char* x, float offset) const {
    const int lane = threadIdx.x % 32;
    const char* column = reinterpret_cast<const char*>(s.pairs) + lane * 4;
    const auto pair = [&](uint32_t word, int i) {
      return *reinterpret_cast<const uint32_t*>(column + __byte_perm(word, 0, 0x4440 | i) * kPairStride);
    };
    x += lane / 4 % 2 * 128 + lane % 4 * 32;
    float total = 0;
    // As sum_of_blocks, two blocks at a time.
#pragma unroll 1
    for (int c = 0; c < kNf4Chunks; c += 2, x += 2 * 128) {
      const uint2 above = c == 0 ? codes[0] : codes[2], below = c == 0 ? codes[1] : codes[3];
      float sums[4] = {};
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        uint4 of_x = *reinterpret_cast<const uint4*>(x + part * 16);
        if (lane >= 8) of_x = make_uint4(0, 0, 0, 0);
        const uint32_t upper = part == 0 ? above.x : above.y, lower = part == 0 ? below.x : below.y;
        mma(sums, {pair(upper, 0), pair(lower, 0), pair(upper, 1), pair(lower, 1)}, of_x.x, of_x.y);
        mma(sums, {pair(upper, 2), pair(lower, 2), pair(upper, 3), pair(lower, 3)}, of_x.z, of_x.w);
      }
      const uint32_t of_two = scales >> (8 * c);
      const float first = s.map[of_two & 255] * nested + offset, second = s.map[of_two >> 8 & 255] * nested + offset;
      const float both = __fadd_rn(__fmul_rn(first, sums[0]), __fmul_rn(second, sums[3]));
      total = c == 0 ? both : __fadd_rn(total, both);
    }
    return total;
  }
};

/// The block's tiles, by groups of kGroup warps.
__device__ inline void make_own(RowShared& s, const RowArguments& a, const char* x, int n_own, float cut, int warp) {
  const int lane = threadIdx.x % 32, group = warp / kGroup, in_group = warp % kGroup;
#pragma unroll 1
  for (int first = group * kRowTile; first < n_own; first += kWarps / kGroup * kRowTile) {
    const uint32_t column = s.own[min(first + lane / 4, n_own - 1)];
    float sum = 0, factor = 0;
#pragma unroll 1
    for (int chunk = in_group * kNf4Chunks; chunk < a.n_chunks; chunk += kGroup * kNf4Chunks) {
      const RowBatch batch(a.up, column * a.n_chunks + chunk);
      if (chunk == 0) factor = sparse_factor(to_f32(__ldcg(a.gate + column)) - cut);  // while the weights travel
      sum = __fadd_rn(sum, batch.sum(s, x + chunk * 128, a.up.offset));
    }
    if (first >= kWarps / kGroup * kRowTile) group_barrier(group, kGroup);  // the last tile's are read
    if (lane % 4 == 0) s.sums[warp][lane / 4] = sum;
    group_barrier(group, kGroup);
    if (in_group != 0) continue;
    float up = 0;
#pragma unroll
    for (int w = 0; w < kGroup; ++w) up += s.sums[warp + w][lane / 4];
    if (lane % 4 == 0 && first + lane / 4 < n_own)
      a.y[column] = __float2bfloat16_rn(to_f32(__float2bfloat16_rn(up)) * factor);
  }
}

}  // namespace saaz::cuda::sparse
