// GGUF files (versions 2 and 3), read strictly. Enters: untrusted bytes. Leaves: typed metadata and weights, both as
// views of the mapping. Metadata is reached only through accessors that check its declared type; a tensor of an
// unsupported type is an error only when it is asked for. Sources: docs/formats.md 2; limits of the reliability
// page 2.1. Any fault is bad_input.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/system.h"
#include "quant/weight.h"

namespace saaz {

enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };

/// One metadata value. Scalars and arrays of scalars are raw little-endian bytes of `type`; texts are views.
struct GgufValue {
  GgufType type = GgufType::u8;  // of the items, when is_array
  bool is_array = false;
  uint64_t count = 1;
  Bytes raw;                            // not for texts
  std::vector<std::string_view> texts;  // text only
};

struct GgufTensor {
  std::string_view name;
  uint32_t type = 0;        // ggml's number
  std::vector<int64_t> ne;  // 1 to 4 dimensions, ne[0] contiguous: the reverse of a row-major shape
  uint64_t offset = 0;      // from the data's start
  Bytes data;               // empty when the type is not supported
};

class GgufFile {
 public:
  explicit GgufFile(const fs::path& path);
  /// `bytes` are aligned to 8 and must outlive the object; `name` is used in messages.
  GgufFile(Bytes bytes, const std::string& name);

  const std::string& name() const { return name_; }
  bool has(std::string_view key) const { return values_.contains(key); }
  /// In file order.
  const std::vector<std::string_view>& keys() const { return keys_; }

  // Each throws naming the key when it is absent or of another kind. An integer may be stored in any integer type, or
  // as a float with an integral value (published files do so); a real in any numeric type. A scalar counts as an array
  // of one.
  int64_t integer(std::string_view key) const;
  double real(std::string_view key) const;
  bool boolean(std::string_view key) const;
  std::string_view text(std::string_view key) const;
  std::vector<int64_t> integers(std::string_view key) const;
  std::vector<double> reals(std::string_view key) const;
  std::vector<bool> booleans(std::string_view key) const;
  const std::vector<std::string_view>& texts(std::string_view key) const;

  /// In file order.
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  /// nullptr when absent.
  const GgufTensor* find(std::string_view name) const;
  /// The tensor as a matrix: n_in = ne[0], n_out = the product of the others (1 for a vector). Throws naming the tensor
  /// when it is absent or of an unsupported type.
  Weight weight(std::string_view name) const;
  /// All its elements as f32, for vectors and other small tensors.
  std::vector<float> values(std::string_view name) const;
  void release_pages() const { mapping_.release_pages(); }

 private:
  void parse(Bytes bytes);
  void read_metadata(ByteReader& reader, uint64_t count);
  void read_tensor_infos(ByteReader& reader, uint64_t count);
  void bind_tensor_data(Bytes data);
  const GgufValue& value(std::string_view key) const;
  const GgufValue& scalar(std::string_view key) const;

  MappedFile mapping_;
  std::string name_;
  std::vector<std::string_view> keys_;
  std::unordered_map<std::string_view, GgufValue> values_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> tensor_index_;
};

/// "u32", "text"
const char* name_of(GgufType type);
/// Bytes of a scalar; 0 for text and array.
size_t size_of(GgufType type);
/// ggml's number for a weight format (nf4 has none: our own bug), and back.
uint32_t ggml_type(WeightFormat format);
std::optional<WeightFormat> weight_format(uint32_t ggml_type);

}  // namespace saaz
