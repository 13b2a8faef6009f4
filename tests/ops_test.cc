// Every op against its scalar reference: values, gradients by complex step, gradients added to or written first, arenas
// at another offset, other thread counts, inputs that nobody tracks. The table is op_cases.h, the bench op_testing.h.
#include "backend/cpu/kernels.h"
#include "base/check.h"
#include "op_cases.h"

namespace saaz::testing {
namespace {

std::vector<std::unique_ptr<Backend>> backends_of_every_instruction_set() {
  std::vector<std::unique_ptr<Backend>> out;
  for (const cpu::KernelTable* kernels : cpu::available_kernels())
    out.push_back(make_cpu_backend({.n_threads = 2, .instruction_set = kernels->name}));
  return out;
}

class Ops : public ::testing::TestWithParam<OpRow> {
 protected:
  /// Checks all gradients of one run and returns the worst error in eps. `branched`: the inputs were used a second
  /// time.
  double check_gradients(const OpCase& c, const Data& data, const Result& got,
                         const std::vector<std::vector<double>>& expected, const Branch branch) const {
    double worst = 0;
    for (size_t i = 0; i < c.inputs.size(); ++i) {
      SCOPED_TRACE("gradient of input " + std::to_string(i));
      std::vector<double> sum = expected[i];
      const bool tracked = c.inputs[i].role == Role::tracked;
      if (tracked && branch != Branch::none) {
        sum.resize(data.inputs[i].size());
        for (size_t j = 0; j < sum.size(); ++j) sum[j] += data.branch_cotangents[i][j];
      }
      // One more rounding where two contributions are added.
      const double k = GetParam().k_gradient + (branch == Branch::none ? 0 : 1);
      const double size = std::max(norm(expected[i]), c.gradient_floor * cotangent_norm(data));
      const double error = error_in_eps(got.gradients[i], sum, size);
      EXPECT_LE(error, k);
      worst = std::max(worst, error);
    }
    return worst;
  }
  static double cotangent_norm(const Data& data) { return norm({data.cotangent.begin(), data.cotangent.end()}); }
};

TEST_P(Ops, ValuesAndGradientsMatchTheReference) {
  const OpRow& row = GetParam();
  const auto backends = backends_of_every_instruction_set();
  double worst_value = 0, worst_gradient = 0;
  for (const OpCase& c : row.cases) {
    const Data data = make_data(c);
    const std::vector<double> value = evaluate(c, data).v;
    const auto gradients = complex_step_gradients(c, data);
    for (const auto& backend : backends) {
      for (const Branch branch : {Branch::none, Branch::before, Branch::after}) {
        SCOPED_TRACE(row.op + " " + c.name + " on " + backend->describe() + ", branch " +
                     std::to_string(static_cast<int>(branch)));
        const Result got = run_case(*backend, c, data, {.branch = branch});
        const double error = error_in_eps(got.value, value, 0);
        EXPECT_LE(error, row.k_value);
        worst_value = std::max(worst_value, error);
        worst_gradient = std::max(worst_gradient, check_gradients(c, data, got, gradients, branch));
      }
    }
  }
  std::printf("%-20s worst value %5.2f eps (bound %g), worst gradient %5.2f eps (bound %g)\n", row.op.c_str(),
              worst_value, row.k_value, worst_gradient, row.k_gradient);
}

TEST_P(Ops, BitsDependOnNeitherRunNorOffsetNorThreads) {
  for (const auto& one : backends_of_every_instruction_set()) {
    const std::string set = one->describe().substr(4, one->describe().find(',') - 4);
    const auto three = make_cpu_backend({.n_threads = 3, .instruction_set = set});
    for (const OpCase& c : GetParam().cases) {
      SCOPED_TRACE(GetParam().op + " " + c.name + " on " + one->describe());
      const Data data = make_data(c);
      const Result first = run_case(*one, c, data, {});
      EXPECT_TRUE(same_bits(first, run_case(*one, c, data, {}))) << "second run";
      EXPECT_TRUE(same_bits(first, run_case(*one, c, data, {.offset = Arena::kAlignment}))) << "arena offset";
      EXPECT_TRUE(same_bits(first, run_case(*three, c, data, {.offset = 3 * Arena::kAlignment}))) << "threads";
    }
  }
}

TEST_P(Ops, GradientsAreTheSameWhicheverInputsAreTracked) {
  const auto backend = make_cpu_backend({.n_threads = 2});
  for (const OpCase& c : GetParam().cases) {
    const Data data = make_data(c);
    const Result all = run_case(*backend, c, data, {});
    for (uint32_t mask = 0; mask < 1u << c.inputs.size(); ++mask) {
      SCOPED_TRACE(GetParam().op + " " + c.name + ", tracked inputs " + std::to_string(mask));
      const Result some = run_case(*backend, c, data, {.tracked = mask});
      EXPECT_TRUE(same_bits(some.value, all.value));
      for (size_t i = 0; i < c.inputs.size(); ++i) {
        const bool wanted = c.inputs[i].role == Role::trained || (mask >> i & 1);
        EXPECT_TRUE(same_bits(some.gradients[i], wanted ? all.gradients[i] : std::vector<float>{}))
            << "gradient of input " << i;
      }
    }
  }
}

/// Off records nothing; mark marks what depends on a trainable value. Neither changes the values.
TEST_P(Ops, OtherTrackingsGiveTheSameValues) {
  const auto backend = make_cpu_backend({.n_threads = 2});
  for (const OpCase& c : GetParam().cases) {
    SCOPED_TRACE(GetParam().op + " " + c.name);
    const Data data = make_data(c);
    const Result recorded = run_case(*backend, c, data, {});
    for (const Tracking tracking : {Tracking::off, Tracking::mark}) {
      Bench bench(0);
      Ctx ctx{*backend, bench.arena(), nullptr, tracking};
      Inputs in;
      for (size_t i = 0; i < c.inputs.size(); ++i) {
        in.tensors.push_back(bench.tensor(c.inputs[i].shape, data.inputs[i]));
        in.gradients.push_back(c.inputs[i].role == Role::trained ? in.tensors.back() : Tensor{});
        if (tracking == Tracking::mark && c.inputs[i].role == Role::tracked) in.tensors.back().node = Ctx::kMarked;
      }
      const Tensor y = c.op(ctx, in);
      EXPECT_TRUE(same_bits(values_of(y), recorded.value));
      const bool depends = recorded.node != Ctx::kUntracked;
      EXPECT_EQ(y.node, tracking == Tracking::mark && depends ? Ctx::kMarked : Ctx::kUntracked);
    }
  }
}

/// The op with one tensor for all its (equally shaped) inputs: its gradient is the sum over the inputs.
TEST_P(Ops, OneTensorForEveryInput) {
  const OpRow& row = GetParam();
  const auto backend = make_cpu_backend({.n_threads = 2});
  for (const OpCase& c : row.cases) {
    bool alike = c.inputs.size() > 1;
    for (const Input& input : c.inputs) alike &= input.role == Role::tracked && input.shape == c.inputs[0].shape;
    if (!alike) continue;
    SCOPED_TRACE(row.op + " " + c.name);
    OpCase aliased{
        .name = c.name, .inputs = {c.inputs[0]}, .op = {}, .value = {}, .complex_value = {}, .loss_scale = {}};
    const size_t n = c.inputs.size();
    aliased.op = [&c, n](Ctx& ctx, const Inputs& in) {
      const Inputs copies{std::vector<Tensor>(n, in[0]), std::vector<Tensor>(n)};
      return c.op(ctx, copies);
    };
    aliased.value = [&c, n](const auto& in) { return c.value(std::vector(n, in[0])); };
    aliased.complex_value = [&c, n](const auto& in) { return c.complex_value(std::vector(n, in[0])); };
    const Data data = make_data(aliased);
    const auto expected = complex_step_gradients(aliased, data);
    // The parts may cancel: the bound is on the size of the parts.
    double parts = c.gradient_floor * cotangent_norm(data);
    Data separate = data;
    separate.inputs.assign(n, data.inputs[0]);
    for (const auto& part : complex_step_gradients(c, separate)) parts = std::max(parts, norm(part));
    const Result got = run_case(*backend, aliased, data, {});
    EXPECT_LE(error_in_eps(got.gradients[0], expected[0], parts), static_cast<double>(n) * row.k_gradient + 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Table, Ops, ::testing::ValuesIn(op_table()), [](const auto& info) { return info.param.op; });

/// The residual pattern of a layer: x + f(x), seen by two ops of f.
TEST(OpChains, ResidualGradientSumsEveryUse) {
  const OpCase c = make_case(
      "residual", {tracked({3, 17}), frozen({17})},
      [](Ctx& ctx, const Inputs& in) {
        const Tensor normed = rms_norm(ctx, in[0], {in[1], 1e-6f}, 0);
        return add(ctx, in[0], geglu(ctx, normed, saaz::tanh(ctx, normed), 0), 0.5f);
      },
      [](const auto& in) {
        auto y = in[0];
        const auto normed = reference::rms_norm(in[0], in[1].v, 17, 1e-6f);
        const auto gated = reference::geglu(normed, reference::map(normed, [](auto v) { return std::tanh(v); }), 0);
        for (size_t i = 0; i < y.v.size(); ++i) y.v[i] = 0.5 * (y.v[i] + gated.v[i]);
        return y;
      });
  const Data data = make_data(c);
  const auto expected = complex_step_gradients(c, data);
  const auto backend = make_cpu_backend({.n_threads = 2});
  const Result got = run_case(*backend, c, data, {});
  // The four ops' bounds along the longest path, rms_norm's terms being 8 |dy|.
  EXPECT_LE(error_in_eps(got.gradients[0], expected[0], 0), 8 + 8 + 8 + 1);
}

TEST(OpErrors, GradientThroughAFrozenAdapterIsABug) {
  const auto backend = make_cpu_backend({.n_threads = 1});
  const OpCase c = make_case(
      "frozen adapter", {tracked({2, 3}), frozen({2, 3}), frozen({1, 3}), frozen({2, 1})},
      [](Ctx& ctx, const Inputs& in) {
        const LoraPair pair{in[2], in[3], {}, {}, 1};
        Linear w = plain_linear(in[1]);
        w.lora = &pair;
        return linear(ctx, in[0], w);
      },
      [](const auto& in) { return reference::matmul_nt(in[0], in[1]); });
  const Data data = make_data(c);
  EXPECT_THROW(
      {
        try {
          run_case(*backend, c, data, {});
        } catch (const Error& error) {
          EXPECT_EQ(error.code(), ExitCode::bug);
          throw;
        }
      },
      Error);
  EXPECT_NO_THROW(run_case(*backend, c, data, {.tracked = 0}));
}

TEST(OpErrors, ShapesThatDoNotFitAreBugs) {
  const auto backend = make_cpu_backend({.n_threads = 1});
  Bench bench(0);
  Ctx ctx{*backend, bench.arena()};
  const Tensor a = ctx.empty({2, 3}), b = ctx.empty({3, 2}), streams = ctx.empty({2, 2, 3});
  const std::vector<int32_t> two{0, 1};
  const auto is_bug = [](auto call) {
    try {
      call();
    } catch (const Error& error) {
      return error.code() == ExitCode::bug;
    }
    return false;
  };
  EXPECT_TRUE(is_bug([&] { add(ctx, a, b, 1); }));
  EXPECT_TRUE(is_bug([&] { geglu(ctx, a, b, 0); }));
  EXPECT_TRUE(is_bug([&] { match_magnitude(ctx, a, b); }));
  EXPECT_TRUE(is_bug([&] { linear(ctx, a, plain_linear(b)); }));
  EXPECT_TRUE(is_bug([&] { rms_norm(ctx, a, {}, 2); }));
  EXPECT_TRUE(is_bug([&] { scale_columns(ctx, a, ctx.empty({2})); }));
  EXPECT_TRUE(is_bug([&] { split_columns(ctx, a, 2); }));
  EXPECT_TRUE(is_bug([&] { embed(ctx, two, dense_weight(a), 2, 2, 1); }));
  EXPECT_TRUE(is_bug([&] { rope(ctx, a, two, b, 1); }));
  EXPECT_TRUE(is_bug([&] { attention(ctx, a, a, b, {}, {.n_heads = 1, .n_kv_heads = 1, .head_dim = 3}); }));
  EXPECT_TRUE(is_bug([&] { altup_predict(ctx, streams, a); }));
  EXPECT_TRUE(is_bug([&] { altup_correct(ctx, streams, a, a, 0); }));
  EXPECT_TRUE(is_bug([&] { head_loss(ctx, a, {dense_weight(a), 0}, std::span(two).first(1), 1); }));
}

}  // namespace
}  // namespace saaz::testing
