// CudaBackend: AltUp's mixing of the residual streams. A row is one token: its N streams are read once, element by
// element, into registers; sums over the hidden size (gradients of coefs and gains) end in one block. Formulas:
// cpu/rows.inc.h.
#include "backend/cuda/cuda_items.cuh"

namespace saaz::cuda {

namespace {

constexpr int kUsualStreams = 4, kMaxStreams = 8;
/// Threads of a row: fewer where N * N sums take the registers.
template <int N>
constexpr int kThreads = N == kMaxStreams ? kRowThreads / 2 : kRowThreads;

/// One token's place in [streams, tokens, dim]. N streams: exactly (kUsualStreams), or at most (kMaxStreams).
struct Streams {
  int n;
  int64_t tokens, dim;
  template <int N>
  __device__ int count() const {
    return N == kMaxStreams ? n : N;
  }
  __device__ int64_t at(int stream, int64_t token, int64_t i) const { return (stream * tokens + token) * dim + i; }
};

template <int W, int N, class T>
__device__ void load_streams(Item<W> (&out)[N], const T* from, const Streams& s, int64_t token, int64_t i) {
#pragma unroll
  for (int j = 0; j < N; ++j)
    if (j < s.count<N>()) out[j] = load_item<W>(from + s.at(j, token, i));
}

/// f(i) for this thread's items of a row.
template <int W, class F>
__device__ void for_items(int64_t dim, F f) {
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * W; i < dim; i += static_cast<int64_t>(blockDim.x) * W) f(i);
}

template <class T, int W, int N>
__global__ void __launch_bounds__(kThreads<N>) predict_kernel(T* p, const T* h, const T* coefs, Streams s) {
  const int64_t t = row_of_thread();
  if (t >= s.tokens) return;
  const int n = s.count<N>();
  const T* c = coefs + t * n * n;
  for_items<W>(s.dim, [&](int64_t i) {
    Item<W> in[N];
    load_streams(in, h, s, t, i);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (j >= n) continue;
      Item<W> sum = {};
#pragma unroll
      for (int k = 0; k < N; ++k) {
        if (k >= n) continue;
        const float factor = to_f32(c[j * n + k]);
#pragma unroll
        for (int e = 0; e < W; ++e) sum.v[e] += factor * in[k].v[e];
      }
#pragma unroll
      for (int e = 0; e < W; ++e) sum.v[e] += in[j].v[e];
      store_item<W>(p + s.at(j, t, i), sum);
    }
  });
}

/// dh_k = dp_k + sum_j c[j, k] dp_j.
template <class T, int W, int N>
__device__ void put_predict_dh(Target<T> dh, const Item<W> (&dp)[N], const T* c, const Streams& s, int64_t t,
                               int64_t i) {
  const int n = s.count<N>();
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (k >= n) continue;
    Item<W> sum = {};
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (j >= n) continue;
      const float factor = to_f32(c[j * n + k]);
#pragma unroll
      for (int e = 0; e < W; ++e) sum.v[e] += factor * dp[j].v[e];
    }
#pragma unroll
    for (int e = 0; e < W; ++e) sum.v[e] += dp[k].v[e];
    dh.put(s.at(k, t, i), sum);
  }
}

/// dcoefs[j, k] = <dp_j, h_k>.
template <class T, int W, int N>
__global__ void __launch_bounds__(kThreads<N>)
    predict_backward_kernel(Target<T> dh, Target<T> dcoefs, const T* dp, const T* h, const T* coefs, Streams s) {
  const int64_t t = row_of_thread();
  if (t >= s.tokens) return;
  const int n = s.count<N>();
  float inner[N * N] = {};
  for_items<W>(s.dim, [&](int64_t i) {
    Item<W> gradient[N];
    load_streams(gradient, dp, s, t, i);
    if (dcoefs) {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        if (k >= n) continue;
        const Item<W> in = load_item<W>(h + s.at(k, t, i));
#pragma unroll
        for (int j = 0; j < N; ++j) {
          if (j >= n) continue;
#pragma unroll
          for (int e = 0; e < W; ++e) inner[j * N + k] += gradient[j].v[e] * in.v[e];
        }
      }
    }
    if (dh) put_predict_dh(dh, gradient, coefs + t * n * n, s, t, i);
  });
  if (!dcoefs) return;
  row_sums(inner);
#pragma unroll
  for (int j = 0; j < N; ++j) {
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (j < n && k < n && threadIdx.x == (j * N + k) % 32)
        dcoefs.put(t * n * n + j * n + k, Item<1>{inner[j * N + k]});
  }
}

/// q_j = p_j + (1 + gains_j) (v - p_active)
template <class T, int W, int N>
__global__ void __launch_bounds__(kThreads<N>)
    correct_kernel(T* q, const T* p, const T* v, const T* gains, int active, Streams s) {
  const int64_t t = row_of_thread();
  if (t >= s.tokens) return;
  const int n = s.count<N>();
  for_items<W>(s.dim, [&](int64_t i) {
    Item<W> in[N], innovation = load_item<W>(v + t * s.dim + i);
    load_streams(in, p, s, t, i);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (j != active) continue;
#pragma unroll
      for (int e = 0; e < W; ++e) innovation.v[e] -= in[j].v[e];
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (j >= n) continue;
      const float factor = 1.0f + to_f32(gains[t * n + j]);
#pragma unroll
      for (int e = 0; e < W; ++e) in[j].v[e] += factor * innovation.v[e];
      store_item<W>(q + s.at(j, t, i), in[j]);
    }
  });
}

template <class T>
struct CorrectGradients {
  Target<T> dp, dv, dgains;
};

/// dinnovation = sum_j (1 + gains_j) dq_j goes to v, and negated to p_active.
template <class T, int W, int N>
__device__ void put_correct_gradients(const CorrectGradients<T>& to, const Item<W> (&dq)[N], const T* gains, int active,
                                      const Streams& s, int64_t t, int64_t i) {
  const int n = s.count<N>();
  Item<W> dinnovation = {};
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if (j >= n) continue;
    const float factor = 1.0f + to_f32(gains[t * n + j]);
#pragma unroll
    for (int e = 0; e < W; ++e) dinnovation.v[e] += factor * dq[j].v[e];
  }
  if (to.dv) to.dv.put(t * s.dim + i, dinnovation);
  if (!to.dp) return;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if (j >= n) continue;
    Item<W> own = dq[j];
#pragma unroll
    for (int e = 0; e < W; ++e) own.v[e] -= j == active ? dinnovation.v[e] : 0.0f;
    to.dp.put(s.at(j, t, i), own);
  }
}

/// dgains_j = <dq_j, v - p_active>.
template <class T, int W, int N>
__global__ void __launch_bounds__(kThreads<N>)
    correct_backward_kernel(CorrectGradients<T> to, const T* dq, const T* p, const T* v, const T* gains, int active,
                            Streams s) {
  const int64_t t = row_of_thread();
  if (t >= s.tokens) return;
  const int n = s.count<N>();
  float inner[N] = {};
  for_items<W>(s.dim, [&](int64_t i) {
    Item<W> gradient[N];
    load_streams(gradient, dq, s, t, i);
    if (to.dgains) {
      const Item<W> value = load_item<W>(v + t * s.dim + i), predicted = load_item<W>(p + s.at(active, t, i));
#pragma unroll
      for (int j = 0; j < N; ++j) {
        if (j >= n) continue;
#pragma unroll
        for (int e = 0; e < W; ++e) inner[j] += gradient[j].v[e] * (value.v[e] - predicted.v[e]);
      }
    }
    put_correct_gradients(to, gradient, gains, active, s, t, i);
  });
  if (!to.dgains) return;
  row_sums(inner);
#pragma unroll
  for (int j = 0; j < N; ++j)
    if (j < n && threadIdx.x == j) to.dgains.put(t * n + j, Item<1>{inner[j]});
}

/// launch(T{}, width, n_streams, RowLaunch, Streams): the usual number of streams 16 bytes at a time, any other up to
/// kMaxStreams by elements. A thread takes two items of a usual row.
template <class Launch>
void for_tokens(const Tensor& streams, std::initializer_list<const void*> addresses, const char* name, Launch launch) {
  const Streams s{static_cast<int>(streams.dim(0)), streams.dim(1), streams.dim(2)};
  if (s.n > kMaxStreams) throw Error(ExitCode::bug, "cuda: AltUp of more than 8 streams");
  if (s.tokens == 0) return;
  dispatch(streams.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (s.n == kUsualStreams && takes_vectors<T>(s.dim, addresses)) {
      launch(zero, std::integral_constant<int, kVector<T>>{}, std::integral_constant<int, kUsualStreams>{},
             row_launch(s.tokens, s.dim, kVector<T>, 2), s);
    } else {
      RowLaunch l = row_launch(s.tokens, s.dim, 1, 2);
      if (l.block.x > kThreads<kMaxStreams>) l.block.x = kThreads<kMaxStreams>;
      launch(zero, std::integral_constant<int, 1>{}, std::integral_constant<int, kMaxStreams>{}, l, s);
    }
  });
  check_launch(name);
}

}  // namespace

void CudaBackend::altup_predict(const Tensor& p, const Tensor& streams, const Tensor& coefs) {
  for_tokens(streams, {p.data, streams.data}, "altup_predict",
             [&](auto zero, auto width, auto n, const RowLaunch& l, const Streams& s) {
               using T = decltype(zero);
               predict_kernel<T, decltype(width)::value, decltype(n)::value>
                   <<<l.grid, l.block, 0, stream_>>>(p.as<T>(), streams.as<T>(), coefs.as<T>(), s);
             });
}

void CudaBackend::altup_predict_backward(const Grad& dstreams, const Grad& dcoefs, const Tensor& dp,
                                         const Tensor& streams, const Tensor& coefs) {
  if (!dstreams.wanted() && !dcoefs.wanted()) return;
  for_tokens(streams, {dstreams.tensor.data, dp.data, streams.data}, "altup_predict_backward",
             [&](auto zero, auto width, auto n, const RowLaunch& l, const Streams& s) {
               using T = decltype(zero);
               predict_backward_kernel<T, decltype(width)::value, decltype(n)::value><<<l.grid, l.block, 0, stream_>>>(
                   target<T>(dstreams), target<T>(dcoefs), dp.as<T>(), streams.as<T>(), coefs.as<T>(), s);
             });
}

void CudaBackend::altup_correct(const Tensor& q, const Tensor& p, const Tensor& v, const Tensor& gains, int active) {
  for_tokens(p, {q.data, p.data, v.data}, "altup_correct",
             [&](auto zero, auto width, auto n, const RowLaunch& l, const Streams& s) {
               using T = decltype(zero);
               correct_kernel<T, decltype(width)::value, decltype(n)::value>
                   <<<l.grid, l.block, 0, stream_>>>(q.as<T>(), p.as<T>(), v.as<T>(), gains.as<T>(), active, s);
             });
}

void CudaBackend::altup_correct_backward(const Grad& dp, const Grad& dv, const Grad& dgains, const Tensor& dq,
                                         const Tensor& p, const Tensor& v, const Tensor& gains, int active) {
  if (!dp.wanted() && !dv.wanted() && !dgains.wanted()) return;
  for_tokens(p, {dp.tensor.data, dv.tensor.data, dq.data, p.data, v.data}, "altup_correct_backward",
             [&](auto zero, auto width, auto n, const RowLaunch& l, const Streams& s) {
               using T = decltype(zero);
               const CorrectGradients<T> to{target<T>(dp), target<T>(dv), target<T>(dgains)};
               correct_backward_kernel<T, decltype(width)::value, decltype(n)::value>
                   <<<l.grid, l.block, 0, stream_>>>(to, dq.as<T>(), p.as<T>(), v.as<T>(), gains.as<T>(), active, s);
             });
}

}  // namespace saaz::cuda
