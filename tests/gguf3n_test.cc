// Gemma 3n from a GGUF file: the golden model, written as llama.cpp's converter lays it out, is the model of the
// folder.
#include <gtest/gtest.h>

#include "base/check.h"
#include "checkpoint/tensor_set.h"
#include "gguf3n_writer.h"
#include "model/pass.h"
#include "tokenizer/tokenizer_json.h"

namespace saaz {
namespace {

const fs::path kGolden = fs::path(SAAZ_SOURCE_DIR) / "tests" / "golden" / "gemma3n-dev";
// Three streams, another active one, layers of uneven width.
const fs::path kGoldenAlt = fs::path(SAAZ_SOURCE_DIR) / "tests" / "golden" / "gemma3n-alt";
const fs::path kTry = fs::path(SAAZ_SOURCE_DIR) / "data" / "try" / "model";

class Gguf3n : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("saaz-gguf3n-" + std::to_string(getpid()));
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  fs::path gguf(const Gguf3nOptions& options = {}) const {
    write_gguf3n(kGolden, root_ / "m.gguf", options);
    return root_ / "m.gguf";
  }

  /// Logits of every unpadded token of a golden folder's batch.
  static std::vector<float> logits(const fs::path& model_path, const fs::path& golden_folder = kGolden) {
    const auto backend = make_cpu_backend({});
    const BaseModel base = open_base_model(model_path);
    const auto model = load_model(*backend, base, {});
    const TensorSet golden = TensorSet::open(golden_folder / "expected.safetensors");
    const TensorEntry &ids = golden.at("input_ids"), &mask = golden.at("attention_mask");
    const auto integer = [](const TensorEntry& entry, int64_t i) {
      int64_t out;
      std::memcpy(&out, entry.data.data() + i * static_cast<int64_t>(sizeof out), sizeof out);
      return out;
    };
    std::vector<int32_t> tokens, rows;
    std::vector<int64_t> starts = {0};
    for (int64_t b = 0; b < ids.shape[0]; ++b) {
      for (int64_t i = b * ids.shape[1]; i < (b + 1) * ids.shape[1]; ++i) {
        if (integer(mask, i) == 0) continue;
        rows.push_back(static_cast<int32_t>(tokens.size()));
        tokens.push_back(static_cast<int32_t>(integer(ids, i)));
      }
      starts.push_back(static_cast<int64_t>(tokens.size()));
    }
    constexpr int64_t kWork = int64_t{1} << 26;
    PassMemory memory(*backend, kWork, kWork);
    return logits_pass(*backend, memory, *model, packed_batch(tokens, starts), nullptr, rows);
  }

  static bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && !a.empty() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  }

  /// Every tensor of `folder` as the model asks for it, from both sources.
  static void expect_same_weights(const WeightSource& folder, const WeightSource& file) {
    for (const SourceTensor& tensor : folder.tensors()) {
      const std::string& name = tensor.canonical;
      const std::vector<int64_t>& shape = tensor.spec.shape;
      ASSERT_TRUE(file.has(name)) << name;
      if (shape.size() == 1) {
        EXPECT_TRUE(same_bits(folder.vector(name, shape[0]), file.vector(name, shape[0]))) << name;
        continue;
      }
      std::vector<float> a(static_cast<size_t>(shape[0] * shape[1])), b(a.size());
      dequantise(folder.matrix(name, shape[0], shape[1]), 0, shape[0] * shape[1], a.data());
      dequantise(file.matrix(name, shape[0], shape[1]), 0, shape[0] * shape[1], b.data());
      EXPECT_TRUE(same_bits(a, b)) << name;
    }
  }

  void expect_refused(const std::string& fragment, const Gguf3nOptions& options) const {
    try {
      logits(gguf(options));
      ADD_FAILURE() << "no error; expected: " << fragment;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_input) << error.what();
      EXPECT_NE(std::string(error.what()).find(fragment), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("m.gguf"), std::string::npos) << error.what();
    }
  }

  fs::path root_;
};

TEST_F(Gguf3n, F32IsTheFolder) {
  for (const fs::path& golden : {kGolden, kGoldenAlt}) {
    const fs::path path = root_ / (golden.filename().string() + ".gguf");
    write_gguf3n(golden, path);
    const BaseModel folder = open_base_model(golden), file = open_base_model(path);
    EXPECT_EQ(to_json(to_config_json(file.config)), to_json(to_config_json(folder.config)));
    EXPECT_EQ(file.config.activation_sparsity_z, folder.config.activation_sparsity_z);
    expect_same_weights(*folder.weights, *file.weights);
    EXPECT_TRUE(same_bits(logits(path, golden), logits(golden, golden))) << golden;
  }
}

TEST_F(Gguf3n, Q8IsTheFolderOfItsValues) {
  const Gguf3nOptions options{.matrices = WeightFormat::q8_0};
  const BaseModel golden = open_base_model(kGolden), file = open_base_model(gguf(options));
  std::map<std::string, std::vector<float>> values;
  std::vector<TensorSpec> specs;
  for (const SourceTensor& tensor : golden.weights->tensors()) {
    const WeightFormat format =
        gguf3n::format_of(gguf3n::gguf_name(tensor.canonical), tensor.spec.shape, options.matrices);
    values[tensor.spec.name] = gguf3n::stored_values(format, gguf3n::values_of(*golden.weights, tensor));
    specs.push_back(tensor.spec);
  }
  const fs::path folder = root_ / "values";
  fs::create_directories(folder);
  fs::copy_file(kGolden / "config.json", folder / "config.json");
  write_safetensors(
      folder / "model.safetensors", specs, {{"format", "pt"}},
      [&](const TensorSpec& spec, const ByteSink& sink) { sink(std::as_bytes(std::span(values.at(spec.name)))); });
  EXPECT_EQ(file.weights->matrix("altup_projections.2.weight", 64, 64).format, WeightFormat::q8_0);
  EXPECT_EQ(file.weights->matrix("layers.0.laurel.linear_right.weight", 64, 4).format, WeightFormat::f16);
  expect_same_weights(*open_base_model(folder).weights, *file.weights);
  EXPECT_TRUE(same_bits(logits(file.path), logits(folder)));
}

TEST_F(Gguf3n, TokenizerAndLayersOfTheTinyModel) {
  write_gguf3n(kTry, root_ / "m.gguf");
  const Tokenizer folder = load_base_tokenizer(open_base_model(kTry)),
                  file = load_base_tokenizer(open_base_model(root_ / "m.gguf"));
  EXPECT_EQ(file.stop_ids(), folder.stop_ids());
  for (const char* text :
       {"سلام، حالت چطوره؟", "می‌خواهم  دو\n\nسه\t۱۲۳ 123", "<start_of_turn>user\n<unused3> é"})
    for (const ControlTokens control : {ControlTokens::as_text, ControlTokens::parse})
      EXPECT_EQ(file.encode(text, control, AddBos::yes), folder.encode(text, control, AddBos::yes)) << text;
  expect_same_weights(*open_base_model(kTry).weights, *open_base_model(root_ / "m.gguf").weights);
}

// Also of the folder that the file is made from.
TEST_F(Gguf3n, TokensWithoutARowAreRefusedUnlessOnlyTowersMakeThem) {
  const fs::path folder = root_ / "model", file = root_ / "m.gguf";
  fs::copy(kTry, folder, fs::copy_options::recursive);
  const auto with_tokens = [&](const std::vector<Piece>& more) {
    Vocabulary vocabulary = load_tokenizer_alone(kTry).vocabulary();
    vocabulary.pieces.insert(vocabulary.pieces.end(), more.begin(), more.end());
    write_file_atomically(folder / "tokenizer.json", write_tokenizer_json(vocabulary));
  };
  const auto n_rows = static_cast<size_t>(open_base_model(kTry).config.vocab_size);
  ASSERT_EQ(load_tokenizer_alone(kTry).size(), n_rows);
  with_tokens({{"<image_soft_token>", PieceType::control}});
  write_gguf3n(folder, file);
  for (const fs::path& base : {folder, file})
    EXPECT_EQ(load_base_tokenizer(open_base_model(base)).size(), n_rows + 1) << base;
  for (const PieceType type : {PieceType::normal, PieceType::control, PieceType::user_defined}) {
    with_tokens({{"<image_soft_token>", PieceType::control}, {"zq", type}});
    std::vector<fs::path> bases = {folder};
    if (type == PieceType::normal) write_gguf3n(folder, bases.emplace_back(file));
    for (const fs::path& base : bases) {
      EXPECT_EQ(load_tokenizer_alone(base).size(), n_rows + 2) << base;
      try {
        load_base_tokenizer(open_base_model(base));
        ADD_FAILURE() << base << " was taken";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::bad_input);
        const std::string text = error.what();
        for (const std::string& part :
             {base.filename().string(), fmt::format("token {} ('zq')", n_rows + 1), fmt::format("below {}", n_rows)})
          EXPECT_NE(text.find(part), text.npos) << text;
      }
    }
  }
}

TEST_F(Gguf3n, BrokenFilesNameTheTensor) {
  const auto without = [](const std::string& name) {
    return Gguf3nOptions{.edit = [name](GgufTensorSpec& spec) { return spec.name != name; }};
  };
  const auto shaped = [](const std::string& name, const std::vector<int64_t>& ne) {
    return Gguf3nOptions{.edit = [name, ne](GgufTensorSpec& spec) {
      if (spec.name == name) spec.ne = ne;
      return true;
    }};
  };
  for (const char* name : {"altup_proj.weight", "altup_unembd_proj.weight", "per_layer_token_embd.weight",
                           "blk.0.laurel_l.weight", "blk.7.altup_correct_scale.weight", "blk.3.attn_k.weight"})
    expect_refused("'" + std::string(name) + "'", without(name));
  // The table is [vocabulary, layers * 8]: its width does not fit another number of layers.
  expect_refused("'per_layer_token_embd.weight' is [320, 64], the metadata asks for [320, 72]", {.more_layers = 1});
  expect_refused("'per_layer_token_embd.weight' is [320, 128], the metadata asks for [320, 64]",
                 shaped("per_layer_token_embd.weight", {128, 320}));
  expect_refused("'per_layer_token_embd.weight'", shaped("per_layer_token_embd.weight", {64 * 320}));
  expect_refused("'altup_proj.weight' holds 2 matrices, 3 were expected", shaped("altup_proj.weight", {64, 64, 2}));
  expect_refused("'altup_proj.weight'", shaped("altup_proj.weight", {64, 192}));
  expect_refused("'blk.2.ffn_up.weight' is [64, 192], the metadata asks for [192, 64]",
                 shaped("blk.2.ffn_up.weight", {192, 64}));
  expect_refused("'blk.4.post_norm.weight'", shaped("blk.4.post_norm.weight", {65}));
}

}  // namespace
}  // namespace saaz
