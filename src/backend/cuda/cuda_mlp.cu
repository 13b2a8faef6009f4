// CudaBackend: the gated MLP activation and its gradient. Dense: elements. Sparse: rows, with the statistics of the
// gate and the sum of its gradient in registers and shared memory. Formulas: cpu/rows.inc.h, cpu/math.inc.h.
#include "backend/cuda/cuda_gelu.cuh"
#include "backend/cuda/cuda_items.cuh"

namespace saaz::cuda {

namespace {

template <class T>
struct DenseGeglu {
  T* y;
  const T *gate, *up;
  template <int W>
  __device__ void at(int64_t i) const {
    Item<W> out = load_item<W>(up + i);
    const Item<W> z = load_item<W>(gate + i);
#pragma unroll
    for (int k = 0; k < W; ++k) out.v[k] *= gelu<T>(z.v[k]);
    store_item<W>(y + i, out);
  }
};

/// dup is written before dgate: both are one tensor where gate is up.
template <class T>
struct DenseGegluBackward {
  Target<T> dgate, dup;
  const T *dy, *gate, *up;
  template <int W>
  __device__ void at(int64_t i) const {
    const Item<W> gradient = load_item<W>(dy + i), z = load_item<W>(gate + i), factor = load_item<W>(up + i);
    Item<W> to_gate, to_up;
#pragma unroll
    for (int k = 0; k < W; ++k) {
      const Gelu g = gelu_with_derivative<T>(z.v[k]);
      to_up.v[k] = gradient.v[k] * g.value;
      to_gate.v[k] = gradient.v[k] * factor.v[k] * g.derivative;
    }
    if (dup) dup.put(i, to_up);
    if (dgate) dgate.put(i, to_gate);
  }
};

/// relu(z), NaN passing.
__device__ inline float active_part(float z) { return z < 0.0f ? 0.0f : z; }

template <class T, int W>
__global__ void __launch_bounds__(kRowThreads) sparse_geglu_kernel(T* y, float* mean_std, const T* gate, const T* up,
                                                                   float sparsity_z, int64_t rows, int64_t dim) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  const HeldRows<T, W, 1, 4> held({gate + row * dim}, dim);
  float sum = 0;
  held.each([&](int64_t, const auto& in) {
#pragma unroll
    for (int i = 0; i < W; ++i) sum += in[0].v[i];
  });
  const float mean = row_sum(sum) / static_cast<float>(dim);
  float square = 0;
  held.each([&](int64_t, const auto& in) {
#pragma unroll
    for (int i = 0; i < W; ++i) square += (in[0].v[i] - mean) * (in[0].v[i] - mean);
  });
  const float deviation = sqrtf(row_sum(square) / static_cast<float>(dim));
  if (threadIdx.x == 0) {
    mean_std[2 * row] = mean;
    mean_std[2 * row + 1] = deviation;
  }
  const float cut = mean + deviation * sparsity_z;
  held.each([&](int64_t at, const auto& in) {
    Item<W> out = load_item<W>(up + row * dim + at);
#pragma unroll
    for (int i = 0; i < W; ++i) out.v[i] *= gelu<T>(active_part(in[0].v[i] - cut));
    store_item<W>(y + row * dim + at, out);
  });
}

/// dz = g - S/F - zeta S (z - mean) / (F std), g = dy up gelu'(z~) where z~ > 0, S = sum g. g is computed twice:
/// cheaper than keeping it. dup is written before dgate, as above; both after the row was read for its sum, so either
/// may lie where an input does.
template <class T, int W>
__global__ void __launch_bounds__(kRowThreads)
    sparse_geglu_backward_kernel(Target<T> dgate, Target<T> dup, const T* dy, const T* gate, const T* up,
                                 const float* mean_std, float sparsity_z, int64_t rows, int64_t dim) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  const HeldRows<T, W, 3, 2> held({dy + row * dim, gate + row * dim, up + row * dim}, dim);
  const float mean = mean_std[2 * row], deviation = mean_std[2 * row + 1], cut = mean + deviation * sparsity_z;
  float sum = 0;
  held.each([&](int64_t, const auto& in) {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const float z = active_part(in[1].v[i] - cut);
      sum += z > 0.0f ? in[0].v[i] * in[2].v[i] * gelu_with_derivative<T>(z).derivative : 0.0f;
    }
  });
  sum = row_sum(sum);
  const float share = sum / static_cast<float>(dim);
  const float slope = deviation > 0 ? sparsity_z * share / deviation : 0.0f;
  held.each([&](int64_t at, const auto& in) {
    Item<W> to_up, to_gate;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const float z = active_part(in[1].v[i] - cut);
      const Gelu gelu = gelu_with_derivative<T>(z);
      const float g = z > 0.0f ? in[0].v[i] * in[2].v[i] * gelu.derivative : 0.0f;
      to_up.v[i] = in[0].v[i] * gelu.value;
      to_gate.v[i] = (g - share) - slope * (in[1].v[i] - mean);
    }
    if (dup) dup.put(row * dim + at, to_up);
    if (dgate) dgate.put(row * dim + at, to_gate);
  });
}

}  // namespace

void CudaBackend::geglu(const Tensor& y, const Tensor& mean_std, const Tensor& gate, const Tensor& up,
                        float sparsity_z) {
  if (sparsity_z == 0) {
    return dispatch(gate.dtype, [&](auto zero) {
      using T = decltype(zero);
      launch_map<T>(stream_, gate.size(), {y.data, gate.data, up.data},
                    DenseGeglu<T>{y.as<T>(), gate.as<T>(), up.as<T>()}, "geglu");
    });
  }
  for_rows(gate, 4, {y.data, gate.data, up.data}, "geglu", [&](auto zero, auto width, const RowLaunch& l) {
    using T = decltype(zero);
    sparse_geglu_kernel<T, decltype(width)::value><<<l.grid, l.block, 0, stream_>>>(
        y.as<T>(), mean_std.f32(), gate.as<T>(), up.as<T>(), sparsity_z, l.rows, l.dim);
  });
}

void CudaBackend::geglu_backward(const Grad& dgate, const Grad& dup, const Tensor& dy, const Tensor& gate,
                                 const Tensor& up, const Tensor& mean_std, float sparsity_z) {
  const auto addresses = {static_cast<const void*>(dgate.tensor.data), static_cast<const void*>(dup.tensor.data),
                          static_cast<const void*>(dy.data), static_cast<const void*>(gate.data),
                          static_cast<const void*>(up.data)};
  if (sparsity_z == 0) {
    return dispatch(gate.dtype, [&](auto zero) {
      using T = decltype(zero);
      launch_map<T>(stream_, gate.size(), addresses,
                    DenseGegluBackward<T>{target<T>(dgate), target<T>(dup), dy.as<T>(), gate.as<T>(), up.as<T>()},
                    "geglu_backward");
    });
  }
  for_rows(gate, 2, addresses, "geglu_backward", [&](auto zero, auto width, const RowLaunch& l) {
    using T = decltype(zero);
    sparse_geglu_backward_kernel<T, decltype(width)::value>
        <<<l.grid, l.block, 0, stream_>>>(target<T>(dgate), target<T>(dup), dy.as<T>(), gate.as<T>(), up.as<T>(),
                                          mean_std.f32(), sparsity_z, l.rows, l.dim);
  });
}

}  // namespace saaz::cuda
