// PlanBackend: a backend that launches nothing. Running one step on it (with measuring arenas) gives peak bytes by
// name, floating-point operations and bytes moved, so that memory is known before anything is allocated.
#pragma once

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "backend/backend.h"

namespace saaz {

struct PlanReport {
  std::map<std::string, int64_t> allocated_bytes;  // by the name given to Backend::allocate, or added by `count`
  double matmul_flops = 0, attention_flops = 0;
  double bytes_moved = 0;  // read and written by kernels, each operand once
  int64_t n_kernels = 0;
  std::map<int, int64_t> parked_bytes;  // of host memory, by place
  double flops() const { return matmul_flops + attention_flops; }
  int64_t total_bytes() const;
};

class PlanBackend final : public Backend {
 public:
  PlanReport report;

  PlanBackend() = default;
  /// Counts what `like` would take. Of a CPU: allocations; weights stay where they are. Of a GPU: also weights placed.
  explicit PlanBackend(const Backend& like);

  DType activation_dtype() const override { return activations_; }
  Weight place(const Weight& w, Placement placement) override;
  int64_t n_loss_rows() const override { return is_gpu_ && residence_.dense_weights ? kLossRowsForSpeed : kLossRows; }
  Residence residence() const override { return residence_; }
  void set_residence(const Residence& residence) override { residence_ = residence; }
  std::string describe() const override { return "plan (nothing runs)"; }
  bool is_plan() const override { return true; }
  void* allocate(int64_t bytes, const char* what) override;
  void release(void*) override {}
  void copy(const Tensor& to, const Tensor& from) override { moved({to, from}); }
  void upload(const Tensor& to, const void*) override { moved({to}); }
  void download(void*, const Tensor& from) override { moved({from}); }
  void fill(const Tensor& t, float) override { moved({t}); }
  bool can_park() const override { return is_gpu_; }
  void park(int place, const Tensor& from) override {
    int64_t& bytes = report.parked_bytes[place];
    bytes = std::max(bytes, from.bytes());
  }
  /// Bytes of the scratch memory of a GPU's kernels.
  int64_t scratch_bytes() const;
  void matmul_nt(const Tensor& y, const Tensor& x, const Weight& w, Write) override { product(x.rows(), w, {y, x}); }
  void matmul_nn(const Tensor& dx, const Tensor& dy, const Weight& w, Write) override {
    product(dy.rows(), w, {dx, dy});
  }
  void matmul_tn(const Tensor& dw, const Tensor& p, const Tensor& x, float, Write) override {
    report.matmul_flops += 2.0 * static_cast<double>(p.size()) * static_cast<double>(x.dim(-1));
    moved({dw, p, x});
  }
  void lora_forward(const Grad& y, const Tensor& h, const Tensor& x, const Tensor& a, const Tensor& b, float) override;
  void lora_backward(const Grad& dx, const Tensor& da, const Tensor& db, const Tensor& dh, const Tensor& dy,
                     const Tensor& x, const Tensor& h, const Tensor& a, const Tensor& b, float) override;
  void gather_rows(const Tensor& out, std::span<const int32_t>, const Weight& table, int64_t, float) override;
  void rms_norm(const Tensor& y, const Tensor& inv_rms, const Tensor& x, const Tensor& weight, float) override {
    moved({y, inv_rms, x, weight});
  }
  void rms_norm_backward(const Grad& dx, const Tensor& dy, const Tensor& x, const Tensor& weight,
                         const Tensor&) override {
    moved({dx.tensor, dy, x, weight});
  }
  void add_scaled(const Tensor& y, const Tensor& a, float, const Tensor& b, float) override { moved({y, a, b}); }
  void accumulate(const Grad& dx, const Tensor& dy, float) override { moved({dx.tensor, dy}); }
  void scale_columns(const Grad& y, const Tensor& x, const Tensor& v) override { moved({y.tensor, x, v}); }
  void tanh(const Tensor& y, const Tensor& x) override { moved({y, x}); }
  void tanh_backward(const Grad& dx, const Tensor& dy, const Tensor& y) override { moved({dx.tensor, dy, y}); }
  void softcap(const Tensor& logits, float) override { moved({logits, logits}); }
  void geglu(const Tensor& y, const Tensor& mean_std, const Tensor& gate, const Tensor& up, float) override {
    moved({y, mean_std, gate, up});
  }
  void geglu_backward(const Grad& dgate, const Grad& dup, const Tensor& dy, const Tensor& gate, const Tensor& up,
                      const Tensor&, float) override {
    moved({dgate.tensor, dup.tensor, dy, gate, up});
  }
  void rope(const Grad& y, const Tensor& x, std::span<const int32_t>, const Tensor&, int64_t, Rotation) override {
    moved({y.tensor, x});
  }
  void attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                 std::span<const AttentionSpan> spans, const AttentionShape& shape) override;
  void attention_backward(const Grad& dq, const Grad& dk, const Grad& dv, const Tensor& dout, const Tensor& out,
                          const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                          std::span<const AttentionSpan> spans, const AttentionShape& shape) override;
  void scatter_rows(const Tensor&, std::span<const int64_t>, const Tensor& x) override { moved({x, x}); }
  void select_rows(const Tensor& y, const Tensor&, std::span<const int32_t>) override { moved({y, y}); }
  void split_columns(const Grad& y, const Tensor& x, Split) override { moved({y.tensor, x}); }
  void select_rows_backward(const Grad& dx, const Tensor& dy, std::span<const int32_t>) override {
    moved({dx.tensor, dy});
  }
  void altup_predict(const Tensor& p, const Tensor& streams, const Tensor& coefs) override {
    moved({p, streams, coefs});
  }
  void altup_predict_backward(const Grad& dstreams, const Grad& dcoefs, const Tensor& dp, const Tensor& streams,
                              const Tensor& coefs) override {
    moved({dstreams.tensor, dcoefs.tensor, dp, streams, coefs});
  }
  void altup_correct(const Tensor& q, const Tensor& p, const Tensor& v, const Tensor& gains, int) override {
    moved({q, p, v, gains});
  }
  void altup_correct_backward(const Grad& dp, const Grad& dv, const Grad& dgains, const Tensor& dq, const Tensor& p,
                              const Tensor& v, const Tensor&, int) override {
    moved({dp.tensor, dv.tensor, dgains.tensor, dq, p, v});
  }
  void match_magnitude(const Tensor& y, const Tensor& b, const Tensor& reference) override { moved({y, b, reference}); }
  void match_magnitude_backward(const Grad& db, const Grad& dreference, const Tensor& dy, const Tensor& b,
                                const Tensor& reference) override {
    moved({db.tensor, dreference.tensor, dy, b, reference});
  }
  void cross_entropy(const Tensor& logits, const Tensor& losses, std::span<const int32_t>, float, float,
                     const Tensor& gradient) override {
    moved({logits, gradient, losses});
  }
  double sum_of_squares(const Tensor& x) override { return moved({x}), 0; }
  void adamw_f32(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const AdamWStep&) override {
    moved({p, p, g, m, m, v, v});
  }
  void adamw_8bit(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const Tensor& m_absmax,
                  const Tensor& v_absmax, const AdamWStep&) override {
    moved({p, p, g, m, m, v, v, m_absmax, v_absmax});
  }

 private:
  void moved(std::initializer_list<Tensor> operands);
  void product(int64_t n_rows, const Weight& w, std::initializer_list<Tensor> operands);
  void count_attention(std::span<const AttentionSpan> spans, const AttentionShape& shape, double products_per_pair);

  DType activations_ = DType::f32;
  bool is_gpu_ = false;
  Residence residence_;
  std::set<const void*> host_tables_;
  // As the scratch slots of cuda_backend.h: one each, of the largest size asked for.
  enum Scratch : int { dequantised, pair, pair_parts, gathered, row_products };
  std::map<Scratch, int64_t> scratch_;
  void need(Scratch slot, int64_t bytes);
  void need_pair(const Tensor& x, const Tensor& a, const Tensor& b);
};

/// Bytes a weight occupies in its format (scales included).
int64_t weight_bytes(const Weight& w);

}  // namespace saaz
