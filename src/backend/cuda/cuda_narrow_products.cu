// CudaBackend: products with a weight of few outputs (AltUp's router and coefficients): bound by reading x or writing
// dx once, where cuBLAS takes several kernels. Sums in f32, each row by itself.
#include "backend/cuda/cuda_items.cuh"

namespace saaz::cuda {

namespace {

constexpr int kMostOutputs = 16, kThreads = 256;

/// y[m, n] (+)= <x[m], w[n]>: a warp for a row, four outputs at a time.
template <class T, class Stored, int W>
__global__ void __launch_bounds__(kThreads)
    narrow_nt_kernel(Target<T> y, const T* x, const Stored* w, int64_t rows, int64_t n_in, int n_out) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = threadIdx.x % 32;
  for (int first = 0; first < n_out; first += 4) {
    float sums[4] = {};
    for (int64_t i = lane * W; i < n_in; i += 32 * W) {
      const Item<W> in = load_item<W>(x + row * n_in + i);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (first + n >= n_out) continue;
        const Item<W> weight = load_item<W>(w + (first + n) * n_in + i);
#pragma unroll
        for (int k = 0; k < W; ++k) sums[n] += in.v[k] * weight.v[k];
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) sums[n] = warp_sum(sums[n]);
#pragma unroll
    for (int n = 0; n < 4; ++n)
      if (lane == n && first + n < n_out) y.put(row * n_out + first + n, Item<1>{sums[n]});
  }
}

/// y[m, n] (+)= <x[m], w[n]> where x has few columns: a thread for an output.
template <class T, class Stored>
__global__ void __launch_bounds__(kThreads)
    tiny_nt_kernel(Target<T> y, const T* x, const Stored* w, int64_t rows, int n_in, int n_out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows * n_out) return;
  const int64_t row = i / n_out;
  float sum = 0;
  for (int k = 0; k < n_in; ++k) sum += to_f32(x[row * n_in + k]) * to_f32(w[(i - row * n_out) * n_in + k]);
  y.put(i, Item<1>{sum});
}

/// dx[m] (+)= sum over n of dy[m, n] w[n].
template <class T, class Stored, int W>
__global__ void __launch_bounds__(kRowThreads)
    narrow_nn_kernel(Target<T> dx, const T* dy, const Stored* w, int64_t rows, int64_t n_in, int n_out) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * W; i < n_in; i += static_cast<int64_t>(blockDim.x) * W) {
    Item<W> sum = {};
    for (int n = 0; n < n_out; ++n) {
      const float factor = to_f32(dy[row * n_out + n]);
      const Item<W> weight = load_item<W>(w + n * n_in + i);
#pragma unroll
      for (int k = 0; k < W; ++k) sum.v[k] += factor * weight.v[k];
    }
    dx.put(row * n_in + i, sum);
  }
}

/// f(T{}, Stored{}, width) for x's dtype T and the weight's.
template <class F>
void for_types(const Tensor& x, const Weight& w, std::initializer_list<const void*> addresses, F f) {
  dispatch(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch(w.format == WeightFormat::f32 ? DType::f32 : DType::bf16, [&](auto stored) {
      const bool vectors = takes_vectors<T>(w.n_in, addresses) && reinterpret_cast<uintptr_t>(w.data) % 16 == 0;
      with_width<T>(vectors, [&](auto width) { f(zero, stored, width); });
    });
  });
}

}  // namespace

bool CudaBackend::is_narrow(const Weight& w) {
  return w.n_out <= kMostOutputs && (w.format == WeightFormat::f32 || w.format == WeightFormat::bf16);
}

void CudaBackend::narrow_nt(const Tensor& y, const Tensor& x, const Weight& w, Write write) {
  const int64_t rows = x.rows();
  const auto n_out = static_cast<int>(w.n_out);
  if (rows == 0) return;
  for_types(x, w, {x.data}, [&](auto zero, auto stored, auto width) {
    using T = decltype(zero);
    using Stored = decltype(stored);
    const auto* weight = static_cast<const Stored*>(w.data);
    const Target<T> to = target<T>({y, write});
    if (w.n_in <= 32) {
      tiny_nt_kernel<T, Stored><<<static_cast<unsigned>(ceil_div(rows * n_out, kThreads)), kThreads, 0, stream_>>>(
          to, x.as<T>(), weight, rows, static_cast<int>(w.n_in), n_out);
    } else {
      narrow_nt_kernel<T, Stored, decltype(width)::value>
          <<<static_cast<unsigned>(ceil_div(rows, kThreads / 32)), kThreads, 0, stream_>>>(to, x.as<T>(), weight, rows,
                                                                                           w.n_in, n_out);
    }
  });
  check_launch("narrow product");
}

void CudaBackend::narrow_nn(const Tensor& dx, const Tensor& dy, const Weight& w, Write write) {
  const int64_t rows = dy.rows();
  if (rows == 0) return;
  for_types(dx, w, {dx.data}, [&](auto zero, auto stored, auto width) {
    using T = decltype(zero);
    using Stored = decltype(stored);
    constexpr int W = decltype(width)::value;
    const RowLaunch l = row_launch(rows, w.n_in, W, 1);
    narrow_nn_kernel<T, Stored, W><<<l.grid, l.block, 0, stream_>>>(target<T>({dx, write}), dy.as<T>(),
                                                                    static_cast<const Stored*>(w.data), rows, w.n_in,
                                                                    static_cast<int>(w.n_out));
  });
  check_launch("narrow product, backward");
}

}  // namespace saaz::cuda
