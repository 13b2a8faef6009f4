// What the CUDA sources share: checked calls, dispatch on an activation dtype, 16-byte loads, reductions of a block or
// a warp. Sums are f32 in a fixed order.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "backend/cuda/cuda_backend.h"
#include "base/check.h"

namespace saaz::cuda {

using bf16 = __nv_bfloat16;

/// Throws resource for memory, bug for everything else, naming the call.
void check_cuda(cudaError_t status, const char* what);
/// After each launch: a bad configuration is an error of ours.
inline void check_launch(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

/// Whether a table lies where kernels cannot read it (cuda_moves.cu).
bool in_host_memory(const void* p);
/// How rows of a table in host memory travel: as they are where the format is dense, else as f32.
Weight travelling_rows(const Weight& table, int64_t n_rows, int64_t dim);
/// The columns [first_column, first_column + form.n_in) of the ids' rows, in the form that travelling_rows gives.
void gather_on_host(ThreadPool& threads, char* rows, const Weight& form, std::span<const int32_t> ids,
                    const Weight& table, int64_t first_column);

/// f(T{}) with T = float or bf16.
template <class F>
void dispatch(DType dtype, F f) {
  if (dtype == DType::f32) return f(float{});
  check(dtype == DType::bf16, ExitCode::bug, "cuda: no kernel for activations of dtype {}", name_of(dtype));
  f(bf16{});
}

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__device__ inline float to_f32(float x) { return x; }
__device__ inline float to_f32(bf16 x) { return __bfloat162float(x); }
template <class T>
__device__ T from_f32(float x);
template <>
__device__ inline float from_f32<float>(float x) {
  return x;
}
template <>
__device__ inline bf16 from_f32<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

/// 16 bytes of T as f32 values, and back.
template <class T>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(T));
template <class T>
struct Vector {
  float v[kVector<T>];
};
template <class T>
__device__ Vector<T> load_vector(const T* p) {
  const uint4 raw = *reinterpret_cast<const uint4*>(p);
  const T* values = reinterpret_cast<const T*>(&raw);
  Vector<T> out;
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) out.v[i] = to_f32(values[i]);
  return out;
}
template <class T>
__device__ void store_vector(T* p, const Vector<T>& x) {
  uint4 raw;
  T* values = reinterpret_cast<T*>(&raw);
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) values[i] = from_f32<T>(x.v[i]);
  *reinterpret_cast<uint4*>(p) = raw;
}

/// The sum over the warp, in every lane; the same order for every lane.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
  return x;
}
/// Of a block's values, one of each thread, the k-th largest, in every thread; k <= blockDim.x. None is NaN.
__device__ inline float block_kth_largest(float x, int k) {
  // As integers of the same order, found bit by bit.
  const uint32_t bits = __float_as_uint(x), key = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
  uint32_t found = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1)
    if (__syncthreads_count(key >= (found | bit) ? 1 : 0) >= k) found |= bit;
  return __uint_as_float(found >> 31 != 0 ? found ^ 0x80000000u : ~found);
}
/// The sum over a block of up to 1024 threads (whole warps), in every thread. `shared` holds 33 floats; it may be used
/// again after the call.
__device__ inline float block_sum(float x, float* shared) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = (blockDim.x + 31) >> 5;
  x = warp_sum(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  if (warp == 0) {
    x = warp_sum(lane < n_warps ? shared[lane] : 0.0f);
    if (lane == 0) shared[32] = x;
  }
  __syncthreads();
  x = shared[32];
  __syncthreads();
  return x;
}

}  // namespace saaz::cuda
