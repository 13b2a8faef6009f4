#include "base/check.h"
#include "ops/ops.h"

namespace saaz {

Tensor altup_predict(Ctx& ctx, const Tensor& streams, const Tensor& coefs) {
  check(coefs.dim(-1) == streams.dim(0) * streams.dim(0) && coefs.rows() == streams.dim(1), ExitCode::bug,
        "altup_predict: coefs {} do not fit streams {}", coefs.describe(), streams.describe());
  Tensor p = ctx.empty_like(streams);
  ctx.backend.altup_predict(p, streams, coefs);
  ctx.record(p, {streams, coefs}, [=](Ctx& ctx, const Tensor& dp) {
    const Grad dstreams = ctx.grad(streams), dcoefs = ctx.grad(coefs);
    ctx.backend.altup_predict_backward(dstreams, dcoefs, dp, streams, coefs);
  });
  return p;
}

Tensor altup_correct(Ctx& ctx, const Tensor& predicted, const Tensor& activated, const Tensor& gains, int active) {
  check(gains.dim(-1) == predicted.dim(0) && activated.rows() == predicted.dim(1), ExitCode::bug,
        "altup_correct: gains {} do not fit streams {}", gains.describe(), predicted.describe());
  Tensor q = ctx.empty_like(predicted);
  ctx.backend.altup_correct(q, predicted, activated, gains, active);
  ctx.record(q, {predicted, activated, gains}, [=](Ctx& ctx, const Tensor& dq) {
    const Grad dp = ctx.grad(predicted), dv = ctx.grad(activated), dgains = ctx.grad(gains);
    ctx.backend.altup_correct_backward(dp, dv, dgains, dq, predicted, activated, gains, active);
  });
  return q;
}

Tensor match_magnitude(Ctx& ctx, const Tensor& x, const Tensor& reference) {
  check(x.same_shape(reference), ExitCode::bug, "match_magnitude: {} and {} differ", x.describe(),
        reference.describe());
  Tensor y = ctx.empty_like(x);
  ctx.backend.match_magnitude(y, x, reference);
  ctx.record(y, {x, reference}, [=](Ctx& ctx, const Tensor& dy) {
    const Grad dx = ctx.grad(x), dreference = ctx.grad(reference);
    ctx.backend.match_magnitude_backward(dx, dreference, dy, x, reference);
  });
  return y;
}

Tensor add_to_inactive(Ctx& ctx, const Tensor& streams, const Tensor& update) {
  const int64_t n_tokens = streams.dim(1);
  const auto inactive = [n_tokens](const Tensor& t) { return row_slice(t, n_tokens, t.rows() - n_tokens); };
  ctx.backend.add_to_slices(inactive(streams), update);
  Tensor y = streams;
  ctx.record(y, {streams, update}, [=](Ctx& ctx, const Tensor& dy) {
    if (const Grad d = ctx.grad(update); d.wanted()) ctx.backend.sum_slices(d, inactive(dy), 1);
    if (ctx.hand_on(streams, dy)) return;
    ctx.backend.accumulate(ctx.grad(streams), dy, 1);
  });
  return y;
}

Tensor mean_of_streams(Ctx& ctx, const Tensor& streams) {
  const int64_t n_tokens = streams.dim(1), n_streams = streams.dim(0);
  const float factor = 1.0f / static_cast<float>(n_streams);
  Tensor y = ctx.empty({n_tokens, streams.dim(2)});
  ctx.backend.sum_slices({y, Write::overwrite}, streams, factor);
  ctx.record(y, {streams}, [=](Ctx& ctx, const Tensor& dy) {
    const Grad d = ctx.grad(streams);
    for (int64_t j = 0; j < n_streams; ++j)
      ctx.backend.accumulate({row_slice(d.tensor, j * n_tokens, n_tokens), d.write}, dy, factor);
  });
  return y;
}

}  // namespace saaz
