// Segmented passes: a chain of layers taped one by one gives the gradients of one long tape, recomputed or kept, on any
// number of threads, in exactly the memory that the plan backend counted. On a toy chain, then on the golden models
// with an adapter.
#include "autograd/segment.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <random>

#include "backend/plan.h"
#include "base/check.h"
#include "lora/lora.h"
#include "model/pass.h"

namespace saaz {
namespace {

using Floats = std::vector<float>;
constexpr double kEps = 0x1p-23;

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}
Floats random_floats(std::mt19937& random, int64_t n) {
  Floats out(static_cast<size_t>(n));
  for (float& x : out) x = static_cast<float>(random() >> 8) * 0x1p-23f - 1;
  return out;
}

/// Runs `call`; the exit code of the Error it throws, ok without one.
template <class Call>
ExitCode thrown_by(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  return ExitCode::ok;
}

/// Five segments with a LoRA linear each. Segment 1 publishes keys from its streams, segment 3 reads them, segment 4
/// replaces them with a tensor that nothing reads: gradients skip segments and fields change hands.
class Toy {
 public:
  static constexpr int64_t kTokens = 3, kDim = 17, kRank = 2;
  static constexpr int kSegments = 5;

  Toy()
      : x_(random_floats(random_, kTokens * kDim)),
        parameters_(random_floats(random_, kSegments * kPair)),
        gradients_(parameters_.size()) {
    for (int i = 0; i < kSegments; ++i) {
      weights_.push_back(random_floats(random_, kDim * kDim));
      const size_t at = static_cast<size_t>(i) * kPair;
      pairs_.push_back({tensor(&parameters_[at], kRank, kDim), tensor(&parameters_[at + kSide], kDim, kRank),
                        tensor(&gradients_[at], kRank, kDim), tensor(&gradients_[at + kSide], kDim, kRank), 0.5f});
    }
    for (size_t i = 0; i < kSegments; ++i)
      linears_.push_back(
          {"toy." + std::to_string(i), dense_weight(tensor(weights_[i].data(), kDim, kDim)), &pairs_[i]});
  }
  void segment(Ctx& ctx, int index, State& s) {
    const Tensor x = index == 0 ? tensor(x_.data(), kTokens, kDim) : s[State::streams];
    const Tensor y = tanh(ctx, linear(ctx, x, linears_[static_cast<size_t>(index)]));
    if (index == 1) s[State::sliding_k] = scale(ctx, y, 0.5f);
    const Tensor other = index == 3 ? s[State::sliding_k] : x;
    if (index == 4) s[State::sliding_k] = scale(ctx, y, 2);
    s[State::streams] = add(ctx, y, other, 1);
  }
  SegmentedPass::Segment function() {
    return [this](Ctx& ctx, int index, State& s) { segment(ctx, index, s); };
  }
  void clear_gradients() { std::fill(gradients_.begin(), gradients_.end(), 0.0f); }
  const Floats& gradients() const { return gradients_; }
  void freeze_below(size_t first) {
    for (size_t i = 0; i < first; ++i) linears_[i].lora = nullptr;
  }
  static Tensor tensor(float* data, int64_t rows, int64_t cols) { return {data, DType::f32, {rows, cols}}; }

 private:
  static constexpr size_t kSide = kRank * kDim, kPair = 2 * kSide;
  std::mt19937 random_{7};
  Floats x_, parameters_, gradients_;
  std::vector<Floats> weights_;
  std::deque<LoraPair> pairs_;
  std::vector<Linear> linears_;
};

struct ToyRun {
  Floats output, gradients;
};
ToyRun run_toy(Toy& toy, Recompute recompute) {
  toy.clear_gradients();
  const auto backend = make_cpu_backend({.n_threads = 2});
  PassMemory memory(*backend, 1 << 18, 1 << 18);
  SegmentedPass pass(*backend, memory.work(), memory.store(), recompute, Toy::kSegments, toy.function());
  const Tensor streams = pass.forward()[State::streams];
  ToyRun out{Floats(streams.f32(), streams.f32() + streams.size()), {}};
  std::mt19937 random(11);
  Floats cotangent = random_floats(random, streams.size());
  pass.backward(Toy::tensor(cotangent.data(), Toy::kTokens, Toy::kDim));
  out.gradients = toy.gradients();
  return out;
}
ToyRun run_toy_on_one_tape(Toy& toy) {
  toy.clear_gradients();
  const auto backend = make_cpu_backend({.n_threads = 2});
  PassMemory memory(*backend, 1 << 18, 0);
  Tape tape(memory.work());
  Ctx ctx{*backend, memory.work(), &tape, Tracking::record};
  State state;
  for (int i = 0; i < Toy::kSegments; ++i) toy.segment(ctx, i, state);
  const Tensor streams = state[State::streams];
  ToyRun out{Floats(streams.f32(), streams.f32() + streams.size()), {}};
  std::mt19937 random(11);
  Floats cotangent = random_floats(random, streams.size());
  tape.seed(streams, Toy::tensor(cotangent.data(), Toy::kTokens, Toy::kDim));
  tape.backward(ctx);
  out.gradients = toy.gradients();
  return out;
}

TEST(ToyChain, RecomputedAndKeptTapesGiveTheSameBits) {
  for (const size_t frozen : {0, 1, 2, 4}) {
    SCOPED_TRACE("segments without an adapter: " + std::to_string(frozen));
    Toy toy;
    toy.freeze_below(frozen);
    const ToyRun kept = run_toy(toy, Recompute::none), again = run_toy(toy, Recompute::layer);
    const ToyRun partly = run_toy(toy, Recompute{2});
    EXPECT_TRUE(same_bits(kept.output, again.output));
    EXPECT_TRUE(same_bits(kept.gradients, again.gradients));
    EXPECT_TRUE(same_bits(kept.output, partly.output));
    EXPECT_TRUE(same_bits(kept.gradients, partly.gradients));
  }
}

/// One tape adds the two gradients of the keys in another order: equal to rounding only.
TEST(ToyChain, SegmentsGiveTheGradientOfOneTape) {
  Toy toy;
  const ToyRun whole = run_toy_on_one_tape(toy), parts = run_toy(toy, Recompute::layer);
  EXPECT_TRUE(same_bits(whole.output, parts.output));
  double difference = 0, size = 0;
  for (size_t i = 0; i < whole.gradients.size(); ++i) {
    difference += std::pow(double{whole.gradients[i]} - parts.gradients[i], 2);
    size += std::pow(double{whole.gradients[i]}, 2);
  }
  EXPECT_GT(size, 0);
  EXPECT_LE(std::sqrt(difference), Toy::kSegments * kEps * std::sqrt(size));
}

TEST(ToyChain, AnUndeclaredTensorBetweenSegmentsIsABug) {
  for (const Recompute recompute : {Recompute::none, Recompute{2}, Recompute::layer}) {
    Toy toy;
    const auto backend = make_cpu_backend({.n_threads = 1});
    PassMemory memory(*backend, 1 << 18, 1 << 18);
    Tensor smuggled;
    SegmentedPass pass(*backend, memory.work(), memory.store(), recompute, Toy::kSegments,
                       [&](Ctx& ctx, int index, State& s) {
                         toy.segment(ctx, index, s);
                         if (index == 1) smuggled = s[State::streams];
                         if (index == 3) s[State::streams] = add(ctx, s[State::streams], smuggled, 1);
                       });
    Floats cotangent(Toy::kTokens * Toy::kDim, 1.0f);
    const ExitCode code = thrown_by([&] {
      pass.forward();
      pass.backward(Toy::tensor(cotangent.data(), Toy::kTokens, Toy::kDim));
    });
    EXPECT_EQ(code, ExitCode::bug);
  }
}

/// Work and store addresses of a plan never coincide: each segment's first tensor is its new state here, at the work
/// address that mirrors the old state's place in the store.
TEST(PlanMemory, CountsAStateThatIsASegmentsFirstTensor) {
  Floats x(Toy::kTokens * Toy::kDim, 1.0f);
  const auto peaks_on = [&](Backend& backend, PassMemory& memory) {
    SegmentedPass pass(backend, memory.work(), memory.store(), Recompute::layer, 3, [&](Ctx& ctx, int index, State& s) {
      s[State::streams] =
          scale(ctx, index == 0 ? Toy::tensor(x.data(), Toy::kTokens, Toy::kDim) : s[State::streams], 2);
    });
    pass.forward();
    return std::pair{memory.work().peak(), memory.store().peak()};
  };
  PlanBackend plan;
  PassMemory measured;
  const auto cpu = make_cpu_backend({.n_threads = 1});
  PassMemory real(*cpu, 1 << 16, 1 << 16);
  EXPECT_EQ(peaks_on(plan, measured), peaks_on(*cpu, real));
}

/// A golden model, its adapter and one packed batch of random ids: three sequences, some targets unscored.
struct Golden {
  BaseModel base;
  std::unique_ptr<Model> model;
  std::unique_ptr<Adapter> adapter;
  Floats losses, gradients;

  Golden(Backend& backend, const std::string& name, const std::string& adapter_name) {
    const fs::path folder = fs::path(SAAZ_SOURCE_DIR "/tests/golden") / name;
    base = open_base_model(folder);
    model = load_model(backend, base, {});
    adapter = Adapter::load(backend, *model, folder / adapter_name, ForTraining::yes);
    adapter->attach();
  }
  void train(Backend& backend, PassMemory& memory, Recompute recompute) {
    const std::vector<int64_t> starts{0, 1, 18, 41};
    std::mt19937 random(3);
    std::vector<int32_t> ids, targets;
    for (int64_t i = 0; i < starts.back(); ++i) {
      ids.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(model->config().vocab_size)));
      targets.push_back(i % 4 == 1 ? -1 : ids.back() / 2);
    }
    const Batch batch = packed_batch(ids, starts);
    const Tensor& g = adapter->gradients();
    backend.fill(g, 0);
    losses = train_pass(backend, memory, *model, batch, targets, recompute, 1.0f / 31);
    gradients.resize(static_cast<size_t>(g.size()));
    if (!backend.is_plan()) backend.download(gradients.data(), g);
  }
};

struct Peaks {
  int64_t work, store;
};
Peaks planned_peaks(const std::string& name, const std::string& adapter, Recompute recompute) {
  PlanBackend plan;
  PassMemory measured;
  Golden golden(plan, name, adapter);
  golden.train(plan, measured, recompute);
  return {measured.work().peak(), measured.store().peak()};
}

class GoldenChain : public testing::TestWithParam<std::tuple<const char*, const char*>> {
 protected:
  std::string model_name() const { return std::get<0>(GetParam()); }
  std::string adapter_name() const { return std::get<1>(GetParam()); }
};

TEST_P(GoldenChain, GradientsDependOnNeitherRecomputeNorThreads) {
  Floats losses, gradients;
  for (const int threads : {1, 2, 3, 8})
    for (const Recompute recompute : {Recompute::none, Recompute{2}, Recompute::layer}) {
      SCOPED_TRACE(std::to_string(threads) + " threads, recompute " +
                   (recompute == Recompute::none ? "none" : "layer"));
      const auto backend = make_cpu_backend({.n_threads = threads});
      Golden golden(*backend, model_name(), adapter_name());
      PassMemory memory(*backend, 1 << 26, 1 << 26);
      golden.train(*backend, memory, recompute);
      if (losses.empty()) losses = golden.losses, gradients = golden.gradients;
      EXPECT_TRUE(same_bits(losses, golden.losses));
      EXPECT_TRUE(same_bits(gradients, golden.gradients));
    }
  EXPECT_EQ(losses.size(), 31u);
  double size = 0;
  for (const float g : gradients) size += double{g} * g;
  EXPECT_TRUE(std::isfinite(size) && size > 0);
}

TEST_P(GoldenChain, ThePlanCountsExactlyTheMemoryThatARunTakes) {
  for (const Recompute recompute : {Recompute::none, Recompute{2}, Recompute::layer}) {
    SCOPED_TRACE(recompute == Recompute::none ? "recompute none" : "recompute layer");
    const Peaks peaks = planned_peaks(model_name(), adapter_name(), recompute);
    const auto backend = make_cpu_backend({.n_threads = 2});
    Golden golden(*backend, model_name(), adapter_name());
    {
      PassMemory ample(*backend, 1 << 26, 1 << 26);
      golden.train(*backend, ample, recompute);
      EXPECT_EQ(ample.work().peak(), peaks.work);
      EXPECT_EQ(ample.store().peak(), peaks.store);
    }
    PassMemory exact(*backend, peaks.work, peaks.store);
    EXPECT_EQ(thrown_by([&] { golden.train(*backend, exact, recompute); }), ExitCode::ok);
    PassMemory short_work(*backend, peaks.work - 1, peaks.store);
    EXPECT_EQ(thrown_by([&] { golden.train(*backend, short_work, recompute); }), ExitCode::resource);
    PassMemory short_store(*backend, peaks.work, peaks.store - 1);
    EXPECT_EQ(thrown_by([&] { golden.train(*backend, short_store, recompute); }), ExitCode::resource);
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenChain,
                         testing::Combine(testing::Values("gemma3n-dev", "gemma3-dev"),
                                          testing::Values("lora_all", "lora_mlp")),
                         [](const auto& info) {
                           std::string name = std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace saaz
