// ForwardingBackend: a backend for tests to derive from; every kernel is another backend's.
#pragma once

#include "backend/backend.h"

namespace saaz {

/// Every kernel is the inner backend's.
class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(Backend& inner) : in_(inner) {}

  std::string describe() const override { return in_.describe(); }
  DType activation_dtype() const override { return in_.activation_dtype(); }
  int64_t n_loss_rows() const override { return in_.n_loss_rows(); }
  void* allocate(int64_t bytes, const char* what) override { return in_.allocate(bytes, what); }
  void release(void* memory) override { in_.release(memory); }
  void copy(const Tensor& to, const Tensor& from) override { in_.copy(to, from); }
  void upload(const Tensor& to, const void* host) override { in_.upload(to, host); }
  void download(void* host, const Tensor& from) override { in_.download(host, from); }
  void fill(const Tensor& t, float value) override { in_.fill(t, value); }
  float* host_view(const Tensor& t) override { return in_.host_view(t); }
  Weight place(const Weight& w, Placement placement) override { return in_.place(w, placement); }

  void matmul_nt(const Tensor& y, const Tensor& x, const Weight& w, Write write) override {
    in_.matmul_nt(y, x, w, write);
  }
  void matmul_nn(const Tensor& dx, const Tensor& dy, const Weight& w, Write write) override {
    in_.matmul_nn(dx, dy, w, write);
  }
  void matmul_tn(const Tensor& dw, const Tensor& p, const Tensor& x, float scale, Write write) override {
    in_.matmul_tn(dw, p, x, scale, write);
  }
  void lora_forward(const Grad& y, const Tensor& h, const Tensor& x, const Tensor& a, const Tensor& b,
                    float scaling) override {
    in_.lora_forward(y, h, x, a, b, scaling);
  }
  void lora_backward(const Grad& dx, const Tensor& da, const Tensor& db, const Tensor& dh, const Tensor& dy,
                     const Tensor& x, const Tensor& h, const Tensor& a, const Tensor& b, float scaling) override {
    in_.lora_backward(dx, da, db, dh, dy, x, h, a, b, scaling);
  }
  void gather_rows(const Tensor& out, std::span<const int32_t> ids, const Weight& table, int64_t first_column,
                   float scale) override {
    in_.gather_rows(out, ids, table, first_column, scale);
  }
  void rms_norm(const Tensor& y, const Tensor& inv_rms, const Tensor& x, const Tensor& weight, float eps) override {
    in_.rms_norm(y, inv_rms, x, weight, eps);
  }
  void rms_norm_backward(const Grad& dx, const Tensor& dy, const Tensor& x, const Tensor& weight,
                         const Tensor& inv_rms) override {
    in_.rms_norm_backward(dx, dy, x, weight, inv_rms);
  }
  void add_rms_norm(const Tensor& y, const Tensor& inv_rms, const Tensor& a, const Tensor& x, const Tensor& weight,
                    float eps) override {
    in_.add_rms_norm(y, inv_rms, a, x, weight, eps);
  }
  void add_scaled(const Tensor& y, const Tensor& a, float alpha, const Tensor& b, float beta) override {
    in_.add_scaled(y, a, alpha, b, beta);
  }
  void accumulate(const Grad& dx, const Tensor& dy, float alpha) override { in_.accumulate(dx, dy, alpha); }
  void add_to_slices(const Tensor& y, const Tensor& x) override { in_.add_to_slices(y, x); }
  void sum_slices(const Grad& dx, const Tensor& dy, float alpha) override { in_.sum_slices(dx, dy, alpha); }
  void scale_columns(const Grad& y, const Tensor& x, const Tensor& v) override { in_.scale_columns(y, x, v); }
  void tanh(const Tensor& y, const Tensor& x) override { in_.tanh(y, x); }
  void tanh_backward(const Grad& dx, const Tensor& dy, const Tensor& y) override { in_.tanh_backward(dx, dy, y); }
  void softcap(const Tensor& logits, float cap) override { in_.softcap(logits, cap); }
  void geglu(const Tensor& y, const Tensor& mean_std, const Tensor& gate, const Tensor& up, float z) override {
    in_.geglu(y, mean_std, gate, up, z);
  }
  void geglu_backward(const Grad& dgate, const Grad& dup, const Tensor& dy, const Tensor& gate, const Tensor& up,
                      const Tensor& mean_std, float z) override {
    in_.geglu_backward(dgate, dup, dy, gate, up, mean_std, z);
  }
  bool joins_pairs(int64_t rank, int64_t n_in, int64_t n_out) const override {
    return in_.joins_pairs(rank, n_in, n_out);
  }
  void lora_down(const Tensor& h, const Tensor& x, const Tensor& a) override { in_.lora_down(h, x, a); }
  void geglu_pairs(const Tensor& y, const Tensor& gate, const Tensor& up, const PairPart& of_gate,
                   const PairPart& of_up) override {
    in_.geglu_pairs(y, gate, up, of_gate, of_up);
  }
  void geglu_pairs_backward(const Tensor& dgate, const Tensor& dup, const Tensor& dy, const Tensor& gate,
                            const Tensor& up, const PairPart& of_gate, const PairPart& of_up, const Tensor& dh,
                            const Tensor& a) override {
    in_.geglu_pairs_backward(dgate, dup, dy, gate, up, of_gate, of_up, dh, a);
  }
  void rope(const Grad& y, const Tensor& x, std::span<const int32_t> positions, const Tensor& table, int64_t n_heads,
            Rotation rotation) override {
    in_.rope(y, x, positions, table, n_heads, rotation);
  }
  void attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                 std::span<const AttentionSpan> spans, const AttentionShape& shape) override {
    in_.attention(out, lse, q, k, v, spans, shape);
  }
  void attention_backward(const Grad& dq, const Grad& dk, const Grad& dv, const Tensor& dout, const Tensor& out,
                          const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                          std::span<const AttentionSpan> spans, const AttentionShape& shape) override {
    in_.attention_backward(dq, dk, dv, dout, out, lse, q, k, v, spans, shape);
  }
  void scatter_rows(const Tensor& cache, std::span<const int64_t> rows, const Tensor& x) override {
    in_.scatter_rows(cache, rows, x);
  }
  void select_rows(const Tensor& y, const Tensor& x, std::span<const int32_t> rows) override {
    in_.select_rows(y, x, rows);
  }
  void split_columns(const Grad& y, const Tensor& x, Split direction) override { in_.split_columns(y, x, direction); }
  void select_rows_backward(const Grad& dx, const Tensor& dy, std::span<const int32_t> rows) override {
    in_.select_rows_backward(dx, dy, rows);
  }
  void altup_predict(const Tensor& p, const Tensor& streams, const Tensor& coefs) override {
    in_.altup_predict(p, streams, coefs);
  }
  void altup_predict_backward(const Grad& dstreams, const Grad& dcoefs, const Tensor& dp, const Tensor& streams,
                              const Tensor& coefs) override {
    in_.altup_predict_backward(dstreams, dcoefs, dp, streams, coefs);
  }
  void altup_correct(const Tensor& q, const Tensor& p, const Tensor& v, const Tensor& gains, int active) override {
    in_.altup_correct(q, p, v, gains, active);
  }
  void altup_correct_backward(const Grad& dp, const Grad& dv, const Grad& dgains, const Tensor& dq, const Tensor& p,
                              const Tensor& v, const Tensor& gains, int active) override {
    in_.altup_correct_backward(dp, dv, dgains, dq, p, v, gains, active);
  }
  void match_magnitude(const Tensor& y, const Tensor& b, const Tensor& reference) override {
    in_.match_magnitude(y, b, reference);
  }
  void match_magnitude_backward(const Grad& db, const Grad& dreference, const Tensor& dy, const Tensor& b,
                                const Tensor& reference) override {
    in_.match_magnitude_backward(db, dreference, dy, b, reference);
  }
  void cross_entropy(const Tensor& logits, const Tensor& losses, std::span<const int32_t> targets, float cap,
                     float scale, const Tensor& gradient) override {
    in_.cross_entropy(logits, losses, targets, cap, scale, gradient);
  }
  double sum_of_squares(const Tensor& x) override { return in_.sum_of_squares(x); }
  void adamw_f32(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const AdamWStep& step) override {
    in_.adamw_f32(p, g, m, v, step);
  }
  void adamw_8bit(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const Tensor& m_absmax,
                  const Tensor& v_absmax, const AdamWStep& step) override {
    in_.adamw_8bit(p, g, m, v, m_absmax, v_absmax, step);
  }

 protected:
  Backend& in_;
};

}  // namespace saaz
