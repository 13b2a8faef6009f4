// Step: any product of few rows that products_kernel does not take: f32 activations, or columns that are no whole
// chunks. A warp makes one column of y.
#include <cuda_fp16.h>

#include "backend/cuda/cuda_step_task.h"
#include "quant/blockwise.h"

namespace saaz::cuda {

namespace {

using Then = Step::Then;

constexpr int kThreads = 256, kWarps = kThreads / 32;

struct PlainSegment {
  Weight w[2];
  const void *x = nullptr, *given = nullptr;
  void* y = nullptr;
  int first_job = 0;
  Then then = Then::store;
  float cap = 0;
};
struct PlainArguments {
  PlainSegment segments[StepKernels::kMostProducts];
  const float* tables = nullptr;
  int n_segments = 0, n_jobs = 0, n_rows = 0;
};

__device__ inline float weight_at(const Weight& w, const float* tables, int64_t at) {
  if (w.format == WeightFormat::f32) return static_cast<const float*>(w.data)[at];
  if (w.format == WeightFormat::bf16) return to_f32(static_cast<const bf16*>(w.data)[at]);
  const int64_t block = at / kNf4Block;
  const float scale =
      w.absmax != nullptr
          ? w.absmax[block]
          : __fadd_rn(__fmul_rn(tables[w.absmax_codes[block]], w.nested_absmax[block / kNestedBlock]), w.nested_offset);
  const int pair = static_cast<const uint8_t*>(w.data)[at / 2];
  const float value = __fmul_rn(tables[256 + (at % 2 == 0 ? pair >> 4 : pair & 15)], scale);
  if (w.dequantised_dtype == DType::bf16) return to_f32(__float2bfloat16_rn(value));
  if (w.dequantised_dtype == DType::f16) return __half2float(__float2half_rn(value));
  return value;
}

constexpr int kPlainRows = 8;

template <class T>
__global__ void __launch_bounds__(kThreads) plain_products_kernel(const __grid_constant__ PlainArguments args) {
  let_next_start();
  wait_for_previous();
  const int job = static_cast<int>(blockIdx.x) * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (job >= args.n_jobs) return;
  int index = 0;
  while (index + 1 < args.n_segments && job >= args.segments[index + 1].first_job) ++index;
  const PlainSegment& s = args.segments[index];
  const int64_t n = job - s.first_job, n_in = s.w[0].n_in, n_out = s.w[0].n_out;
  const int row_begin = static_cast<int>(blockIdx.y) * kPlainRows, rows = min(kPlainRows, args.n_rows - row_begin);
  const T* x = static_cast<const T*>(s.x) + row_begin * n_in;
  float sums[2][kPlainRows] = {};
  for (int m = 0; m < (s.then == Then::gate_up ? 2 : 1); ++m)
    for (int64_t k = lane; k < n_in; k += 32) {
      const float value = weight_at(s.w[m], args.tables, n * n_in + k);
#pragma unroll
      for (int r = 0; r < kPlainRows; ++r)
        if (r < rows) sums[m][r] += value * to_f32(x[r * n_in + k]);
    }
#pragma unroll
  for (int r = 0; r < kPlainRows; ++r) {
    float value = warp_sum(sums[0][r]);
    const float second = warp_sum(sums[1][r]);
    if (r >= rows || lane != 0) continue;
    const int64_t at = (row_begin + r) * n_out + n;
    if (s.cap > 0) value = s.cap * tanhf(value / s.cap);
    const auto gelu = [](float z) {  // as geglu does
      const float u = 0.7978845608f * z * (1.0f + 0.044715f * z * z);
      return z / (1.0f + expf(fminf(-2.0f * u, 80.0f)));
    };
    if (s.then == Then::gate_up) value = gelu(value) * second;
    if (s.then == Then::gate_given) value = gelu(value) * to_f32(static_cast<const T*>(s.given)[at]);
    if (s.then == Then::store_f32)
      static_cast<float*>(s.y)[at] = value;
    else
      static_cast<T*>(s.y)[at] = from_f32<T>(value);
  }
}

}  // namespace

void Step::run_plain(std::span<const Task> tasks) {
  PlainArguments args;
  args.tables = nf4_tables_;
  args.n_rows = static_cast<int>(tasks[0].x.rows());
  for (const Task& t : tasks) {
    PlainSegment& s = args.segments[args.n_segments++];
    s.w[0] = t.w, s.w[1] = t.up;
    s.x = t.x.data, s.y = t.y.data, s.given = t.given.data;
    s.then = t.then(), s.cap = t.cap;
    s.first_job = args.n_jobs;
    args.n_jobs += static_cast<int>(t.w.n_out);
  }
  const dim3 grid(static_cast<unsigned>(ceil_div(args.n_jobs, kWarps)),
                  static_cast<unsigned>(ceil_div(args.n_rows, kPlainRows)));
  dispatch(tasks[0].x.dtype,
           [&](auto zero) { launch(plain_products_kernel<decltype(zero)>, grid, dim3(kThreads), 0, args); });
}

}  // namespace saaz::cuda
