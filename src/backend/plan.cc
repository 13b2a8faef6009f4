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

namespace {
/// What a GPU's driver takes for an allocation: pages of 2 MiB for large ones.
int64_t paged(int64_t bytes) {
  const int64_t page = bytes >= 1 << 20 ? 2 << 20 : 512;
  return (bytes + page - 1) / page * page;
}
}  // namespace

PlanBackend::PlanBackend(const Backend& like)
    : activations_(like.activation_dtype()), is_gpu_(like.can_park()), residence_(like.residence()) {}

Weight PlanBackend::place(const Weight& w, Placement placement) {
  if (!is_gpu_) return w;
  if (placement == Placement::rows && !residence_.tables) {
    host_tables_.insert(w.data);
    return w;
  }
  // As cuda/cuda_weights.cu places them: blocks other than NF4's become dense.
  const bool is_kept = (w.format == WeightFormat::nf4 && !residence_.dense_weights) || w.format == WeightFormat::bf16;
  report.allocated_bytes[placement == Placement::rows ? "embedding tables" : "weights"] +=
      paged(is_kept ? weight_bytes(w) : w.size() * saaz::size_of(activations_));
  return w;
}

void PlanBackend::need(Scratch slot, int64_t bytes) {
  int64_t& most = scratch_[slot];
  if (is_gpu_) most = std::max(most, bytes);
}

int64_t PlanBackend::scratch_bytes() const {
  int64_t sum = 0;
  for (const auto& [slot, bytes] : scratch_) sum += paged(bytes);
  return sum;
}

void* PlanBackend::allocate(int64_t bytes, const char* what) {
  report.allocated_bytes[what] += is_gpu_ ? paged(bytes) : bytes;
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
  const bool is_dense = w.format == WeightFormat::nf4 ? residence_.dense_weights : true;
  if (!is_dense) need(Scratch::dequantised, w.size() * saaz::size_of(activations_));
}

void PlanBackend::gather_rows(const Tensor& out, std::span<const int32_t> ids, const Weight& table, int64_t, float) {
  moved({out});
  if (!host_tables_.contains(table.data)) return;
  const BlockSize block = block_size(table.format);
  const int64_t size = block.elements == 1 ? block.bytes : static_cast<int64_t>(sizeof(float));
  need(Scratch::gathered, static_cast<int64_t>(ids.size()) * out.dim(-1) * size);
}

void PlanBackend::lora_forward(const Grad& y, const Tensor& h, const Tensor& x, const Tensor& a, const Tensor& b,
                               float) {
  report.matmul_flops += 2.0 * static_cast<double>(x.rows()) * static_cast<double>(a.size() + b.size());
  moved({y.tensor, h, x, a, b});
  need_pair(x, a, b);
}

void PlanBackend::need_pair(const Tensor& x, const Tensor& a, const Tensor& b) {
  // cuda_lora.cu: the pair rounded, and those of a gated activation; the sums over parts of the rows, of which there
  // are fewer the wider they are, and h in parts of the columns.
  constexpr int64_t kPartSums = int64_t{9} << 20, kStrip = 2048;
  need(Scratch::pair, (2 * a.size() + 3 * b.size()) * saaz::size_of(activations_));
  const int64_t strips = std::max(a.dim(1), b.dim(0)) / kStrip + 1;
  need(Scratch::pair_parts, kPartSums + strips * x.rows() * a.dim(0) * 4);
}

void PlanBackend::lora_backward(const Grad& dx, const Tensor& da, const Tensor& db, const Tensor& dh, const Tensor& dy,
                                const Tensor& x, const Tensor& h, const Tensor& a, const Tensor& b, float) {
  const double products = dx.wanted() ? 2 : 1;  // da always, dx when wanted; db and dh both cost |b|
  report.matmul_flops += 2.0 * static_cast<double>(x.rows()) *
                         (products * static_cast<double>(a.size()) + 2.0 * static_cast<double>(b.size()));
  moved({dx.tensor, da, db, dh, dy, x, h, a, b});
  need_pair(x, a, b);
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
  need(Scratch::row_products, q.rows() * shape.n_heads * 4);
}

}  // namespace saaz
