#include "base/check.h"
#include "ops/ops.h"

namespace saaz {

Tensor rope(Ctx& ctx, const Tensor& x, std::span<const int32_t> positions, const Tensor& table, int64_t n_heads) {
  check(x.dim(-1) == n_heads * table.dim(1) && static_cast<int64_t>(positions.size()) == x.rows(), ExitCode::bug,
        "rope: x {} does not fit {} heads of {}", x.describe(), n_heads, table.dim(1));
  Tensor y = ctx.empty_like(x);
  ctx.backend.rope({y, Write::overwrite}, x, positions, table, n_heads, Backend::Rotation::forward);
  ctx.record(y, {x}, [=](Ctx& ctx, const Tensor& dy) {
    ctx.backend.rope(ctx.grad(x), dy, positions, table, n_heads, Backend::Rotation::backward);
  });
  return y;
}

Tensor attention(Ctx& ctx, const Tensor& q, const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans,
                 const AttentionShape& shape) {
  check(
      q.dim(-1) == shape.n_heads * shape.head_dim && k.dim(-1) == shape.n_kv_heads * shape.head_dim && k.same_shape(v),
      ExitCode::bug, "attention: q {}, k {}, v {} do not fit {} heads, {} kv heads of {}", q.describe(), k.describe(),
      v.describe(), shape.n_heads, shape.n_kv_heads, shape.head_dim);
  Tensor out = ctx.empty_like(q);
  Tensor lse = ctx.tracking == Tracking::record ? ctx.empty_f32({q.rows(), shape.n_heads}) : Tensor{};
  ctx.backend.attention(out, lse, q, k, v, spans, shape);
  ctx.record(out, {q, k, v}, [=, saved = out](Ctx& ctx, const Tensor& dout) {
    const Grad dq = ctx.grad(q), dk = ctx.grad(k), dv = ctx.grad(v);
    ctx.backend.attention_backward(dq, dk, dv, dout, saved, lse, q, k, v, spans, shape);
  });
  return out;
}

}  // namespace saaz
