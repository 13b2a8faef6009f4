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
  Tensor y = ctx.empty_like(streams);
  ctx.backend.copy(row_slice(y, 0, n_tokens), row_slice(streams, 0, n_tokens));
  for (int64_t j = 1; j < streams.dim(0); ++j)
    ctx.backend.add_scaled(row_slice(y, j * n_tokens, n_tokens), row_slice(streams, j * n_tokens, n_tokens), 1, update,
                           1);
  ctx.record(y, {streams, update}, [=](Ctx& ctx, const Tensor& dy) {
    if (const Grad d = ctx.grad(streams); d.wanted()) ctx.backend.accumulate(d, dy, 1);
    for (int64_t j = 1; update.node != Ctx::kUntracked && j < streams.dim(0); ++j)
      ctx.backend.accumulate(ctx.grad(update), row_slice(dy, j * n_tokens, n_tokens), 1);
  });
  return y;
}

Tensor mean_of_streams(Ctx& ctx, const Tensor& streams) {
  const int64_t n_tokens = streams.dim(1), n_streams = streams.dim(0);
  const float factor = 1.0f / static_cast<float>(n_streams);
  Tensor y = ctx.empty({n_tokens, streams.dim(2)});
  ctx.backend.copy(y, row_slice(streams, 0, n_tokens));
  for (int64_t j = 1; j < n_streams; ++j)
    ctx.backend.add_scaled(y, y, 1, row_slice(streams, j * n_tokens, n_tokens), 1);
  ctx.backend.add_scaled(y, y, factor, {}, 0);
  ctx.record(y, {streams}, [=](Ctx& ctx, const Tensor& dy) {
    const Grad d = ctx.grad(streams);
    for (int64_t j = 0; j < n_streams; ++j)
      ctx.backend.accumulate({row_slice(d.tensor, j * n_tokens, n_tokens), d.write}, dy, factor);
  });
  return y;
}

}  // namespace saaz
