// Every op against its scalar reference: values, gradients by complex step, gradients added to or written first, arenas
// at another offset, other thread counts, inputs that nobody tracks. The table is op_cases.h, the bench op_testing.h.
#include <map>

#include "backend/cpu/kernels.h"
#include "base/check.h"
#include "op_cases.h"

namespace saaz::testing {
namespace {

using Backends = std::vector<std::unique_ptr<Backend>>;

void add_cuda(Backends& backends) {
  for (const DType dtype : {DType::f32, DType::bf16})
    if (auto cuda = make_cuda_backend({.compute_dtype = dtype})) backends.push_back(std::move(cuda));
}
/// Every instruction set of the CPU, and the GPU, where there is one, in f32 and bf16.
const Backends& every_backend() {
  static const Backends all = [] {
    Backends out;
    for (const cpu::KernelTable* kernels : cpu::available_kernels())
      out.push_back(make_cpu_backend({.n_threads = 2, .instruction_set = kernels->name}));
    add_cuda(out);
    return out;
  }();
  return all;
}
/// The CPU's usual kernels, and the GPU as above: for what the instruction set does not change.
const Backends& one_of_each() {
  static const Backends all = [] {
    Backends out;
    out.push_back(make_cpu_backend({.n_threads = 2}));
    add_cuda(out);
    return out;
  }();
  return all;
}
bool is_cpu(const Backend& backend) { return backend.describe().starts_with("cpu "); }

/// A case's data and what the reference makes of it.
struct Expected {
  Data data;
  std::vector<double> value;
  std::vector<std::vector<double>> gradients;
};
Expected expected_of(const OpCase& c, const Backend& backend) {
  Expected out{make_data(c, backend), {}, {}};
  out.value = evaluate(c, out.data).v;
  out.gradients = complex_step_gradients(c, out.data);
  return out;
}

/// A bound in units of eps: k, and what bf16 stores add.
double bound(const Backend& backend, double k, double roundings) {
  return k + (stores_bf16(backend) ? roundings * kBf16Roundoff / kEps : 0);
}

class Ops : public ::testing::TestWithParam<OpRow> {
 protected:
  /// Checks all gradients of one run and returns the worst error in eps. `branched`: the inputs were used a second
  /// time.
  double check_gradients(const Backend& backend, const OpCase& c, const Data& data, const Result& got,
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
      // One more rounding where two contributions are added; in bf16 it is of their sum's size.
      const double size = std::max(norm(expected[i]), c.gradient_floor * cotangent_norm(data));
      const bool added = tracked && branch != Branch::none;
      const double k = GetParam().k_gradient + (added ? 1 : 0);
      const double roundings = GetParam().bf16.gradient + (added ? norm(sum) / size : 0);
      const double error = error_in_eps(got.gradients[i], sum, size);
      EXPECT_LE(error, bound(backend, k, roundings));
      worst = std::max(worst, error);
    }
    return worst;
  }
  void check_every_mask(Backend& backend, const OpCase& c) const;
  void check_other_trackings(Backend& backend, const OpCase& c) const;
  void check_one_tensor(Backend& backend, const OpCase& c) const;
  static double cotangent_norm(const Data& data) { return norm({data.cotangent.begin(), data.cotangent.end()}); }
};

TEST_P(Ops, ValuesAndGradientsMatchTheReference) {
  const OpRow& row = GetParam();
  double worst_value = 0, worst_gradient = 0;
  for (const OpCase& c : row.cases) {
    std::map<bool, Expected> known;  // by whether the data are rounded
    for (const auto& backend : every_backend()) {
      const auto [at, fresh] = known.try_emplace(stores_bf16(*backend));
      if (fresh) at->second = expected_of(c, *backend);
      const auto& [data, value, gradients] = at->second;
      for (const Branch branch : {Branch::none, Branch::before, Branch::after}) {
        SCOPED_TRACE(row.op + " " + c.name + " on " + backend->describe() + ", branch " +
                     std::to_string(static_cast<int>(branch)));
        const Result got = run_case(*backend, c, data, {.branch = branch});
        const double error = error_in_eps(got.value, value, 0);
        EXPECT_LE(error, bound(*backend, row.k_value, row.bf16.value));
        const double gradient_error = check_gradients(*backend, c, data, got, gradients, branch);
        if (stores_bf16(*backend)) continue;
        worst_value = std::max(worst_value, error);
        worst_gradient = std::max(worst_gradient, gradient_error);
      }
    }
  }
  std::printf("%-20s worst value %5.2f eps (bound %g), worst gradient %5.2f eps (bound %g)\n", row.op.c_str(),
              worst_value, row.k_value, worst_gradient, row.k_gradient);
}

TEST_P(Ops, BitsDependOnNeitherRunNorOffsetNorThreads) {
  for (const auto& one : every_backend()) {
    const std::string set = one->describe().substr(4, one->describe().find(',') - 4);
    const auto three = is_cpu(*one) ? make_cpu_backend({.n_threads = 3, .instruction_set = set}) : nullptr;
    for (const OpCase& c : GetParam().cases) {
      SCOPED_TRACE(GetParam().op + " " + c.name + " on " + one->describe());
      const Data data = make_data(c, *one);
      const Result first = run_case(*one, c, data, {});
      EXPECT_TRUE(same_bits(first, run_case(*one, c, data, {}))) << "second run";
      EXPECT_TRUE(same_bits(first, run_case(*one, c, data, {.offset = Arena::kAlignment}))) << "arena offset";
      if (!three) continue;
      EXPECT_TRUE(same_bits(first, run_case(*three, c, data, {.offset = 3 * Arena::kAlignment}))) << "threads";
    }
  }
}

TEST_P(Ops, GradientsAreTheSameWhicheverInputsAreTracked) {
  for (const auto& backend : one_of_each())
    for (const OpCase& c : GetParam().cases) check_every_mask(*backend, c);
}

void Ops::check_every_mask(Backend& backend, const OpCase& c) const {
  const Data data = make_data(c, backend);
  const Result all = run_case(backend, c, data, {});
  for (uint32_t mask = 0; mask < 1u << c.inputs.size(); ++mask) {
    SCOPED_TRACE(GetParam().op + " " + c.name + ", tracked inputs " + std::to_string(mask) + " on " +
                 backend.describe());
    const Result some = run_case(backend, c, data, {.tracked = mask});
    EXPECT_TRUE(same_bits(some.value, all.value));
    for (size_t i = 0; i < c.inputs.size(); ++i) {
      const bool wanted = c.inputs[i].role == Role::trained || (mask >> i & 1);
      EXPECT_TRUE(same_bits(some.gradients[i], wanted ? all.gradients[i] : std::vector<float>{}))
          << "gradient of input " << i;
    }
  }
}

/// Off records nothing; mark marks what depends on a trainable value. Neither changes the values.
TEST_P(Ops, OtherTrackingsGiveTheSameValues) {
  for (const auto& backend : one_of_each())
    for (const OpCase& c : GetParam().cases) check_other_trackings(*backend, c);
}

void Ops::check_other_trackings(Backend& backend, const OpCase& c) const {
  SCOPED_TRACE(GetParam().op + " " + c.name + " on " + backend.describe());
  const Data data = make_data(c, backend);
  const Result recorded = run_case(backend, c, data, {});
  for (const Tracking tracking : {Tracking::off, Tracking::mark}) {
    Bench bench(backend, 0);
    Ctx ctx{backend, bench.arena(), nullptr, tracking};
    Inputs in;
    for (size_t i = 0; i < c.inputs.size(); ++i) {
      in.tensors.push_back(bench.input(c.inputs[i], data.inputs[i]));
      in.gradients.push_back(c.inputs[i].role == Role::trained ? in.tensors.back() : Tensor{});
      if (tracking == Tracking::mark && c.inputs[i].role == Role::tracked) in.tensors.back().node = Ctx::kMarked;
    }
    const Tensor y = c.op(ctx, in);
    const bool has_pairs = GetParam().op.starts_with("linear_lora") || GetParam().op.starts_with("gated_mlp");
    if (has_pairs && tracking == Tracking::off && stores_bf16(backend)) {
      // There a pair is added after the product, and each is rounded (ops/linear.cc).
      const std::vector<float> values = bench.values_of(y);
      const std::vector<double> expected(recorded.value.begin(), recorded.value.end());
      EXPECT_LE(error_in_eps(values, expected, norm(expected)), bound(backend, 0, 2 * GetParam().bf16.value));
    } else {
      EXPECT_TRUE(same_bits(bench.values_of(y), recorded.value));
    }
    const bool depends = recorded.node != Ctx::kUntracked;
    EXPECT_EQ(y.node, tracking == Tracking::mark && depends ? Ctx::kMarked : Ctx::kUntracked);
  }
}

/// The op with one tensor for all its (equally shaped) inputs: its gradient is the sum over the inputs.
TEST_P(Ops, OneTensorForEveryInput) {
  for (const OpCase& c : GetParam().cases) {
    bool alike = c.inputs.size() > 1;
    for (const Input& input : c.inputs) alike &= input.role == Role::tracked && input.shape == c.inputs[0].shape;
    for (const auto& backend : one_of_each())
      if (alike) check_one_tensor(*backend, c);
  }
}

void Ops::check_one_tensor(Backend& backend, const OpCase& c) const {
  const OpRow& row = GetParam();
  SCOPED_TRACE(row.op + " " + c.name + " on " + backend.describe());
  OpCase aliased{.name = c.name, .inputs = {c.inputs[0]}, .op = {}, .value = {}, .complex_value = {}, .loss_scale = {}};
  const size_t n = c.inputs.size();
  aliased.op = [&c, n](Ctx& ctx, const Inputs& in) {
    const Inputs copies{std::vector<Tensor>(n, in[0]), std::vector<Tensor>(n)};
    return c.op(ctx, copies);
  };
  aliased.value = [&c, n](const auto& in) { return c.value(std::vector(n, in[0])); };
  aliased.complex_value = [&c, n](const auto& in) { return c.complex_value(std::vector(n, in[0])); };
  const Data data = make_data(aliased, backend);
  const auto expected = complex_step_gradients(aliased, data);
  // The parts may cancel: the bound is on the size of the parts.
  double parts = c.gradient_floor * cotangent_norm(data);
  Data separate = data;
  separate.inputs.assign(n, data.inputs[0]);
  for (const auto& part : complex_step_gradients(c, separate)) parts = std::max(parts, norm(part));
  const Result got = run_case(backend, aliased, data, {});
  // In bf16 the sum is stored after each part: its roundings are of up to 2, 3, ... n parts.
  const auto count = static_cast<double>(n);
  const double roundings = count * row.bf16.gradient + count * (count + 1) / 2 - 1;
  EXPECT_LE(error_in_eps(got.gradients[0], expected[0], parts), bound(backend, count * row.k_gradient + 1, roundings));
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
  for (const auto& backend : one_of_each()) {
    if (stores_bf16(*backend)) continue;  // tanh's gradient takes y's rounding up to 28 times: a bound without meaning
    const Data data = make_data(c, *backend);
    const auto expected = complex_step_gradients(c, data);
    const Result got = run_case(*backend, c, data, {});
    // The four ops' bounds along the longest path, rms_norm's terms being 8 |dy|.
    EXPECT_LE(error_in_eps(got.gradients[0], expected[0], 0), 8 + 8 + 8 + 1) << backend->describe();
  }
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
  const Data data = make_data(c, *backend);
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
  Bench bench(*backend, 0);
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
