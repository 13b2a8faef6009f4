// Step: which kernel takes a product, and the gated activation where it does not end one.
#include <algorithm>

#include "backend/cuda/cuda_items.cuh"
#include "backend/cuda/cuda_step_task.h"
#include "quant/blockwise.h"

namespace saaz::cuda {

namespace {

constexpr int64_t kMostRowsHere = 16;  // beyond, cuBLAS
constexpr int kGateThreads = 1024;

/// As sparse_geglu_kernel.
template <class T, int W>
__global__ void __launch_bounds__(kGateThreads)
    sparse_gate_kernel(T* y, const T* gate, const T* up, float sparsity_z, int64_t dim) {
  let_next_start();
  wait_for_previous();
  const int64_t row = blockIdx.x * dim;
  const HeldRows<T, W, 2, 2> held({gate + row, up + row}, dim);
  __shared__ float shared[33];
  float sum = 0, square = 0;
  held.each([&](int64_t, const auto& in) {
#pragma unroll
    for (int i = 0; i < W; ++i) sum += in[0].v[i];
  });
  const float mean = block_sum(sum, shared) / static_cast<float>(dim);
  held.each([&](int64_t, const auto& in) {
#pragma unroll
    for (int i = 0; i < W; ++i) square += (in[0].v[i] - mean) * (in[0].v[i] - mean);
  });
  const float cut = mean + sqrtf(block_sum(square, shared) / static_cast<float>(dim)) * sparsity_z;
  held.each([&](int64_t at, const auto& in) {
    Item<W> out;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const float over = in[0].v[i] - cut, z = over < 0.0f ? 0.0f : over;
      const float u = 0.7978845608f * z * (1.0f + 0.044715f * z * z);
      out.v[i] = in[1].v[i] * (z / (1.0f + expf(-2.0f * u)));
    }
    store_item<W>(y + row + at, out);
  });
}

bool is_dense_or_nf4(const Weight& w) {
  return w.format == WeightFormat::f32 || w.format == WeightFormat::bf16 ||
         (w.format == WeightFormat::nf4 && w.quant_map == nullptr);
}

}  // namespace

void Step::sparse_gate(const Gated& g) {
  const int64_t tokens = g.y.dim(0), dim = g.y.dim(1);
  dispatch(g.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(takes_vectors<T>(dim, {g.y.data, g.gate.data, g.up.data}), [&](auto width) {
      constexpr int W = decltype(width)::value;
      launch(sparse_gate_kernel<T, W>, dim3(static_cast<unsigned>(tokens)),
             static_cast<unsigned>(std::min<int64_t>(kGateThreads, ceil_div(ceil_div(dim, W), 32) * 32)), 0,
             g.y.as<T>(), g.gate.as<T>(), g.up.as<T>(), g.sparsity_z, dim);
    });
  });
}

/// By cuBLAS: many rows.
void Step::run_by_blas(const Task& t) {
  backend_.matmul_nt(t.y, t.x, t.w, Write::overwrite);
  if (t.cap > 0) backend_.softcap(t.y, t.cap);
  after_kernel_ = true;
}

void Step::run_tasks(std::span<const Task> tasks) {
  if (tasks[0].x.rows() == 0) return;
  std::vector<Task> in_chunks, plain;
  const bool few = tasks[0].x.rows() <= kMostRowsHere && backend_.compute_capability_ >= 80;
  for (const Task& t : tasks) {
    const bool fits = fits_chunks(t.w, t.x.dtype) && (t.up.empty() || fits_chunks(t.up, t.x.dtype));
    if (few && fits) {
      in_chunks.push_back(t);
    } else if (tasks[0].x.rows() <= kMostRowsHere && is_dense_or_nf4(t.w) && (t.up.empty() || is_dense_or_nf4(t.up))) {
      plain.push_back(t);
    } else {
      check(t.up.empty() && t.given.empty(), ExitCode::bug, "cuda: a gated product of {} rows", t.x.rows());
      run_by_blas(t);
    }
  }
  if (!in_chunks.empty()) run_in_chunks(in_chunks, 0);
  if (!plain.empty()) run_plain(plain);
}

void Step::products(std::span<const Product> products) {
  check(products.size() <= kMostProducts, ExitCode::bug, "cuda: {} products at once", products.size());
  std::vector<Task> tasks;
  for (const Product& p : products) tasks.push_back({p.y, p.x, {}, p.w, {}, p.cap});
  run_tasks(tasks);
}

void Step::gated(const Gated& g) {
  const bool computes_up = !g.up_weight.empty();
  if (g.x.rows() <= kMostRowsHere && g.sparsity_z == 0 && is_dense_or_nf4(g.gate_weight)) {
    const Task task{g.y, g.x, computes_up ? Tensor{} : g.up, g.gate_weight, g.up_weight};
    return run_tasks({&task, 1});
  }
  std::vector<Task> tasks = {{g.gate, g.x, {}, g.gate_weight, {}}};
  if (computes_up) tasks.push_back({g.up, g.x, {}, g.up_weight, {}});
  run_tasks(tasks);
  if (g.sparsity_z != 0) return sparse_gate(g);
  backend_.geglu(g.y, {}, g.gate, g.up, 0);
  after_kernel_ = true;
}

void Step::load_tables() {
  std::vector<float> tables(dynamic_map_signed().begin(), dynamic_map_signed().end());
  tables.insert(tables.end(), kNf4Values.begin(), kNf4Values.end());
  check_cuda(cudaMalloc(&nf4_tables_, tables.size() * 4), "constants");
  check_cuda(cudaMemcpy(nf4_tables_, tables.data(), tables.size() * 4, cudaMemcpyHostToDevice), "constants");
}

}  // namespace saaz::cuda
