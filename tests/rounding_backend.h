// RoundingBackend: an f32 backend on the host whose values pass through bf16 at chosen places; the rest stays exact.
// With every place it stores what a system with bf16 activations stores, so it says what bf16 costs, whoever computes.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <set>
#include <vector>

#include "forwarding_backend.h"
#include "lora/lora.h"

namespace saaz {

/// What RoundingBackend rounds. Sums, statistics, logits and the gradients of pairs are f32 always.
enum Places : unsigned {
  kWeights = 1,           // matrices of products and tables, as a 16-bit checkpoint holds them
  kPairs = 2,             // LoRA pairs where they enter a product
  kOperands = 4,          // what a forward product reads, where it reads it
  kGradientOperands = 8,  // what a backward product reads
  kProducts = 16,         // from here on what is stored: results of forward products, and rows of tables
  kSparseGates = 32,      // those of the gates that a threshold cuts
  kNorms = 64,            // norms, and what rows are scaled by or squeezed through
  kAttention = 128,       // rotated queries and keys, attention's results
  kActivations = 256,     // gated activations
  kStreams = 512,         // sums: the residual stream, AltUp's
  kGradients = 1024,      // gradients of all of them
  kAllOperands = kPairs | kOperands | kGradientOperands,
  kForwardStores = kProducts | kSparseGates | kNorms | kAttention | kActivations | kStreams,
  kStores = kPairs | kForwardStores | kGradients,  // operands are stored before they are read
};

class RoundingBackend : public ForwardingBackend {
 public:
  /// seed 0: to nearest even. Else each rounding is to the nearest point of bf16's grid shifted at random: an error as
  /// large, independent of all others, so that seeds give independent draws of what rounding at these places does.
  /// Weights are rounded to nearest always.
  RoundingBackend(Backend& inner, unsigned places, uint64_t seed = 0)
      : ForwardingBackend(inner), places_(places), state_(seed) {}

  /// Which products give logits and which sparse gates.
  void learn(const Model& model, const Adapter& adapter) {
    heads_.insert(model.head().weight.data);
    for (const Adapter::Module& module : adapter.modules()) {
      size_t layer = 0;
      if (!module.linear->name.ends_with(".gate_proj") ||
          std::sscanf(module.linear->name.c_str(), "layers.%zu.", &layer) != 1 ||
          model.config().activation_sparsity_z[layer] == 0)
        continue;
      sparse_gates_.insert({module.linear->weight.data, module.pair.b.data});
    }
  }

  void matmul_nt(const Tensor& y, const Tensor& x, const Weight& w, Write write) override {
    in_.matmul_nt(y, operand(x, kOperands, 0), matrix(w), write);
    if (!heads_.contains(w.data)) store(y, sparse_gates_.contains(w.data) ? kSparseGates : kProducts);
  }
  void matmul_nn(const Tensor& dx, const Tensor& dy, const Weight& w, Write write) override {
    in_.matmul_nn(dx, operand(dy, kGradientOperands, 0), matrix(w), write);
    store(dx, kGradients);
  }
  void lora_forward(const Grad& y, const Tensor& h, const Tensor& x, const Tensor& a, const Tensor& b,
                    float scaling) override {
    // In two calls: h is rounded before it enters the second product.
    in_.matmul_nt(h, operand(x, kOperands, 0), dense_weight(operand(a, kPairs, 1)), Write::overwrite);
    store(h, kProducts);
    const Tensor left = operand(h, kOperands, 0);
    Tensor scaled = copy_of(operand(b, kPairs, 1), 2);
    for (int64_t i = 0; i < scaled.size(); ++i) scaled.f32()[i] *= scaling;
    in_.matmul_nt(y.tensor, left, dense_weight(scaled), y.write);
    store(y, sparse_gates_.contains(b.data) ? kSparseGates : kProducts);
  }
  void lora_backward(const Grad& dx, const Tensor& da, const Tensor& db, const Tensor& dh, const Tensor& dy,
                     const Tensor& x, const Tensor& h, const Tensor& a, const Tensor& b, float scaling) override {
    const Tensor left = operand(dy, kGradientOperands, 0);
    in_.matmul_nn(dh, left, dense_weight(operand(b, kPairs, 1)), Write::overwrite);
    for (int64_t i = 0; i < dh.size(); ++i) dh.f32()[i] *= scaling;
    store(dh, kGradients);
    in_.matmul_tn(db, left, operand(h, kOperands, 1), scaling, Write::add);
    const Tensor low = operand(dh, kGradientOperands, 0);
    in_.matmul_tn(da, low, operand(x, kOperands, 1), 1, Write::add);
    if (!dx.wanted()) return;
    in_.matmul_nn(dx.tensor, low, dense_weight(operand(a, kPairs, 1)), dx.write);
    store(dx, kGradients);
  }
  void gather_rows(const Tensor& out, std::span<const int32_t> ids, const Weight& table, int64_t first_column,
                   float scale) override {
    in_.gather_rows(out, ids, matrix(table), first_column, scale);
    store(out, kProducts);
  }
  void rms_norm(const Tensor& y, const Tensor& inv_rms, const Tensor& x, const Tensor& weight, float eps) override {
    in_.rms_norm(y, inv_rms, x, weight, eps);
    store(y, kNorms);
  }
  void rms_norm_backward(const Grad& dx, const Tensor& dy, const Tensor& x, const Tensor& weight,
                         const Tensor& inv_rms) override {
    in_.rms_norm_backward(dx, dy, x, weight, inv_rms);
    store(dx, kGradients);
  }
  void add_rms_norm(const Tensor& y, const Tensor& inv_rms, const Tensor& a, const Tensor& x, const Tensor& weight,
                    float eps) override {
    in_.add_rms_norm(y, inv_rms, a, x, weight, eps);
    store(y, kStreams);
  }
  void add_scaled(const Tensor& y, const Tensor& a, float alpha, const Tensor& b, float beta) override {
    in_.add_scaled(y, a, alpha, b, beta);
    store(y, kStreams);
  }
  void accumulate(const Grad& dx, const Tensor& dy, float alpha) override {
    in_.accumulate(dx, dy, alpha);
    if (dx.write == Write::add || alpha != 1) store(dx, kGradients);  // else a copy
  }
  void add_to_slices(const Tensor& y, const Tensor& x) override {
    in_.add_to_slices(y, x);
    store(y, kStreams);
  }
  void sum_slices(const Grad& dx, const Tensor& dy, float alpha) override {  // the mean of the streams; gradients
    in_.sum_slices(dx, dy, alpha);
    store(dx, kStreams);
  }
  void scale_columns(const Grad& y, const Tensor& x, const Tensor& v) override {
    in_.scale_columns(y, x, v);
    store(y, kNorms);
  }
  void tanh(const Tensor& y, const Tensor& x) override {
    in_.tanh(y, x);
    store(y, kNorms);
  }
  void tanh_backward(const Grad& dx, const Tensor& dy, const Tensor& y) override {
    in_.tanh_backward(dx, dy, y);
    store(dx, kGradients);
  }
  void geglu(const Tensor& y, const Tensor& mean_std, const Tensor& gate, const Tensor& up, float z) override {
    in_.geglu(y, mean_std, gate, up, z);
    store(y, kActivations);
  }
  void geglu_backward(const Grad& dgate, const Grad& dup, const Tensor& dy, const Tensor& gate, const Tensor& up,
                      const Tensor& mean_std, float z) override {
    in_.geglu_backward(dgate, dup, dy, gate, up, mean_std, z);
    store(dgate, kGradients), store(dup, kGradients);
  }
  bool joins_pairs(int64_t, int64_t, int64_t) const override { return false; }
  void rope(const Grad& y, const Tensor& x, std::span<const int32_t> positions, const Tensor& table, int64_t n_heads,
            Rotation rotation) override {
    in_.rope(y, x, positions, table, n_heads, rotation);
    store(y, rotation == Rotation::forward ? kAttention : kGradients);
  }
  void attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                 std::span<const AttentionSpan> spans, const AttentionShape& shape) override {
    in_.attention(out, lse, q, k, v, spans, shape);
    store(out, kAttention);
  }
  void attention_backward(const Grad& dq, const Grad& dk, const Grad& dv, const Tensor& dout, const Tensor& out,
                          const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                          std::span<const AttentionSpan> spans, const AttentionShape& shape) override {
    in_.attention_backward(dq, dk, dv, dout, out, lse, q, k, v, spans, shape);
    store(dq, kGradients), store(dk, kGradients), store(dv, kGradients);
  }
  void split_columns(const Grad& y, const Tensor& x, Split direction) override {
    in_.split_columns(y, x, direction);
    if (y.write == Write::add) store(y, kGradients);
  }
  void select_rows_backward(const Grad& dx, const Tensor& dy, std::span<const int32_t> rows) override {
    in_.select_rows_backward(dx, dy, rows);
    if (dx.write == Write::add) store(dx, kGradients);
  }
  void altup_predict(const Tensor& p, const Tensor& streams, const Tensor& coefs) override {
    in_.altup_predict(p, streams, coefs);
    store(p, kStreams);
  }
  void altup_predict_backward(const Grad& dstreams, const Grad& dcoefs, const Tensor& dp, const Tensor& streams,
                              const Tensor& coefs) override {
    in_.altup_predict_backward(dstreams, dcoefs, dp, streams, coefs);
    store(dstreams, kGradients), store(dcoefs, kGradients);
  }
  void altup_correct(const Tensor& q, const Tensor& p, const Tensor& v, const Tensor& gains, int active) override {
    in_.altup_correct(q, p, v, gains, active);
    store(q, kStreams);
  }
  void altup_correct_backward(const Grad& dp, const Grad& dv, const Grad& dgains, const Tensor& dq, const Tensor& p,
                              const Tensor& v, const Tensor& gains, int active) override {
    in_.altup_correct_backward(dp, dv, dgains, dq, p, v, gains, active);
    store(dp, kGradients), store(dv, kGradients), store(dgains, kGradients);
  }
  void match_magnitude(const Tensor& y, const Tensor& b, const Tensor& reference) override {
    in_.match_magnitude(y, b, reference);
    store(y, kStreams);
  }
  void match_magnitude_backward(const Grad& db, const Grad& dreference, const Tensor& dy, const Tensor& b,
                                const Tensor& reference) override {
    in_.match_magnitude_backward(db, dreference, dy, b, reference);
    store(db, kGradients), store(dreference, kGradients);
  }
  void cross_entropy(const Tensor& logits, const Tensor& losses, std::span<const int32_t> targets, float cap,
                     float scale, const Tensor& gradient) override {
    in_.cross_entropy(logits, losses, targets, cap, scale, gradient);
    if (!gradient.empty()) store(gradient, kGradients);
  }

 private:
  static float nearest(float x) { return bf16_to_f32(f32_to_bf16(x)); }
  /// xorshift64*; its upper bits in [-0.5, 0.5).
  float shift() {
    state_ ^= state_ >> 12, state_ ^= state_ << 25, state_ ^= state_ >> 27;
    return static_cast<float>(state_ * 0x2545f4914f6cdd1du >> 40) * 0x1p-24f - 0.5f;
  }
  float rounded(float x) {
    if (state_ == 0) return nearest(x);
    const float power = std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0x7f800000u);
    if (power == 0 || std::isinf(power)) return x;
    const float spacing = power * 0x1p-7f, by = shift();
    return (std::nearbyint(x / spacing + by) - by) * spacing;
  }
  void store(const Tensor& t, unsigned place) {
    if ((places_ & place) == 0 || t.empty()) return;
    float* values = t.f32();
    for (int64_t i = 0, n = t.size(); i < n; ++i) values[i] = rounded(values[i]);
  }
  void store(const Grad& g, unsigned place) { store(g.tensor, place); }
  /// The slot's copy of t, of the values of its own time.
  Tensor copy_of(const Tensor& t, size_t slot) {
    copies_[slot].assign(t.f32(), t.f32() + t.size());
    Tensor out = t;
    out.data = copies_[slot].data();
    return out;
  }
  /// t as a product reads it: t, or a rounded copy.
  Tensor operand(const Tensor& t, unsigned place, size_t slot) {
    if ((places_ & place) == 0) return t;
    const Tensor out = copy_of(t, slot);
    store(out, place);
    return out;
  }
  Weight matrix(const Weight& w) {
    if ((places_ & kWeights) == 0) return w;
    matrix_.resize(static_cast<size_t>(w.size()));
    dequantise(w, 0, w.size(), matrix_.data());
    const Tensor values(matrix_.data(), DType::f32, {w.n_out, w.n_in});
    for (float& value : matrix_) value = nearest(value);
    return dense_weight(values);
  }

  unsigned places_;
  uint64_t state_;
  std::set<const void*> sparse_gates_, heads_;
  std::array<std::vector<float>, 3> copies_;
  std::vector<float> matrix_;
};

}  // namespace saaz
