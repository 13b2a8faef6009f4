#include "base/check.h"
#include "ops/ops.h"

namespace saaz {

Tensor geglu(Ctx& ctx, const Tensor& gate, const Tensor& up, float sparsity_z, Operands operands) {
  check(gate.same_shape(up), ExitCode::bug, "geglu: gate {} and up {} differ", gate.describe(), up.describe());
  Tensor y = ctx.empty_like(gate);
  Tensor mean_std = sparsity_z != 0 ? ctx.empty_f32({gate.rows(), 2}) : Tensor{};
  ctx.backend.geglu(y, mean_std, gate, up, sparsity_z);
  ctx.record(y, {gate, up}, [=](Ctx& ctx, const Tensor& dy) {
    if (operands == Operands::given) {
      ctx.tape->make_gradient_in(up, up);
      ctx.tape->make_gradient_in(gate, gate);
    }
    const Grad dup = ctx.grad(up), dgate = ctx.grad(gate);  // in the order the kernel writes them: gate may be up
    ctx.backend.geglu_backward(dgate, dup, dy, gate, up, mean_std, sparsity_z);
  });
  return y;
}

namespace {

/// The MLP whose three pairs train. Backends that join pairs add their parts in the activation, where gate and up are
/// read anyway; elsewhere the products hold them.
class TrainedMlp {
 public:
  TrainedMlp(Ctx& ctx, const Tensor& x, const Linear& gate, const Linear& up, const Linear& down, float sparsity_z)
      : x_(x), gate_(gate, ctx, x), up_(up, ctx, x), down_(down), sparsity_z_(sparsity_z) {
    const int64_t n_out = gate.weight.n_out;
    joins_ = sparsity_z == 0 && gate_.rank() == up_.rank() && gate_.rank() == down.lora->a.dim(0) &&
             ctx.backend.joins_pairs(gate_.rank(), x.dim(-1), n_out);
    mean_std_ = sparsity_z != 0 ? ctx.empty_f32({x.rows(), 2}) : Tensor{};
    activated_ = ctx.empty({x.rows(), n_out});
  }

  /// Without the pair of `down`, which its caller adds.
  const Tensor& activate(Ctx& ctx) {
    for (const Projected* p : {&gate_, &up_}) {
      if (joins_) {
        ctx.backend.lora_down(p->h, x_, p->pair.a);
        ctx.backend.matmul_nt(p->y, x_, p->weight, Write::overwrite);
      } else {
        ctx.backend.lora_forward({p->y, Write::overwrite}, p->h, x_, p->pair.a, p->pair.b, p->pair.scaling);
        ctx.backend.matmul_nt(p->y, x_, p->weight, Write::add);
      }
    }
    if (joins_)
      ctx.backend.geglu_pairs(activated_, gate_.y, up_.y, gate_.part(), up_.part());
    else
      ctx.backend.geglu(activated_, mean_std_, gate_.y, up_.y, sparsity_z_);
    return activated_;
  }

  /// h: of down's pair. Gradients lie where their values did: each value is read before.
  void backward(Ctx& ctx, const Tensor& dy, const Tensor& h) const {
    const Tensor &d_activated = activated_, dh = ctx.empty_like(h);
    const LoraPair& pair = down_.pair;
    const Grad through = joins_ ? Grad{} : Grad{d_activated, Write::overwrite};
    ctx.backend.lora_backward(through, pair.da, pair.db, dh, dy, activated_, h, pair.a, pair.b, pair.scaling);
    ctx.backend.matmul_nn(d_activated, dy, down_.weight, joins_ ? Write::overwrite : Write::add);
    if (joins_)
      ctx.backend.geglu_pairs_backward(gate_.y, up_.y, d_activated, gate_.y, up_.y, gate_.part(), up_.part(), dh,
                                       pair.a);
    else
      ctx.backend.geglu_backward({gate_.y, Write::overwrite}, {up_.y, Write::overwrite}, d_activated, gate_.y, up_.y,
                                 mean_std_, sparsity_z_);
    for (const Projected* p : {&up_, &gate_}) {
      const Grad dx = ctx.grad(x_);
      ctx.backend.lora_backward(dx, p->pair.da, p->pair.db, ctx.empty_like(p->h), p->y, x_, p->h, p->pair.a, p->pair.b,
                                p->pair.scaling);
      if (dx.wanted()) ctx.backend.matmul_nn(dx.tensor, p->y, p->weight, Write::add);
    }
  }

 private:
  struct Trained {
    Weight weight;
    LoraPair pair;
    explicit Trained(const Linear& linear) : weight(linear.weight), pair(*linear.lora) {}
  };
  struct Projected : Trained {
    Tensor y, h;
    Projected(const Linear& linear, Ctx& ctx, const Tensor& x)
        : Trained(linear), y(ctx.empty({x.rows(), linear.weight.n_out})), h(ctx.empty({x.rows(), rank()})) {}
    int64_t rank() const { return pair.a.dim(0); }
    PairPart part() const { return {h, pair.b, pair.scaling}; }
  };

  Tensor x_;
  Projected gate_, up_;
  Trained down_;
  float sparsity_z_;
  bool joins_ = false;
  Tensor mean_std_, activated_;
};

bool trains(const Linear& linear) { return linear.lora != nullptr && !linear.lora->da.empty(); }

}  // namespace

Tensor gated_mlp(Ctx& ctx, const Tensor& x, const Linear& gate, const Linear& up, const Linear& down,
                 float sparsity_z) {
  // Without a tape rows may bring their own adapters, and must have the bits that those give.
  if (ctx.tracking == Tracking::off || !trains(gate) || !trains(up) || !trains(down)) {
    const Tensor g = linear(ctx, x, gate), u = linear(ctx, x, up);
    return linear(ctx, geglu(ctx, g, u, sparsity_z, Operands::given), down);
  }
  check(x.dim(-1) == gate.weight.n_in && x.dim(-1) == up.weight.n_in && gate.weight.n_out == up.weight.n_out &&
            down.weight.n_in == gate.weight.n_out,
        ExitCode::bug, "gated_mlp {}: x {} does not fit", gate.name, x.describe());
  TrainedMlp mlp(ctx, x, gate, up, down, sparsity_z);
  const Tensor activated = mlp.activate(ctx);
  Tensor y = ctx.empty({x.rows(), down.weight.n_out}), h = ctx.empty({x.rows(), down.lora->a.dim(0)});
  ctx.backend.lora_forward({y, Write::overwrite}, h, activated, down.lora->a, down.lora->b, down.lora->scaling);
  ctx.backend.matmul_nt(y, activated, down.weight, Write::add);
  ctx.record_trainable(y, {x}, [mlp, h](Ctx& ctx, const Tensor& dy) { mlp.backward(ctx, dy, h); });
  return y;
}

}  // namespace saaz
