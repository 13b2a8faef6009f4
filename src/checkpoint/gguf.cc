// The container: counts are compared with the bytes left before anything is reserved, products are checked, and every
// tensor's bytes are proved to lie inside the file, apart from each other, before the file object exists. Metadata:
// gguf_metadata.cc.
#include "checkpoint/gguf.h"

#include <algorithm>
#include <bit>
#include <cassert>

#include "base/check.h"
#include "checkpoint/foreign_file.h"

namespace saaz {

namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr uint64_t kMaxTextBytes = 16 << 20, kMaxArrayItems = 64 << 20;
constexpr uint64_t kMinKeyValueBytes = 8 + 4 + 1, kMinTensorInfoBytes = 8 + 4 + 8 + 4 + 8;
constexpr uint32_t kMaxDims = 4;
constexpr int64_t kDefaultAlignment = 32, kMinAlignment = 8;  // 8: then every element of the mapping is aligned
constexpr std::string_view kAlignmentKey = "general.alignment";

struct GgmlFormat {
  uint32_t number;
  WeightFormat format;
};
constexpr GgmlFormat kFormats[] = {
    {0, WeightFormat::f32},   {1, WeightFormat::f16},   {2, WeightFormat::q4_0},
    {6, WeightFormat::q5_0},  {8, WeightFormat::q8_0},  {12, WeightFormat::q4_k},
    {13, WeightFormat::q5_k}, {14, WeightFormat::q6_k}, {30, WeightFormat::bf16},
};

std::string_view read_text(ByteReader& reader, std::string_view what) {
  const size_t at = reader.offset();
  const auto length = reader.read<uint64_t>(what);
  check(length <= kMaxTextBytes, ExitCode::bad_input, "{}: byte {}: {} of {} bytes, more than the limit of {}",
        reader.name(), at, what, length, kMaxTextBytes);
  return reader.take_text(length, what);
}

GgufType read_type(ByteReader& reader, std::string_view key) {
  const size_t at = reader.offset();
  const auto number = reader.read<uint32_t>("a metadata type");
  check(number <= static_cast<uint32_t>(GgufType::f64), ExitCode::bad_input,
        "{}: byte {}: metadata '{}' has unknown type {}", reader.name(), at, printable(key), number);
  return static_cast<GgufType>(number);
}

GgufValue read_value(ByteReader& reader, std::string_view key) {
  GgufValue value;
  value.type = read_type(reader, key);
  if (value.type == GgufType::array) {
    value.is_array = true;
    value.type = read_type(reader, key);
    check(value.type != GgufType::array, ExitCode::bad_input,
          "{}: byte {}: metadata '{}' is an array of arrays, which is not supported", reader.name(), reader.offset(),
          printable(key));
    const size_t at = reader.offset();
    value.count = reader.read<uint64_t>("an array length");
    check(value.count <= kMaxArrayItems, ExitCode::bad_input,
          "{}: byte {}: metadata '{}' has {} items, more than the limit of {}", reader.name(), at, printable(key),
          value.count, kMaxArrayItems);
  }
  if (value.type == GgufType::text) {
    reader.expect_items(value.count, 8, fmt::format("metadata '{}'", printable(key)));
    value.texts.reserve(value.count);
    for (uint64_t i = 0; i < value.count; ++i) value.texts.push_back(read_text(reader, "a metadata text"));
  } else {
    value.raw = reader.take(value.count * size_of(value.type), fmt::format("metadata '{}'", printable(key)));
  }
  return value;
}

std::vector<int64_t> read_dimensions(ByteReader& reader, std::string_view tensor) {
  const size_t at = reader.offset();
  const auto n_dims = reader.read<uint32_t>("a dimension count");
  check(n_dims >= 1 && n_dims <= kMaxDims, ExitCode::bad_input,
        "{}: byte {}: tensor '{}' has {} dimensions, expected 1 to {}", reader.name(), at, printable(tensor), n_dims,
        kMaxDims);
  std::vector<int64_t> ne;
  uint64_t elements = 1;
  for (uint32_t i = 0; i < n_dims; ++i) {
    const auto d = reader.read<uint64_t>("a dimension");
    check(d >= 1 && d <= INT64_MAX, ExitCode::bad_input, "{}: byte {}: tensor '{}' has a dimension of {}",
          reader.name(), reader.offset() - 8, printable(tensor), d);
    elements = checked_mul(elements, d, fmt::format("{}: size of tensor '{}'", reader.name(), printable(tensor)));
    ne.push_back(static_cast<int64_t>(d));
  }
  check(elements <= INT64_MAX / 4, ExitCode::bad_input, "{}: byte {}: tensor '{}' has {} elements", reader.name(), at,
        printable(tensor), elements);
  return ne;
}

int64_t element_count(const GgufTensor& tensor) {
  int64_t n = 1;
  for (const int64_t d : tensor.ne) n *= d;
  return n;
}

}  // namespace

uint32_t ggml_type(WeightFormat format) {
  const auto* found =
      std::find_if(std::begin(kFormats), std::end(kFormats), [&](auto& f) { return f.format == format; });
  assert(found != std::end(kFormats));
  return found->number;
}

std::optional<WeightFormat> weight_format(uint32_t ggml_type) {
  const auto* found =
      std::find_if(std::begin(kFormats), std::end(kFormats), [&](auto& f) { return f.number == ggml_type; });
  if (found == std::end(kFormats)) return std::nullopt;
  return found->format;
}

GgufFile::GgufFile(const fs::path& path) : mapping_(path), name_(printable(path.string())) { parse(mapping_.bytes()); }

GgufFile::GgufFile(Bytes bytes, const std::string& name) : name_(name) { parse(bytes); }

void GgufFile::parse(Bytes bytes) {
  ByteReader reader(bytes, name_);
  const bool has_magic = bytes.size() >= kMagic.size() && reader.take_text(kMagic.size(), "the magic") == kMagic;
  if (!has_magic) {
    const std::string foreign = describe_foreign_file(bytes);
    fail(ExitCode::bad_input, "{}: {}", name_,
         foreign.empty() ? "byte 0: a GGUF file begins with 'GGUF', this one does not" : foreign);
  }
  const auto version = reader.read<uint32_t>("the version");
  check(version == 2 || version == 3, ExitCode::bad_input, "{}: byte 4: GGUF version {}: versions 2 and 3 are read{}",
        name_, version, (version & 0xffff) == 0 ? " (this file is big-endian)" : "");
  const auto n_tensors = reader.read<uint64_t>("the tensor count");
  const auto n_values = reader.read<uint64_t>("the metadata count");
  reader.expect_items(n_values, kMinKeyValueBytes, "the metadata");
  reader.expect_items(n_tensors, kMinTensorInfoBytes, "the tensor list");
  read_metadata(reader, n_values);
  read_tensor_infos(reader, n_tensors);

  const int64_t alignment = has(kAlignmentKey) ? integer(kAlignmentKey) : kDefaultAlignment;
  check(alignment >= kMinAlignment && std::has_single_bit(static_cast<uint64_t>(alignment)), ExitCode::bad_input,
        "{}: metadata '{}' is {}, expected a power of two from {} on", name_, kAlignmentKey, alignment, kMinAlignment);
  for (const GgufTensor& tensor : tensors_) {
    check(tensor.offset % static_cast<uint64_t>(alignment) == 0, ExitCode::bad_input,
          "{}: tensor '{}' lies at offset {}, which is no multiple of the alignment {}", name_, printable(tensor.name),
          tensor.offset, alignment);
  }
  const uint64_t padding = -reader.offset() & static_cast<uint64_t>(alignment - 1);
  if (!tensors_.empty()) reader.take(padding, "the padding before the data");
  bind_tensor_data(bytes.subspan(reader.offset()));
}

void GgufFile::read_metadata(ByteReader& reader, uint64_t count) {
  keys_.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    const size_t at = reader.offset();
    const std::string_view key = read_text(reader, "a metadata key");
    check(!key.empty(), ExitCode::bad_input, "{}: byte {}: a metadata key is empty", name_, at);
    const bool is_new = values_.emplace(key, read_value(reader, key)).second;
    check(is_new, ExitCode::bad_input, "{}: byte {}: metadata '{}' appears twice", name_, at, printable(key));
    keys_.push_back(key);
  }
}

void GgufFile::read_tensor_infos(ByteReader& reader, uint64_t count) {
  reader.expect_items(count, kMinTensorInfoBytes, "the tensor list");
  tensors_.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    const size_t at = reader.offset();
    GgufTensor tensor;
    tensor.name = read_text(reader, "a tensor name");
    check(!tensor.name.empty(), ExitCode::bad_input, "{}: byte {}: a tensor name is empty", name_, at);
    tensor.ne = read_dimensions(reader, tensor.name);
    tensor.type = reader.read<uint32_t>("a tensor type");
    tensor.offset = reader.read<uint64_t>("a tensor offset");
    const bool is_new = tensor_index_.emplace(tensor.name, tensors_.size()).second;
    check(is_new, ExitCode::bad_input, "{}: byte {}: tensor '{}' appears twice", name_, at, printable(tensor.name));
    tensors_.push_back(std::move(tensor));
  }
}

void GgufFile::bind_tensor_data(Bytes data) {
  std::vector<GgufTensor*> by_offset;
  for (GgufTensor& tensor : tensors_) {
    by_offset.push_back(&tensor);
    check(tensor.offset <= data.size(), ExitCode::bad_input,
          "{}: tensor '{}' begins at data byte {}, but the file holds only {}: it is truncated or damaged", name_,
          printable(tensor.name), tensor.offset, data.size());
    const std::optional<WeightFormat> format = weight_format(tensor.type);
    if (!format) continue;
    const BlockSize block = block_size(*format);
    check(tensor.ne[0] % block.elements == 0, ExitCode::bad_input,
          "{}: tensor '{}' has rows of {} elements, which is no multiple of {}'s {}", name_, printable(tensor.name),
          tensor.ne[0], name_of(*format), block.elements);
    const uint64_t bytes = checked_mul(static_cast<uint64_t>(element_count(tensor) / block.elements),
                                       static_cast<uint64_t>(block.bytes), "tensor size");
    check(bytes <= data.size() - tensor.offset, ExitCode::bad_input,
          "{}: tensor '{}' needs {} bytes from data byte {} on, but the file holds only {}: it is truncated or damaged",
          name_, printable(tensor.name), bytes, tensor.offset, data.size());
    tensor.data = data.subspan(tensor.offset, bytes);
  }
  std::sort(by_offset.begin(), by_offset.end(), [](auto* a, auto* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const GgufTensor &before = *by_offset[i - 1], &after = *by_offset[i];
    check(before.offset < after.offset && before.data.size() <= after.offset - before.offset, ExitCode::bad_input,
          "{}: tensors '{}' and '{}' overlap at data byte {}", name_, printable(before.name), printable(after.name),
          after.offset);
  }
}

const GgufTensor* GgufFile::find(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

Weight GgufFile::weight(std::string_view name) const {
  const GgufTensor* tensor = find(name);
  check(tensor != nullptr, ExitCode::bad_input, "{}: tensor '{}' is missing", name_, printable(name));
  const std::optional<WeightFormat> format = weight_format(tensor->type);
  check(format.has_value(), ExitCode::bad_input,
        "{}: tensor '{}' has ggml type {}, which is not supported (read are F32, F16, BF16, Q4_0, Q5_0, Q8_0, Q4_K, "
        "Q5_K, Q6_K)",
        name_, printable(name), tensor->type);
  Weight weight;
  weight.format = *format;
  weight.n_in = tensor->ne[0];
  weight.n_out = element_count(*tensor) / weight.n_in;
  weight.data = tensor->data.data();
  return weight;
}

std::vector<float> GgufFile::values(std::string_view name) const {
  const Weight source = weight(name);
  std::vector<float> out(static_cast<size_t>(source.size()));
  dequantise(source, 0, source.size(), out.data());
  return out;
}

}  // namespace saaz
