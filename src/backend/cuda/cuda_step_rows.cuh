// Step: rows of a token between two products: items in registers, sums over a block, AltUp's router. Room-private.
#pragma once

#include "backend/cuda/cuda_items.cuh"
#include "backend/cuda/cuda_step.h"

namespace saaz::cuda {

inline constexpr int kMostStreams = 4, kMostThreads = 1024;
inline constexpr float kInvSqrt2 = 0.70710678118654752f;

/// Each x[k] becomes its sum over the block, in every thread; the same order for any number of blocks.
template <int K>
__device__ void block_sums(float (&x)[K]) {
  __shared__ float of_warp[K][kMostThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = (blockDim.x + 31) / 32;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    x[k] = warp_sum(x[k]);
    if (lane == 0) of_warp[k][warp] = x[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) x[k] = warp_sum(lane < n_warps ? of_warp[k][lane] : 0.0f);
  __syncthreads();  // the next call writes again
}

/// This thread's item of rows of `dim` elements; none past the end.
template <int W>
struct Place {
  int64_t at;
  bool inside;
  __device__ explicit Place(int64_t dim) : at(static_cast<int64_t>(threadIdx.x) * W), inside(at < dim) {}
  template <class T>
  __device__ Item<W> load(const T* row) const {
    return inside && row != nullptr ? load_item<W>(row + at) : Item<W>{};
  }
  template <class T>
  __device__ void store(T* row, const Item<W>& x) const {
    if (inside) store_item<W>(row + at, x);
  }
};
/// An f32 or bf16 weight's row; zeros where there is no weight.
template <int W>
__device__ Item<W> load_weight(const Place<W>& p, const void* data, bool is_bf16, int64_t offset) {
  if (data == nullptr) return {};
  return is_bf16 ? p.load(static_cast<const bf16*>(data) + offset) : p.load(static_cast<const float*>(data) + offset);
}

template <int W>
__device__ float square_of(const Item<W>& x) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < W; ++i) sum += x.v[i] * x.v[i];
  return sum;
}
__device__ inline float inverse_rms(float square, int64_t dim, float eps) {
  return 1.0f / sqrtf(square / static_cast<float>(dim) + eps);
}
/// x += factor * a * gain
template <int W>
__device__ void add_gained(Item<W>& x, const Item<W>& a, const Item<W>& gain, float factor) {
#pragma unroll
  for (int i = 0; i < W; ++i) x.v[i] += a.v[i] * factor * gain.v[i];
}

/// AltUp's router on the device: its weights in registers, its coefficients by all threads of a block.
struct RouterArgs {
  const float *norm, *coefs;
  const void* router;
  bool is_bf16;
  int n_coefs;
};
template <int W>
struct HeldRouter {
  Item<W> norm, rows[kMostStreams];
  float own_coefs[kMostStreams];  // of the coefficient that this thread makes
  __device__ HeldRouter(const RouterArgs& r, const Place<W>& p, int n, int64_t dim) : norm(p.load(r.norm)) {
#pragma unroll
    for (int j = 0; j < kMostStreams; ++j)
      if (j < n) {
        rows[j] = load_weight(p, r.router, r.is_bf16, j * dim);
        own_coefs[j] = threadIdx.x < r.n_coefs ? r.coefs[threadIdx.x * n + j] : 0.0f;
      }
  }
  /// coefs tanh(router (RMS(x) norm)); the sums of all before.
  __device__ const float* coefficients(const RouterArgs& r, const Item<W>& x, int n, int64_t dim, float eps) const {
    __shared__ float out[kMostStreams * kMostStreams];
    float sums[1 + kMostStreams] = {square_of(x)};
#pragma unroll
    for (int j = 0; j < kMostStreams; ++j)
      if (j < n) {
#pragma unroll
        for (int i = 0; i < W; ++i) sums[1 + j] += x.v[i] * norm.v[i] * rows[j].v[i];
      }
    block_sums(sums);
    const float factor = inverse_rms(sums[0], dim, eps);
    if (threadIdx.x < r.n_coefs) {
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kMostStreams; ++j)
        if (j < n) sum += own_coefs[j] * tanhf(sums[1 + j] * factor);
      out[threadIdx.x] = sum;
    }
    __syncthreads();
    return out;
  }
};

/// The same by a warp that has 4 columns a lane: of each row f32, or its words as they are stored.
struct LaneRouter {
  Item<4> norm;
  uint32_t rows[kMostStreams][4];
  /// As it is stored; bf16: in the first two words.
  __device__ void load(const char* from, uint32_t step, bool is_bf16) {
#pragma unroll
    for (int j = 0; j < kMostStreams; ++j) {
      const auto* row = reinterpret_cast<const uint2*>(from + j * step);
      const uint2 low = row[0], high = is_bf16 ? uint2{} : row[1];
      rows[j][0] = low.x, rows[j][1] = low.y, rows[j][2] = high.x, rows[j][3] = high.y;
    }
  }
  __device__ void unpack(bool is_bf16) {
    if (!is_bf16) return;
#pragma unroll
    for (auto& row : rows) {
      const uint32_t low = row[0], high = row[1];
      row[0] = low << 16, row[1] = low & 0xffff0000u, row[2] = high << 16, row[3] = high & 0xffff0000u;
    }
  }
};
struct Routed {
  float square, sum;  // the latter: of stream lane / 8
};
/// Over a warp's columns: the square of x and the router's sums. As HeldRouter, whose warps have as many; each lane
/// goes on with the half of the sums that it needs.
__device__ inline Routed route(const LaneRouter& r, const Item<4>& x) {
  const bool upper = (threadIdx.x & 16) != 0, odd = (threadIdx.x & 8) != 0;
  float square = square_of(x), sums[kMostStreams] = {}, halves[2];
#pragma unroll
  for (int j = 0; j < kMostStreams; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[j] += x.v[i] * r.norm.v[i] * __uint_as_float(r.rows[j][i]);
  }
#pragma unroll
  for (int j = 0; j < 2; ++j)
    halves[j] = (upper ? sums[2 + j] : sums[j]) + __shfl_xor_sync(0xffffffffu, upper ? sums[j] : sums[2 + j], 16);
  float sum = (odd ? halves[1] : halves[0]) + __shfl_xor_sync(0xffffffffu, odd ? halves[0] : halves[1], 8);
#pragma unroll
  for (int d = 4; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  return {warp_sum(square), sum};
}

inline RouterArgs router_args(const StepKernels::Router& r) {
  return {r.norm.as<float>(), static_cast<const float*>(r.coefs.data), r.router.data,
          r.router.format == WeightFormat::bf16, static_cast<int>(r.coefs.n_out)};
}

}  // namespace saaz::cuda
