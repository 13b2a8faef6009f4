// CudaBackend: the optimizers. Products, sums and quotients are rounded one by one, in the CPU's order, so an update
// has the CPU's bytes. Formulas: cpu/elementwise.inc.h, formats.md 3.
#include <array>
#include <cmath>
#include <limits>

#include "backend/cuda/cuda_items.cuh"
#include "quant/blockwise.h"

namespace saaz::cuda {

namespace {

constexpr int kScratchSquares = 150;
constexpr int kSquaresThreads = 256, kSquaresPiece = 1 << 14;

/// One sum per piece; the pieces and each thread's elements follow from n alone.
__global__ void __launch_bounds__(kSquaresThreads) squares_kernel(double* pieces, const float* x, int64_t n) {
  __shared__ double sums[kSquaresThreads];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kSquaresPiece;
  double sum = 0;
#pragma unroll 8
  for (int i = threadIdx.x; i < kSquaresPiece; i += kSquaresThreads) {
    const double value = begin + i < n ? x[begin + i] : 0.0f;
    sum += value * value;
  }
  sums[threadIdx.x] = sum;
  for (int half = kSquaresThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) pieces[blockIdx.x] = sums[0];
}

/// What a step's formulas take, derived once in f64.
struct Factors {
  float beta1, beta2, one_minus_beta1, one_minus_beta2, decay, grad_scale;
  float step_size, root_scale, eps;  // root_scale: f32 moments only
};
Factors common_factors(const AdamWStep& step) {
  Factors f{};
  f.beta1 = step.beta1;
  f.beta2 = step.beta2;
  f.one_minus_beta1 = 1.0f - step.beta1;
  f.one_minus_beta2 = 1.0f - step.beta2;
  f.decay = static_cast<float>(1.0 - static_cast<double>(step.lr) * step.weight_decay);
  f.grad_scale = step.grad_scale;
  return f;
}
double bias_correction(float beta, int64_t t) {
  return 1.0 - std::pow(static_cast<double>(beta), static_cast<double>(t));
}

/// torch's order: decay, moments, p -= step_size * m / (sqrt(v) / root_scale + eps).
struct AdamWF32 {
  float* p;
  const float* g;
  float *m, *v;
  Factors f;

  __device__ void update(float& parameter, float& first, float& second, float raw_gradient) const {
    const float gradient = __fmul_rn(raw_gradient, f.grad_scale);
    first = __fadd_rn(first, __fmul_rn(f.one_minus_beta1, __fsub_rn(gradient, first)));
    second = __fadd_rn(__fmul_rn(second, f.beta2), __fmul_rn(__fmul_rn(f.one_minus_beta2, gradient), gradient));
    const float root = __fadd_rn(__fdiv_rn(__fsqrt_rn(second), f.root_scale), f.eps);
    parameter = __fsub_rn(__fmul_rn(parameter, f.decay), __fmul_rn(f.step_size, __fdiv_rn(first, root)));
  }
  template <int W>
  __device__ void at(int64_t i) const {
    Item<W> parameter = load_item<W>(p + i), first = load_item<W>(m + i), second = load_item<W>(v + i);
    const Item<W> gradient = load_item<W>(g + i);
#pragma unroll
    for (int k = 0; k < W; ++k) update(parameter.v[k], first.v[k], second.v[k], gradient.v[k]);
    store_item<W>(m + i, first);
    store_item<W>(v + i, second);
    store_item<W>(p + i, parameter);
  }
};

constexpr int kAdamWBlock = 256;

/// A map of 256 values and the midpoints between neighbours, the last one infinity.
struct CodeMap {
  float values[256], midpoints[256];
};
CodeMap code_map(const std::array<float, 256>& values) {
  CodeMap map;
  for (size_t i = 0; i < 256; ++i) {
    map.values[i] = values[i];
    map.midpoints[i] = i + 1 < 256 ? (values[i] + values[i + 1]) / 2 : std::numeric_limits<float>::infinity();
  }
  return map;
}

/// Count of midpoints below x; NaN gives 0.
__device__ inline int nearest_code_of(const CodeMap& map, float x) {
  int code = 0;
#pragma unroll
  for (int step = 128; step > 0; step /= 2) code += x > map.midpoints[code + step - 1] ? step : 0;
  return code;
}
/// A code whose value has the other sign than m moves by one.
__device__ inline uint8_t code_with_sign(const CodeMap& map, float m, float scaled) {
  int code = nearest_code_of(map, scaled);
  if (signbit(map.values[code]) != signbit(m)) code += m > 0.0f ? 1 : -1;
  return static_cast<uint8_t>(code);
}

/// The largest x and y of the block, in every thread; NaN does not count.
__device__ float2 block_max(float x, float y) {
  __shared__ float2 warps[kAdamWBlock / 32];
  x = warp_max(x);
  y = warp_max(y);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = {x, y};
  __syncthreads();
  float2 largest = warps[0];
#pragma unroll
  for (int w = 1; w < kAdamWBlock / 32; ++w) {
    largest.x = fmaxf(largest.x, warps[w].x);
    largest.y = fmaxf(largest.y, warps[w].y);
  }
  return largest;
}

/// A block of threads for a block of 256 elements. bitsandbytes' order: the update uses the fresh f32 moments, decays
/// after, and only then are the moments quantised again.
__global__ void __launch_bounds__(kAdamWBlock)
    adamw_8bit_kernel(float* p, const float* g, uint8_t* m, uint8_t* v, float* m_absmax, float* v_absmax,
                      const CodeMap* maps, Factors f, int64_t n) {
  __shared__ CodeMap map[2];  // of m, of v
  for (int k = 0; k < 2; ++k) {
    map[k].values[threadIdx.x] = maps[k].values[threadIdx.x];
    map[k].midpoints[threadIdx.x] = maps[k].midpoints[threadIdx.x];
  }
  __syncthreads();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kAdamWBlock + threadIdx.x;
  float new_m = 0, new_v = 0;
  const float gradient = i < n ? __fmul_rn(g[i], f.grad_scale) : 0.0f;
  if (i < n && isfinite(gradient)) {
    const float old_m = __fmul_rn(map[0].values[m[i]], m_absmax[blockIdx.x]);
    const float old_v = __fmul_rn(map[1].values[v[i]], v_absmax[blockIdx.x]);
    new_m = __fadd_rn(__fmul_rn(f.beta1, old_m), __fmul_rn(f.one_minus_beta1, gradient));
    new_v = __fadd_rn(__fmul_rn(f.beta2, old_v), __fmul_rn(__fmul_rn(f.one_minus_beta2, gradient), gradient));
    const float ratio = __fdiv_rn(new_m, __fadd_rn(__fsqrt_rn(new_v), f.eps));
    p[i] = __fmul_rn(__fsub_rn(p[i], __fmul_rn(f.step_size, ratio)), f.decay);
  }
  const float2 largest = block_max(fmaxf(fabsf(new_m), 0.0f), fmaxf(new_v, 0.0f));
  if (threadIdx.x == 0) {
    m_absmax[blockIdx.x] = largest.x;
    v_absmax[blockIdx.x] = largest.y;
  }
  if (i >= n) return;
  m[i] = code_with_sign(map[0], new_m, __fdiv_rn(new_m, largest.x));
  v[i] = static_cast<uint8_t>(nearest_code_of(map[1], __fdiv_rn(new_v, largest.y)));
}

}  // namespace

double CudaBackend::sum_of_squares(const Tensor& x) {
  const int64_t n = x.size(), n_pieces = ceil_div(n, kSquaresPiece);
  if (n == 0) return 0;
  const int64_t bytes = n_pieces * static_cast<int64_t>(sizeof(double));
  auto* pieces = static_cast<double*>(scratch(kScratchSquares, bytes));
  squares_kernel<<<static_cast<unsigned>(n_pieces), kSquaresThreads, 0, stream_>>>(pieces, x.f32(), n);
  check_launch("sum_of_squares");
  std::vector<double> sums(static_cast<size_t>(n_pieces));
  check_cuda(cudaMemcpyAsync(sums.data(), pieces, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_),
             "reading sums of squares");
  check_cuda(cudaStreamSynchronize(stream_), "sum_of_squares");
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

void CudaBackend::adamw_f32(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const AdamWStep& step) {
  Factors f = common_factors(step);
  f.step_size = static_cast<float>(step.lr / bias_correction(step.beta1, step.t));
  f.root_scale = static_cast<float>(std::sqrt(bias_correction(step.beta2, step.t)));
  f.eps = step.eps;
  launch_map<float>(stream_, p.size(), {p.data, g.data, m.data, v.data},
                    AdamWF32{p.f32(), g.f32(), m.f32(), v.f32(), f}, "adamw_f32");
}

void CudaBackend::adamw_8bit(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const Tensor& m_absmax,
                             const Tensor& v_absmax, const AdamWStep& step) {
  if (p.size() == 0) return;
  Factors f = common_factors(step);
  const double root = std::sqrt(bias_correction(step.beta2, step.t));
  f.step_size = static_cast<float>(step.lr * root / bias_correction(step.beta1, step.t));
  f.eps = static_cast<float>(step.eps * root);
  static const std::array<CodeMap, 2> maps = {code_map(dynamic_map_signed()), code_map(dynamic_map_unsigned())};
  adamw_8bit_kernel<<<static_cast<unsigned>(ceil_div(p.size(), kAdamWBlock)), kAdamWBlock, 0, stream_>>>(
      p.f32(), g.f32(), m.as<uint8_t>(), v.as<uint8_t>(), m_absmax.f32(), v_absmax.f32(),
      staged(std::span<const CodeMap>(maps)), f, p.size());
  check_launch("adamw_8bit");
}

}  // namespace saaz::cuda
