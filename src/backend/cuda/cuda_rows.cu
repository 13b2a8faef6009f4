// CudaBackend: norms, magnitude matching and the element-wise kernels. All are bound by memory: each input is read
// once, a row waits in registers between its statistic and its result. Formulas: cpu/rows.inc.h, cpu/elementwise.inc.h.
#include "backend/cuda/cuda_items.cuh"

namespace saaz::cuda {

namespace {

/// y = rms_norm(x), or, with `added`, that plus added.
template <class T, int W>
__global__ void __launch_bounds__(kRowThreads) rms_norm_kernel(T* y, float* inv_rms, const T* x, const float* weight,
                                                               const T* added, int64_t rows, int64_t dim, float eps) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  const HeldRows<T, W, 1, 4> held({x + row * dim}, dim);
  float square = 0;
  held.each([&](int64_t, const auto& in) {
#pragma unroll
    for (int i = 0; i < W; ++i) square += in[0].v[i] * in[0].v[i];
  });
  const float inverse = 1.0f / sqrtf(row_sum(square) / static_cast<float>(dim) + eps);
  if (inv_rms && threadIdx.x == 0) inv_rms[row] = inverse;
  held.each([&](int64_t at, const auto& in) {
    Item<W> out = in[0], gain;
    if (weight) gain = load_item<W>(weight + at);
#pragma unroll
    for (int i = 0; i < W; ++i) out.v[i] = weight ? out.v[i] * inverse * gain.v[i] : out.v[i] * inverse;
    if (added) {
      const Item<W> other = load_item<W>(added + row * dim + at);
#pragma unroll
      for (int i = 0; i < W; ++i) out.v[i] += other.v[i];
    }
    store_item<W>(y + row * dim + at, out);
  });
}

/// dx = inv (t - xhat mean(t xhat)), t = w dy, xhat = x inv.
template <class T, int W>
__global__ void __launch_bounds__(kRowThreads)
    rms_norm_backward_kernel(Target<T> dx, const T* dy, const T* x, const float* weight, const float* inv_rms,
                             int64_t rows, int64_t dim) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  const HeldRows<T, W, 2, 2> held({dy + row * dim, x + row * dim}, dim);
  const float inverse = inv_rms[row];
  const auto gained = [&](int64_t at, Item<W> gradient) {
    if (!weight) return gradient;
    const Item<W> gain = load_item<W>(weight + at);
#pragma unroll
    for (int i = 0; i < W; ++i) gradient.v[i] *= gain.v[i];
    return gradient;
  };
  float inner = 0;
  held.each([&](int64_t at, const auto& in) {
    const Item<W> t = gained(at, in[0]);
#pragma unroll
    for (int i = 0; i < W; ++i) inner += t.v[i] * (in[1].v[i] * inverse);
  });
  const float mean = row_sum(inner) / static_cast<float>(dim);
  held.each([&](int64_t at, const auto& in) {
    Item<W> out = gained(at, in[0]);
#pragma unroll
    for (int i = 0; i < W; ++i) out.v[i] = inverse * (out.v[i] - in[1].v[i] * inverse * mean);
    dx.put(row * dim + at, out);
  });
}

constexpr float kMagnitudeFloor = 1e-5f;  // on the mean square

struct Magnitudes {
  float m, n;
  bool floored;
};
__device__ Magnitudes magnitudes(float square_of_b, float square_of_reference, int64_t dim) {
  const float square = square_of_b / static_cast<float>(dim);
  const bool floored = !(square > kMagnitudeFloor);
  return {sqrtf(square_of_reference / static_cast<float>(dim)), sqrtf(floored ? kMagnitudeFloor : square), floored};
}

template <class T, int W>
__global__ void __launch_bounds__(kRowThreads)
    match_magnitude_kernel(T* y, const T* b, const T* reference, int64_t rows, int64_t dim) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  const HeldRows<T, W, 2, 2> held({b + row * dim, reference + row * dim}, dim);
  float sums[2] = {};
  held.each([&](int64_t, const auto& in) {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      sums[0] += in[0].v[i] * in[0].v[i];
      sums[1] += in[1].v[i] * in[1].v[i];
    }
  });
  row_sums(sums);
  const Magnitudes f = magnitudes(sums[0], sums[1], dim);
  const float ratio = f.m / f.n;
  held.each([&](int64_t at, const auto& in) {
    Item<W> out = in[0];
#pragma unroll
    for (int i = 0; i < W; ++i) out.v[i] *= ratio;
    store_item<W>(y + row * dim + at, out);
  });
}

/// db = m/n (dy - [not floored] b <b, dy> / (D n^2)), dreference = <dy, b> / n * reference / (D m). db is written
/// before dreference: both are one tensor where b is the reference.
template <class T, int W>
__global__ void __launch_bounds__(kRowThreads)
    match_magnitude_backward_kernel(Target<T> db, Target<T> dreference, const T* dy, const T* b, const T* reference,
                                    int64_t rows, int64_t dim) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  const HeldRows<T, W, 3, 2> held({dy + row * dim, b + row * dim, reference + row * dim}, dim);
  float sums[3] = {};
  held.each([&](int64_t, const auto& in) {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      sums[0] += in[1].v[i] * in[1].v[i];
      sums[1] += in[2].v[i] * in[2].v[i];
      sums[2] += in[0].v[i] * in[1].v[i];
    }
  });
  row_sums(sums);
  const Magnitudes f = magnitudes(sums[0], sums[1], dim);
  const float ratio = f.m / f.n, mean_inner = sums[2] / static_cast<float>(dim);
  const float along = f.floored ? 0.0f : mean_inner / (f.n * f.n), outer = f.m > 0 ? mean_inner / (f.n * f.m) : 0.0f;
  held.each([&](int64_t at, const auto& in) {
    Item<W> to_b, to_reference;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      to_b.v[i] = ratio * (in[0].v[i] - along * in[1].v[i]);
      to_reference.v[i] = outer * in[2].v[i];
    }
    if (db) db.put(row * dim + at, to_b);
    if (dreference) dreference.put(row * dim + at, to_reference);
  });
}

template <class T, int W>
__global__ void __launch_bounds__(kRowThreads)
    scale_columns_kernel(Target<T> y, const T* x, const float* v, int64_t rows, int64_t dim) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  const HeldRows<T, W, 1, 1> held({x + row * dim}, dim);
  held.each([&](int64_t at, const auto& in) {
    Item<W> out = in[0];
    const Item<W> factor = load_item<W>(v + at);
#pragma unroll
    for (int i = 0; i < W; ++i) out.v[i] *= factor.v[i];
    y.put(row * dim + at, out);
  });
}

template <class T>
struct AddScaled {
  T* y;
  const T *a, *b;  // b null: y = alpha a
  float alpha, beta;
  template <int W>
  __device__ void at(int64_t i) const {
    Item<W> sum = load_item<W>(a + i), other;
    if (b) other = load_item<W>(b + i);
#pragma unroll
    for (int k = 0; k < W; ++k) sum.v[k] = b ? alpha * sum.v[k] + beta * other.v[k] : alpha * sum.v[k];
    store_item<W>(y + i, sum);
  }
};

/// An element of every slice at once: slices lie `stride` elements apart.
template <class T>
struct AddToSlices {
  T* y;
  const T* x;
  int n_slices;
  int64_t stride;
  template <int W>
  __device__ void at(int64_t i) const {
    const Item<W> added = load_item<W>(x + i);
#pragma unroll 3
    for (int j = 0; j < n_slices; ++j) {
      Item<W> sum = load_item<W>(y + j * stride + i);
#pragma unroll
      for (int k = 0; k < W; ++k) sum.v[k] += added.v[k];
      store_item<W>(y + j * stride + i, sum);
    }
  }
};

template <class T>
struct SumSlices {
  Target<T> dx;
  const T* dy;
  int n_slices;
  int64_t stride;
  float alpha;
  template <int W>
  __device__ void at(int64_t i) const {
    Item<W> sum = {};
#pragma unroll 3
    for (int j = 0; j < n_slices; ++j) {
      const Item<W> slice = load_item<W>(dy + j * stride + i);
#pragma unroll
      for (int k = 0; k < W; ++k) sum.v[k] += slice.v[k];
    }
#pragma unroll
    for (int k = 0; k < W; ++k) sum.v[k] *= alpha;
    dx.put(i, sum);
  }
};

template <class T>
struct Accumulate {
  Target<T> dx;
  const T* dy;
  float alpha;
  template <int W>
  __device__ void at(int64_t i) const {
    Item<W> scaled = load_item<W>(dy + i);
#pragma unroll
    for (int k = 0; k < W; ++k) scaled.v[k] *= alpha;
    dx.put(i, scaled);
  }
};

template <class T>
struct Tanh {
  T* y;
  const T* x;
  template <int W>
  __device__ void at(int64_t i) const {
    Item<W> value = load_item<W>(x + i);
#pragma unroll
    for (int k = 0; k < W; ++k) value.v[k] = tanhf(value.v[k]);
    store_item<W>(y + i, value);
  }
};

template <class T>
struct TanhBackward {
  Target<T> dx;
  const T *dy, *y;
  template <int W>
  __device__ void at(int64_t i) const {
    Item<W> gradient = load_item<W>(dy + i);
    const Item<W> value = load_item<W>(y + i);
#pragma unroll
    for (int k = 0; k < W; ++k) gradient.v[k] *= 1.0f - value.v[k] * value.v[k];
    dx.put(i, gradient);
  }
};

struct Softcap {
  float* logits;
  float cap;
  template <int W>
  __device__ void at(int64_t i) const {
    Item<W> value = load_item<W>(logits + i);
#pragma unroll
    for (int k = 0; k < W; ++k) value.v[k] = cap * tanhf(value.v[k] / cap);
    store_item<W>(logits + i, value);
  }
};

}  // namespace

void CudaBackend::rms_norm(const Tensor& y, const Tensor& inv_rms, const Tensor& x, const Tensor& weight, float eps) {
  for_rows(x, 4, {y.data, x.data, weight.data}, "rms_norm", [&](auto zero, auto width, const RowLaunch& l) {
    using T = decltype(zero);
    rms_norm_kernel<T, decltype(width)::value><<<l.grid, l.block, 0, stream_>>>(
        y.as<T>(), inv_rms.as<float>(), x.as<T>(), weight.as<float>(), nullptr, l.rows, l.dim, eps);
  });
}

void CudaBackend::add_rms_norm(const Tensor& y, const Tensor& inv_rms, const Tensor& a, const Tensor& x,
                               const Tensor& weight, float eps) {
  for_rows(x, 4, {y.data, a.data, x.data, weight.data}, "add_rms_norm", [&](auto zero, auto width, const RowLaunch& l) {
    using T = decltype(zero);
    rms_norm_kernel<T, decltype(width)::value><<<l.grid, l.block, 0, stream_>>>(
        y.as<T>(), inv_rms.as<float>(), x.as<T>(), weight.as<float>(), a.as<T>(), l.rows, l.dim, eps);
  });
}

void CudaBackend::rms_norm_backward(const Grad& dx, const Tensor& dy, const Tensor& x, const Tensor& weight,
                                    const Tensor& inv_rms) {
  if (!dx.wanted()) return;
  for_rows(x, 2, {dx.tensor.data, dy.data, x.data, weight.data}, "rms_norm_backward",
           [&](auto zero, auto width, const RowLaunch& l) {
             using T = decltype(zero);
             rms_norm_backward_kernel<T, decltype(width)::value><<<l.grid, l.block, 0, stream_>>>(
                 target<T>(dx), dy.as<T>(), x.as<T>(), weight.as<float>(), inv_rms.f32(), l.rows, l.dim);
           });
}

void CudaBackend::match_magnitude(const Tensor& y, const Tensor& b, const Tensor& reference) {
  for_rows(b, 2, {y.data, b.data, reference.data}, "match_magnitude", [&](auto zero, auto width, const RowLaunch& l) {
    using T = decltype(zero);
    match_magnitude_kernel<T, decltype(width)::value>
        <<<l.grid, l.block, 0, stream_>>>(y.as<T>(), b.as<T>(), reference.as<T>(), l.rows, l.dim);
  });
}

void CudaBackend::match_magnitude_backward(const Grad& db, const Grad& dreference, const Tensor& dy, const Tensor& b,
                                           const Tensor& reference) {
  for_rows(b, 2, {db.tensor.data, dreference.tensor.data, dy.data, b.data, reference.data}, "match_magnitude_backward",
           [&](auto zero, auto width, const RowLaunch& l) {
             using T = decltype(zero);
             match_magnitude_backward_kernel<T, decltype(width)::value><<<l.grid, l.block, 0, stream_>>>(
                 target<T>(db), target<T>(dreference), dy.as<T>(), b.as<T>(), reference.as<T>(), l.rows, l.dim);
           });
}

void CudaBackend::scale_columns(const Grad& y, const Tensor& x, const Tensor& v) {
  if (!y.wanted()) return;
  for_rows(x, 1, {y.tensor.data, x.data, v.data}, "scale_columns", [&](auto zero, auto width, const RowLaunch& l) {
    using T = decltype(zero);
    scale_columns_kernel<T, decltype(width)::value>
        <<<l.grid, l.block, 0, stream_>>>(target<T>(y), x.as<T>(), v.f32(), l.rows, l.dim);
  });
}

void CudaBackend::add_scaled(const Tensor& y, const Tensor& a, float alpha, const Tensor& b, float beta) {
  dispatch(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_map<T>(stream_, a.size(), {y.data, a.data, b.data},
                  AddScaled<T>{y.as<T>(), a.as<T>(), b.as<T>(), alpha, beta}, "add_scaled");
  });
}

void CudaBackend::add_to_slices(const Tensor& y, const Tensor& x) {
  const auto n = static_cast<int>(y.size() / std::max<int64_t>(1, x.size()));
  const int64_t stride = x.size();
  dispatch(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_map<T>(stream_, stride, {y.data, x.data}, AddToSlices<T>{y.as<T>(), x.as<T>(), n, stride}, "add_to_slices",
                  stride);
  });
}

void CudaBackend::sum_slices(const Grad& dx, const Tensor& dy, float alpha) {
  if (!dx.wanted()) return;
  const int64_t stride = dx.tensor.size();
  const auto n = static_cast<int>(dy.size() / std::max<int64_t>(1, stride));
  dispatch(dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_map<T>(stream_, stride, {dx.tensor.data, dy.data}, SumSlices<T>{target<T>(dx), dy.as<T>(), n, stride, alpha},
                  "sum_slices", stride);
  });
}

void CudaBackend::accumulate(const Grad& dx, const Tensor& dy, float alpha) {
  if (!dx.wanted()) return;
  dispatch(dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_map<T>(stream_, dy.size(), {dx.tensor.data, dy.data}, Accumulate<T>{target<T>(dx), dy.as<T>(), alpha},
                  "accumulate");
  });
}

void CudaBackend::tanh(const Tensor& y, const Tensor& x) {
  dispatch(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_map<T>(stream_, x.size(), {y.data, x.data}, Tanh<T>{y.as<T>(), x.as<T>()}, "tanh");
  });
}

void CudaBackend::tanh_backward(const Grad& dx, const Tensor& dy, const Tensor& y) {
  if (!dx.wanted()) return;
  dispatch(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_map<T>(stream_, y.size(), {dx.tensor.data, dy.data, y.data},
                  TanhBackward<T>{target<T>(dx), dy.as<T>(), y.as<T>()}, "tanh_backward");
  });
}

void CudaBackend::softcap(const Tensor& logits, float cap) {
  launch_map<float>(stream_, logits.size(), {logits.data}, Softcap{logits.f32(), cap}, "softcap");
}

}  // namespace saaz::cuda
