// Ops: each checks shapes, allocates its output in the arena, runs one backend kernel and records its derivative. Model
// code is written in these alone. T = tokens, D = hidden size. Formulas: docs/architecture.md names the source of each.
#pragma once

#include <span>
#include <string>

#include "autograd/tape.h"

namespace saaz {

/// A LoRA pair on one linear: y += scaling * b (a x). Gradients are added into da, db (views of the trainer's flat
/// buffer).
struct LoraPair {
  Tensor a, b;    // [r, n_in], [n_out, r] f32
  Tensor da, db;  // same shapes; empty when not training
  float scaling = 1;
};

/// A frozen linear of any weight format, with an optional adapter. `name` is the Hugging Face module path.
struct Linear {
  std::string name;
  Weight weight;
  const LoraPair* lora = nullptr;
  int32_t index = -1;  // among the model's linears; -1: no adapter attaches to it
};

/// Generation: rows [begin, begin + n) of a batch pass through an adapter of their own; those that none names pass
/// through none.
struct AdapterRows {
  int64_t begin = 0, n = 0;
  std::span<const LoraPair* const> pairs;  // by Linear::index; null: this linear is not adapted
};

// ops/linear.cc
/// y[T, n_out] = x[T, n_in] W^T (+ LoRA)
Tensor linear(Ctx& ctx, const Tensor& x, const Linear& w);
/// scale * table[id, first_column : first_column + n_columns] per token, [T, n_columns]; frozen.
Tensor embed(Ctx& ctx, std::span<const int32_t> ids, const Weight& table, int64_t first_column, int64_t n_columns,
             float scale);

// ops/norm.cc
struct Norm {
  Tensor weight;  // [dim] f32, empty: no gain
  float eps = 1e-6f;
};
/// a + rms_norm(x), per row.
Tensor add_rms_norm(Ctx& ctx, const Tensor& a, const Tensor& x, const Norm& norm);
/// Per row of the last axis; `head_dim` > 0 normalises each slice of that many columns instead.
Tensor rms_norm(Ctx& ctx, const Tensor& x, const Norm& norm, int64_t head_dim);

// ops/elementwise.cc
/// factor * (a + b)
Tensor add(Ctx& ctx, const Tensor& a, const Tensor& b, float factor);
Tensor scale(Ctx& ctx, const Tensor& x, float factor);
Tensor tanh(Ctx& ctx, const Tensor& x);
/// y[row, :] = x[row, :] * v; v [dim] frozen.
Tensor scale_columns(Ctx& ctx, const Tensor& x, const Tensor& v);
/// y[i, :] = x[rows[i], :]; rows distinct.
Tensor select_rows(Ctx& ctx, const Tensor& x, std::span<const int32_t> rows);
/// Copies slices [T, D] into one [N, T, D].
Tensor stack(Ctx& ctx, std::span<const Tensor> slices);
/// [T, n * dim] as [n, T, dim].
Tensor split_columns(Ctx& ctx, const Tensor& x, int64_t n);
/// Slice i of [N, T, D] as [T, D] (a view).
Tensor slice(Ctx& ctx, const Tensor& streams, int64_t i);

// ops/mlp.cc
enum class Operands : uint8_t { kept, given };  // given: nobody reads them after, their gradients may take their memory
/// gelu(z~) * up, z~ = gate or its sparse form (backend.h geglu). sparsity_z 0 = dense.
Tensor geglu(Ctx& ctx, const Tensor& gate, const Tensor& up, float sparsity_z, Operands operands = Operands::kept);

/// down(gelu(z~ of gate(x)) * up(x)). Where all three linears train a pair it is one op, which keeps gate and up for
/// its gradients and gives their memory, and that of the activation, to them.
Tensor gated_mlp(Ctx& ctx, const Tensor& x, const Linear& gate, const Linear& up, const Linear& down, float sparsity_z);

// ops/attention.cc
Tensor rope(Ctx& ctx, const Tensor& x, std::span<const int32_t> positions, const Tensor& table, int64_t n_heads);
Tensor attention(Ctx& ctx, const Tensor& q, const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans,
                 const AttentionShape& shape);

// ops/altup.cc
Tensor altup_predict(Ctx& ctx, const Tensor& streams, const Tensor& coefs);
Tensor altup_correct(Ctx& ctx, const Tensor& predicted, const Tensor& activated, const Tensor& gains, int active);
Tensor match_magnitude(Ctx& ctx, const Tensor& x, const Tensor& reference);
/// streams with `update` [T, D] added to streams 1..N-1, in their own memory: nobody reads `streams` after.
Tensor add_to_inactive(Ctx& ctx, const Tensor& streams, const Tensor& update);
/// Mean over N of [N, T, D].
Tensor mean_of_streams(Ctx& ctx, const Tensor& streams);

// ops/loss.cc
struct Head {
  Weight weight;      // [vocab, D]
  float softcap = 0;  // 0 = none
};
/// Per-row losses [T] in nats of hidden x [T, D] against targets (-1: unscored, loss 0), chunk by chunk. When x is
/// tracked the gradient of scale * sum(losses) is computed in the same pass; seed the result with any tensor to send it
/// on.
Tensor head_loss(Ctx& ctx, const Tensor& x, const Head& head, std::span<const int32_t> targets, float scale);
/// logits [T, vocab] of hidden x [T, D], softcapped; for generation (few rows), never recorded.
Tensor head_logits(Ctx& ctx, const Tensor& x, const Head& head);

}  // namespace saaz
