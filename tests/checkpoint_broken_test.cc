// Model files that must be refused: each row is one broken file, made by hand, and a part of the message that must name
// its fault. Every one must end in Error with exit code 3; a crash or an acceptance fails the test.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>

#include "base/system.h"
#include "checkpoint/bitsandbytes.h"
#include "checkpoint/gguf.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_set.h"

namespace saaz {
namespace {

using namespace std::string_literals;

void expect_bad_input(const std::string& label, const std::string& fragment, const std::function<void()>& action) {
  try {
    action();
    ADD_FAILURE() << label << ": accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input) << label;
    EXPECT_NE(std::string(error.what()).find(fragment), std::string::npos)
        << label << ": '" << error.what() << "' lacks '" << fragment << "'";
    for (const char* c = error.what(); *c; ++c) EXPECT_GE(static_cast<unsigned char>(*c), 0x20) << label;
  }
}

template <class T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

// --- safetensors ---

std::string with_header(const std::string& header, size_t data_bytes) {
  return raw<uint64_t>(header.size()) + header + std::string(data_bytes, '\1');
}

/// A file with one tensor 'w' whose entry has these members.
std::string one_tensor(const std::string& members, size_t data_bytes) {
  return with_header("{\"w\":{" + members + "}}", data_bytes);
}

struct BrokenFile {
  const char* label;
  std::string bytes;
  const char* fragment;
};

const std::vector<BrokenFile>& broken_safetensors() {
  static const std::string kGood = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
  static const std::vector<BrokenFile> kFiles = {
      {"empty", "", "0 bytes are too few"},
      {"seven bytes", "\2\0\0\0\0\0\0"s, "7 bytes are too few"},
      {"length near 2^64", raw<uint64_t>(~0ull - 3) + "{}", "header length 18446744073709551612"},
      {"length over the limit", raw<uint64_t>(100'000'001) + "{}", "over the limit"},
      {"length beyond the file", raw<uint64_t>(1000) + "{}", "only 2 bytes follow"},
      {"length zero", raw<uint64_t>(0) + "{}", "header length 0"},
      {"not an object", with_header("[]", 0), "starts with '['"},
      {"leading space", with_header(" {}", 0), "byte 8"},
      {"invalid JSON", with_header("{\"w\":", 0), "invalid JSON"},
      {"text after the object", with_header("{}{}", 0), "invalid JSON"},
      {"duplicate tensor", with_header("{\"w\":{" + kGood + "},\"w\":{" + kGood + "}}", 8), "appears twice"},
      {"invalid UTF-8", with_header("{\"w\xff\":{" + kGood + "}}", 8), "invalid JSON"},
      {"lone surrogate", with_header("{\"\\ud800\":{" + kGood + "}}", 8), "invalid JSON"},
      {"NUL in a name", with_header("{\"w\\u0000\":{" + kGood + "}}", 8), "control characters"},
      {"newline in a name", with_header("{\"w\\n\":{" + kGood + "}}", 8), "control characters"},
      {"tensor is no object", with_header("{\"w\":7}", 0), "tensor 'w' is"},
      {"nested in metadata", with_header(R"({"__metadata__":{"a":{"b":1}}})", 0), "'a' is an object"},
      {"metadata is no object", with_header(R"({"__metadata__":"pt"})", 0), "__metadata__ is a string"},
      {"unknown key", one_tensor(kGood + ",\"x\":1", 8), "unknown key 'x'"},
      {"no dtype", one_tensor(R"("shape":[2],"data_offsets":[0,8])", 8), "'dtype'"},
      {"unknown dtype", one_tensor(R"("dtype":"F33","shape":[2],"data_offsets":[0,8])", 8), "unknown dtype 'F33'"},
      {"no shape", one_tensor(R"("dtype":"F32","data_offsets":[0,8])", 8), "no 'shape'"},
      {"negative dimension", one_tensor(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])", 8), "'shape' holds -2"},
      {"fractional dimension", one_tensor(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])", 8), "'shape' holds"},
      {"dimension over 2^63", one_tensor(R"("dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8])", 8),
       "'shape' holds"},
      {"shape product wraps", one_tensor(R"("dtype":"U8","shape":[4294967297,4294967292],"data_offsets":[0,4])", 4),
       "overflows 64 bits"},
      {"product wraps behind a zero",
       one_tensor(R"("dtype":"U8","shape":[0,4294967297,4294967297],"data_offsets":[0,0])", 0), "overflows 64 bits"},
      {"nine dimensions", one_tensor(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8])", 8),
       "9 dimensions"},
      {"sub-byte remainder", one_tensor(R"("dtype":"F4","shape":[3],"data_offsets":[0,2])", 2), "whole bytes"},
      {"three offsets", one_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8,8])", 8), "has 3 numbers"},
      {"ends before it begins", one_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])", 8), "before it begins"},
      {"span of another size", one_tensor(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])", 8), "needs 12 bytes"},
      {"zero-size range, shape without zero", one_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,0])", 0),
       "needs 8 bytes"},
      {"hole at the start", one_tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])", 8), "there is a hole"},
      {"overlap",
       with_header(
           R"({"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
           8),
       "tensors overlap"},
      {"two tensors at one place", with_header("{\"v\":{" + kGood + "},\"w\":{" + kGood + "}}", 8), "tensors overlap"},
      {"truncated data", one_tensor(kGood, 7), "holds only 7"},
      {"bytes after the data", one_tensor(kGood, 9), "1 bytes follow the last tensor"},
      {"Git LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 42\n",
       "Git LFS pointer, not the file"},
      {"HTML page", "\n<!DOCTYPE html><html><body>404</body></html>", "HTML page"},
      {"zip pickle", "PK\x03\x04\0\0\x08\x08\0\0data.pkl"s, "weights_only=True"},
      {"bare pickle", "\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20"s, "weights_only=True"},
      {"GGUF", "GGUF\3\0\0\0\0\0\0\0\0\0\0\0"s, "GGUF"},
  };
  return kFiles;
}

TEST(BrokenSafetensors, EachIsRefusedNamingItsFault) {
  for (const BrokenFile& c : broken_safetensors()) {
    expect_bad_input(c.label, c.fragment, [&] { SafetensorsFile(std::as_bytes(std::span(c.bytes)), "broken"); });
  }
}

TEST(BrokenSafetensors, EveryTruncationIsRefused) {
  const std::string whole = with_header(R"({"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  SafetensorsFile(std::as_bytes(std::span(whole)), "whole");
  for (size_t n = 0; n < whole.size(); ++n) {
    const std::string part = whole.substr(0, n);
    EXPECT_THROW(SafetensorsFile(std::as_bytes(std::span(part)), "part"), Error) << n << " bytes";
  }
}

// --- shard indexes ---

struct BrokenIndex {
  const char* label;
  const char* index;
  const char* fragment;
};

/// The folder holds a.safetensors with tensor 'a' and both.safetensors with tensors 'a' and 'b'.
class BrokenFolder : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "saaz-broken-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    const std::string a = R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
    write_file_atomically(folder_ / "a.safetensors", with_header("{" + a + "}", 1));
    write_file_atomically(folder_ / "both.safetensors",
                          with_header("{" + a + R"(,"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2));
  }
  void TearDown() override { fs::remove_all(folder_); }
  fs::path folder_;
};

TEST_F(BrokenFolder, EachIndexIsRefusedNamingItsFault) {
  static const BrokenIndex kIndexes[] = {
      {"not JSON", "<html>", "invalid JSON"},
      {"no weight_map", R"({"metadata":{}})", "no 'weight_map'"},
      {"weight_map is a list", R"({"weight_map":[]})", "no 'weight_map'"},
      {"weight_map is empty", R"({"weight_map":{}})", "is empty"},
      {"shard is no text", R"({"weight_map":{"a":1}})", "expected a file name"},
      {"shard missing", R"({"weight_map":{"a":"none.safetensors"}})", "none.safetensors"},
      {"parent folder", R"({"weight_map":{"a":"../a.safetensors"}})", "not a plain file name"},
      {"parent itself", R"({"weight_map":{"a":".."}})", "not a plain file name"},
      {"absolute path", R"({"weight_map":{"a":"/etc/hostname"}})", "not a plain file name"},
      {"empty name", R"({"weight_map":{"a":""}})", "not a plain file name"},
      {"back slash", R"({"weight_map":{"a":"x\\a.safetensors"}})", "not a plain file name"},
      {"control character", R"({"weight_map":{"a":"a\u0007.safetensors"}})", "not a plain file name"},
      {"shard is a folder", R"({"weight_map":{"a":"."}})", "not a plain file name"},
      {"tensor not in its shard", R"({"weight_map":{"a":"a.safetensors","b":"a.safetensors"}})", "places tensor 'b'"},
      {"tensor not in the index", R"({"weight_map":{"b":"both.safetensors"}})", "holds tensor 'a'"},
      {"tensor in two shards", R"({"weight_map":{"a":"a.safetensors","b":"both.safetensors"}})",
       "tensor 'a' is both in"},
      {"tensor twice", R"({"weight_map":{"a":"a.safetensors","a":"both.safetensors"}})", "appears twice"},
  };
  for (const BrokenIndex& c : kIndexes) {
    write_file_atomically(folder_ / "model.safetensors.index.json", c.index);
    expect_bad_input(c.label, c.fragment, [&] { TensorSet::open(folder_); });
  }
}

TEST_F(BrokenFolder, FoldersWithoutWeightsSayWhatTheyHold) {
  expect_bad_input("nothing", "holds neither", [&] { TensorSet::open(folder_); });
  expect_bad_input("no such path", "cannot open", [&] { TensorSet::open(folder_ / "none"); });
  write_file_atomically(folder_ / "pytorch_model.bin", "PK");
  expect_bad_input("pickle only", "pytorch_model.bin", [&] { TensorSet::open(folder_); });
  fs::create_directories(folder_ / "model.safetensors");
  expect_bad_input("a folder as weights", "not a regular file", [&] { TensorSet::open(folder_); });
}

// --- GGUF ---

std::string text(const std::string& s) { return raw<uint64_t>(s.size()) + s; }
std::string key_value(const std::string& key, uint32_t type, const std::string& value) {
  return text(key) + raw(type) + value;
}
std::string tensor_info(const std::string& name, const std::vector<uint64_t>& ne, uint32_t type, uint64_t offset) {
  std::string out = text(name) + raw(static_cast<uint32_t>(ne.size()));
  for (const uint64_t d : ne) out += raw(d);
  return out + raw(type) + raw(offset);
}
/// A version-3 file; the header is padded to 32 and followed by `data_bytes`.
std::string gguf(uint64_t n_tensors, uint64_t n_values, const std::string& body, size_t data_bytes) {
  std::string out = "GGUF" + raw<uint32_t>(3) + raw(n_tensors) + raw(n_values) + body;
  out.resize((out.size() + 31) / 32 * 32 + data_bytes, '\0');
  return out;
}
/// One tensor of type F32 [4] at offset 0 unless said otherwise.
std::string one_gguf_tensor(const std::vector<uint64_t>& ne, uint32_t type, uint64_t offset, size_t data_bytes) {
  return gguf(1, 0, tensor_info("w", ne, type, offset), data_bytes);
}

/// The bytes at an address aligned to 8, as in a mapping.
class AlignedBytes {
 public:
  explicit AlignedBytes(const std::string& bytes) : words_(bytes.size() / 8 + 1), size_(bytes.size()) {
    std::memcpy(words_.data(), bytes.data(), bytes.size());
  }
  Bytes view() const { return std::as_bytes(std::span(words_)).first(size_); }

 private:
  std::vector<uint64_t> words_;
  size_t size_;
};

const std::vector<BrokenFile>& broken_ggufs() {
  static const uint32_t kU32 = 4, kText = 8, kArray = 9;
  static const std::string kBomb = raw<uint64_t>(1ull << 62);
  static const std::vector<BrokenFile> kFiles = {
      {"empty", "", "empty"},
      {"other magic", "GGML" + std::string(28, '\0'), "byte 0"},
      {"Git LFS pointer", "version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer, not the file"},
      {"HTML page", "<html>", "HTML page"},
      {"version 1", "GGUF" + raw<uint32_t>(1) + std::string(24, '\0'), "GGUF version 1"},
      {"big-endian", "GGUF" + raw<uint32_t>(0x03000000) + std::string(24, '\0'), "big-endian"},
      {"header cut", "GGUF" + raw<uint32_t>(3) + "\0\0\0"s, "the tensor count needs 8 bytes"},
      {"metadata count bomb", gguf(0, 1ull << 60, "", 0), "the metadata claims 1152921504606846976 items"},
      {"tensor count bomb", gguf(1ull << 60, 0, "", 0), "the tensor list claims 1152921504606846976 items"},
      {"key length bomb", gguf(0, 1, kBomb, 64), "more than the limit of 16777216"},
      {"key beyond the end", gguf(0, 1, raw<uint64_t>(5000), 64), "a metadata key needs 5000 bytes"},
      {"empty key", gguf(0, 1, key_value("", kU32, raw<uint32_t>(1)), 0), "key is empty"},
      {"unknown type", gguf(0, 1, key_value("k", 13, ""), 64), "'k' has unknown type 13"},
      {"text length bomb", gguf(0, 1, key_value("k", kText, kBomb), 64), "more than the limit of 16777216"},
      {"array length bomb", gguf(0, 1, key_value("k", kArray, raw(kU32) + kBomb), 64),
       "more than the limit of 67108864"},
      {"array beyond the end", gguf(0, 1, key_value("k", kArray, raw(kU32) + raw<uint64_t>(1000)), 64),
       "metadata 'k' needs 4000 bytes"},
      {"text array beyond the end", gguf(0, 1, key_value("k", kArray, raw(kText) + raw<uint64_t>(1000)), 64),
       "metadata 'k' claims 1000 items"},
      {"nested array", gguf(0, 1, key_value("k", kArray, raw(kArray) + raw<uint64_t>(1)), 64), "array of arrays"},
      {"duplicate key", gguf(0, 2, key_value("k", kU32, raw<uint32_t>(1)) + key_value("k", kU32, raw<uint32_t>(1)), 0),
       "metadata 'k' appears twice"},
      {"alignment zero", gguf(0, 1, key_value("general.alignment", kU32, raw<uint32_t>(0)), 0),
       "'general.alignment' is 0"},
      {"alignment 24", gguf(0, 1, key_value("general.alignment", kU32, raw<uint32_t>(24)), 0), "power of two"},
      {"alignment as text", gguf(0, 1, key_value("general.alignment", kText, text("32")), 0), "general.alignment"},
      {"no dimensions", one_gguf_tensor({}, 0, 0, 16), "0 dimensions"},
      {"five dimensions", one_gguf_tensor({1, 1, 1, 1, 1}, 0, 0, 16), "5 dimensions"},
      {"dimension zero", one_gguf_tensor({4, 0}, 0, 0, 16), "dimension of 0"},
      {"dimension over 2^63", one_gguf_tensor({1ull << 63}, 0, 0, 16), "dimension of 9223372036854775808"},
      {"dimensions wrap", one_gguf_tensor({1ull << 32, 1ull << 32}, 0, 0, 16), "overflows 64 bits"},
      {"bytes wrap", one_gguf_tensor({1ull << 62}, 0, 0, 16), "elements"},
      {"row of half a block", one_gguf_tensor({48}, 8, 0, 64), "no multiple of q8_0's 32"},
      {"data beyond the end", one_gguf_tensor({5}, 0, 0, 16), "needs 20 bytes"},
      {"offset beyond the end", one_gguf_tensor({4}, 0, 1ull << 40, 16), "begins at data byte 1099511627776"},
      {"offset + size wraps", one_gguf_tensor({4}, 0, ~31ull, 16), "begins at data byte"},
      {"offset not aligned", one_gguf_tensor({4}, 0, 8, 64), "no multiple of the alignment"},
      {"duplicate tensor", gguf(2, 0, tensor_info("w", {4}, 0, 0) + tensor_info("w", {4}, 0, 32), 64),
       "tensor 'w' appears twice"},
      {"overlapping tensors", gguf(2, 0, tensor_info("v", {16}, 0, 0) + tensor_info("w", {4}, 0, 32), 64),
       "tensors 'v' and 'w' overlap"},
      {"empty tensor name", gguf(1, 0, tensor_info("", {4}, 0, 0), 64), "tensor name is empty"},
  };
  return kFiles;
}

TEST(BrokenGguf, EachIsRefusedNamingItsFault) {
  for (const BrokenFile& c : broken_ggufs()) {
    const AlignedBytes bytes(c.bytes);
    expect_bad_input(c.label, c.fragment, [&] { GgufFile(bytes.view(), "broken"); });
  }
}

TEST(BrokenGguf, EveryTruncationIsRefused) {
  const std::string whole =
      gguf(1, 1, key_value("k", 9, raw<uint32_t>(8) + raw<uint64_t>(1) + text("x")) + tensor_info("w", {4}, 0, 0), 16);
  GgufFile(AlignedBytes(whole).view(), "whole");
  for (size_t n = 0; n < whole.size(); ++n) {
    const AlignedBytes part(whole.substr(0, n));
    EXPECT_THROW(GgufFile(part.view(), "part"), Error) << n << " bytes";
  }
}

TEST(BrokenGguf, UnsupportedTypeIsAnErrorOnlyWhenAskedFor) {
  const AlignedBytes bytes(gguf(2, 0, tensor_info("old", {256}, 10, 0) + tensor_info("w", {4}, 0, 96), 112));
  const GgufFile file(bytes.view(), "mixed");
  EXPECT_EQ(file.values("w").size(), 4u);
  expect_bad_input("Q2_K", "tensor 'old' has ggml type 10", [&] { file.weight("old"); });
}

TEST(BrokenGguf, BadBooleanIsRefused) {
  const AlignedBytes bytes(gguf(0, 1, key_value("k", 7, "\2"), 0));
  const GgufFile file(bytes.view(), "bool");
  expect_bad_input("a bool of 2", "found 2", [&] { file.boolean("k"); });
}

// --- bitsandbytes ---

using Parts = std::map<std::string, std::pair<TensorSpec, std::string>>;  // by name

std::string floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

/// The tensors of a good 4-bit matrix [2, 64] with nested scales and of a good 8-bit one [2, 3].
Parts good_parts() {
  const auto text_of = [](std::span<const float> v) { return floats({v.begin(), v.end()}); };
  Parts parts;
  const auto add = [&](const std::string& name, StoredDType dtype, std::vector<int64_t> shape, std::string bytes) {
    parts[name] = {{name, dtype, std::move(shape)}, std::move(bytes)};
  };
  const std::string state = R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [2, 64], )"
                            R"("nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.05})";
  add("a.weight", StoredDType::u8, {64, 1}, std::string(64, '\x37'));
  add("a.weight.absmax", StoredDType::u8, {2}, "\x10\x80");
  add("a.weight.quant_map", StoredDType::f32, {16}, text_of(kNf4Values));
  add("a.weight.nested_absmax", StoredDType::f32, {1}, floats({0.01f}));
  add("a.weight.nested_quant_map", StoredDType::f32, {256}, text_of(dynamic_map_signed()));
  add("a.weight.quant_state.bitsandbytes__nf4", StoredDType::u8, {static_cast<int64_t>(state.size())}, state);
  add("b.weight", StoredDType::i8, {2, 3}, "\1\2\3\4\5\6");
  add("b.SCB", StoredDType::f32, {2}, floats({1, 2}));
  add("b.weight_format", StoredDType::u8, {}, std::string(1, '\0'));
  return parts;
}

void read_parts(const Parts& parts) {
  std::vector<TensorEntry> entries;
  std::vector<std::vector<uint64_t>> aligned;
  for (const auto& [name, part] : parts) {
    std::vector<uint64_t>& words = aligned.emplace_back(part.second.size() / 8 + 1);
    std::memcpy(words.data(), part.second.data(), part.second.size());
    const Bytes data(reinterpret_cast<const std::byte*>(words.data()), part.second.size());
    entries.push_back({name, part.first.dtype, part.first.shape, data, "broken"});
  }
  std::vector<const TensorEntry*> views;
  for (const TensorEntry& entry : entries) views.push_back(&entry);
  const BitsandbytesMatrices matrices(views);
  for (const char* name : {"a.weight", "b.weight"}) {
    const BitsandbytesMatrices::Matrix* matrix = matrices.find(name);
    ASSERT_NE(matrix, nullptr) << name;
    std::vector<float> values(static_cast<size_t>(matrix->weight.size()));
    dequantise(matrix->weight, 0, matrix->weight.size(), values.data());
  }
}

TEST(BrokenBitsandbytes, EachIsRefusedNamingItsFault) {
  read_parts(good_parts());
  const std::string state = "a.weight.quant_state.bitsandbytes__nf4";
  const auto without = [](const char* name) { return [name](Parts& p) { p.erase(name); }; };
  const auto bytes = [](const char* name, std::string text) {
    return [name, text](Parts& p) { p.at(name).second = text; };
  };
  const auto in_state = [&](const std::string& from, const std::string& to) {
    return [=](Parts& p) {
      std::string& text = p.at(state).second;
      const size_t at = text.find(from);
      ASSERT_NE(at, std::string::npos) << from;
      text.replace(at, from.size(), to);
    };
  };
  const float nan = std::nanf("");
  const std::vector<std::tuple<const char*, std::function<void(Parts&)>, const char*>> cases = {
      {"no codes", without("a.weight"), "'a.weight', which is missing"},
      {"no absmax", without("a.weight.absmax"), "'a.weight.absmax', which is missing"},
      {"no map", without("a.weight.quant_map"), "'a.weight.quant_map', which is missing"},
      {"no nested absmax", without("a.weight.nested_absmax"), "'a.weight.nested_absmax', which is missing"},
      {"no nested map", without("a.weight.nested_quant_map"), "'a.weight.nested_quant_map', which is missing"},
      {"no state", without(state.c_str()), "belongs to no quantised matrix"},
      {"two states",
       [&](Parts& p) {
         auto twin = p.at(state);
         twin.second.replace(twin.second.find("nf4"), 3, "fp4");
         p["a.weight.quant_state.bitsandbytes__fp4"] = twin;
       },
       "has two states"},
      {"codes too short", bytes("a.weight", std::string(63, '\1')), "holds 63 bytes of codes"},
      {"absmax too short", bytes("a.weight.absmax", "\1"), "expected 2 values of U8"},
      {"absmax of another type", [](Parts& p) { p.at("a.weight.absmax").first.dtype = StoredDType::i8; }, "is I8"},
      {"map too short", bytes("a.weight.quant_map", floats({1, 2})), "expected 16 values of F32"},
      {"map with NaN", bytes("a.weight.quant_map", floats(std::vector<float>(16, nan))), "non-finite"},
      {"negative scale", bytes("a.weight.nested_absmax", floats({-1})), "scale 0 is -1"},
      {"infinite scale", bytes("a.weight.nested_absmax", floats({HUGE_VALF})), "scale 0 is inf"},
      {"state is no JSON", bytes(state.c_str(), "nf4"), "invalid JSON"},
      {"state is a list", bytes(state.c_str(), "[]"), "expected a JSON object"},
      {"unknown key", in_state("blocksize", "block_size"), "unknown key 'block_size'"},
      {"other type", in_state("\"nf4\"", "\"fp4\""), "quant_type is 'fp4', its name says nf4"},
      {"other block", in_state("64, \"dtype\"", "128, \"dtype\""), "'blocksize' is 128, only 64 is read"},
      {"other nested block", in_state("256", "512"), "'nested_blocksize' is 512"},
      {"other dtype", in_state("bfloat16", "float64"), "dtype 'float64'"},
      {"negative shape", in_state("[2, 64]", "[-2, 64]"), "two positive integers"},
      {"three dimensions", in_state("[2, 64]", "[2, 32, 2]"), "two positive integers"},
      {"shape overflows", in_state("[2, 64]", "[4294967297, 9223372036854775807]"), "overflows 64 bits"},
      {"shape of more", in_state("[2, 64]", "[2, 66]"), "holds 64 bytes of codes"},
      {"offset is text", in_state("0.05", "\"x\""), "'nested_offset' is not a finite number"},
      {"offset too large", in_state("0.05", "1e300"), "'nested_offset' is not a finite number"},
      {"no 8-bit codes", without("b.weight"), "'b.weight', which is missing"},
      {"8-bit codes of another type", [](Parts& p) { p.at("b.weight").first.dtype = StoredDType::u8; },
       "a matrix of I8"},
      {"8-bit scales too few", bytes("b.SCB", floats({1})), "expected 2 values of F32"},
      {"8-bit scale is NaN", bytes("b.SCB", floats({1, nan})), "scale 1 is nan"},
      {"8-bit tiles", bytes("b.weight_format", "\2"), "only row-major matrices (0) are read"},
      {"no 8-bit scales", without("b.SCB"), "belongs to no quantised matrix"},
  };
  for (const auto& [label, damage, fragment] : cases) {
    Parts parts = good_parts();
    damage(parts);
    expect_bad_input(label, fragment, [&] { read_parts(parts); });
  }
}

}  // namespace
}  // namespace saaz
