// A multimodal base, as Hugging Face saves Gemma3nForConditionalGeneration: training and merging touch the text model's
// linears alone; vision and audio towers, their settings and the files beside them pass through.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <set>

#include "checkpoint/tensor_set.h"
#include "publish/merge.h"
#include "train/trainer.h"

namespace saaz {
namespace {

const fs::path kTry = fs::path(SAAZ_SOURCE_DIR) / "data" / "try";

struct Naming {
  const char *label, *text, *other;  // prefixes of the text model's tensors and of the towers'
};
constexpr Naming kNamings[] = {{"current", "model.language_model.", "model."}, {"early", "language_model.model.", ""}};

class Towers : public testing::TestWithParam<Naming> {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("saaz-towers-" + std::to_string(getpid()));
    fs::remove_all(root_);
    fs::create_directories(root_ / "base");
    write_weights();
    write_config();
    for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"})
      fs::copy_file(kTry / "model" / name, root_ / "base" / name);
    for (const char* name : kProcessorFiles) write_file_atomically(root_ / "base" / name, R"({"image_seq_length": 4})");
  }
  void TearDown() override { fs::remove_all(root_); }

  /// The tiny model's tensors under new names, and a few of each tower with random bytes: bf16 of several ranks, and
  /// the types that buffers have.
  void write_weights() const {
    const TensorSet tiny = TensorSet::open(kTry / "model");
    const std::string other = GetParam().other;
    std::vector<TensorSpec> specs = {
        {other + "vision_tower.timm_model.conv_stem.conv.weight", StoredDType::bf16, {8, 3, 3, 3}},
        {other + "vision_tower.timm_model.blocks.0.0.bn1.weight", StoredDType::bf16, {8}},
        {other + "vision_tower.timm_model.blocks.0.0.bn1.num_batches_tracked", StoredDType::i64, {}},
        {other + "audio_tower.conformer.0.attention.attn.q_proj.weight", StoredDType::bf16, {16, 16}},
        {other + "audio_tower.conformer.0.attention.attn.per_dim_scale", StoredDType::f32, {4}},
        {other + "embed_vision.embedding.weight", StoredDType::bf16, {4, 128}},
        {other + "embed_vision.embedding_projection.weight", StoredDType::bf16, {128, 8}},
        {other + "embed_audio.embedding.weight", StoredDType::bf16, {4, 128}}};
    std::map<std::string, Bytes> text;
    for (const TensorEntry* entry : tiny.tensors()) {
      TensorSpec spec = entry->spec();
      spec.name = GetParam().text + spec.name.substr(std::strlen("model."));
      text[spec.name] = entry->data;
      specs.push_back(spec);
    }
    std::mt19937 random(7);
    write_safetensors(root_ / "base" / "model.safetensors", specs, {{"format", "pt"}},
                      [&](const TensorSpec& spec, const ByteSink& sink) {
                        if (const auto found = text.find(spec.name); found != text.end()) return sink(found->second);
                        std::vector<std::byte> bytes(spec.bytes());
                        for (std::byte& b : bytes) b = static_cast<std::byte>(random());
                        sink(bytes);
                      });
  }

  void write_config() const {
    Value text = parse_json(read_file(kTry / "model" / "config.json"), "config.json");
    const Value config =
        Value::object({{"architectures", Value::array({"Gemma3nForConditionalGeneration"})},
                       {"audio_config", Value::object({{"model_type", "gemma3n_audio"}, {"hidden_size", 16}})},
                       {"audio_soft_tokens_per_image", 188},
                       {"dtype", "bfloat16"},
                       {"model_type", "gemma3n"},
                       {"text_config", std::move(text)},
                       {"vision_config", Value::object({{"model_type", "gemma3n_vision"}, {"hidden_size", 8}})}});
    write_file_atomically(root_ / "base" / "config.json", to_json(config, 2));
  }

  void train_two_steps(Backend& backend) const {
    const std::vector<std::string> overrides = {"model.base=" + (root_ / "base").string(),
                                                "data.train=" + (kTry / "train.jsonl").string(),
                                                "data.validation.file=" + (kTry / "valid.jsonl").string(),
                                                "output.dir=" + (root_ / "run").string(),
                                                "train.max_steps=2",
                                                "train.warmup_steps=0",
                                                "lora.target_preset=source-card",
                                                "eval.every_steps=0"};
    train(backend, load_recipe(kTry / "recipe.yaml", overrides), {});
  }

  static bool is_linear(const std::string& name) {
    for (const char* module : {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
      if (name.find(std::string(".") + module + ".weight") != std::string::npos) return true;
    return false;
  }

  /// The same tensors under the same names; the text model's linears changed, and nothing else.
  void expect_only_linears_changed(const fs::path& merged) const {
    const TensorSet before = TensorSet::open(root_ / "base"), after = TensorSet::open(merged);
    EXPECT_EQ(after.tensors().size(), before.tensors().size());
    for (const TensorEntry* entry : before.tensors()) {
      const TensorEntry* now = after.find(entry->name);
      ASSERT_NE(now, nullptr) << entry->name;
      EXPECT_EQ(now->dtype, entry->dtype) << entry->name;
      EXPECT_EQ(now->shape, entry->shape) << entry->name;
      const bool same = std::equal(now->data.begin(), now->data.end(), entry->data.begin(), entry->data.end());
      EXPECT_EQ(same, !entry->name.starts_with(GetParam().text) || !is_linear(entry->name)) << entry->name;
    }
  }

  static constexpr const char* kProcessorFiles[] = {"preprocessor_config.json", "processor_config.json"};
  fs::path root_;
};

TEST_P(Towers, PassThroughAMerge) {
  const auto backend = make_cpu_backend({.n_threads = 2});
  train_two_steps(*backend);
  const fs::path merged = root_ / "merged";
  const Certificate made = merge_adapter(*backend, root_ / "base", root_ / "run", merged, {.max_shard_bytes = 500'000});
  EXPECT_TRUE(made.passed()) << made.to_table();
  EXPECT_TRUE(verify_merge(*backend, merged, root_ / "base", root_ / "run", {}).passed());
  expect_only_linears_changed(merged);

  const Value index = parse_json(read_file(merged / "model.safetensors.index.json"), "index");
  const TensorSet base = TensorSet::open(root_ / "base");
  EXPECT_EQ(index.find("weight_map")->members().size(), base.tensors().size());
  for (const TensorEntry* entry : base.tensors())
    EXPECT_NE(index.find("weight_map")->find(entry->name), nullptr) << entry->name;
  EXPECT_EQ(to_json(parse_json(read_file(merged / "config.json"), "merged")),
            to_json(parse_json(read_file(root_ / "base" / "config.json"), "base")));
  for (const char* name : kProcessorFiles)
    EXPECT_EQ(read_file(merged / name), read_file(root_ / "base" / name)) << name;
}

TEST_P(Towers, KeepTheirTypeWhenTheTextIsConverted) {
  const auto backend = make_cpu_backend({.n_threads = 2});
  train_two_steps(*backend);
  const Certificate made =
      merge_adapter(*backend, root_ / "base", root_ / "run", root_ / "merged", {.dtype = StoredDType::f32});
  EXPECT_TRUE(made.passed()) << made.to_table();
  const TensorSet before = TensorSet::open(root_ / "base"), after = TensorSet::open(root_ / "merged");
  for (const TensorEntry* entry : before.tensors()) {
    const TensorEntry& now = after.at(entry->name);
    const bool text = entry->name.starts_with(GetParam().text);
    EXPECT_EQ(now.dtype, text ? StoredDType::f32 : entry->dtype) << entry->name;
    const bool same = std::equal(now.data.begin(), now.data.end(), entry->data.begin(), entry->data.end());
    EXPECT_EQ(same, !text) << entry->name;
  }
}

INSTANTIATE_TEST_SUITE_P(Namings, Towers, testing::ValuesIn(kNamings),
                         [](const auto& info) { return std::string(info.param.label); });

}  // namespace
}  // namespace saaz
