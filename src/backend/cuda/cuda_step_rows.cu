// Step: what happens to a token between two products, a block for each token. A thread holds one item of each row in
// registers from the first read to the last write, and the weights since before the previous kernel's end; all sums of
// a phase end together.
#include <algorithm>

#include "backend/cuda/cuda_step_rows.cuh"

namespace saaz::cuda {

namespace {

constexpr int kItem = 4;
constexpr float kMagnitudeFloor = 1e-5f;  // as match_magnitude

template <class T>
struct OpenArgs {
  T *updated, *predicted, *x;
  const T *streams, *update;
  const float *update_norm, *input_norm;
  RouterArgs router;
  int n, active;
  int64_t tokens, dim;
  float eps;
};

template <class T, int W>
__global__ void __launch_bounds__(kMostThreads) open_kernel(const __grid_constant__ OpenArgs<T> a) {
  let_next_start();
  const int64_t t = blockIdx.x;
  const Place<W> p(a.dim);
  const HeldRouter<W> router(a.router, p, a.n, a.dim);
  const Item<W> update_norm = p.load(a.update_norm), input_norm = p.load(a.input_norm);
  wait_for_previous();
  Item<W> streams[kMostStreams];
#pragma unroll
  for (int j = 0; j < kMostStreams; ++j)
    if (j < a.n) streams[j] = p.load(a.streams + (j * a.tokens + t) * a.dim);
  if (a.update != nullptr) {
    const Item<W> update = p.load(a.update + t * a.dim);
    float square[1] = {square_of(update)};
    block_sums(square);
    const float inverse = inverse_rms(square[0], a.dim, a.eps);
#pragma unroll
    for (int j = 1; j < kMostStreams; ++j)
      if (j < a.n) add_gained(streams[j], update, update_norm, inverse);
  }
  if (a.updated != nullptr) {
#pragma unroll
    for (int j = 0; j < kMostStreams; ++j)
      if (j < a.n) p.store(a.updated + (j * a.tokens + t) * a.dim, streams[j]);
  }
  if (a.predicted == nullptr) return;
  Item<W> active{};
#pragma unroll
  for (int j = 0; j < kMostStreams; ++j)
    if (j == a.active) active = streams[j];
  const float* coefs = router.coefficients(a.router, active, a.n, a.dim, a.eps);
#pragma unroll
  for (int j = 0; j < kMostStreams; ++j) {
    if (j >= a.n) continue;
    Item<W> sum = streams[j];
#pragma unroll
    for (int k = 0; k < kMostStreams; ++k) {
      if (k >= a.n) continue;
#pragma unroll
      for (int i = 0; i < W; ++i) sum.v[i] += coefs[j * a.n + k] * streams[k].v[i];
    }
    p.store(a.predicted + (j * a.tokens + t) * a.dim, sum);
    if (j == a.active) active = sum;
  }
  float square[1] = {square_of(active)};
  block_sums(square);
  Item<W> x{};
  add_gained(x, active, input_norm, inverse_rms(square[0], a.dim, a.eps));
  p.store(a.x + t * a.dim, x);
}

template <class T>
struct MixArgs {
  T *mixed, *y;
  const T *active, *attention, *x, *laurel;
  const float *attention_norm, *laurel_norm, *ffn_norm;
  int64_t dim;
  float eps;
};

template <class T, int W>
__global__ void __launch_bounds__(kMostThreads) mix_kernel(const __grid_constant__ MixArgs<T> a) {
  let_next_start();
  const int64_t row = blockIdx.x * a.dim;
  const Place<W> p(a.dim);
  const Item<W> attention_norm = p.load(a.attention_norm), laurel_norm = p.load(a.laurel_norm),
                ffn_norm = p.load(a.ffn_norm);
  wait_for_previous();
  const Item<W> attention = p.load(a.attention + row), laurel = p.load(a.laurel + row), x = p.load(a.x + row);
  Item<W> mixed = p.load(a.active + row), y{};
  float squares[2] = {square_of(attention), square_of(laurel)};
  block_sums(squares);
  add_gained(mixed, attention, attention_norm, inverse_rms(squares[0], a.dim, a.eps));
  add_gained(mixed, laurel, laurel_norm, inverse_rms(squares[1], a.dim, a.eps));
#pragma unroll
  for (int i = 0; i < W; ++i) mixed.v[i] = (mixed.v[i] + x.v[i]) * kInvSqrt2;
  p.store(a.mixed + row, mixed);
  float square[1] = {square_of(mixed)};
  block_sums(square);
  add_gained(y, mixed, ffn_norm, inverse_rms(square[0], a.dim, a.eps));
  p.store(a.y + row, y);
}

template <class T>
struct CloseArgs {
  T *corrected, *scaled;
  const T *mixed, *ffn, *predicted;
  const float *ffn_norm, *scale;
  RouterArgs router;
  int n, active;
  int64_t tokens, dim;
  float eps;
};

template <class T, int W>
__global__ void __launch_bounds__(kMostThreads) close_kernel(const __grid_constant__ CloseArgs<T> a) {
  let_next_start();
  const int64_t t = blockIdx.x, row = t * a.dim;
  const Place<W> p(a.dim);
  const HeldRouter<W> router(a.router, p, a.n, a.dim);
  const Item<W> ffn_norm = p.load(a.ffn_norm), scale = p.load(a.scale);
  wait_for_previous();
  Item<W> out = p.load(a.mixed + row), predicted[kMostStreams];
  const Item<W> ffn = p.load(a.ffn + row);
#pragma unroll
  for (int j = 0; j < kMostStreams; ++j)
    if (j < a.n) predicted[j] = p.load(a.predicted + (j * a.tokens + t) * a.dim);
  float square[1] = {square_of(ffn)};
  block_sums(square);
  add_gained(out, ffn, ffn_norm, inverse_rms(square[0], a.dim, a.eps));
  const float* gains = router.coefficients(a.router, out, a.n, a.dim, a.eps);
#pragma unroll
  for (int j = 0; j < kMostStreams; ++j)
    if (j == a.active) {
#pragma unroll
      for (int i = 0; i < W; ++i) out.v[i] -= predicted[j].v[i];
    }
#pragma unroll
  for (int j = 0; j < kMostStreams; ++j) {
    if (j >= a.n) continue;
#pragma unroll
    for (int i = 0; i < W; ++i) predicted[j].v[i] += (1.0f + gains[j]) * out.v[i];
    p.store(a.corrected + (j * a.tokens + t) * a.dim, predicted[j]);
    if (j != a.active) continue;
    Item<W> scaled{};
    add_gained(scaled, predicted[j], scale, 1.0f);
    p.store(a.scaled + row, scaled);
  }
}

template <class T>
struct MatchArgs {
  T* to;                     // start: streams; finish: y
  const T *own, *projected;  // [T, D]; [n - 1, T, D]
  const float* norm;         // null: start
  int n;
  int64_t tokens, dim;
  float eps;
};

/// Start: own and the projected rows with its magnitude, side by side. Finish: the norm of their mean.
template <class T, int W>
__global__ void __launch_bounds__(kMostThreads) match_kernel(const __grid_constant__ MatchArgs<T> a) {
  let_next_start();
  const int64_t t = blockIdx.x;
  const Place<W> p(a.dim);
  const Item<W> norm = p.load(a.norm);
  wait_for_previous();
  Item<W> rows[kMostStreams] = {p.load(a.own + t * a.dim)};
  float squares[kMostStreams] = {square_of(rows[0])};
#pragma unroll
  for (int j = 1; j < kMostStreams; ++j)
    if (j < a.n) rows[j] = p.load(a.projected + ((j - 1) * a.tokens + t) * a.dim), squares[j] = square_of(rows[j]);
  block_sums(squares);
  const float magnitude = sqrtf(squares[0] / static_cast<float>(a.dim));
#pragma unroll
  for (int j = 1; j < kMostStreams; ++j) {
    const float ratio = magnitude / sqrtf(fmaxf(squares[j] / static_cast<float>(a.dim), kMagnitudeFloor));
#pragma unroll
    for (int i = 0; i < W; ++i) rows[j].v[i] *= ratio;
  }
  if (a.norm == nullptr) {
#pragma unroll
    for (int j = 0; j < kMostStreams; ++j)
      if (j < a.n) p.store(a.to + (j * a.tokens + t) * a.dim, rows[j]);
    return;
  }
  Item<W> mean = rows[0], y{};
#pragma unroll
  for (int i = 0; i < W; ++i) {
#pragma unroll
    for (int j = 1; j < kMostStreams; ++j)
      if (j < a.n) mean.v[i] += rows[j].v[i];
    mean.v[i] *= 1.0f / static_cast<float>(a.n);
  }
  float square[1] = {square_of(mean)};
  block_sums(square);
  add_gained(y, mean, norm, inverse_rms(square[0], a.dim, a.eps));
  p.store(a.to + t * a.dim, y);
}

template <class T>
struct PerLayerArgs {
  T* out;
  const T *projected, *embedded;
  const float* norm;
  int64_t tokens, dim;
  float eps, rho, factor;
};

/// Grid: layers, tokens.
template <class T, int W>
__global__ void __launch_bounds__(kMostThreads) per_layer_kernel(const __grid_constant__ PerLayerArgs<T> a) {
  let_next_start();
  const int64_t from = (blockIdx.y * static_cast<int64_t>(gridDim.x) + blockIdx.x) * a.dim;
  const Place<W> p(a.dim);
  const Item<W> norm = p.load(a.norm);
  wait_for_previous();
  Item<W> projected = p.load(a.projected + from), sum = p.load(a.embedded + from);
#pragma unroll
  for (int i = 0; i < W; ++i) projected.v[i] *= a.rho;
  float square[1] = {square_of(projected)};
  block_sums(square);
  add_gained(sum, projected, norm, inverse_rms(square[0], a.dim, a.eps));
#pragma unroll
  for (int i = 0; i < W; ++i) sum.v[i] *= a.factor;
  p.store(a.out + (blockIdx.x * a.tokens + blockIdx.y) * a.dim, sum);
}

/// f(T{}, width) for rows of `dim`: items of four, else elements.
template <class F>
void with_items(DType dtype, int64_t dim, F f) {
  dispatch(dtype, [&](auto zero) {
    if (dim % kItem == 0)
      f(zero, std::integral_constant<int, kItem>{});
    else
      f(zero, std::integral_constant<int, 1>{});
  });
}
dim3 threads_for(int64_t dim, int width) {
  const int64_t threads = ceil_div(ceil_div(dim, width), 32) * 32;
  check(threads <= kMostThreads, ExitCode::bug, "cuda: a step with rows of {}", dim);
  return dim3(static_cast<unsigned>(threads));
}
dim3 blocks(int64_t n) { return dim3(static_cast<unsigned>(n)); }

}  // namespace

void Step::altup_open(const AltUpOpen& a) {
  const int64_t tokens = a.streams.dim(1), dim = a.streams.dim(2);
  with_items(a.streams.dtype, dim, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int W = decltype(width)::value;
    const OpenArgs<T> args{a.updated.as<T>(),
                           a.predicted.as<T>(),
                           a.x.as<T>(),
                           a.streams.as<T>(),
                           a.update.as<T>(),
                           a.update_norm.as<float>(),
                           a.input_norm.as<float>(),
                           a.predicted.empty() ? RouterArgs{} : router_args(a.router),
                           static_cast<int>(a.streams.dim(0)),
                           a.active,
                           tokens,
                           dim,
                           a.eps};
    launch(open_kernel<T, W>, blocks(tokens), threads_for(dim, W), 0, args);
  });
}

void Step::mix(const Mix& m) {
  const int64_t tokens = m.mixed.dim(0), dim = m.mixed.dim(1);
  with_items(m.mixed.dtype, dim, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int W = decltype(width)::value;
    const MixArgs<T> args{m.mixed.as<T>(),
                          m.y.as<T>(),
                          m.active.as<T>(),
                          m.attention.as<T>(),
                          m.x.as<T>(),
                          m.laurel.as<T>(),
                          m.attention_norm.as<float>(),
                          m.laurel_norm.as<float>(),
                          m.ffn_norm.as<float>(),
                          dim,
                          m.eps};
    launch(mix_kernel<T, W>, blocks(tokens), threads_for(dim, W), 0, args);
  });
}

void Step::altup_close(const AltUpClose& a) {
  const int64_t tokens = a.predicted.dim(1), dim = a.predicted.dim(2);
  with_items(a.predicted.dtype, dim, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int W = decltype(width)::value;
    const CloseArgs<T> args{a.corrected.as<T>(),
                            a.scaled.as<T>(),
                            a.mixed.as<T>(),
                            a.ffn.as<T>(),
                            a.predicted.as<T>(),
                            a.ffn_norm.as<float>(),
                            a.scale.as<float>(),
                            router_args(a.router),
                            static_cast<int>(a.predicted.dim(0)),
                            a.active,
                            tokens,
                            dim,
                            a.eps};
    launch(close_kernel<T, W>, blocks(tokens), threads_for(dim, W), 0, args);
  });
}

void Step::match(const Tensor& to, const Tensor& own, const Tensor& projected, const Tensor& norm, float eps) {
  const int64_t tokens = projected.dim(1), dim = projected.dim(2);
  with_items(to.dtype, dim, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int W = decltype(width)::value;
    const MatchArgs<T> args{.to = to.as<T>(),
                            .own = own.as<T>(),
                            .projected = projected.as<T>(),
                            .norm = norm.as<float>(),
                            .n = static_cast<int>(projected.dim(0)) + 1,
                            .tokens = tokens,
                            .dim = dim,
                            .eps = eps};
    launch(match_kernel<T, W>, blocks(tokens), threads_for(dim, W), 0, args);
  });
}

void Step::altup_start(const Tensor& streams, const Tensor& e, const Tensor& projected) {
  match(streams, e, projected, {}, 0);
}

void Step::altup_finish(const Tensor& y, const Tensor& streams, const Tensor& projected, const Tensor& norm,
                        float eps) {
  match(y, streams, projected, norm, eps);
}

void Step::per_layer_inputs(const PerLayer& p) {
  const int64_t layers = p.out.dim(0), tokens = p.out.dim(1), dim = p.out.dim(2);
  with_items(p.out.dtype, dim, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int W = decltype(width)::value;
    const PerLayerArgs<T> args{
        p.out.as<T>(), p.projected.as<T>(), p.embedded.as<T>(), p.norm.as<float>(), tokens, dim, p.eps, p.rho,
        p.factor};
    launch(per_layer_kernel<T, W>, dim3(static_cast<unsigned>(layers), static_cast<unsigned>(tokens)),
           threads_for(dim, W), 0, args);
  });
}

}  // namespace saaz::cuda
