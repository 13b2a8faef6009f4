// Parity with Hugging Face: every folder of tests/golden and of SAAZ_GOLDEN_DIRS. One line for each folder and check:
// worst error and bound. Bounds: docs/numerics.md; every size comes from the folder's config.json.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "backend/plan.h"
#include "golden_testing.h"
#include "infer/engine.h"
#include "lora/lora.h"
#include "model/pass.h"
#include "publish/merge.h"
#include "train/optimizer.h"

namespace saaz {
namespace {

constexpr double kStateBound = 2e-5;       // of the tensor's largest value
constexpr double kGradientBound = 1e-4;    // relative norm
constexpr double kTrajectoryBound = 1e-4;  // relative
constexpr double kTrainedBound = 2e-5;     // relative norm
constexpr int64_t kWork = int64_t{1} << 28;

void report(const fs::path& folder, const std::string& what, double worst, double bound) {
  std::printf("golden %s %s: worst %.3g, bound %.3g%s\n", folder.filename().c_str(), what.c_str(), worst, bound,
              worst <= bound ? "" : "  FAILED");
  EXPECT_LE(worst, bound) << folder << " " << what;
}

void report_equal(const fs::path& folder, const std::string& what, bool equal) {
  std::printf("golden %s %s: %s\n", folder.filename().c_str(), what.c_str(), equal ? "equal" : "DIFFERENT  FAILED");
  EXPECT_TRUE(equal) << folder << " " << what;
}

std::unique_ptr<Backend> make_backend(bool gpu) { return gpu ? make_cuda_backend({}) : make_cpu_backend({}); }

/// The CPU, and in f32 the GPU when this build and machine have one: the same bounds.
std::vector<bool> devices() {
  if (make_backend(true) != nullptr) return {false, true};
  return {false};
}

class Golden : public testing::TestWithParam<std::tuple<fs::path, bool>> {
 protected:
  void SetUp() override {
    folder_ = std::get<0>(GetParam());
    base_ = open_base_model(folder_);
    backend_ = make_backend(std::get<1>(GetParam()));
    std::printf("golden %s on %s\n", folder_.filename().c_str(), backend_->describe().c_str());
    model_ = load_model(*backend_, base_, {});
    expected_ = std::make_unique<TensorSet>(TensorSet::open(folder_ / "expected.safetensors"));
    meta_ = parse_json(read_file(folder_ / "meta.json"), "meta.json");
    n_rows_ = expected_->at("input_ids").shape[0];
    batch_ = unpad(integers(*expected_, "input_ids"), integers(*expected_, "attention_mask"),
                   integers(*expected_, "labels"), n_rows_);
    memory_ = std::make_unique<PassMemory>(*backend_, kWork, kWork);
  }

  /// Largest difference over the unpadded rows, relative to the expected tensor's largest value there.
  double compare_rows(std::span<const float> ours, std::span<const float> expected, int64_t dim,
                      int64_t expected_offset_rows) const {
    double worst = 0, largest = 0;
    for (size_t r = 0; r < batch_.rows.size(); ++r)
      for (int64_t i = 0; i < dim; ++i) {
        const double e = expected[static_cast<size_t>((expected_offset_rows + batch_.rows[r]) * dim + i)],
                     o = ours[r * static_cast<size_t>(dim) + static_cast<size_t>(i)];
        worst = std::max(worst, std::isnan(o) ? HUGE_VAL : std::fabs(o - e));
        largest = std::max(largest, std::fabs(e));
      }
    return worst / largest;
  }

  std::vector<float> all_logits(const Model& model) {
    const Batch batch = packed_batch(batch_.ids, batch_.starts);
    std::vector<int32_t> rows(batch_.ids.size());
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int32_t>(i);
    return logits_pass(*backend_, *memory_, model, batch, nullptr, rows);
  }

  std::vector<std::string> adapters() const {
    std::vector<std::string> out;
    for (const auto& entry : fs::directory_iterator(folder_))
      if (entry.is_directory() && fs::exists(entry.path() / "adapter_config.json"))
        out.push_back(entry.path().filename().string());
    std::sort(out.begin(), out.end());
    EXPECT_GE(out.size(), 2u) << folder_ << ": an adapter of the MLP and one of all layers";
    return out;
  }

  fs::path folder_;
  BaseModel base_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<TensorSet> expected_;
  Value meta_;
  int64_t n_rows_ = 0;
  Unpadded batch_;
  std::unique_ptr<PassMemory> memory_;
};

TEST_P(Golden, LogitsLossAndStates) {
  report(folder_, "logits",
         compare_rows(all_logits(*model_), floats(expected_->at("logits")), model_->config().vocab_size, 0),
         kStateBound);
  const Batch batch = packed_batch(batch_.ids, batch_.starts);
  const std::vector<float> losses = evaluate_pass(*backend_, *memory_, *model_, batch, batch_.targets);
  double sum = 0;
  for (const float loss : losses) sum += loss;
  const double expected_loss = floats(expected_->at("loss"))[0];
  report(folder_, "loss", std::fabs(sum / static_cast<double>(losses.size()) - expected_loss) / expected_loss,
         kStateBound);

  double worst = 0;
  const auto compare_state = [&](int index, const Tensor& streams) {
    const TensorEntry& entry = expected_->at("hidden_states." + std::to_string(index));
    const int64_t dim = streams.dim(-1), n_tokens = static_cast<int64_t>(batch_.ids.size()),
                  padded = entry.shape[entry.shape.size() - 2] * n_rows_;
    std::vector<float> values(static_cast<size_t>(streams.size()));
    backend_->download(values.data(), streams);
    for (int64_t j = 0; j < streams.rows() / n_tokens; ++j)
      worst = std::max(worst, compare_rows(std::span(values).subspan(static_cast<size_t>(j * n_tokens * dim),
                                                                     static_cast<size_t>(n_tokens * dim)),
                                           floats(entry), dim, j * padded));
  };
  const bool final_is_normed =
      model_->config().family == Family::gemma3;  // HF stores the last state after the final norm
  ArenaScope store(memory_->store()), work(memory_->work());
  const State final = run_without_gradients(
      *backend_, memory_->work(), memory_->store(), model_->n_segments(),
      [&](Ctx& ctx, int s, State& state) { model_->segment(ctx, s, state, batch, nullptr); },
      [&](int s, const State& state) {
        if (s + 1 < model_->n_segments() || !final_is_normed) compare_state(s, state[State::streams]);
      });
  if (final_is_normed) {
    Ctx ctx{*backend_, memory_->work(), nullptr, Tracking::off};
    compare_state(static_cast<int>(model_->config().n_layers), model_->output(ctx, final));
  }
  report(folder_, "states", worst, kStateBound);
}

/// Greedy answers of `n_tokens` ids.
std::vector<std::vector<int32_t>> greedy(Backend& backend, Model& model,
                                         const std::vector<std::vector<int32_t>>& prompts, int64_t n_tokens) {
  std::vector<Request> requests(prompts.size());
  size_t longest = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    requests[i].prompt = prompts[i];
    requests[i].max_tokens = n_tokens;
    longest = std::max(longest, prompts[i].size());
  }
  Engine engine(backend, model, nullptr,
                {.max_running = static_cast<int64_t>(prompts.size()),
                 .context = static_cast<int64_t>(longest) + n_tokens + 8,
                 .prefix_bytes = 0});
  std::vector<std::vector<int32_t>> out;
  for (Completion& answer : complete_all(engine, std::move(requests), {}))
    out.push_back(std::move(answer.choices[0].ids));
  return out;
}

TEST_P(Golden, Greedy) {
  const std::vector<int64_t> expected = integers(*expected_, "greedy_ids");
  constexpr size_t kPrompt = 20;
  const std::vector<int32_t> prompt(expected.begin(), expected.begin() + kPrompt);
  const std::vector<int32_t> answer =
      greedy(*backend_, *model_, {prompt}, static_cast<int64_t>(expected.size() - kPrompt))[0];
  report_equal(folder_, "greedy ids",
               std::vector<int64_t>(answer.begin(), answer.end()) ==
                   std::vector<int64_t>(expected.begin() + kPrompt, expected.end()));

  const TensorEntry& shape = expected_->at("greedy_batch_prompt");
  const Unpadded prompts =
      unpad(integers(*expected_, "greedy_batch_prompt"), integers(*expected_, "greedy_batch_mask"), {}, shape.shape[0]);
  const std::vector<int64_t> batch_ids = integers(*expected_, "greedy_batch_ids");
  const int64_t width = static_cast<int64_t>(batch_ids.size()) / shape.shape[0];
  std::vector<std::vector<int32_t>> split;
  for (size_t s = 0; s + 1 < prompts.starts.size(); ++s)
    split.emplace_back(prompts.ids.begin() + prompts.starts[s], prompts.ids.begin() + prompts.starts[s + 1]);
  const std::vector<std::vector<int32_t>> answers = greedy(*backend_, *model_, split, width - shape.shape[1]);
  bool equal = true;
  for (size_t s = 0; s < answers.size(); ++s) {
    const auto row = batch_ids.begin() + static_cast<int64_t>(s) * width;
    equal = equal && std::equal(answers[s].begin(), answers[s].end(), row + shape.shape[1], row + width);
  }
  report_equal(folder_, "batched greedy ids", equal);
}

TEST_P(Golden, DecodeEqualsPrefill) {
  const std::vector<float> whole = all_logits(*model_);
  const auto vocab = static_cast<size_t>(model_->config().vocab_size);
  const auto n_tokens = static_cast<int64_t>(batch_.ids.size());
  KvCache cache(*backend_, model_->config(), {.n_sequences = n_rows_, .max_length = n_tokens, .max_chunk = 4});
  for (int64_t s = 0; s < n_rows_; ++s) ASSERT_TRUE(cache.open(s, n_tokens));
  Batch batch;
  double worst = 0, largest = 0;
  for (int64_t s = 0; s < n_rows_; ++s)
    for (int64_t at = batch_.starts[static_cast<size_t>(s)], end = batch_.starts[static_cast<size_t>(s) + 1];
         at < end;) {
      const int64_t n = std::min<int64_t>(at % 2 == 0 ? 1 : 4, end - at);  // single tokens and chunks
      const KvCache::Append item{s, std::span(batch_.ids).subspan(static_cast<size_t>(at), static_cast<size_t>(n))};
      cache.append({&item, 1}, batch);
      std::vector<int32_t> rows;
      for (int64_t i = 0; i < n; ++i) rows.push_back(static_cast<int32_t>(i));
      const std::vector<float> logits = logits_pass(*backend_, *memory_, *model_, batch, &cache, rows);
      for (size_t i = 0; i < logits.size(); ++i) {
        const double e = whole[static_cast<size_t>(at) * vocab + i];
        const double gap = std::fabs(logits[i] - e);
        worst = std::max(worst, std::isnan(gap) ? HUGE_VAL : gap);
        largest = std::max(largest, std::fabs(e));
      }
      at += n;
    }
  report(folder_, "decode against prefill", worst / largest, kStateBound);
}

double relative_norm(Backend& backend, const Tensor& ours, std::span<const float> expected) {
  std::vector<float> values(static_cast<size_t>(ours.size()));
  backend.download(values.data(), ours);
  EXPECT_EQ(values.size(), expected.size());
  double error = 0, norm = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    error += (static_cast<double>(values[i]) - expected[i]) * (static_cast<double>(values[i]) - expected[i]);
    norm += static_cast<double>(expected[i]) * expected[i];
  }
  return std::isfinite(error) ? std::sqrt(error / norm) : HUGE_VAL;
}

/// Worst relative norm over the adapter's tensors (parameters or gradients) against a file with PEFT's names.
double compare_adapter(Backend& backend, const Adapter& adapter, const fs::path& file, bool gradients) {
  const SafetensorsFile expected(file);
  double worst = 0;
  size_t found = 0;
  for (const TensorEntry& entry : expected.tensors())
    for (const Adapter::Module& module : adapter.modules())
      for (const auto& [suffix, value, gradient] : {std::tuple{".lora_A.weight", module.pair.a, module.pair.da},
                                                    std::tuple{".lora_B.weight", module.pair.b, module.pair.db}})
        if (entry.name.ends_with("." + module.linear->name + suffix)) {
          worst = std::max(worst, relative_norm(backend, gradients ? gradient : value, floats(entry)));
          ++found;
        }
  EXPECT_EQ(found, expected.tensors().size());
  EXPECT_EQ(found, 2 * adapter.modules().size());
  return worst;
}

TEST_P(Golden, LoraGradients) {
  for (const std::string& tag : adapters()) {
    const auto adapter = Adapter::load(*backend_, *model_, folder_ / tag, ForTraining::yes);
    adapter->attach();
    const Batch batch = packed_batch(batch_.ids, batch_.starts);
    const auto n_scored = std::count_if(batch_.targets.begin(), batch_.targets.end(), [](int32_t t) { return t >= 0; });
    const auto gradients = [&](Recompute recompute) {
      backend_->fill(adapter->gradients_and_totals(), 0);
      train_pass(*backend_, *memory_, *model_, batch, batch_.targets, recompute, 1.0f / static_cast<float>(n_scored));
      std::vector<float> out(static_cast<size_t>(adapter->gradients().size()));
      backend_->download(out.data(), adapter->gradients());
      return out;
    };
    const std::vector<float> recomputed = gradients(Recompute::layer);
    report(folder_, tag + " gradients", compare_adapter(*backend_, *adapter, folder_ / tag / "grads.safetensors", true),
           kGradientBound);
    for (const Recompute recompute : {Recompute::none, Recompute::offload, Recompute{2}}) {
      const std::vector<float> others = gradients(recompute);
      report_equal(folder_,
                   fmt::format("{} gradients, {} segments recomputed{}", tag, recompute.n_segments,
                               recompute.inputs_on_host ? ", their inputs on the host" : ""),
                   std::memcmp(others.data(), recomputed.data(), others.size() * sizeof(float)) == 0);
    }
  }
}

TEST_P(Golden, LoraInitialisation) {
  const auto seed = static_cast<uint32_t>(meta_.find("lora_init_seed")->as_integer());
  for (const std::string& tag : adapters()) {
    const auto loaded = Adapter::load(*backend_, *model_, folder_ / tag, ForTraining::no);
    const auto made = Adapter::create(*backend_, *model_, loaded->spec(), seed);
    bool equal = loaded->modules().size() == made->modules().size();
    for (size_t m = 0; equal && m < made->modules().size(); ++m) {
      const Tensor &a = made->modules()[m].pair.a, &b = loaded->modules()[m].pair.a;
      std::vector<float> ours(static_cast<size_t>(a.size())), theirs(static_cast<size_t>(b.size()));
      backend_->download(ours.data(), a);
      backend_->download(theirs.data(), b);
      equal = ours.size() == theirs.size() && std::memcmp(ours.data(), theirs.data(), ours.size() * sizeof(float)) == 0;
    }
    report_equal(folder_, tag + " lora_A as PEFT initialises it", equal);
  }
}

TEST_P(Golden, Trajectory) {
  const TensorSet batches = TensorSet::open(folder_ / "trajectory_batches.safetensors");
  for (const std::string& tag : adapters()) {
    const auto adapter = Adapter::load(*backend_, *model_, folder_ / tag, ForTraining::yes);
    adapter->attach();
    TrainRecipe recipe;
    recipe.learning_rate = 2e-3;
    recipe.warmup_steps = 3;
    recipe.weight_decay = 0.01;
    AdamW optimizer(*backend_, *adapter, recipe);
    const std::vector<Value>& steps = meta_.find(tag + ".trajectory")->items();
    const std::vector<Value>& used = meta_.find(tag + ".batches")->items();
    const size_t per_step = used.size() / steps.size();
    double worst_loss = 0, worst_norm = 0;
    for (size_t u = 0; u < steps.size(); ++u) {
      std::vector<Unpadded> micro;
      int64_t n_scored = 0;
      for (size_t k = u * per_step; k < (u + 1) * per_step; ++k) {
        const std::string at = std::to_string(used[k].as_integer()) + ".";
        micro.push_back(unpad(integers(batches, at + "input_ids"), integers(batches, at + "attention_mask"),
                              integers(batches, at + "labels"), batches.at(at + "input_ids").shape[0]));
        n_scored +=
            std::count_if(micro.back().targets.begin(), micro.back().targets.end(), [](int32_t t) { return t >= 0; });
      }
      backend_->fill(adapter->gradients_and_totals(), 0);
      double loss = 0;
      for (const Unpadded& m : micro)
        for (const float l : train_pass(*backend_, *memory_, *model_, packed_batch(m.ids, m.starts), m.targets,
                                        Recompute::layer, 1.0f / static_cast<float>(n_scored)))
          loss += l;
      loss /= static_cast<double>(n_scored);
      const double norm = optimizer.gradient_norm();
      const double expected_loss = steps[u].find("loss")->as_double();
      worst_loss = std::max(worst_loss, std::fabs(loss - expected_loss) / expected_loss);
      if (const Value* expected_norm = steps[u].find("grad_norm"))
        worst_norm = std::max(worst_norm, std::fabs(norm - expected_norm->as_double()) / expected_norm->as_double());
      const double lr =
          learning_rate_at(recipe, static_cast<int64_t>(u), static_cast<int64_t>(steps.size()), recipe.warmup_steps);
      EXPECT_NEAR(lr, steps[u].find("learning_rate")->as_double(), 1e-15);
      optimizer.step(lr, std::min(1.0, 1.0 / (norm + 1e-6)));
    }
    report(folder_, tag + " trajectory loss", worst_loss, kTrajectoryBound);
    if (steps[0].find("grad_norm") != nullptr)
      report(folder_, tag + " trajectory gradient norm", worst_norm, kTrajectoryBound);
    report(folder_, tag + " trained adapter",
           compare_adapter(*backend_, *adapter, folder_ / tag / "trained" / "adapter_model.safetensors", false),
           kTrainedBound);
  }
}

TEST_P(Golden, MergedLogits) {
  for (const std::string& tag : adapters()) {
    const fs::path out = fs::temp_directory_path() / ("saaz-golden-" + std::to_string(getpid()) + "-" + tag);
    fs::remove_all(out);
    const Certificate certificate =
        merge_adapter(*backend_, folder_, folder_ / tag / "trained", out, {.dtype = StoredDType::f32});
    EXPECT_TRUE(certificate.passed()) << certificate.to_table();
    const BaseModel merged = open_base_model(out);
    const auto model = load_model(*backend_, merged, {});
    const TensorSet expected = TensorSet::open(folder_ / tag / "merged_logits.safetensors");
    report(folder_, tag + " merged logits",
           compare_rows(all_logits(*model), floats(expected.at("logits")), model->config().vocab_size, 0), kStateBound);
    fs::remove_all(out);
  }
}

INSTANTIATE_TEST_SUITE_P(Folders, Golden,
                         testing::Combine(testing::ValuesIn(golden_folders()), testing::ValuesIn(devices())),
                         [](const auto& info) {
                           const std::string name = test_name(std::get<0>(info.param), info.index);
                           return name + (std::get<1>(info.param) ? "_cuda" : "");
                         });

}  // namespace
}  // namespace saaz
