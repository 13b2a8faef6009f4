#include <algorithm>

#include "base/check.h"
#include "ops/ops.h"

namespace saaz {

Tensor head_loss(Ctx& ctx, const Tensor& x, const Head& head, std::span<const int32_t> targets, float scale) {
  const int64_t n_rows = x.rows(), n_at_once = std::min(ctx.backend.n_loss_rows(), n_rows);
  check(static_cast<int64_t>(targets.size()) == n_rows && x.dim(-1) == head.weight.n_in, ExitCode::bug,
        "head_loss: {} targets for x {}", targets.size(), x.describe());
  const bool wants_gradient = ctx.tracking == Tracking::record && x.node != Ctx::kUntracked;
  Tensor losses = ctx.empty_f32({n_rows});
  Tensor dx = wants_gradient ? ctx.empty_like(x) : Tensor{};
  {
    ArenaScope scratch(ctx.arena);
    const Tensor all_logits = ctx.empty_f32({n_at_once, head.weight.n_out});
    Tensor all_gradients;
    if (wants_gradient) all_gradients = x.dtype == DType::f32 ? all_logits : ctx.empty({n_at_once, head.weight.n_out});
    for (int64_t row = 0; row < n_rows; row += n_at_once) {
      const int64_t n = std::min(n_at_once, n_rows - row);
      const Tensor logits = row_slice(all_logits, 0, n),
                   gradient = wants_gradient ? row_slice(all_gradients, 0, n) : Tensor{};
      const Tensor chunk_losses(losses.f32() + row, DType::f32, {n});
      ctx.backend.matmul_nt(logits, row_slice(x, row, n), head.weight, Write::overwrite);
      ctx.backend.cross_entropy(logits, chunk_losses, targets.subspan(static_cast<size_t>(row), static_cast<size_t>(n)),
                                head.softcap, scale, gradient);
      if (wants_gradient) ctx.backend.matmul_nn(row_slice(dx, row, n), gradient, head.weight, Write::overwrite);
    }
  }
  ctx.record(losses, {x}, [x, dx](Ctx& ctx, const Tensor&) { ctx.backend.accumulate(ctx.grad(x), dx, 1); });
  return losses;
}

Tensor head_logits(Ctx& ctx, const Tensor& x, const Head& head) {
  Tensor logits = ctx.empty_f32({x.rows(), head.weight.n_out});
  ctx.backend.matmul_nt(logits, x, head.weight, Write::overwrite);
  if (head.softcap > 0) ctx.backend.softcap(logits, head.softcap);
  return logits;
}

}  // namespace saaz
