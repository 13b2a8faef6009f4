// Quantised checkpoints, read and written: bitsandbytes' serialised form against files that bitsandbytes 0.50.2 wrote
// (golden/bitsandbytes, made by tools/make_bitsandbytes_fixtures.py), and folders and GGUF files of our own that must
// be the model they were made from.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>

#include "base/check.h"
#include "base/value.h"
#include "checkpoint/bitsandbytes.h"
#include "checkpoint/tensor_set.h"
#include "model/base_tokenizer.h"
#include "model/pass.h"
#include "publish/gguf_export.h"
#include "publish/quantise.h"

namespace saaz {
namespace {

const fs::path kSource = SAAZ_SOURCE_DIR;
const fs::path kTry = kSource / "data" / "try" / "model";
const fs::path kGemma3 = kSource / "tests" / "golden" / "gemma3-dev";
const fs::path kGemma3n = kSource / "tests" / "golden" / "gemma3n-dev";

class QuantisedFiles : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("saaz-quantised-" + std::to_string(getpid()));
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  fs::path root_;
};

std::vector<float> all_values(const Weight& w) {
  std::vector<float> out(static_cast<size_t>(w.size()));
  dequantise(w, 0, w.size(), out.data());
  return out;
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && !a.empty() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

/// Logits of a few fixed tokens.
std::vector<float> logits(const fs::path& path, QuantScheme scheme) {
  const auto backend = make_cpu_backend({});
  const BaseModel base = open_base_model(path);
  const auto model = load_model(*backend, base, {.scheme = scheme});
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 12; ++i) ids.push_back(static_cast<int32_t>((7 + 13 * i) % base.config.vocab_size));
  const std::vector<int64_t> starts = {0, static_cast<int64_t>(ids.size())};
  const Batch batch = packed_batch(ids, starts);
  constexpr int64_t kWork = int64_t{1} << 26;
  PassMemory memory(*backend, kWork, kWork);
  return logits_pass(*backend, memory, *model, batch, nullptr, batch.positions);
}

void expect_error(ExitCode code, const std::string& fragment, const std::function<void()>& action) {
  try {
    action();
    ADD_FAILURE() << "no error; expected: " << fragment;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(fragment), std::string::npos) << error.what();
  }
}

// A folder written by `quantize` is the model that --quant makes of the original, bit for bit.
TEST_F(QuantisedFiles, FolderIsTheModelQuantisedAtLoad) {
  for (const fs::path& golden : {kGemma3, kGemma3n, kTry})
    for (const QuantScheme scheme : {QuantScheme::nf4, QuantScheme::int8}) {
      const fs::path out = root_ / (golden.filename().string() + std::to_string(static_cast<int>(scheme)));
      const QuantiseReport report = quantise_model(open_base_model(golden), {.scheme = scheme}, out);
      EXPECT_GT(report.n_quantised, 0);
      EXPECT_LT(report.relative_error, scheme == QuantScheme::nf4 ? 0.15 : 0.02);
      EXPECT_TRUE(same_bits(logits(out, QuantScheme::none), logits(golden, scheme))) << out;
      EXPECT_FALSE(same_bits(logits(out, QuantScheme::none), logits(golden, QuantScheme::none))) << out;
      // Asked for once more, what is stored so stays as it is.
      EXPECT_TRUE(same_bits(logits(out, scheme), logits(out, QuantScheme::none))) << out;
      const Value config = parse_json(read_file(out / "config.json"), "config.json");
      ASSERT_NE(config.find("quantization_config"), nullptr);
      EXPECT_EQ(config.find("quantization_config")->find("quant_method")->as_string(), "bitsandbytes");
      EXPECT_EQ(has_tokenizer(out), has_tokenizer(golden));
      expect_error(ExitCode::bad_input, "quantised already",
                   [&] { quantise_model(open_base_model(out), {.scheme = QuantScheme::nf4}, root_ / "again"); });
      EXPECT_FALSE(fs::exists(root_ / "again"));
      expect_error(ExitCode::in_use, "not empty",
                   [&] { quantise_model(open_base_model(golden), {.scheme = scheme}, out); });
    }
}

TEST_F(QuantisedFiles, SingleQuantisationAndShards) {
  const fs::path whole = root_ / "whole", shards = root_ / "shards";
  const QuantiseOptions options{.scheme = QuantScheme::nf4, .double_quant = false};
  quantise_model(open_base_model(kGemma3), options, whole);
  quantise_model(open_base_model(kGemma3),
                 {.scheme = QuantScheme::nf4, .double_quant = false, .max_shard_bytes = 20000}, shards);
  EXPECT_TRUE(fs::exists(shards / "model.safetensors.index.json"));
  EXPECT_TRUE(same_bits(logits(whole, QuantScheme::none), logits(shards, QuantScheme::none)));
}

// The skipped modules are complete paths of linears, none of which is quantised.
TEST_F(QuantisedFiles, SkippedModulesAreThoseThatStayAsTheyAre) {
  quantise_model(open_base_model(kGemma3n), {.scheme = QuantScheme::nf4}, root_ / "q");
  const Value config = parse_json(read_file(root_ / "q" / "config.json"), "config.json");
  const Value* skipped = config.find("quantization_config")->find("llm_int8_skip_modules");
  const TensorSet tensors = TensorSet::open(root_ / "q");
  const BitsandbytesMatrices matrices(tensors.tensors());
  std::vector<std::string> names;
  for (const Value& name : skipped->items()) {
    names.push_back(name.as_string());
    EXPECT_EQ(matrices.find(names.back() + ".weight"), nullptr) << names.back();
    EXPECT_TRUE(names.back() == "lm_head" || tensors.find(names.back() + ".weight") != nullptr) << names.back();
  }
  const auto has = [&](const char* part) {
    return std::any_of(names.begin(), names.end(), [&](const std::string& n) { return n.ends_with(part); });
  };
  for (const char* part : {"layers.0.laurel.linear_left", "layers.1.per_layer_input_gate", "altup_projections.0",
                           "layers.0.altup.modality_router", "per_layer_model_projection", "lm_head"})
    EXPECT_TRUE(has(part)) << part;
  EXPECT_FALSE(has("layers.0.mlp.gate_proj"));
}

// bitsandbytes' own files.

const TensorSet& fixture(const std::string& name) {
  static std::map<std::string, TensorSet> sets;
  if (!sets.contains(name))
    sets.emplace(name, TensorSet::open(kSource / "tests" / "golden" / "bitsandbytes" / (name + ".safetensors")));
  return sets.at(name);
}

std::span<const float> floats_of(const TensorEntry& entry) {
  return {reinterpret_cast<const float*>(entry.data.data()), entry.data.size() / sizeof(float)};
}

TEST(Bitsandbytes, ReadsItsFilesToTheBit) {
  for (const char* name : {"nf4", "nf4-single", "fp4", "int8"}) {
    const TensorSet& set = fixture(name);
    const BitsandbytesMatrices matrices(set.tensors());
    const BitsandbytesMatrices::Matrix* matrix = matrices.find("m.weight");
    ASSERT_NE(matrix, nullptr) << name;
    const std::vector<float> values = all_values(matrix->weight);
    const std::span<const float> expected = floats_of(set.at("values"));
    // FP4 has two zeros, told apart by their sign bit alone.
    EXPECT_TRUE(name == std::string("fp4") ? std::equal(values.begin(), values.end(), expected.begin(), expected.end())
                                           : same_bits(values, expected))
        << name;
    EXPECT_EQ(matrices.find("source"), nullptr);
    EXPECT_TRUE(matrices.is_part(name == std::string("int8") ? "m.SCB" : "m.weight.absmax"));
    EXPECT_FALSE(matrices.is_part("m.weight"));
  }
  const BitsandbytesMatrices fp4(fixture("fp4").tensors()), nf4(fixture("nf4").tensors());
  EXPECT_NE(fp4.find("m.weight")->weight.quant_map, nullptr);  // brings its own book of codes
  EXPECT_EQ(nf4.find("m.weight")->weight.quant_map, nullptr);
  EXPECT_EQ(nf4.find("m.weight")->weight.nested_map, nullptr);
}

void expect_part(const TensorSet& set, const TensorSpec& spec, Bytes bytes) {
  const TensorEntry& entry = set.at(spec.name);
  EXPECT_EQ(entry.dtype, spec.dtype) << spec.name;
  EXPECT_EQ(entry.shape, spec.shape) << spec.name;
  EXPECT_TRUE(std::equal(entry.data.begin(), entry.data.end(), bytes.begin(), bytes.end())) << spec.name;
}

TEST(Bitsandbytes, WritesTheSameTensors) {
  for (const char* name : {"nf4", "nf4-single", "int8"}) {
    const TensorSet& set = fixture(name);
    const Weight source = to_weight(set.at("source"));
    TensorSpec codes;
    std::vector<BitsandbytesPart> parts;
    std::vector<std::byte> code_bytes;
    const auto keep = [&](const auto& bytes) {
      const auto view = std::as_bytes(std::span(bytes));
      code_bytes.assign(view.begin(), view.end());
    };
    if (name == std::string("int8")) {
      const Int8Matrix matrix = quantise_int8(source);
      codes = bitsandbytes_codes("m.weight", matrix);
      parts = bitsandbytes_parts("m.weight", matrix);
      keep(matrix.codes);
    } else {
      const Nf4Matrix matrix = quantise_nf4(source, {.double_quant = name == std::string("nf4")}, DType::bf16);
      codes = bitsandbytes_codes("m.weight", matrix);
      parts = bitsandbytes_parts("m.weight", matrix, StoredDType::bf16);
      keep(matrix.codes);
    }
    expect_part(set, codes, code_bytes);
    for (const BitsandbytesPart& part : parts) expect_part(set, part.spec, part.bytes);
    size_t n_others = 0;
    for (const char* other : {"source", "values", "x", "y"}) n_others += set.find(other) != nullptr;
    EXPECT_EQ(set.tensors().size(), 1 + parts.size() + n_others);
  }
}

// Each row alone through bitsandbytes' own product. Its dequantising constant is 6.200124e-05 in the CPU's Python form
// and 6.200012e-05 in the kernels, 1.8e-5 apart; f32 sums of the outliers add a few roundings.
TEST(Bitsandbytes, LlmInt8Products) {
  const TensorSet& set = fixture("int8");
  const BitsandbytesMatrices matrices(set.tensors());
  const Weight& w = matrices.find("m.weight")->weight;
  const std::span<const float> x = floats_of(set.at("x")), expected = floats_of(set.at("y"));
  const auto n_in = static_cast<size_t>(w.n_in), n_out = static_cast<size_t>(w.n_out);
  std::vector<float> y(n_out);
  for (size_t row = 0; row * n_in < x.size(); ++row) {
    llm_int8_product(x.subspan(row * n_in, n_in), w, kLlmInt8Threshold, y);
    double largest = 0;
    for (size_t o = 0; o < n_out; ++o)
      largest = std::max(largest, std::fabs(static_cast<double>(expected[row * n_out + o])));
    for (size_t o = 0; o < n_out; ++o) EXPECT_NEAR(y[o], expected[row * n_out + o], 3e-5 * largest) << row << " " << o;
  }
}

// Exports.

void expect_same_values(const WeightSource& a, const WeightSource& b, const std::string& name, int64_t rows,
                        int64_t columns) {
  const std::vector<float> x = all_values(a.matrix(name, rows, columns)), y = all_values(b.matrix(name, rows, columns));
  EXPECT_TRUE(same_bits(x, y)) << name;
}

TEST_F(QuantisedFiles, GgufInF32IsTheFolder) {
  const fs::path out = root_ / "m.gguf";
  const GgufReport report = export_gguf(open_base_model(kTry), WeightFormat::f32, out);
  EXPECT_EQ(report.bytes, fs::file_size(out));
  const BaseModel folder = open_base_model(kTry), file = open_base_model(out);
  EXPECT_EQ(report.n_tokens, file.config.vocab_size);
  EXPECT_TRUE(same_bits(logits(out, QuantScheme::none), logits(kTry, QuantScheme::none)));
  const Tokenizer ours = load_base_tokenizer(folder), theirs = load_base_tokenizer(file);
  EXPECT_EQ(ours.stop_ids(), theirs.stop_ids());
  for (const char* text :
       {"سلام، حالت چطوره؟", "می‌خواهم  دو\n\nسه\t۱۲۳ 123", "<start_of_turn>user\n<unused3> é"})
    EXPECT_EQ(ours.encode(text, ControlTokens::parse, AddBos::yes),
              theirs.encode(text, ControlTokens::parse, AddBos::yes));
  EXPECT_EQ(base_chat_template(out), base_chat_template(kTry));
  for (const SourceTensor& tensor : folder.weights->tensors())
    if (tensor.spec.shape.size() == 2)
      expect_same_values(*folder.weights, *file.weights, tensor.canonical, tensor.spec.shape[0], tensor.spec.shape[1]);
  expect_error(ExitCode::in_use, "exists", [&] { export_gguf(folder, WeightFormat::f32, out); });
}

TEST_F(QuantisedFiles, QuantisedGgufHoldsTheEncodersBlocks) {
  const BaseModel folder = open_base_model(kTry);
  for (const WeightFormat format : {WeightFormat::q8_0, WeightFormat::q5_0, WeightFormat::q4_0}) {
    const fs::path out = root_ / (std::string(name_of(format)) + ".gguf");
    export_gguf(folder, format, out);
    const BaseModel file = open_base_model(out);
    const int64_t d = folder.config.hidden_size, ffn = folder.config.intermediate_size[0];
    const std::string name = "layers.0.mlp.gate_proj.weight";
    const Weight stored = file.weights->matrix(name, ffn, d);
    ASSERT_EQ(d % 32, 0);
    EXPECT_EQ(stored.format, format);
    std::vector<float> values = all_values(folder.weights->matrix(name, ffn, d));
    std::vector<std::byte> blocks(values.size() / 32 * static_cast<size_t>(block_size(format).bytes));
    const auto n = static_cast<int64_t>(values.size());
    if (format == WeightFormat::q8_0) quantise_q8_0(values.data(), n, blocks.data());
    if (format == WeightFormat::q5_0) quantise_q5_0(values.data(), n, blocks.data());
    if (format == WeightFormat::q4_0) quantise_q4_0(values.data(), n, blocks.data());
    EXPECT_EQ(std::memcmp(stored.data, blocks.data(), blocks.size()), 0);
    EXPECT_EQ(file.weights->matrix("embed_tokens.weight", file.config.vocab_size, d).format, WeightFormat::q8_0);
    EXPECT_FALSE(logits(out, QuantScheme::none).empty());
  }
}

TEST_F(QuantisedFiles, ExportsOfOtherStoredForms) {
  quantise_model(open_base_model(kTry), {.scheme = QuantScheme::nf4}, root_ / "nf4");
  export_gguf(open_base_model(root_ / "nf4"), WeightFormat::f32, root_ / "nf4.gguf");
  EXPECT_TRUE(same_bits(logits(root_ / "nf4.gguf", QuantScheme::none), logits(root_ / "nf4", QuantScheme::none)));
  export_gguf(open_base_model(root_ / "nf4.gguf"), WeightFormat::f32, root_ / "again.gguf");
  EXPECT_TRUE(same_bits(logits(root_ / "again.gguf", QuantScheme::none), logits(root_ / "nf4", QuantScheme::none)));
  expect_error(ExitCode::bad_input, "no tokenizer",
               [&] { export_gguf(open_base_model(kGemma3), WeightFormat::f32, root_ / "none.gguf"); });
  EXPECT_FALSE(fs::exists(root_ / "none.gguf"));
}

TEST_F(QuantisedFiles, OllamaFolder) {
  export_ollama(open_base_model(kTry), WeightFormat::q8_0, root_ / "o");
  const std::string modelfile = read_file(root_ / "o" / "Modelfile");
  EXPECT_TRUE(modelfile.starts_with("FROM ./model.gguf\n"));
  EXPECT_NE(modelfile.find("PARAMETER stop <end_of_turn>\n"), std::string::npos);
  EXPECT_NE(modelfile.find("<start_of_turn>model\n"), std::string::npos);
  EXPECT_FALSE(logits(root_ / "o" / "model.gguf", QuantScheme::none).empty());
  expect_error(ExitCode::in_use, "not empty",
               [&] { export_ollama(open_base_model(kTry), WeightFormat::q8_0, root_ / "o"); });
}

}  // namespace
}  // namespace saaz
