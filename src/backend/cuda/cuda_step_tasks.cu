// Step: which kernel takes a product, and the gated activation where it does not end one.
#include <algorithm>
#include <array>

#include "backend/cuda/cuda_step_task.h"
#include "quant/blockwise.h"

namespace saaz::cuda {

namespace {

constexpr int64_t kMostRowsHere = 16;  // beyond, cuBLAS

bool is_dense_or_nf4(const Weight& w) {
  return w.format == WeightFormat::f32 || w.format == WeightFormat::bf16 ||
         (w.format == WeightFormat::nf4 && w.quant_map == nullptr);
}

}  // namespace

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

void Step::feed_forward(const FeedForward& f) {
  if (run_nf4_feed_forward(f)) return;
  products(std::array{f.attended, f.laurel});
  const Gated& g = f.gated;
  const bool mixes = takes_mix(f.mix, g.gate_weight) && (g.up_weight.empty() || fits_chunks(g.up_weight, g.x.dtype));
  if (!mixes) mix(f.mix);
  gated(g, mixes ? &f.mix : nullptr);
  products({&f.down, 1});
}

void Step::gated(const Gated& g, const Mix* mix) {
  const bool computes_up = !g.up_weight.empty();
  if (g.x.rows() <= kMostRowsHere && g.sparsity_z == 0 && is_dense_or_nf4(g.gate_weight)) {
    const Task task{g.y, g.x, computes_up ? Tensor{} : g.up, g.gate_weight, g.up_weight, 0, mix};
    return run_tasks({&task, 1});
  }
  const Task gate{g.gate, g.x, {}, g.gate_weight, {}, 0, mix}, up{g.up, g.x, {}, g.up_weight, {}};
  if (computes_up && g.sparsity_z != 0 && g.x.rows() <= kMostRowsHere && backend_.compute_capability_ >= 80 &&
      fits_chunks(g.up_weight, g.x.dtype)) {
    run_tasks({&gate, 1});
    return sparse_up(up, g);
  }
  if (computes_up)
    run_tasks(std::array{gate, up});
  else
    run_tasks({&gate, 1});
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
