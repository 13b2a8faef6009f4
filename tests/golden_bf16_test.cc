// LoRA gradients of bf16 arithmetic against f32's, on weights that are bf16 already. What bf16 itself costs is measured
// beside, on the CPU, by rounding what any such system rounds and nothing else (rounding_backend.h); no bound here was
// chosen after a figure was known. docs/numerics.md explains and lists the figures.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "branch_backend.h"
#include "golden_testing.h"
#include "lora/lora.h"
#include "model/pass.h"
#include "rounding_backend.h"
#include "wide_model.h"

namespace saaz {
namespace {

constexpr int64_t kWork = int64_t{1} << 28;
/// The bar, of each gradient with f32's.
constexpr double kLeastCosine = 0.999;
/// An error is held against the root mean square of so many independent ones. Were all of an error's parts one random
/// number, their quotient would have Student's distribution: it passes kStudent once in a million. (One part is the
/// worst case; errors with more spread less.)
constexpr int kDraws = 32;
constexpr double kStudent = 6.03;

/// A model, a batch and an adapter to train.
struct Task {
  std::string name;
  const BaseModel* base = nullptr;
  Unpadded batch;
  std::function<std::unique_ptr<Adapter>(Backend&, Model&)> adapter;
};

struct Trained {
  std::map<std::string, std::vector<float>> gradients;  // by the linear's name and ".a" or ".b"
  std::vector<SparseCall> calls;
  std::vector<float> logits;
};

/// One pass with gradients and one for the logits. `imposed`: the branches of sparse activations (branch_backend.h).
Trained train(const Task& task, Backend& backend, const std::vector<SparseCall>* imposed = nullptr) {
  BranchBackend branches(backend, imposed);
  const auto model = load_model(branches, *task.base, {});
  const auto adapter = task.adapter(branches, *model);
  adapter->attach();
  if (auto* rounding = dynamic_cast<RoundingBackend*>(&backend)) rounding->learn(*model, *adapter);
  const auto n_scored =
      std::count_if(task.batch.targets.begin(), task.batch.targets.end(), [](int32_t t) { return t >= 0; });
  PassMemory memory(branches, kWork, kWork);
  const Batch batch = packed_batch(task.batch.ids, task.batch.starts);
  train_pass(branches, memory, *model, batch, task.batch.targets, Recompute::none, 1.0f / static_cast<float>(n_scored));
  Trained out;
  out.calls = branches.calls;
  for (const Adapter::Module& module : adapter->modules())
    for (const auto& [suffix, gradient] : {std::pair{".a", module.pair.da}, std::pair{".b", module.pair.db}}) {
      std::vector<float>& values = out.gradients[module.linear->name + suffix];
      values.resize(static_cast<size_t>(gradient.size()));
      branches.download(values.data(), gradient);
    }
  if (imposed != nullptr) return out;
  std::vector<int32_t> rows(task.batch.ids.size());
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int32_t>(i);
  out.logits = logits_pass(branches, memory, *model, batch, nullptr, rows);
  return out;
}

/// f32 on the CPU, with the weights of a 16-bit checkpoint.
Trained exact(const Task& task, const std::vector<SparseCall>* imposed = nullptr) {
  const auto cpu = make_cpu_backend({});
  RoundingBackend backend(*cpu, kWeights);
  return train(task, backend, imposed);
}
/// f32 with nothing but these places rounded.
Trained rounded(const Task& task, unsigned places, uint64_t seed = 0) {
  const auto cpu = make_cpu_backend({});
  RoundingBackend backend(*cpu, kWeights | places, seed);
  return train(task, backend);
}

double norm(std::span<const float> a) {
  double sum = 0;
  for (const float x : a) sum += double{x} * x;
  return std::sqrt(sum);
}
/// norm(a - b) / norm(b)
double relative_error(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < b.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  const double error = std::sqrt(sum) / norm(b);
  return a.size() == b.size() && std::isfinite(error) ? error : HUGE_VAL;
}
double cosine(std::span<const float> a, std::span<const float> b) {
  double product = 0;
  for (size_t i = 0; i < b.size(); ++i) product += double{a[i]} * b[i];
  const double c = product / (norm(a) * norm(b));
  return a.size() == b.size() && std::isfinite(c) ? c : -1;
}

struct Least {
  double cosine = 1;
  std::string name;
  size_t n_below = 0;  // the bar
};
Least least_cosine(const Trained& ours, const Trained& expected) {
  EXPECT_EQ(ours.gradients.size(), expected.gradients.size());
  Least out;
  for (const auto& [name, gradient] : expected.gradients) {
    const double c = cosine(ours.gradients.at(name), gradient);
    out.n_below += c < kLeastCosine ? 1 : 0;
    if (c < out.cosine) out = {c, name, out.n_below};
  }
  return out;
}

/// Gates that fall on the other side of their threshold than f32's.
struct Flips {
  size_t n = 0, n_passing = 0;
};
Flips flips(const Trained& ours, const Trained& expected) {
  Flips out;
  for (size_t c = 0; c < expected.calls.size(); ++c)
    for (size_t i = 0; i < expected.calls[c].gates.size(); ++i) {
      out.n_passing += expected.calls[c].passes(i) ? 1 : 0;
      out.n += ours.calls[c].passes(i) != expected.calls[c].passes(i) ? 1 : 0;
    }
  return out;
}
/// Root mean square by which a call's gates miss f32's distance from their threshold, in deviations of their row.
double distance_error(const SparseCall& ours, const SparseCall& expected) {
  double sum = 0;
  for (size_t i = 0; i < expected.gates.size(); ++i) {
    const double error = double{ours.distance(i)} - expected.distance(i);
    sum += error * error;
  }
  return std::sqrt(sum / static_cast<double>(expected.gates.size()));
}

/// Prints how near each comes to f32: as it is, and on the branches it took itself. Returns the second.
Least report(const std::string& what, const Task& task, const Trained& ours, const Trained& expected) {
  const Least as_it_is = least_cosine(ours, expected);
  const Least on_branches = expected.calls.empty() ? as_it_is : least_cosine(ours, exact(task, &ours.calls));
  const Flips flipped = flips(ours, expected);
  std::printf(
      "bf16 %s, %s: least cosine %.5f (%s; %zu of %zu below %.3f), on its own branches %.5f (%s); %zu flips of %zu "
      "gates that pass\n",
      task.name.c_str(), what.c_str(), as_it_is.cosine, as_it_is.name.c_str(), as_it_is.n_below,
      expected.gradients.size(), kLeastCosine, on_branches.cosine, on_branches.name.c_str(), flipped.n,
      flipped.n_passing);
  return on_branches;
}

// The wide model: the bar.

std::unique_ptr<Adapter> wide_adapter(Backend& backend, Model& model) {
  const std::vector<std::string> targets = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                            "gate_proj", "up_proj", "down_proj"};
  auto adapter = Adapter::create(backend, model, {.targets = targets, .r = 8, .alpha = 16}, 1);
  std::mt19937 draw(2);
  for (const Adapter::Module& module : adapter->modules()) {
    std::vector<float> b(static_cast<size_t>(module.pair.b.size()));
    for (float& x : b) x = 0.17f * (static_cast<float>(draw() >> 8) * 0x1p-24f - 0.5f);
    backend.upload(module.pair.b, b.data());
  }
  return adapter;
}

class WideModel : public testing::Test {
 protected:
  static constexpr int64_t kTokens = 60;

  WideModel() : base_(wide_model()) {
    task_ = {.name = "wide", .base = &base_, .batch = {}, .adapter = wide_adapter};
    std::mt19937 draw(3);
    for (int64_t i = 0; i < kTokens; ++i) {
      task_.batch.ids.push_back(static_cast<int32_t>(3 + draw() % 317));
      if (i == kTokens * 3 / 5) task_.batch.starts.push_back(i);
    }
    task_.batch.starts.push_back(kTokens);
    task_.batch.targets.assign(task_.batch.ids.begin() + 1, task_.batch.ids.end());
    task_.batch.targets.push_back(-1);
    task_.batch.targets[static_cast<size_t>(task_.batch.starts[1]) - 1] = -1;
  }
  BaseModel base_;
  Task task_;
};

TEST_F(WideModel, RoundingEverythingThatIsStoredKeepsTheGradients) {
  const Trained expected = exact(task_);
  EXPECT_GE(report("all that is stored", task_, rounded(task_, kStores), expected).cosine, kLeastCosine);
}

class WideModelOnGpu : public WideModel, public testing::WithParamInterface<fs::path> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(WideModelOnGpu);

TEST_P(WideModelOnGpu, Gradients) {
  const auto gpu = make_cuda_backend({.compute_dtype = DType::bf16});
  const Trained expected = exact(task_), ours = train(task_, *gpu), allowed = rounded(task_, kStores);
  EXPECT_GE(report(gpu->describe(), task_, ours, expected).cosine, kLeastCosine);
  // Gates keep to where rounding leaves them, so its branches are no worse than any other bf16 system's. Each token's
  // roundings are its own: of so many, the mean of squares keeps within 5 of its deviations.
  const double spread = 1 + 5 / std::sqrt(2.0 * kTokens);
  for (size_t c = 0; c < expected.calls.size(); ++c) {
    const double error = distance_error(ours.calls[c], expected.calls[c]),
                 bound = spread * distance_error(allowed.calls[c], expected.calls[c]);
    std::printf("bf16 wide, gates of sparse layer %zu: error %.5f deviations, bound %.5f\n", c, error, bound);
    EXPECT_LE(error, bound) << c;
  }
}

/// A developer's tool: what each kind of rounding costs (--gtest_also_run_disabled_tests).
TEST_F(WideModel, DISABLED_WhatEachRoundingCosts) {
  const Trained expected = exact(task_);
  const std::vector<std::pair<const char*, unsigned>> all = {
      {"pairs", kPairs},     {"results of products", kProducts}, {"sparse gates", kSparseGates},
      {"norms", kNorms},     {"attention", kAttention},          {"gated activations", kActivations},
      {"streams", kStreams}, {"gradients", kGradients}};
  report("operands of products", task_, rounded(task_, kAllOperands), expected);
  for (const auto& [name, places] : all) {
    report(std::string(name) + " alone", task_, rounded(task_, places), expected);
    report(std::string("all but ") + name, task_, rounded(task_, kStores & ~places), expected);
  }
}

// The goldens: tiny, and some of them ill-conditioned.

class GoldenBf16 : public testing::TestWithParam<fs::path> {
 protected:
  void SetUp() override {
    folder_ = GetParam();
    base_ = open_base_model(folder_);
    const auto expected = TensorSet::open(folder_ / "expected.safetensors");
    const Unpadded batch = unpad(integers(expected, "input_ids"), integers(expected, "attention_mask"),
                                 integers(expected, "labels"), expected.at("input_ids").shape[0]);
    for (const char* tag : {"lora_all", "lora_mlp"}) {
      const auto load = [folder = folder_ / tag](Backend& backend, Model& model) {
        return Adapter::load(backend, model, folder, ForTraining::yes);
      };
      tasks_.push_back({folder_.filename().string() + " " + tag, &base_, batch, load});
    }
  }

  /// The root mean square over draws of the relative errors that rounding at `places` makes, by gradient and of the
  /// logits.
  static std::map<std::string, double> rounding_errors(const Task& task, const Trained& expected, unsigned places,
                                                       int n_draws) {
    std::map<std::string, double> squares;
    for (int draw = 1; draw <= n_draws; ++draw) {
      const Trained ours = rounded(task, places, static_cast<uint64_t>(draw) * 0x9e3779b97f4a7c15u);
      for (const auto& [name, gradient] : expected.gradients)
        squares[name] += std::pow(relative_error(ours.gradients.at(name), gradient), 2) / n_draws;
      squares["logits"] += std::pow(relative_error(ours.logits, expected.logits), 2) / n_draws;
    }
    for (auto& [name, square] : squares) square = std::sqrt(square);
    return squares;
  }
  /// Of the gradients. A vector off by a relative error e, in any direction, has a cosine of 1 - e^2 / 2.
  static double least_cosine_of(std::map<std::string, double> errors) {
    errors.erase("logits");
    double most = 0;
    for (const auto& [name, error] : errors) most = std::max(most, error);
    return 1 - most * most / 2;
  }

  fs::path folder_;
  BaseModel base_;
  std::vector<Task> tasks_;
};

TEST_P(GoldenBf16, ImposingTheBranchesOfF32ChangesNothing) {
  constexpr double kBound = 1e-4;  // f32's own noise: as golden_test.cc
  const Trained expected = exact(tasks_[0]), again = exact(tasks_[0], &expected.calls);
  for (const auto& [name, gradient] : expected.gradients)
    EXPECT_LE(relative_error(again.gradients.at(name), gradient), kBound) << name;
}

TEST_P(GoldenBf16, WhatOperandsAloneCost) {
  // Nothing rounded but what enters products. On the Gemma 3n goldens that is too much for the bar already.
  constexpr int kFewDraws = 8;
  for (const Task& task : tasks_) {
    const Trained expected = exact(task);
    report("operands of products", task, rounded(task, kAllOperands), expected);
    report("all that is stored", task, rounded(task, kStores), expected);
    const double floor = least_cosine_of(rounding_errors(task, expected, kAllOperands, kFewDraws));
    std::printf("bf16 %s: least cosine %.5f for operands of products, root mean square of %d draws\n",
                task.name.c_str(), floor, kFewDraws);
    EXPECT_EQ(floor >= kLeastCosine, base_.config.family == Family::gemma3) << task.name;
  }
}

class GoldenBf16OnGpu : public GoldenBf16 {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GoldenBf16OnGpu);

TEST_P(GoldenBf16OnGpu, Errors) {
  const auto gpu = make_cuda_backend({.compute_dtype = DType::bf16});
  for (const Task& task : tasks_) {
    const Trained expected = exact(task), ours = train(task, *gpu);
    const Least least = report(gpu->describe(), task, ours, expected);
    if (base_.config.family == Family::gemma3) {
      EXPECT_GE(least.cosine, kLeastCosine) << least.name;
    }
    double worst = 0;
    const auto compare = [&](const std::string& name, double error, double of_rounding) {
      worst = std::max(worst, error / of_rounding);
      EXPECT_LE(error, kStudent * of_rounding) << task.name << " " << name;
    };
    const auto errors = rounding_errors(task, expected, kStores, kDraws);
    for (const auto& [name, gradient] : expected.gradients)
      compare(name, relative_error(ours.gradients.at(name), gradient), errors.at(name));
    compare("logits", relative_error(ours.logits, expected.logits), errors.at("logits"));
    std::printf("bf16 %s: errors at most %.2f of what rounding makes, bound %.2f (its cosine %.5f)\n",
                task.name.c_str(), worst, kStudent, least_cosine_of(errors));
  }
}

/// The folders, where there is a GPU.
std::vector<fs::path> folders_for_gpu(std::vector<fs::path> folders) {
  if (make_cuda_backend({}) == nullptr) folders.clear();
  return folders;
}
std::string name_of_folder(const testing::TestParamInfo<fs::path>& info) { return test_name(info.param, info.index); }

INSTANTIATE_TEST_SUITE_P(Folders, GoldenBf16, testing::ValuesIn(golden_folders()), name_of_folder);
INSTANTIATE_TEST_SUITE_P(Folders, GoldenBf16OnGpu, testing::ValuesIn(folders_for_gpu(golden_folders())),
                         name_of_folder);
INSTANTIATE_TEST_SUITE_P(Wide, WideModelOnGpu, testing::ValuesIn(folders_for_gpu({"wide"})), name_of_folder);

}  // namespace
}  // namespace saaz
