#include "base/check.h"
#include "ops/ops.h"

namespace saaz {

Tensor rms_norm(Ctx& ctx, const Tensor& x, const Norm& norm, int64_t head_dim) {
  const int64_t dim = head_dim > 0 ? head_dim : x.dim(-1);
  check(x.dim(-1) % dim == 0 && (norm.weight.empty() || norm.weight.size() == dim), ExitCode::bug,
        "rms_norm: weight {} does not fit x {} by {}", norm.weight.describe(), x.describe(), dim);
  // The same memory seen as rows of `dim`: each head is a row.
  const auto by_rows = [dim](Tensor t) {
    Tensor out(t.data, t.dtype, {t.size() / dim, dim});
    return out;
  };
  Tensor y = ctx.empty_like(x);
  Tensor inv_rms = ctx.empty_f32({x.size() / dim});
  ctx.backend.rms_norm(by_rows(y), inv_rms, by_rows(x), norm.weight, norm.eps);
  ctx.record(y, {x}, [=, weight = norm.weight](Ctx& ctx, const Tensor& dy) {
    Grad dx = ctx.grad(x);
    dx.tensor = by_rows(dx.tensor);
    ctx.backend.rms_norm_backward(dx, by_rows(dy), by_rows(x), weight, inv_rms);
  });
  return y;
}

Tensor add_rms_norm(Ctx& ctx, const Tensor& a, const Tensor& x, const Norm& norm) {
  check(a.same_shape(x) && (norm.weight.empty() || norm.weight.size() == x.dim(-1)), ExitCode::bug,
        "add_rms_norm: a {} and weight {} do not fit x {}", a.describe(), norm.weight.describe(), x.describe());
  Tensor y = ctx.empty_like(x);
  Tensor inv_rms = ctx.empty_f32({x.rows()});
  ctx.backend.add_rms_norm(y, inv_rms, a, x, norm.weight, norm.eps);
  ctx.record(y, {a, x}, [=, weight = norm.weight](Ctx& ctx, const Tensor& dy) {
    ctx.backend.rms_norm_backward(ctx.grad(x), dy, x, weight, inv_rms);
    if (ctx.hand_on(a, dy)) return;
    ctx.backend.accumulate(ctx.grad(a), dy, 1);
  });
  return y;
}

}  // namespace saaz
