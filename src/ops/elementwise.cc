#include "base/check.h"
#include "ops/ops.h"

namespace saaz {

Tensor add(Ctx& ctx, const Tensor& a, const Tensor& b, float factor) {
  check(a.same_shape(b), ExitCode::bug, "add: {} and {} differ", a.describe(), b.describe());
  Tensor y = ctx.empty_like(a);
  ctx.backend.add_scaled(y, a, factor, b, factor);
  ctx.record(y, {a, b}, [a, b, factor](Ctx& ctx, const Tensor& dy) {
    if (const Grad db = ctx.grad(b); db.wanted()) ctx.backend.accumulate(db, dy, factor);
    if (factor == 1 && ctx.hand_on(a, dy)) return;
    if (const Grad da = ctx.grad(a); da.wanted()) ctx.backend.accumulate(da, dy, factor);
  });
  return y;
}

Tensor scale(Ctx& ctx, const Tensor& x, float factor) {
  Tensor y = ctx.empty_like(x);
  ctx.backend.add_scaled(y, x, factor, {}, 0);
  ctx.record(y, {x}, [x, factor](Ctx& ctx, const Tensor& dy) { ctx.backend.accumulate(ctx.grad(x), dy, factor); });
  return y;
}

Tensor tanh(Ctx& ctx, const Tensor& x) {
  Tensor y = ctx.empty_like(x);
  ctx.backend.tanh(y, x);
  ctx.record(y, {x}, [x, saved = y](Ctx& ctx, const Tensor& dy) { ctx.backend.tanh_backward(ctx.grad(x), dy, saved); });
  return y;
}

Tensor scale_columns(Ctx& ctx, const Tensor& x, const Tensor& v) {
  check(v.size() == x.dim(-1), ExitCode::bug, "scale_columns: {} does not fit {}", v.describe(), x.describe());
  Tensor y = ctx.empty_like(x);
  ctx.backend.scale_columns({y, Write::overwrite}, x, v);
  ctx.record(y, {x}, [x, v](Ctx& ctx, const Tensor& dy) { ctx.backend.scale_columns(ctx.grad(x), dy, v); });
  return y;
}

Tensor select_rows(Ctx& ctx, const Tensor& x, std::span<const int32_t> rows) {
  Tensor y = ctx.empty({static_cast<int64_t>(rows.size()), x.dim(-1)});
  ctx.backend.select_rows(y, x, rows);
  ctx.record(y, {x},
             [x, rows](Ctx& ctx, const Tensor& dy) { ctx.backend.select_rows_backward(ctx.grad(x), dy, rows); });
  return y;
}

namespace {
/// Slice i of [N, T, D], as plain memory.
Tensor part(const Tensor& streams, int64_t i) {
  Tensor out = row_slice(streams, i * streams.dim(1), streams.dim(1));
  return out;
}
}  // namespace

Tensor stack(Ctx& ctx, std::span<const Tensor> slices) {
  const auto n = static_cast<int64_t>(slices.size());
  Tensor y = ctx.empty({n, slices[0].dim(0), slices[0].dim(1)});
  for (int64_t i = 0; i < n; ++i) ctx.backend.copy(part(y, i), slices[static_cast<size_t>(i)]);
  // One record for each slice would need a gradient that several outputs share; streams are few, so copy their views.
  constexpr size_t kMaxSlices = 8;
  check(slices.size() <= kMaxSlices, ExitCode::bug, "stack: more than {} slices", kMaxSlices);
  std::array<Tensor, kMaxSlices> inputs{};
  Tensor any = slices[0];
  for (size_t i = 0; i < slices.size(); ++i) {
    inputs[i] = slices[i];
    if (slices[i].node != Ctx::kUntracked) any = slices[i];
  }
  ctx.record(y, {any}, [inputs, n](Ctx& ctx, const Tensor& dy) {
    for (int64_t i = 0; i < n; ++i)
      if (const Grad d = ctx.grad(inputs[static_cast<size_t>(i)]); d.wanted())
        ctx.backend.accumulate(d, part(dy, i), 1);
  });
  return y;
}

Tensor split_columns(Ctx& ctx, const Tensor& x, int64_t n) {
  check(x.ndim == 2 && x.dim(1) % n == 0, ExitCode::bug, "split_columns: {} does not split in {}", x.describe(), n);
  Tensor y = ctx.empty({n, x.dim(0), x.dim(1) / n});
  ctx.backend.split_columns({y, Write::overwrite}, x, Backend::Split::split);
  ctx.record(y, {x},
             [x](Ctx& ctx, const Tensor& dy) { ctx.backend.split_columns(ctx.grad(x), dy, Backend::Split::join); });
  return y;
}

Tensor slice(Ctx& ctx, const Tensor& streams, int64_t i) {
  Tensor y = part(streams, i);
  ctx.record(y, {streams}, [streams, i](Ctx& ctx, const Tensor& dy) {
    const Grad d = ctx.grad(streams);
    if (dy.data == part(d.tensor, i).data) return;  // made there
    if (d.write == Write::overwrite) ctx.backend.fill(d.tensor, 0);
    ctx.backend.accumulate({part(d.tensor, i), Write::add}, dy, 1);
  });
  if (ctx.tracking == Tracking::record) ctx.tape->make_part(y, streams, i * streams.dim(1));
  return y;
}

}  // namespace saaz
