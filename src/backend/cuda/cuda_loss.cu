// CudaBackend: the loss. One block takes one row of logits: a pass finds the largest capped logit and the sum of
// exponentials together, a second replaces logits by their gradient, last items first: they are still in the cache.
#include "backend/cuda/cuda_items.cuh"

namespace saaz::cuda {

namespace {

constexpr int kLossThreads = 1024, kLossItems = 4;  // items of a thread in flight
constexpr float kLowest = -3.402823466e38f;         // below every logit, and finite: differences stay numbers

/// The functions of a row's passes. Where the gradient is stored in bf16 they are the machine's own: their errors, some
/// 2^-20 of a logit, are small beside the roundings of the hidden states that the logits come from.
template <bool kFast>
struct Formulas {
  static __device__ float exponential(float x) { return kFast ? __expf(x) : expf(x); }
  static __device__ float capped(float logit, float cap) {
    if (cap == 0.0f) return logit;
    if constexpr (!kFast) return cap * tanhf(logit / cap);
    const float u = fminf(2.0f * __fdividef(logit, cap), 80.0f);  // e^u stays finite; NaN goes the other way:
    return logit != logit ? logit : cap * (1.0f - __fdividef(2.0f, 1.0f + __expf(u)));
  }
};

/// The sum of e^(x - largest) so far.
template <class F>
struct Softmax {
  float largest = kLowest, sum = 0;
  template <int W>
  __device__ void add(const Item<W>& x) {
    float top = largest;
#pragma unroll
    for (int i = 0; i < W; ++i) top = fmaxf(top, x.v[i]);
    float of_item = 0;
#pragma unroll
    for (int i = 0; i < W; ++i) of_item += F::exponential(x.v[i] - top);
    sum = sum * F::exponential(largest - top) + of_item;
    largest = top;
  }
};
/// The block's largest, and its sum in f64: a loss near 0 is the logarithm of 1 and a little.
struct BlockSoftmax {
  float largest;
  double sum;
};
template <class F>
__device__ BlockSoftmax over_block(const Softmax<F>& own) {
  __shared__ float largest_of_warp[32];  // kLossThreads / 32 warps
  __shared__ double sum_of_warp[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float largest_here = warp_max(own.largest);
  if (lane == 0) largest_of_warp[warp] = largest_here;
  __syncthreads();
  const float largest = warp_max(largest_of_warp[lane]);
  double sum = own.sum * expf(own.largest - largest);
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (lane == 0) sum_of_warp[warp] = sum;
  __syncthreads();
  sum = sum_of_warp[lane];
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  return {largest, sum};
}

/// f(element, capped item) for this thread's items; Direction -1 from the end. Loads come kLossItems at a time.
template <int W, int Direction, class Formula, class F>
__device__ void for_capped(const float* row, int64_t n, float cap, F f) {
  const int n_items = static_cast<int>(n / W), step = kLossThreads * kLossItems;
  const int n_steps = (n_items + step - 1) / step;
  for (int s = 0; s < n_steps; ++s) {
    const int first = (Direction > 0 ? s : n_steps - 1 - s) * step + threadIdx.x;
    RawItem<float, W> raw[kLossItems];
#pragma unroll
    for (int k = 0; k < kLossItems; ++k) {
      const int item = first + k * kLossThreads;
      if (item < n_items) raw[k] = load_raw<float, W>(row + static_cast<int64_t>(item) * W);
    }
#pragma unroll
    for (int k = 0; k < kLossItems; ++k) {
      const int item = first + k * kLossThreads;
      if (item >= n_items) continue;
      Item<W> x = unpack<float, W>(raw[k]);
#pragma unroll
      for (int i = 0; i < W; ++i) x.v[i] = Formula::capped(x.v[i], cap);
      f(static_cast<int64_t>(item) * W, x);
    }
  }
}

/// d capped / d logit times scale.
__device__ inline float slope_at(float value, float cap, float scale) {
  if (cap == 0.0f) return scale;
  const float ratio = value / cap;
  return scale * (1.0f - ratio * ratio);
}

/// gradient: null = not wanted; logits itself where T is f32.
template <class T, int W>
__global__ void __launch_bounds__(kLossThreads, 1)
    cross_entropy_kernel(T* gradient, const float* logits, float* losses, const int32_t* targets, int64_t n, float cap,
                         float scale) {
  const float* row = logits + blockIdx.x * n;
  T* to = gradient == nullptr ? nullptr : gradient + blockIdx.x * n;
  const int target = targets[blockIdx.x];
  if (target < 0) {
    if (threadIdx.x == 0) losses[blockIdx.x] = 0;
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * W; to != nullptr && i < n; i += kLossThreads * W)
      store_item<W>(to + i, Item<W>{});
    return;
  }
  using F = Formulas<sizeof(T) == 2>;
  Softmax<F> softmax;
  for_capped<W, 1, F>(row, n, cap, [&](int64_t, const Item<W>& x) { softmax.add(x); });
  // Before the barriers of over_block: the row is overwritten after them.
  const float target_value = F::capped(row[target], cap);
  const auto [largest, sum] = over_block(softmax);
  __shared__ float shared_loss;
  if (threadIdx.x == 0) {
    shared_loss = static_cast<float>(log(sum) + (static_cast<double>(largest) - target_value));
    losses[blockIdx.x] = shared_loss;
  }
  if (to == nullptr) return;
  __syncthreads();
  const float inverse = 1.0f / static_cast<float>(sum), top = largest;
  // p - 1 from the loss: exact where p is close to 1.
  const float at_target = expm1f(-shared_loss) * slope_at(target_value, cap, scale);
  for_capped<W, -1, F>(row, n, cap, [&](int64_t at, Item<W> x) {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const float gradient = F::exponential(x.v[i] - top) * inverse * slope_at(x.v[i], cap, scale);
      x.v[i] = at + i == target ? at_target : gradient;
    }
    store_item<W>(to + at, x);
  });
}

}  // namespace

void CudaBackend::cross_entropy(const Tensor& logits, const Tensor& losses, std::span<const int32_t> targets, float cap,
                                float scale, const Tensor& gradient) {
  if (targets.empty()) return;
  const int32_t* device_targets = staged(targets);
  const int64_t n = logits.dim(-1);
  dispatch(gradient.empty() ? activations_ : gradient.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<float>(takes_vectors<float>(n, {logits.data, gradient.data}), [&](auto width) {
      cross_entropy_kernel<T, decltype(width)::value>
          <<<static_cast<unsigned>(targets.size()), kLossThreads, 0, stream_>>>(
              gradient.empty() ? nullptr : gradient.as<T>(), logits.f32(), losses.f32(), device_targets, n, cap, scale);
    });
  });
  check_launch("cross_entropy");
}

}  // namespace saaz::cuda
