// Step: what the kernels of a step's products share: a launch's arguments, what follows a product, and the mix that one
// may begin with. Room-private.
#pragma once

#include "backend/cuda/cuda_step_chunks.cuh"
#include "backend/cuda/cuda_step_rows.cuh"
#include "backend/cuda/cuda_step_task.h"

namespace saaz::cuda {

using Then = Step::Then;

inline constexpr int kMostTile = 16;  // rows of a weight
inline constexpr int kBlockWarps = 8, kNf4BlockWarps = 16;

/// One product of a launch: `n_jobs` tiles of rows.
struct Segment {
  Matrix w[2];  // the second: up of a gated product
  const bf16 *x = nullptr, *given = nullptr;
  void* y = nullptr;
  int n_in = 0, n_out = 0, first_job = 0;
  int tile = 8, n_chunks = 0, batch_chunks = kLoads, chunk_columns = 32;
  int x_at = 0, x_stride = 0;  // in shared memory, bytes
  bool is_nf4 = false;
  Then then = Then::store;
  float cap = 0;
};
/// What makes x, where its product does that itself: as mix_kernel.
struct MixArguments {
  bf16 *mixed = nullptr, *y = nullptr;
  const bf16 *active = nullptr, *attention = nullptr, *x = nullptr, *laurel = nullptr;
  const float* norms[3] = {};  // of attention, laurel, y
  float eps = 0;
};
struct ProductArguments {
  Segment segments[StepKernels::kMostProducts];
  const float* tables = nullptr;  // the signed map [256], the values of NF4 [16]
  int n_segments = 0, n_jobs = 0, n_rows = 0;
  int group_shift = 0;  // warps of a group: a power of two
  MixArguments mix;
  int held_columns = 0;  // of x at once; 0: all of every x. Else one segment, and groups are whole blocks
  // Of the host: x in shared memory, how many segments are NF4, warps of a block.
  int row_bytes = 0, most_columns = 0, n_nf4 = 0, block_warps = kBlockWarps;
  __host__ __device__ int group() const { return 1 << group_shift; }
};

/// The result of row `row` of x and column `n` of y.
__device__ inline void finish(const Segment& s, int64_t row, int64_t n, float value, float second) {
  const int64_t at = row * s.n_out + n;
  if (s.cap > 0) value = s.cap * tanhf(value / s.cap);
  if (s.then == Then::store_f32) {
    static_cast<float*>(s.y)[at] = value;
    return;
  }
  if (s.then == Then::gate_up) value = gelu_of(value) * second;
  if (s.then == Then::gate_given) value = gelu_of(value) * to_f32(s.given[at]);
  // Relaxed: there may be blocks of this launch that look at it until it comes.
  asm volatile("st.relaxed.gpu.global.u16 [%0], %1;" ::"l"(static_cast<bf16*>(s.y) + at),
               "h"(__bfloat16_as_ushort(__float2bfloat16_rn(value)))
               : "memory");
}

/// Starts copying columns [column, column + n) of a segment's x to shared memory.
__device__ inline void copy_rows(const Segment& s, char* rows, int n_rows, int column, int n) {
  for (int row = 0; row < n_rows; ++row)
    for (int i = threadIdx.x * 8; i < n; i += static_cast<int>(blockDim.x) * 8)
      copy_async(shared_address(rows + s.x_at + row * s.x_stride + i * 2),
                 s.x + static_cast<int64_t>(row) * s.n_in + column + i, true);
}

/// A barrier of the warps of a group.
__device__ inline void group_barrier(int group, int n_warps) {
  asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "r"(n_warps * 32) : "memory");
}

inline constexpr int kMixItem = 4, kMixThreads = 512;  // as a thread each of mix_kernel
inline constexpr int kMostMixed = kMixThreads * kMixItem;

/// Each x[.][k] summed over the threads that mix_kernel would have, in its order; in every thread.
template <int K, int kMixItems>
__device__ void mix_sums(float (&sums)[K], const float (&x)[kMixItems][K]) {
  constexpr int kWarps = kMixThreads / kMixItems / 32;
  __shared__ float of_warp[K][kMixThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int k = 0; k < K; ++k)
#pragma unroll
    for (int i = 0; i < kMixItems; ++i) {
      const float sum = warp_sum(x[i][k]);
      if (lane == 0) of_warp[k][i * kWarps + warp] = sum;
    }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) sums[k] = warp_sum(lane < kMixThreads / 32 ? of_warp[k][lane] : 0.0f);
}

/// A row's mix, its items dealt to the block's threads. kLater: batches of copies that the caller begins after the
/// constructor and need not have landed.
template <int kWarps, int kLater = 0>
class Mixer {
 public:
  /// norms: shared memory. Starts copying them there.
  __device__ Mixer(const MixArguments& m, int dim, char* norms) : m_(m), dim_(dim), norms_(norms) {
#pragma unroll
    for (int k = 0; k < 3; ++k)
#pragma unroll
      for (int i = 0; i < kMixItems; ++i)
        if (at(i) < dim) copy_async(shared_address(norm(k, i)), m.norms[k] + at(i), true);
  }
  /// y of row `row` in `to`, and where the arguments say, if `stores`. Ends behind a barrier of sorts: see
  /// products_kernel.
  __device__ void make(int64_t row, bf16* to, bool stores) const {
    const int64_t begin = row * dim_;
    RawItem<bf16, kMixItem> attention[kMixItems] = {}, laurel[kMixItems] = {}, active[kMixItems] = {},
                            x[kMixItems] = {};
#pragma unroll
    for (int i = 0; i < kMixItems; ++i) {
      if (at(i) >= dim_) continue;
      attention[i] = load_made(m_.attention + begin + at(i));
      laurel[i] = load_made(m_.laurel + begin + at(i));
      active[i] = load_raw<bf16, kMixItem>(m_.active + begin + at(i));
      x[i] = load_raw<bf16, kMixItem>(m_.x + begin + at(i));
    }
    if constexpr (kLater > 0)  // the norms
      wait_for_batches<kLater>();
    else
      wait_for_copies();
    float squares[kMixItems][2], sums[2];
#pragma unroll
    for (int i = 0; i < kMixItems; ++i)
      squares[i][0] = square_of(unpack<bf16, kMixItem>(attention[i])),
      squares[i][1] = square_of(unpack<bf16, kMixItem>(laurel[i]));
    mix_sums(sums, squares);
    const float of_attention = inverse_rms(sums[0], dim_, m_.eps), of_laurel = inverse_rms(sums[1], dim_, m_.eps);
    Item<kMixItem> mixed[kMixItems];
    float square[kMixItems][1], sum[1];
#pragma unroll
    for (int i = 0; i < kMixItems; ++i) {
      mixed[i] = unpack<bf16, kMixItem>(active[i]);
      add_gained(mixed[i], unpack<bf16, kMixItem>(attention[i]), gain(0, i), of_attention);
      add_gained(mixed[i], unpack<bf16, kMixItem>(laurel[i]), gain(1, i), of_laurel);
      const Item<kMixItem> other = unpack<bf16, kMixItem>(x[i]);
#pragma unroll
      for (int e = 0; e < kMixItem; ++e) mixed[i].v[e] = (mixed[i].v[e] + other.v[e]) * kInvSqrt2;
      square[i][0] = square_of(mixed[i]);
    }
    mix_sums(sum, square);
    const float inverse = inverse_rms(sum[0], dim_, m_.eps);
#pragma unroll
    for (int i = 0; i < kMixItems; ++i) {
      if (at(i) >= dim_) continue;
      Item<kMixItem> y{};
      add_gained(y, mixed[i], gain(2, i), inverse);
      store_item<kMixItem>(to + at(i), y);
      if (!stores) continue;
      store_item<kMixItem>(m_.mixed + begin + at(i), mixed[i]);
      store_item<kMixItem>(m_.y + begin + at(i), y);
    }
  }

 private:
  static constexpr int kThreads = kWarps * 32, kMixItems = kMixThreads / kThreads;
  __device__ static int at(int i) { return (i * kThreads + static_cast<int>(threadIdx.x)) * kMixItem; }
  /// By this launch, it may be: past the first cache.
  __device__ static RawItem<bf16, kMixItem> load_made(const bf16* p) {
    RawItem<bf16, kMixItem> raw;
    raw.part[0] = __ldcg(reinterpret_cast<const uint2*>(p));
    return raw;
  }
  __device__ char* norm(int k, int i) const { return norms_ + (k * dim_ + at(i)) * 4; }
  __device__ Item<kMixItem> gain(int k, int i) const {
    return at(i) < dim_ ? load_item<kMixItem>(reinterpret_cast<const float*>(norm(k, i))) : Item<kMixItem>{};
  }
  const MixArguments& m_;
  int dim_;
  char* norms_;
};

}  // namespace saaz::cuda
