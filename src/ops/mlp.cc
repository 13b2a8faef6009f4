#include "base/check.h"
#include "ops/ops.h"

namespace saaz {

Tensor geglu(Ctx& ctx, const Tensor& gate, const Tensor& up, float sparsity_z) {
  check(gate.same_shape(up), ExitCode::bug, "geglu: gate {} and up {} differ", gate.describe(), up.describe());
  Tensor y = ctx.empty_like(gate);
  Tensor mean_std = sparsity_z != 0 ? ctx.empty_f32({gate.rows(), 2}) : Tensor{};
  ctx.backend.geglu(y, mean_std, gate, up, sparsity_z);
  ctx.record(y, {gate, up}, [=](Ctx& ctx, const Tensor& dy) {
    const Grad dup = ctx.grad(up), dgate = ctx.grad(gate);  // in the order the kernel writes them: gate may be up
    ctx.backend.geglu_backward(dgate, dup, dy, gate, up, mean_std, sparsity_z);
  });
  return y;
}

}  // namespace saaz
