#include "base/check.h"
#include "ops/ops.h"

namespace saaz {

namespace {

/// y += what each adapter adds to its own rows.
void add_adapter_rows(Ctx& ctx, const Tensor& y, const Tensor& x, const Linear& w) {
  for (const AdapterRows& rows : *ctx.adapter_rows) {
    const LoraPair* lora = w.index < 0 ? nullptr : rows.pairs[static_cast<size_t>(w.index)];
    if (lora == nullptr) continue;
    check(rows.begin + rows.n <= x.rows(), ExitCode::bug, "linear {}: adapter rows {}..{} of x {}", w.name, rows.begin,
          rows.begin + rows.n, x.describe());
    ArenaScope scratch(ctx.arena);
    const Tensor h = ctx.empty({rows.n, lora->a.dim(0)});
    ctx.backend.lora_forward({row_slice(y, rows.begin, rows.n), Write::add}, h, row_slice(x, rows.begin, rows.n),
                             lora->a, lora->b, lora->scaling);
  }
}

}  // namespace

Tensor linear(Ctx& ctx, const Tensor& x, const Linear& w) {
  check(x.dim(-1) == w.weight.n_in, ExitCode::bug, "linear {}: x {} does not fit weight [{}, {}]", w.name, x.describe(),
        w.weight.n_out, w.weight.n_in);
  Tensor y = ctx.empty({x.rows(), w.weight.n_out});
  if (w.lora == nullptr) {
    ctx.backend.matmul_nt(y, x, w.weight, Write::overwrite);
    if (ctx.adapter_rows != nullptr) add_adapter_rows(ctx, y, x, w);
    ctx.record(y, {x}, [x, weight = w.weight](Ctx& ctx, const Tensor& dy) {
      const Grad dx = ctx.grad(x);
      ctx.backend.matmul_nn(dx.tensor, dy, weight, dx.write);
    });
    return y;
  }
  const LoraPair& lora = *w.lora;
  Tensor h = ctx.empty({x.rows(), lora.a.dim(0)});
  if (ctx.tracking == Tracking::off) {  // the order, and so the bits, of rows that bring their own adapter
    ctx.backend.matmul_nt(y, x, w.weight, Write::overwrite);
    ctx.backend.lora_forward({y, Write::add}, h, x, lora.a, lora.b, lora.scaling);
    if (ctx.adapter_rows != nullptr) add_adapter_rows(ctx, y, x, w);
    return y;
  }
  // The pair first: a product adds to what is there at no cost, the pair would read y again.
  ctx.backend.lora_forward({y, Write::overwrite}, h, x, lora.a, lora.b, lora.scaling);
  ctx.backend.matmul_nt(y, x, w.weight, Write::add);
  if (lora.da.empty()) {
    ctx.record(y, {x}, [](Ctx&, const Tensor&) {
      fail(ExitCode::bug, "linear: gradient through an adapter that does not train");
    });
    return y;
  }
  ctx.record_trainable(y, {x}, [x, h, weight = w.weight, lora](Ctx& ctx, const Tensor& dy) {
    const Grad dx = ctx.grad(x);
    ctx.backend.lora_backward(dx, lora.da, lora.db, ctx.empty_like(h), dy, x, h, lora.a, lora.b, lora.scaling);
    if (dx.wanted()) ctx.backend.matmul_nn(dx.tensor, dy, weight, Write::add);
  });
  return y;
}

Tensor embed(Ctx& ctx, std::span<const int32_t> ids, const Weight& table, int64_t first_column, int64_t n_columns,
             float scale) {
  check(first_column + n_columns <= table.n_in, ExitCode::bug, "embed: columns {}..{} of a table of {}", first_column,
        first_column + n_columns, table.n_in);
  Tensor y = ctx.empty({static_cast<int64_t>(ids.size()), n_columns});
  ctx.backend.gather_rows(y, ids, table, first_column, scale);
  return y;
}

}  // namespace saaz
