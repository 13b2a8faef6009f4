// The header goes through the strict JSON reader (no duplicate keys, valid UTF-8, no trailing text); here its members
// are checked against the schema and against the bytes that follow. Nothing is allocated by a number the file claims.
#include "checkpoint/safetensors.h"

#include <algorithm>
#include <tuple>

#include "base/check.h"
#include "base/value.h"
#include "checkpoint/foreign_file.h"

namespace saaz {

namespace {

constexpr uint64_t kLengthBytes = 8, kMaxHeader = 100'000'000;
constexpr size_t kMaxDims = 8;
constexpr std::string_view kMetadataKey = "__metadata__";

/// One tensor's header entry; offsets are relative to the data's start.
struct Claim {
  TensorSpec spec;
  uint64_t begin = 0, end = 0;
};

/// The header's text, or an error that says what the file is instead.
std::string_view header_text(Bytes bytes, const std::string& name) {
  check(bytes.size() >= kLengthBytes, ExitCode::bad_input,
        "{}: {} bytes are too few for a safetensors file: it is truncated or was not downloaded", name, bytes.size());
  ByteReader reader(bytes, name);
  const auto length = reader.read<uint64_t>("the header length");
  const bool is_plausible = length <= kMaxHeader && length <= reader.remaining() && length >= 2;
  if (is_plausible && bytes[kLengthBytes] == std::byte{'{'}) return reader.take_text(length, "the header");
  if (length > kMaxHeader) {
    const std::string foreign = describe_foreign_file(bytes);
    check(foreign.empty(), ExitCode::bad_input, "{}: {}", name, foreign);
  }
  check(length <= kMaxHeader, ExitCode::bad_input,
        "{}: byte 0: header length {} is over the limit of {}: not a safetensors file", name, length, kMaxHeader);
  check(length <= reader.remaining(), ExitCode::bad_input,
        "{}: byte 0: header length {}, but only {} bytes follow: the file is truncated or damaged", name, length,
        reader.remaining());
  check(length >= 2, ExitCode::bad_input, "{}: byte 0: header length {} is too small to hold a header", name, length);
  fail(ExitCode::bad_input, "{}: byte 8: the header starts with '{}', expected '{{': not a safetensors file", name,
       printable(std::string_view(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, 1)));
}

Metadata read_metadata(const Value& value, const std::string& name) {
  check(value.is_object(), ExitCode::bad_input, "{}: {} is {}, expected an object", name, kMetadataKey,
        value.kind_name());
  Metadata out;
  for (const auto& [key, text] : value.members()) {
    check(text.is_string(), ExitCode::bad_input, "{}: {} '{}' is {}, expected a string", name, kMetadataKey,
          printable(key), text.kind_name());
    out.emplace_back(key, text.as_string());
  }
  return out;
}

/// A non-negative integer list.
std::vector<int64_t> read_counts(const Value* value, std::string_view key, const std::string& where) {
  check(value != nullptr, ExitCode::bad_input, "{} has no '{}'", where, key);
  check(value->is_array(), ExitCode::bad_input, "{}: '{}' is {}, expected an array", where, key, value->kind_name());
  std::vector<int64_t> out;
  for (const Value& item : value->items()) {
    check(item.is_integer() && item.as_integer() >= 0, ExitCode::bad_input,
          "{}: '{}' holds {}, expected integers from 0 to 2^63 - 1", where, key,
          item.is_integer() ? std::to_string(item.as_integer()) : item.kind_name());
    out.push_back(item.as_integer());
  }
  return out;
}

void check_tensor_name(const std::string& tensor, const std::string& name) {
  const bool is_clean = std::none_of(tensor.begin(), tensor.end(),
                                     [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
  check(!tensor.empty() && is_clean, ExitCode::bad_input,
        "{}: tensor name '{}' is empty or holds control characters: the file is damaged or hostile", name,
        printable(tensor));
}

Claim read_claim(const std::string& tensor, const Value& value, const std::string& name) {
  check_tensor_name(tensor, name);
  const std::string where = fmt::format("{}: tensor '{}'", name, printable(tensor));
  check(value.is_object(), ExitCode::bad_input, "{} is {}, expected an object", where, value.kind_name());
  for (const auto& [key, unused] : value.members()) {
    check(key == "dtype" || key == "shape" || key == "data_offsets", ExitCode::bad_input, "{} has an unknown key '{}'",
          where, printable(key));
  }
  const Value* dtype = value.find("dtype");
  check(dtype != nullptr && dtype->is_string(), ExitCode::bad_input, "{} has no 'dtype' string", where);
  const std::optional<StoredDType> stored = find_stored_dtype(dtype->as_string());
  check(stored.has_value(), ExitCode::bad_input, "{}: unknown dtype '{}'", where, printable(dtype->as_string()));

  Claim claim{.spec = {tensor, *stored, read_counts(value.find("shape"), "shape", where)}};
  check(claim.spec.shape.size() <= kMaxDims, ExitCode::bad_input, "{} has {} dimensions, more than {}", where,
        claim.spec.shape.size(), kMaxDims);
  const std::vector<int64_t> offsets = read_counts(value.find("data_offsets"), "data_offsets", where);
  check(offsets.size() == 2, ExitCode::bad_input, "{}: 'data_offsets' has {} numbers, expected 2", where,
        offsets.size());
  claim.begin = static_cast<uint64_t>(offsets[0]);
  claim.end = static_cast<uint64_t>(offsets[1]);
  check(claim.begin <= claim.end, ExitCode::bad_input, "{} ends at {}, before it begins at {}", where, claim.end,
        claim.begin);
  const uint64_t needed =
      with_context(fmt::format("in tensor '{}' of {}", printable(tensor), name), [&] { return claim.spec.bytes(); });
  check(needed == claim.end - claim.begin, ExitCode::bad_input, "{}: {} {} needs {} bytes, but its offsets span {}",
        where, name_of(*stored), shape_text(claim.spec.shape), needed, claim.end - claim.begin);
  return claim;
}

/// Sorted by place, the claims must cover [0, size) with neither hole nor overlap.
void check_tiling(std::vector<Claim>& claims, uint64_t size, const std::string& name) {
  std::sort(claims.begin(), claims.end(), [](const Claim& a, const Claim& b) {
    return std::tie(a.begin, a.end, a.spec.name) < std::tie(b.begin, b.end, b.spec.name);
  });
  uint64_t at = 0;
  for (const Claim& claim : claims) {
    check(claim.begin == at, ExitCode::bad_input, "{}: tensor '{}' begins at data byte {}, expected {}: {}", name,
          printable(claim.spec.name), claim.begin, at, claim.begin < at ? "tensors overlap" : "there is a hole");
    check(claim.end <= size, ExitCode::bad_input,
          "{}: tensor '{}' ends at data byte {}, but the file holds only {}: it is truncated (expected {} bytes more)",
          name, printable(claim.spec.name), claim.end, size, claim.end - size);
    at = claim.end;
  }
  check(at == size, ExitCode::bad_input, "{}: {} bytes follow the last tensor: the file is damaged", name, size - at);
}

/// Alignment a typed pointer needs; elements of less than a byte count as bytes.
size_t alignment_of(StoredDType dtype) { return static_cast<size_t>(std::max(bits_of(dtype) / 8, 1)); }

}  // namespace

SafetensorsFile::SafetensorsFile(const fs::path& path) : mapping_(path) {
  parse(mapping_.bytes(), printable(path.string()));
}

SafetensorsFile::SafetensorsFile(Bytes bytes, const std::string& name) { parse(bytes, name); }

void SafetensorsFile::parse(Bytes bytes, const std::string& name) {
  const std::string_view text = header_text(bytes, name);
  const Value header = parse_json(text, name + ": header");
  std::vector<Claim> claims;
  claims.reserve(header.members().size());
  for (const auto& [key, value] : header.members()) {
    if (key == kMetadataKey) {
      metadata_ = read_metadata(value, name);
    } else {
      claims.push_back(read_claim(key, value, name));
    }
  }
  const Bytes data = bytes.subspan(kLengthBytes + text.size());
  check_tiling(claims, data.size(), name);

  tensors_.reserve(claims.size());
  for (Claim& claim : claims) {
    Bytes view = data.subspan(claim.begin, claim.end - claim.begin);
    if (reinterpret_cast<uintptr_t>(view.data()) % alignment_of(claim.spec.dtype) != 0) {
      aligned_copies_.push_back(std::make_unique<uint64_t[]>((view.size() + 7) / 8));
      auto* copy = reinterpret_cast<std::byte*>(aligned_copies_.back().get());
      std::copy(view.begin(), view.end(), copy);
      view = {copy, view.size()};
    }
    tensors_.push_back({std::move(claim.spec.name), claim.spec.dtype, std::move(claim.spec.shape), view, name});
  }
}

std::string safetensors_header(std::vector<TensorSpec>& specs, const Metadata& metadata) {
  std::sort(specs.begin(), specs.end(), [](const TensorSpec& a, const TensorSpec& b) {
    return std::tie(a.dtype, a.name) < std::tie(b.dtype, b.name);
  });
  std::vector<Value::Member> notes, members;
  const auto is_format = [](const auto& member) { return member.first == "format"; };
  if (std::none_of(metadata.begin(), metadata.end(), is_format)) notes.emplace_back("format", "pt");
  notes.insert(notes.end(), metadata.begin(), metadata.end());
  members.reserve(specs.size() + 1);
  members.emplace_back(kMetadataKey, Value::object(std::move(notes)));
  uint64_t at = 0;
  for (const TensorSpec& spec : specs) {
    Value shape = Value::array(), entry = Value::object();
    for (const int64_t d : spec.shape) shape.push_back(d);
    const uint64_t end = checked_add(at, spec.bytes(), "file size");
    entry.set("dtype", name_of(spec.dtype));
    entry.set("shape", std::move(shape));
    entry.set("data_offsets", Value::array({at, end}));
    members.emplace_back(spec.name, std::move(entry));
    at = end;
  }
  std::string text = to_json(Value::object(std::move(members)));
  text.resize((text.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text;
}

void write_safetensors(const fs::path& path, std::vector<TensorSpec> specs, const Metadata& metadata,
                       const TensorSource& source) {
  constexpr size_t kPiece = 1 << 20;
  AtomicFile file(path);
  file.write(safetensors_header(specs, metadata));
  for (const TensorSpec& spec : specs) {
    const uint64_t end = file.size() + spec.bytes();
    source(spec, [&](Bytes bytes) {
      for (; !bytes.empty(); bytes = bytes.subspan(std::min(kPiece, bytes.size())))
        file.write(bytes.data(), std::min(kPiece, bytes.size()));
    });
    check(file.size() == end, ExitCode::bug, "tensor '{}' of {} was written with a wrong size: {} bytes off",
          printable(spec.name), printable(path.string()),
          static_cast<int64_t>(file.size()) - static_cast<int64_t>(end));
  }
  file.commit();
}

}  // namespace saaz
