// Writes GGUF files (version 3, alignment 32). Enters: metadata and tensor descriptions, in the order they are to be
// stored, then a source of bytes. Leaves: a file that appears whole. Keys and tensor names must be unique: a repeated
// one is our own bug.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/system.h"
#include "checkpoint/gguf.h"
#include "checkpoint/stored_tensor.h"

namespace saaz {

struct GgufTensorSpec {
  std::string name;
  WeightFormat format = WeightFormat::f32;
  std::vector<int64_t> ne;  // ne[0] contiguous, a multiple of the format's block
  uint64_t bytes() const;
};

class GgufWriter {
 public:
  void add_u32(std::string_view key, uint32_t value);
  void add_f32(std::string_view key, float value);
  void add_boolean(std::string_view key, bool value);
  void add_text(std::string_view key, std::string_view value);
  void add_i32s(std::string_view key, std::span<const int32_t> values);
  void add_f32s(std::string_view key, std::span<const float> values);
  void add_booleans(std::string_view key, const std::vector<bool>& values);
  void add_texts(std::string_view key, std::span<const std::string> values);
  void add_tensor(GgufTensorSpec spec);

  /// Asks `source` for one tensor after the other, in the order they were added.
  void write(const fs::path& path, const std::function<void(const GgufTensorSpec&, const ByteSink&)>& source) const;

 private:
  void begin_value(std::string_view key, GgufType type);
  void begin_array(std::string_view key, GgufType item, uint64_t count);
  std::string header() const;

  std::string values_;
  uint64_t n_values_ = 0;
  std::vector<GgufTensorSpec> tensors_;
};

}  // namespace saaz
