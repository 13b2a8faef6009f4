// Model files in and out: what is written must read back equal, in the layout other tools expect. Files that must be
// refused are in checkpoint_broken_test.cc. Every test works in its own empty folder.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <set>

#include "base/system.h"
#include "checkpoint/gguf_writer.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/shard_writer.h"
#include "checkpoint/tensor_set.h"
#include "quant/blockwise.h"

namespace saaz {
namespace {

class Checkpoint : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "saaz-checkpoint-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::set<std::string> file_names() const {
    std::set<std::string> out;
    for (const auto& entry : fs::directory_iterator(folder_)) out.insert(entry.path().filename().string());
    return out;
  }

  fs::path folder_;
};

/// Bytes that differ from tensor to tensor: the name's first letter plus the position.
std::vector<std::byte> payload(std::string_view name, uint64_t n) {
  std::vector<std::byte> out(n);
  for (uint64_t i = 0; i < n; ++i) out[i] = static_cast<std::byte>(name[0] + 7 * i);
  return out;
}

/// Writes each tensor's payload in two pieces.
void give_payload(const TensorSpec& spec, const ByteSink& sink) {
  const std::vector<std::byte> bytes = payload(spec.name, spec.bytes());
  sink(Bytes(bytes).first(bytes.size() / 2));
  sink(Bytes(bytes).subspan(bytes.size() / 2));
}

void expect_payload(const TensorEntry& entry) {
  const std::vector<std::byte> expected = payload(entry.name, entry.data.size());
  EXPECT_TRUE(std::equal(entry.data.begin(), entry.data.end(), expected.begin(), expected.end())) << entry.name;
}

std::vector<std::string> names_of(const std::vector<TensorEntry>& entries) {
  std::vector<std::string> out;
  for (const TensorEntry& entry : entries) out.push_back(entry.name);
  return out;
}

TEST_F(Checkpoint, SafetensorsRoundTripInCanonicalOrder) {
  const fs::path path = folder_ / "x.safetensors";
  const std::vector<TensorSpec> specs = {
      {"z", StoredDType::f32, {2, 3}},     {"b", StoredDType::u8, {5}},
      {"a", StoredDType::bf16, {3}},       {"scalar", StoredDType::f32, {}},
      {"empty", StoredDType::f16, {4, 0}}, {"ids", StoredDType::i64, {2}},
      {"four", StoredDType::f4, {2, 3}},   {"k", StoredDType::boolean, {1, 1, 1, 1, 2}}};
  write_safetensors(path, specs, {{"base", "پایه \"x\""}}, give_payload);
  const SafetensorsFile file(path);
  EXPECT_EQ(names_of(file.tensors()), (std::vector<std::string>{"ids", "scalar", "z", "a", "empty", "b", "four", "k"}));
  EXPECT_EQ(file.metadata(), (Metadata{{"format", "pt"}, {"base", "پایه \"x\""}}));
  for (const TensorEntry& entry : file.tensors()) {
    expect_payload(entry);
    const auto& spec = *std::find_if(specs.begin(), specs.end(), [&](const auto& s) { return s.name == entry.name; });
    EXPECT_EQ(entry.dtype, spec.dtype);
    EXPECT_EQ(entry.shape, spec.shape);
  }
  const std::string text = read_file(path);
  EXPECT_EQ((8 + static_cast<unsigned char>(text[0])  // the header's length has 16 bits here
             + 256 * static_cast<unsigned char>(text[1])) %
                8,
            0);
}

TEST_F(Checkpoint, EmptySafetensors) {
  write_safetensors(folder_ / "x.safetensors", {}, {}, give_payload);
  EXPECT_TRUE(SafetensorsFile(folder_ / "x.safetensors").tensors().empty());
}

TEST(Safetensors, UnalignedTensorsAreCopiedToAlignedMemory) {
  // A header of odd length, as writers before 2023 made them.
  std::string header = R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  if (header.size() % 2 == 0) header += ' ';
  const uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), 8);
  const float values[] = {1.5f, -2.0f};
  bytes += header;
  bytes.append(reinterpret_cast<const char*>(values), sizeof values);
  SafetensorsFile file(std::as_bytes(std::span(bytes)), "old");
  const SafetensorsFile moved = std::move(file);
  const TensorEntry& entry = moved.tensors().at(0);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(entry.data.data()) % 4, 0u);
  EXPECT_EQ(to_tensor(entry).f32()[0], 1.5f);
  EXPECT_EQ(to_tensor(entry).f32()[1], -2.0f);
}

TEST(StoredTensor, NamesAndSizesOfEveryType) {
  const std::map<std::string, int> expected = {
      {"U64", 64},        {"I64", 64},    {"F64", 64},    {"C64", 64},    {"F32", 32}, {"U32", 32},
      {"I32", 32},        {"BF16", 16},   {"F16", 16},    {"U16", 16},    {"I16", 16}, {"F8_E5M2FNUZ", 8},
      {"F8_E4M3FNUZ", 8}, {"F8_E8M0", 8}, {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"I8", 8},   {"U8", 8},
      {"F6_E3M2", 6},     {"F6_E2M3", 6}, {"F4", 4},      {"BOOL", 8}};
  for (const auto& [name, bits] : expected) {
    const auto dtype = find_stored_dtype(name);
    ASSERT_TRUE(dtype.has_value()) << name;
    EXPECT_EQ(bits_of(*dtype), bits);
    EXPECT_EQ(name_of(*dtype), name);
    if (const auto dense = dense_dtype(*dtype)) {
      EXPECT_EQ(stored_dtype(*dense), *dtype);
      EXPECT_EQ(size_of(*dense) * 8, bits);
    }
  }
  EXPECT_FALSE(find_stored_dtype("f32").has_value());
}

TEST(StoredTensor, CountsNonFiniteElements) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> f32 = {1, kInfinity, std::nanf(""), -kInfinity, std::numeric_limits<float>::max(), 1e-45f};
  std::vector<uint16_t> bf16, f16;
  for (const float x : f32) {
    bf16.push_back(f32_to_bf16(std::isfinite(x) ? 1.0f : x));
    f16.push_back(f32_to_f16(std::isfinite(x) ? 1.0f : x));
  }
  const auto count = [](StoredDType dtype, const auto& values) {
    return count_non_finite({"w", dtype, {static_cast<int64_t>(values.size())}, std::as_bytes(std::span(values)), "f"});
  };
  EXPECT_EQ(count(StoredDType::f32, f32), 3);
  EXPECT_EQ(count(StoredDType::bf16, bf16), 3);
  EXPECT_EQ(count(StoredDType::f16, f16), 3);
  EXPECT_EQ(count(StoredDType::f64, std::vector<double>{0.0, 1e308, std::nan("")}), 1);
  EXPECT_EQ(count(StoredDType::u8, std::vector<uint8_t>(8, 0xff)), 0);
}

TEST(StoredTensor, ViewsRefuseWhatCannotBeComputedWith) {
  const std::vector<std::byte> bytes(64);
  EXPECT_EQ(to_weight({"w", StoredDType::bf16, {4, 8}, bytes, "f"}).n_in, 8);
  EXPECT_EQ(to_tensor({"s", StoredDType::f32, {}, Bytes(bytes).first(4), "f"}).size(), 1);
  EXPECT_THROW(to_weight({"w", StoredDType::i8, {8, 8}, bytes, "f"}), Error);
  EXPECT_THROW(to_weight({"w", StoredDType::f32, {16}, bytes, "f"}), Error);
  EXPECT_THROW(to_tensor({"w", StoredDType::f64, {8}, bytes, "f"}), Error);
  EXPECT_THROW(to_tensor({"w", StoredDType::f32, {1, 1, 1, 1, 16}, bytes, "f"}), Error);
}

/// Tensors of the given sizes in bytes, named a, b, c, ...
std::vector<TensorSpec> sized_tensors(const std::vector<int64_t>& sizes) {
  std::vector<TensorSpec> out;
  for (const int64_t size : sizes)
    out.push_back({std::string(1, static_cast<char>('a' + out.size())), StoredDType::u8, {size}});
  return out;
}

std::vector<std::string> split(const std::vector<int64_t>& sizes, uint64_t limit) {
  std::vector<std::string> out;
  for (const Shard& shard : plan_shards(sized_tensors(sizes), limit)) {
    out.emplace_back();
    for (const TensorSpec& tensor : shard.tensors) out.back() += tensor.name;
  }
  return out;
}

TEST(Shards, GreedySplit) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(split({3, 3, 3}, 9), (Names{"abc"}));
  EXPECT_EQ(split({3, 3, 4}, 9), (Names{"ab", "c"}));
  EXPECT_EQ(split({3, 10, 3, 3, 1}, 9), (Names{"b", "acd", "e"}));  // the oversized one first: it is closed at once
  EXPECT_EQ(split({10, 10}, 9), (Names{"a", "b"}));
  EXPECT_EQ(split({}, 9), (Names{""}));
  EXPECT_EQ(plan_shards(sized_tensors({1}), 9)[0].file, "model.safetensors");
  EXPECT_EQ(plan_shards(sized_tensors({9, 9}), 9)[1].file, "model-00002-of-00002.safetensors");
}

TEST_F(Checkpoint, ShardedWriteReadsBackAndReplacesAnOlderSave) {
  const auto two = plan_shards(sized_tensors({6, 6}), 9);
  const auto three = plan_shards(sized_tensors({9, 9, 9}), 9);
  const auto one = plan_shards(sized_tensors({9, 9, 9}), 99);
  write_file_atomically(folder_ / "config.json", "{}");

  write_shards(folder_, two, {}, give_payload);
  EXPECT_EQ(
      read_file(folder_ / "model.safetensors.index.json"),
      "{\n  \"metadata\": {\n    \"total_size\": 12\n  },\n  \"weight_map\": {\n"
      "    \"a\": \"model-00001-of-00002.safetensors\",\n    \"b\": \"model-00002-of-00002.safetensors\"\n  }\n}\n");

  write_shards(folder_, three, {}, give_payload);
  EXPECT_EQ(file_names(),
            (std::set<std::string>{"config.json", "model.safetensors.index.json", "model-00001-of-00003.safetensors",
                                   "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"}));
  const TensorSet sharded = TensorSet::open(folder_);
  ASSERT_EQ(sharded.tensors().size(), 3u);
  for (const TensorEntry* entry : sharded.tensors()) expect_payload(*entry);
  EXPECT_EQ(sharded.at("c").shape, (std::vector<int64_t>{9}));
  EXPECT_EQ(sharded.find("d"), nullptr);
  EXPECT_EQ(sharded.metadata(), (Metadata{{"format", "pt"}}));

  write_shards(folder_, one, {}, give_payload);
  EXPECT_EQ(file_names(), (std::set<std::string>{"config.json", "model.safetensors"}));
  const TensorSet single = TensorSet::open(folder_);
  EXPECT_EQ(single.tensors().size(), 3u);
  EXPECT_EQ(TensorSet::open(folder_ / "model.safetensors").tensors().size(), 3u);
}

TEST_F(Checkpoint, FolderOfLinksIsFollowed) {
  fs::create_directories(folder_ / "blobs");
  fs::create_directories(folder_ / "snapshot");
  write_safetensors(folder_ / "blobs/1f2e", {{"a", StoredDType::u8, {3}}}, {}, give_payload);
  fs::create_symlink("../blobs/1f2e", folder_ / "snapshot/model.safetensors");
  EXPECT_EQ(TensorSet::open(folder_ / "snapshot").tensors().size(), 1u);
}

TEST_F(Checkpoint, MovedTensorSetKeepsItsNames) {
  write_safetensors(folder_ / "model.safetensors", {{"a", StoredDType::u8, {3}}}, {}, give_payload);
  TensorSet set = TensorSet::open(folder_);
  const TensorEntry* before = set.find("a");
  const TensorSet moved = std::move(set);
  EXPECT_EQ(moved.find("a"), before);
  expect_payload(moved.at("a"));
}

TEST_F(Checkpoint, FailedWriteLeavesNothing) {
  const auto source = [](const TensorSpec&, const ByteSink&) { fail(ExitCode::resource, "no bytes"); };
  EXPECT_THROW(write_safetensors(folder_ / "x.safetensors", sized_tensors({4}), {}, source), Error);
  EXPECT_TRUE(file_names().empty());
}

TEST_F(Checkpoint, GgufRoundTrip) {
  std::vector<float> matrix(64 * 3);
  for (size_t i = 0; i < matrix.size(); ++i) matrix[i] = std::sin(static_cast<float>(i));
  std::vector<std::byte> q8(matrix.size() / 32 * 34);
  quantise_q8_0(matrix.data(), static_cast<int64_t>(matrix.size()), q8.data());
  const std::vector<float> norm = {1, 2, 3, 4, 5};

  GgufWriter writer;
  writer.add_text("general.architecture", "gemma3n");
  writer.add_u32("count", 7);
  writer.add_f32("ten", 10.0f);
  writer.add_f32("half", 0.5f);
  writer.add_boolean("yes", true);
  writer.add_i32s("lengths", std::vector<int32_t>{-1, 0, 16384});
  writer.add_f32s("scales", std::vector<float>{1.5f, -std::numeric_limits<float>::infinity()});
  writer.add_booleans("pattern", {true, true, false});
  writer.add_texts("tokens", std::vector<std::string>{"<pad>", "", "سلام"});
  writer.add_tensor({"norm", WeightFormat::f32, {5}});
  writer.add_tensor({"stack", WeightFormat::q8_0, {32, 3, 2}});
  writer.write(folder_ / "m.gguf", [&](const GgufTensorSpec& spec, const ByteSink& sink) {
    sink(spec.name == "norm" ? std::as_bytes(std::span(norm)) : Bytes(q8));
  });

  GgufFile opened(folder_ / "m.gguf");
  const GgufFile file = std::move(opened);
  EXPECT_EQ(file.text("general.architecture"), "gemma3n");
  EXPECT_EQ(file.integer("count"), 7);
  EXPECT_EQ(file.integer("ten"), 10);
  EXPECT_EQ(file.real("half"), 0.5);
  EXPECT_EQ(file.real("count"), 7.0);
  EXPECT_TRUE(file.boolean("yes"));
  EXPECT_EQ(file.integers("lengths"), (std::vector<int64_t>{-1, 0, 16384}));
  EXPECT_EQ(file.integers("count"), (std::vector<int64_t>{7}));
  EXPECT_EQ(file.reals("scales"), (std::vector<double>{1.5, -std::numeric_limits<double>::infinity()}));
  EXPECT_EQ(file.booleans("pattern"), (std::vector<bool>{true, true, false}));
  EXPECT_EQ(file.texts("tokens"), (std::vector<std::string_view>{"<pad>", "", "سلام"}));
  EXPECT_EQ(file.keys().front(), "general.architecture");
  EXPECT_FALSE(file.has("absent"));

  EXPECT_EQ(file.values("norm"), norm);
  const Weight stack = file.weight("stack");
  EXPECT_EQ(stack.n_in, 32);
  EXPECT_EQ(stack.n_out, 6);
  std::vector<float> expected(matrix.size());
  dequantise({.format = WeightFormat::q8_0, .n_out = 6, .n_in = 32, .data = q8.data()}, 0, 192, expected.data());
  EXPECT_EQ(file.values("stack"), expected);
}

TEST_F(Checkpoint, GgufAccessorsRefuseOtherKinds) {
  GgufWriter writer;
  writer.add_text("text", "x");
  writer.add_f32("half", 0.5f);
  writer.add_u32("one", 1);
  writer.add_i32s("list", std::vector<int32_t>{1, 2});
  writer.write(folder_ / "m.gguf", [](const GgufTensorSpec&, const ByteSink&) {});
  const GgufFile file(folder_ / "m.gguf");
  EXPECT_THROW(file.integer("text"), Error);
  EXPECT_THROW(file.integer("half"), Error);
  EXPECT_THROW(file.integer("list"), Error);
  EXPECT_THROW(file.integer("absent"), Error);
  EXPECT_THROW(file.real("text"), Error);
  EXPECT_THROW(file.text("one"), Error);
  EXPECT_THROW(file.texts("list"), Error);
  EXPECT_THROW(file.boolean("one"), Error);
  EXPECT_THROW(file.weight("absent"), Error);
}

}  // namespace
}  // namespace saaz
