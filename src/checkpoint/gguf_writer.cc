// Metadata is encoded as it is added; tensor infos, with their offsets, when the file is written.
#include "checkpoint/gguf_writer.h"

#include <algorithm>
#include <cassert>
#include <type_traits>

#include "base/check.h"

namespace saaz {

namespace {

constexpr uint64_t kAlignment = 32;

uint64_t aligned(uint64_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

template <class T>
void append(std::string& out, T value) {
  static_assert(std::is_arithmetic_v<T>);
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void append_text(std::string& out, std::string_view text) {
  append<uint64_t>(out, text.size());
  out += text;
}

}  // namespace

uint64_t GgufTensorSpec::bytes() const {
  const BlockSize block = block_size(format);
  assert(!ne.empty() && ne[0] % block.elements == 0);
  uint64_t n = static_cast<uint64_t>(ne[0] / block.elements * block.bytes);
  for (size_t i = 1; i < ne.size(); ++i) n *= static_cast<uint64_t>(ne[i]);
  return n;
}

void GgufWriter::begin_value(std::string_view key, GgufType type) {
  append_text(values_, key);
  append(values_, static_cast<uint32_t>(type));
  ++n_values_;
}

void GgufWriter::begin_array(std::string_view key, GgufType item, uint64_t count) {
  begin_value(key, GgufType::array);
  append(values_, static_cast<uint32_t>(item));
  append(values_, count);
}

void GgufWriter::add_u32(std::string_view key, uint32_t value) {
  begin_value(key, GgufType::u32);
  append(values_, value);
}

void GgufWriter::add_f32(std::string_view key, float value) {
  begin_value(key, GgufType::f32);
  append(values_, value);
}

void GgufWriter::add_boolean(std::string_view key, bool value) {
  begin_value(key, GgufType::boolean);
  append<uint8_t>(values_, value);
}

void GgufWriter::add_text(std::string_view key, std::string_view value) {
  begin_value(key, GgufType::text);
  append_text(values_, value);
}

void GgufWriter::add_i32s(std::string_view key, std::span<const int32_t> values) {
  begin_array(key, GgufType::i32, values.size());
  for (const int32_t value : values) append(values_, value);
}

void GgufWriter::add_f32s(std::string_view key, std::span<const float> values) {
  begin_array(key, GgufType::f32, values.size());
  for (const float value : values) append(values_, value);
}

void GgufWriter::add_booleans(std::string_view key, const std::vector<bool>& values) {
  begin_array(key, GgufType::boolean, values.size());
  for (const bool value : values) append<uint8_t>(values_, value);
}

void GgufWriter::add_texts(std::string_view key, std::span<const std::string> values) {
  begin_array(key, GgufType::text, values.size());
  for (const std::string& value : values) append_text(values_, value);
}

void GgufWriter::add_tensor(GgufTensorSpec spec) { tensors_.push_back(std::move(spec)); }

std::string GgufWriter::header() const {
  std::string out = "GGUF";
  append<uint32_t>(out, 3);
  append<uint64_t>(out, tensors_.size());
  append<uint64_t>(out, n_values_);
  out += values_;
  uint64_t offset = 0;
  for (const GgufTensorSpec& tensor : tensors_) {
    append_text(out, tensor.name);
    append(out, static_cast<uint32_t>(tensor.ne.size()));
    for (const int64_t d : tensor.ne) append(out, d);
    append(out, ggml_type(tensor.format));
    append(out, offset);
    offset += aligned(tensor.bytes());
  }
  out.resize(aligned(out.size()), '\0');
  return out;
}

void GgufWriter::write(const fs::path& path,
                       const std::function<void(const GgufTensorSpec&, const ByteSink&)>& source) const {
  constexpr size_t kPiece = 1 << 20;
  AtomicFile file(path);
  file.write(header());
  for (const GgufTensorSpec& tensor : tensors_) {
    const uint64_t end = file.size() + tensor.bytes();
    source(tensor, [&](Bytes bytes) {
      for (; !bytes.empty(); bytes = bytes.subspan(std::min(kPiece, bytes.size())))
        file.write(bytes.data(), std::min(kPiece, bytes.size()));
    });
    check(file.size() == end, ExitCode::bug, "tensor '{}' of {} was written with a wrong size: {} bytes off",
          printable(tensor.name), printable(path.string()),
          static_cast<int64_t>(file.size()) - static_cast<int64_t>(end));
    file.write(std::string(aligned(end) - end, '\0'));
  }
  file.commit();
}

}  // namespace saaz
