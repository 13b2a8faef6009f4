#include "backend/plan.h"

#include <algorithm>

#include "tensor/arena.h"

namespace saaz {

int64_t PlanReport::total_bytes() const {
  int64_t total = 0;
  for (const auto& [name, bytes] : allocated_bytes) total += bytes;
  return total;
}

int64_t weight_bytes(const Weight& w) {
  const BlockSize block = block_size(w.format);
  int64_t bytes = (w.size() + block.elements - 1) / block.elements * block.bytes;
  if (w.format == WeightFormat::int8) return bytes + 4 * w.n_out;
  if (w.format != WeightFormat::nf4) return bytes;
  constexpr int64_t kAbsmaxBlock = 64, kNestedBlocks = 256;
  const int64_t n_blocks = (w.size() + kAbsmaxBlock - 1) / kAbsmaxBlock;
  const bool nested = w.absmax_codes != nullptr || w.absmax == nullptr;
  return bytes + (nested ? n_blocks + (n_blocks + kNestedBlocks - 1) / kNestedBlocks * 4 : n_blocks * 4);
}

PlanBackend::PlanBackend(const Backend& like)
    : activations_(like.activation_dtype()),
      n_loss_rows_(like.n_loss_rows()),
      is_gpu_(like.own_free_bytes().has_value()) {}

Weight PlanBackend::place(const Weight& w, Placement placement) {
  if (!is_gpu_ || placement == Placement::rows) return w;
  // As cuda/cuda_weights.cu places them: blocks other than NF4's become dense.
  const bool is_kept = w.format == WeightFormat::nf4 || w.format == WeightFormat::bf16;
  report.allocated_bytes["weights"] += is_kept ? weight_bytes(w) : w.size() * saaz::size_of(activations_);
  return w;
}

void* PlanBackend::allocate(int64_t bytes, const char* what) {
  report.allocated_bytes[what] += bytes;
  return reinterpret_cast<void*>(Arena::kAlignment);
}

void PlanBackend::moved(std::initializer_list<Tensor> operands) {
  ++report.n_kernels;
  for (const Tensor& t : operands) report.bytes_moved += static_cast<double>(t.bytes());
}

void PlanBackend::product(int64_t n_rows, const Weight& w, std::initializer_list<Tensor> operands) {
  report.matmul_flops += 2.0 * static_cast<double>(n_rows) * static_cast<double>(w.size());
  report.bytes_moved += static_cast<double>(weight_bytes(w));
  moved(operands);
}

void PlanBackend::lora_forward(const Grad& y, const Tensor& h, const Tensor& x, const Tensor& a, const Tensor& b,
                               float) {
  report.matmul_flops += 2.0 * static_cast<double>(x.rows()) * static_cast<double>(a.size() + b.size());
  moved({y.tensor, h, x, a, b});
}

void PlanBackend::lora_backward(const Grad& dx, const Tensor& da, const Tensor& db, const Tensor& dh, const Tensor& dy,
                                const Tensor& x, const Tensor& h, const Tensor& a, const Tensor& b, float) {
  const double products = dx.wanted() ? 2 : 1;  // da always, dx when wanted; db and dh both cost |b|
  report.matmul_flops += 2.0 * static_cast<double>(x.rows()) *
                         (products * static_cast<double>(a.size()) + 2.0 * static_cast<double>(b.size()));
  moved({dx.tensor, da, db, dh, dy, x, h, a, b});
}

void PlanBackend::count_attention(std::span<const AttentionSpan> spans, const AttentionShape& shape,
                                  double products_per_pair) {
  double pairs = 0;
  for (const AttentionSpan& span : spans)
    for (int64_t i = 0; i < span.n_queries; ++i) {
      const int64_t seen = span.first_position + i + 1;
      pairs += static_cast<double>(shape.window > 0 ? std::min(seen, shape.window) : seen);
    }
  report.attention_flops += 2.0 * products_per_pair * pairs * static_cast<double>(shape.n_heads * shape.head_dim);
}

void PlanBackend::attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                            std::span<const AttentionSpan> spans, const AttentionShape& shape) {
  count_attention(spans, shape, 2);
  moved({out, lse, q, k, v});
}

void PlanBackend::attention_backward(const Grad& dq, const Grad& dk, const Grad& dv, const Tensor& dout,
                                     const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                                     const Tensor& v, std::span<const AttentionSpan> spans,
                                     const AttentionShape& shape) {
  count_attention(spans, shape, 5);
  moved({dq.tensor, dk.tensor, dv.tensor, dout, out, lse, q, k, v});
}

}  // namespace saaz
