// StepKernels: the kernels of one decoding step, for a backend that has them (Backend::step_kernels). A step is one new
// token of each of T sequences. What differs from step to step (ids, positions, where keys lie) stays in memory of the
// backend's own, so that a step can be recorded once and repeated. Kernels here do in one launch what several of
// backend.h do: the same formulas (gemma3n.md 3), sums and everything in between in f32. As there: shapes are the
// caller's to check, and a row's result depends on its own row only.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "backend/backend.h"

namespace saaz {

/// One token of each sequence. Spans have one query each, in the order of the ids.
struct StepTokens {
  std::span<const int32_t> ids;
  std::array<std::span<const AttentionSpan>, 2> spans;  // by layer type
};

class StepKernels {
 public:
  virtual ~StepKernels() = default;
  /// Rows of a step at most.
  static constexpr int64_t kMostRows = 256;

  /// A step that was queued before. It refers to memory that its owner must keep.
  class Recording {
   public:
    virtual ~Recording() = default;
  };
  /// Queues one step: what `queue` queues through these kernels. With the same recording, `queue` must queue the same
  /// kernels on the same tensors each time; then it may be called the first few times only.
  virtual void run(std::unique_ptr<Recording>& recording, const StepTokens& tokens,
                   const std::function<void()>& queue) = 0;

  /// Inside `queue`: a recording may end here and another begin, so that the first one runs while the next is on its
  /// way.
  virtual void cut() = 0;

  // Inside `queue`. T = ids.size(); activations have the backend's dtype.

  /// out[t] = scale * table[id of t]; ids beyond the table take its row 0.
  virtual void embed(const Tensor& out, const Weight& table, float scale) = 0;

  struct Product {
    Tensor y, x;  // [T, n_out] (or f32), [T, n_in]
    Weight w;
    float cap = 0;  // > 0: y = cap tanh(y / cap)
  };
  static constexpr size_t kMostProducts = 4;
  /// Each y = x w^T; of at most kMostProducts, none reads another's result.
  virtual void products(std::span<const Product> products) = 0;

  /// y = gelu(z~(x gate^T)) * up: geglu of backend.h. `up` is x up_weight^T, or given where up_weight is empty. gate is
  /// scratch, and so is up where it is computed.
  struct Gated {
    Tensor y, x, gate, up;
    Weight gate_weight, up_weight;
    float sparsity_z = 0;
  };
  virtual void gated(const Gated& g) = 0;

  struct Attention {
    Tensor out, q, k, v;  // as the products leave them; k and v empty: the cache has the token's already
    Tensor k_cache, v_cache;
    Tensor q_norm, k_norm, rope_table;  // norm weights [head_dim]; v is normed without
    float norm_eps = 0;
    int layer_type = 0;
    int64_t longest = 0;  // positions of a sequence at most
    AttentionShape shape;
  };
  /// Shapes that `attention` has a kernel for: groups of 1, 2 or 4 heads; head_dim up to 256, halves of whole lanes.
  static bool takes_attention(const AttentionShape& shape) {
    const int64_t group = shape.n_heads / shape.n_kv_heads, dim = shape.head_dim;
    const int64_t width = dim <= 32 ? 1 : dim <= 64 ? 2 : dim <= 128 ? 4 : 8;
    return (group == 1 || group == 2 || group == 4) && shape.n_heads <= 64 && dim <= 256 && dim % (2 * width) == 0;
  }
  /// Norms and rotates, stores keys and values in the cache, attends.
  virtual void attention(const Attention& a) = 0;

  /// streams[0] = e, streams[j] = projected[j - 1] with e's magnitude.
  virtual void altup_start(const Tensor& streams, const Tensor& e, const Tensor& projected) = 0;
  /// out [L, T, P] = factor * (RMS(rho * projected) * norm + embedded), both [T, L * P], by slices of P.
  struct PerLayer {
    Tensor out, projected, embedded, norm;
    float eps = 0, rho = 1, factor = 1;
  };
  virtual void per_layer_inputs(const PerLayer& p) = 0;

  /// What gives AltUp its coefficients: coefs tanh(router RMS(x) norm); the norm's gain holds Gemma's 1 / D.
  struct Router {
    Tensor norm;    // [D] f32
    Weight router;  // [N, D], f32 or bf16
    Weight coefs;   // [n, N] f32
  };
  /// streams += RMS(update) update_norm, from the second stream on (update empty: nothing added; updated empty: not
  /// wanted). Then predicted = altup_predict(streams), and x = RMS(predicted[active]) input_norm (predicted empty: not
  /// wanted).
  struct AltUpOpen {
    Tensor updated, predicted, x, streams, update, update_norm, input_norm;
    Router router;
    int active = 0;
    float eps = 0;
  };
  virtual void altup_open(const AltUpOpen& a) = 0;
  /// mixed = (active + RMS(attention) attention_norm + x + RMS(laurel) laurel_norm) / sqrt(2), y = RMS(mixed) ffn_norm.
  struct Mix {
    Tensor mixed, y, active, attention, x, laurel, attention_norm, laurel_norm, ffn_norm;
    float eps = 0;
  };
  virtual void mix(const Mix& m) = 0;
  /// From attention on: its projection and LAuReL's second product, which mix reads; gated, whose x is mix.y; down,
  /// whose x is gated.y.
  struct FeedForward {
    Product attended, laurel;
    Mix mix;
    Gated gated;
    Product down;
  };
  virtual void feed_forward(const FeedForward& f) = 0;
  /// out = mixed + RMS(ffn) ffn_norm; corrected = altup_correct(predicted, out); scaled = corrected[active] scale.
  struct AltUpClose {
    Tensor corrected, scaled, mixed, ffn, predicted, ffn_norm, scale;
    Router router;
    int active = 0;
    float eps = 0;
  };
  virtual void altup_close(const AltUpClose& a) = 0;
  /// From one layer to the next: close; gated, whose x is close.scaled; update, whose x is gated.y; open, which adds
  /// update.y to close.corrected. What one of these hands to another need not be there afterwards.
  struct Turn {
    AltUpClose close;
    Gated gated;
    Product update;
    AltUpOpen open;
  };
  virtual void turn(const Turn& t) = 0;
  /// y = RMS(mean of streams[0] and projected[j], of streams[0]'s magnitude) norm.
  virtual void altup_finish(const Tensor& y, const Tensor& streams, const Tensor& projected, const Tensor& norm,
                            float eps) = 0;
  /// As products; of y f32 what is wanted. Logits that are made are the same bits whatever is wanted.
  virtual void head(const Product& head, LogitsWanted wanted) = 0;
};

}  // namespace saaz
