// CpuBackend: rotary positions and attention. A task is a few queries (or, in the key pass of backward, a few keys) of
// one sequence and one kv head.
#include <algorithm>
#include <cassert>

#include "backend/cpu/cpu_backend.h"

namespace saaz::cpu {

void CpuBackend::rope(const Grad& y, const Tensor& x, std::span<const int32_t> positions, const Tensor& table,
                      int64_t n_heads, Rotation rotation) {
  if (!y.wanted()) return;
  const int64_t dim = x.dim(-1), head_dim = table.dim(-1);
  assert(dim == n_heads * head_dim);
  const float sine_sign = rotation == Rotation::forward ? 1.0f : -1.0f;
  run_ranges(x.rows(), 2 * dim, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      kernels_.rope(n_heads, head_dim, y.tensor.f32() + t * dim, y.write, x.f32() + t * dim,
                    table.f32() + positions[t] * head_dim, sine_sign);
    }
  });
}

std::vector<AttentionTask> CpuBackend::query_tasks(std::span<const AttentionSpan> spans,
                                                   const AttentionShape& shape) const {
  const int64_t step = std::max<int64_t>(1, kAttentionRows * shape.n_kv_heads / shape.n_heads);
  std::vector<AttentionTask> tasks;
  for (const AttentionSpan& span : spans) {
    for (int64_t begin = 0; begin < span.n_queries; begin += step) {
      for (int64_t kv = 0; kv < shape.n_kv_heads; ++kv) {
        tasks.push_back({&span, begin, std::min(span.n_queries, begin + step), kv});
      }
    }
  }
  return tasks;
}

std::vector<AttentionTask> CpuBackend::key_tasks(std::span<const AttentionSpan> spans,
                                                 const AttentionShape& shape) const {
  std::vector<AttentionTask> tasks;
  for (const AttentionSpan& span : spans) {
    const int64_t n_keys = span.first_position + span.n_queries;
    assert(n_keys <= span.kv_capacity);
    for (int64_t begin = 0; begin < n_keys; begin += kAttentionKeys) {
      for (int64_t kv = 0; kv < shape.n_kv_heads; ++kv) {
        tasks.push_back({&span, begin, std::min(n_keys, begin + kAttentionKeys), kv});
      }
    }
  }
  return tasks;
}

void CpuBackend::run_attention(const std::vector<AttentionTask>& tasks, const AttentionArgs& args,
                               AttentionKernel kernel) {
  const AttentionShape& shape = args.shape;
  int64_t work = 0, most_keys = 0;
  for (const AttentionTask& task : tasks) {
    int64_t keys = task.span->first_position + task.span->n_queries;
    if (shape.window > 0) keys = std::min(keys, shape.window + kAttentionRows);
    most_keys = std::max(most_keys, keys);
    work += (task.end - task.begin) * keys * shape.head_dim;
  }
  const int64_t scratch = kernels_.attention_scratch(shape, most_keys);
  run(static_cast<int64_t>(tasks.size()), work,
      [&](int64_t task, int thread) { kernel(args, tasks[task], scratch_[thread].at_least(scratch)); });
}

void CpuBackend::attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                           std::span<const AttentionSpan> spans, const AttentionShape& shape) {
  AttentionArgs args{.q = q.f32(), .k = k.f32(), .v = v.f32(), .shape = shape};
  args.out_to = out.f32();
  args.lse_to = data_or_null(lse);
  run_attention(query_tasks(spans, shape), args, kernels_.attention);
}

void CpuBackend::attention_backward(const Grad& dq, const Grad& dk, const Grad& dv, const Tensor& dout,
                                    const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                                    const Tensor& v, std::span<const AttentionSpan> spans,
                                    const AttentionShape& shape) {
  for (const Grad* grad : {&dq, &dk, &dv}) {
    if (grad->wanted() && grad->write == Write::overwrite) fill(grad->tensor, 0);
  }
  const AttentionArgs args{.q = q.f32(),
                           .k = k.f32(),
                           .v = v.f32(),
                           .out = out.f32(),
                           .lse = lse.f32(),
                           .dout = dout.f32(),
                           .dq = data_or_null(dq),
                           .dk = data_or_null(dk),
                           .dv = data_or_null(dv),
                           .shape = shape};
  if (dq.wanted()) run_attention(query_tasks(spans, shape), args, kernels_.attention_backward_queries);
  if (dk.wanted() || dv.wanted()) run_attention(key_tasks(spans, shape), args, kernels_.attention_backward_keys);
}

}  // namespace saaz::cpu
