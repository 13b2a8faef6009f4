// `saaz plan` against what it speaks of: the memory it says and the peak of the run itself, measured by the kernel, on
// the tiny model and on a random one of 40 million parameters; and the smallest change that fits.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>

#include "base/check.h"
#include "base/value.h"
#include "checkpoint/safetensors.h"
#include "config/recipe.h"
#include "tensor/tensor.h"
#include "train/pass_cost.h"

namespace saaz {
namespace {

const fs::path kTry = fs::path(SAAZ_SOURCE_DIR) / "data" / "try";
constexpr double kBound = 0.05;  // what `saaz plan` states

struct Ended {
  int code = 0;
  std::string out, error;
  int64_t peak_bytes = 0;  // of resident memory
};

class Plan : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("saaz-plan-" + std::to_string(getpid()));
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  Ended saaz(std::vector<std::string> words) const {
    words.insert(words.begin(), {SAAZ_PROGRAM, "--quiet"});
    std::vector<char*> pointers;
    for (std::string& word : words) pointers.push_back(word.data());
    pointers.push_back(nullptr);
    const fs::path out = root_ / "stdout", error = root_ / "stderr";
    posix_spawn_file_actions_t streams;
    posix_spawn_file_actions_init(&streams);
    posix_spawn_file_actions_addopen(&streams, STDOUT_FILENO, out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    posix_spawn_file_actions_addopen(&streams, STDERR_FILENO, error.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    pid_t child = 0;
    EXPECT_EQ(posix_spawn(&child, words[0].c_str(), &streams, nullptr, pointers.data(), environ), 0);
    posix_spawn_file_actions_destroy(&streams);
    int status = 0;
    struct rusage usage {};
    wait4(child, &status, 0, &usage);
    return {.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
            .out = read_file(out),
            .error = read_file(error),
            .peak_bytes = int64_t{usage.ru_maxrss} * 1024};
  }

  std::vector<std::string> overrides(const std::string& base, const std::vector<std::string>& more) const {
    std::vector<std::string> sets = {"model.base=" + base, "data.train=" + (kTry / "train.jsonl").string(),
                                     "data.validation.file=" + (kTry / "valid.jsonl").string(),
                                     "output.dir=" + (root_ / "run").string(), "eval.every_steps=0"};
    sets.insert(sets.end(), more.begin(), more.end());
    std::vector<std::string> words = {(kTry / "recipe.yaml").string()};
    for (const std::string& set : sets) words.insert(words.end(), {"--set", set});
    return words;
  }
  Ended plan(const std::string& base, const std::vector<std::string>& sets,
             const std::vector<std::string>& flags = {"--counts-only"}) const {
    std::vector<std::string> words = overrides(base, sets);
    words.insert(words.begin(), {"--json", "plan"});
    words.insert(words.end(), flags.begin(), flags.end());
    return saaz(words);
  }
  Ended train(const std::string& base, const std::vector<std::string>& sets,
              const std::vector<std::string>& flags = {}) const {
    fs::remove_all(root_ / "run");
    std::vector<std::string> words = overrides(base, sets);
    words.insert(words.begin(), "train");
    words.insert(words.end(), flags.begin(), flags.end());
    return saaz(words);
  }
  int64_t planned_bytes(const std::string& base, const std::vector<std::string>& sets) const {
    const Ended ended = plan(base, sets);
    EXPECT_EQ(ended.code, 0) << ended.error;
    return parse_json(ended.out, "plan").find("total_memory_bytes")->as_integer();
  }
  void expect_plan_is_true(const std::string& base, const std::vector<std::string>& sets) const {
    const int64_t planned = planned_bytes(base, sets);
    // How many pages of the program's file stay in memory is not the run's doing alone: a small run thrice, the median.
    std::vector<int64_t> peaks(planned < 64 << 20 ? 3 : 1);
    for (int64_t& peak : peaks) {
      const Ended run = train(base, sets);
      ASSERT_EQ(run.code, 0) << run.error;
      peak = run.peak_bytes;
    }
    std::sort(peaks.begin(), peaks.end());
    const auto measured = static_cast<double>(peaks[peaks.size() / 2]);
    std::string what;
    for (const std::string& set : sets) what += set + " ";
    const double error = static_cast<double>(planned) / measured - 1;
    fmt::print("{}: planned {:.1f} MiB, measured {:.1f}, {:+.1f} %\n", what, static_cast<double>(planned) / 0x1p20,
               measured / 0x1p20, 100 * error);
    EXPECT_LE(std::abs(error), kBound) << what;
  }

  /// A Gemma 3 with random weights and the tiny model's tokenizer.
  std::string random_model() const {
    constexpr int64_t kHidden = 640, kFfn = 2560, kLayers = 6, kHeads = 4, kHeadDim = 128, kVocab = 8192;
    const fs::path folder = root_ / "model";
    fs::create_directories(folder);
    Value config = parse_json(read_file(fs::path(SAAZ_SOURCE_DIR) / "tests/golden/gemma3-dev/config.json"), "config");
    Value types = Value::array();
    for (int64_t l = 0; l < kLayers; ++l) types.push_back(l % 3 == 2 ? "full_attention" : "sliding_attention");
    for (const auto& [key, value] : std::vector<std::pair<std::string, Value>>{{"hidden_size", kHidden},
                                                                               {"intermediate_size", kFfn},
                                                                               {"num_hidden_layers", kLayers},
                                                                               {"num_attention_heads", kHeads},
                                                                               {"head_dim", kHeadDim},
                                                                               {"query_pre_attn_scalar", kHeadDim},
                                                                               {"vocab_size", kVocab},
                                                                               {"sliding_window", 64},
                                                                               {"layer_types", types}})
      config.set(key, value);
    write_file_atomically(folder / "config.json", to_json(config, 2));
    for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
      copy_file_atomically(kTry / "model" / name, folder / name);
    std::vector<TensorSpec> specs;
    const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
      specs.push_back({"model." + name + ".weight", StoredDType::bf16, std::move(shape)});
    };
    add("embed_tokens", {kVocab, kHidden});
    add("norm", {kHidden});
    for (int64_t l = 0; l < kLayers; ++l) {
      const std::string at = fmt::format("layers.{}.", l);
      for (const char* norm :
           {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"})
        add(at + norm, {kHidden});
      for (const char* norm : {"q_norm", "k_norm"}) add(at + "self_attn." + norm, {kHeadDim});
      add(at + "self_attn.q_proj", {kHeads * kHeadDim, kHidden});
      for (const char* name : {"k_proj", "v_proj"}) add(at + "self_attn." + name, {kHeadDim, kHidden});
      add(at + "self_attn.o_proj", {kHidden, kHeads * kHeadDim});
      for (const char* name : {"gate_proj", "up_proj"}) add(at + "mlp." + name, {kFfn, kHidden});
      add(at + "mlp.down_proj", {kHidden, kFfn});
    }
    std::mt19937 random(7);
    write_safetensors(folder / "model.safetensors", specs, {}, [&](const TensorSpec& spec, const ByteSink& sink) {
      std::vector<uint16_t> values(spec.bytes() / 2);
      for (uint16_t& value : values)
        value = f32_to_bf16((static_cast<float>(random() & 0xFFFF) * 0x1p-16F - 0.5F) * 0.08F);
      sink(std::as_bytes(std::span(values)));
    });
    return folder.string();
  }

  fs::path root_;
};

const std::string kTiny = (kTry / "model").string();

TEST_F(Plan, MemoryOfTheTinyModel) {
  for (const std::vector<std::string>& sets : std::vector<std::vector<std::string>>{
           {"train.max_steps=3"},
           {"train.max_steps=3", "quant.scheme=none"},
           {"train.max_steps=2", "train.per_device_train_batch_size=16", "train.recompute=none"},
           {"train.max_steps=2", "train.per_device_train_batch_size=32", "data.packing=true"},
           {"train.max_steps=1", "eval.probes=default-fa"}})
    expect_plan_is_true(kTiny, sets);
}

TEST_F(Plan, MemoryOfALargerModel) {
  const std::string base = random_model();
  for (const std::vector<std::string>& sets : std::vector<std::vector<std::string>>{
           {"train.max_steps=1", "quant.scheme=nf4"},
           {"train.max_steps=1", "quant.scheme=none", "lora.r=32", "lora.target_preset=all-linear"},
           {"train.max_steps=1", "train.per_device_train_batch_size=8", "train.recompute=none"},
           {"train.max_steps=1", "quant.scheme=nf4", "eval.probes=default-fa"}})
    expect_plan_is_true(base, sets);
}

/// What a folder takes of a disk with blocks of 4 KiB.
int64_t bytes_on_disk(const fs::path& folder) {
  int64_t out = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) out += (static_cast<int64_t>(entry.file_size()) + 4095) / 4096 * 4096;
  return out;
}

TEST_F(Plan, DiskAtTheMomentBeforeACheckpointIsPruned) {
  for (const std::vector<std::string>& sets : std::vector<std::vector<std::string>>{
           {"train.max_steps=12", "output.save_steps=3", "output.save_total_limit=2", "eval.every_steps=4"},
           {"train.max_steps=60", "output.save_steps=50", "output.save_total_limit=3"},
           {"train.max_steps=10", "output.save_steps=2", "output.save_total_limit=0", "train.optim=adamw_8bit"}}) {
    const Ended ended = plan(kTiny, sets);
    ASSERT_EQ(ended.code, 0) << ended.error;
    const int64_t planned = parse_json(ended.out, "plan").find("run_folder_bytes")->as_integer();
    ASSERT_EQ(train(kTiny, sets).code, 0);
    // As it was when the last checkpoint was whole and the one it replaces still there; the adapter came later.
    int64_t most = bytes_on_disk(root_ / "run");
    const bool is_pruned = sets[2].ends_with("=2");
    if (is_pruned)
      most += bytes_on_disk(root_ / "run" / "checkpoint-12") -
              static_cast<int64_t>(fs::file_size(root_ / "run" / "adapter_model.safetensors"));
    fmt::print("{} {}: planned {} bytes, at most {} there\n", sets[0], sets[2], planned, most);
    EXPECT_LE(most, planned) << sets[2];
    EXPECT_LE(planned, most + most / 10) << sets[2];
  }
}

TEST_F(Plan, TheSmallestChangeFitsAndTrains) {
  const std::vector<std::string> large = {"train.max_steps=1", "train.per_device_train_batch_size=32",
                                          "train.gradient_accumulation_steps=1", "train.recompute=none"};
  const int64_t needed = planned_bytes(kTiny, large);
  // Something has to give way, and then more of it.
  for (const double share : {0.95, 0.8}) {
    const std::string limit = fmt::format("{:.0f}", static_cast<double>(needed) * share);
    const Ended ended = plan(kTiny, large, {"--max-memory", limit});
    EXPECT_EQ(ended.code, 4) << ended.error;
    const Value document = parse_json(ended.out, "plan");
    EXPECT_FALSE(document.find("fits")->as_bool());
    ASSERT_TRUE(document.find("smallest_change")->is_array()) << ended.out;
    std::vector<std::string> smaller = large;
    for (const Value& change : document.find("smallest_change")->items()) smaller.push_back(change.as_string());
    EXPECT_EQ(plan(kTiny, smaller, {"--counts-only", "--max-memory", limit}).code, 0);
    // The run that is too large is refused before its first step; the smaller one keeps to the limit.
    const Ended refused = train(kTiny, large, {"--max-memory", limit});
    EXPECT_EQ(refused.code, 4) << refused.error;
    EXPECT_NE(refused.error.find("--max-memory allows"), std::string::npos) << refused.error;
    EXPECT_FALSE(fs::exists(root_ / "run" / "recipe.yaml"));
    const Ended run = train(kTiny, smaller, {"--max-memory", limit});
    EXPECT_EQ(run.code, 0) << run.error;
    EXPECT_LE(static_cast<double>(run.peak_bytes), (1 + kBound) * std::stod(limit));
  }
  const Ended hopeless = plan(kTiny, large, {"--max-memory", "1MB"});
  EXPECT_EQ(hopeless.code, 4);
  EXPECT_TRUE(parse_json(hopeless.out, "plan").find("smallest_change")->is_null());
}

TEST_F(Plan, TimeIsMeasuredAndGrowsWithTheRun) {
  for (const std::string steps : {"100", "1000"}) {
    const Ended ended = plan(kTiny, {"train.max_steps=" + steps}, {});
    EXPECT_EQ(ended.code, 0) << ended.error;
    const Value document = parse_json(ended.out, "plan"), &time = *document.find("time");
    const auto figure = [&](const char* key) { return time.find(key)->as_double(); };
    const double sum = figure("load_s") + figure("update_s") * std::stod(steps) +
                       figure("validation_s") * document.find("n_validations")->as_double();
    EXPECT_NEAR(figure("total_s"), sum, 1e-9 * sum);
    EXPECT_GE(time.find("n_trials")->as_integer(), 4);
    EXPECT_GT(figure("relative_error"), 0);
    EXPECT_GT(figure("update_s"), 0);
  }
  const Ended probed = plan(kTiny, {"train.max_steps=1000", "eval.every_steps=100", "eval.probes=default-fa"}, {});
  const Value document = parse_json(probed.out, "plan");
  EXPECT_EQ(document.find("n_probe_rounds")->as_integer(), 11);
  EXPECT_GT(document.find("time")->find("probe_round_s")->as_double(), 0);
  EXPECT_FALSE(fs::exists(root_ / "run"));
}

TEST(PassCost, FitsWhatItWasMadeFrom) {
  const auto flops = [](const Batch& batch, Targets targets) {
    const auto n = static_cast<double>(batch.ids.size());
    const auto scored = static_cast<double>(std::count(targets.begin(), targets.end(), 0));
    return 7 * n + 3 * n * n + 11 * scored;
  };
  const PassCost cost = fit_pass_cost(10, flops);
  EXPECT_NEAR(cost.token, 7, 1e-9);
  EXPECT_NEAR(cost.square, 3, 1e-9);
  EXPECT_NEAR(cost.scored, 11, 1e-9);
}

}  // namespace
}  // namespace saaz
