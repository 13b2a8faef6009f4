// Typed access to GGUF metadata. Every value is decoded from its declared type here and nowhere else, so a key that a
// file declares with another type than its reader wants is an error, never a wrong read.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "checkpoint/gguf.h"

namespace saaz {

namespace {

struct TypeInfo {
  const char* name;
  size_t size;
};
constexpr TypeInfo kTypes[] = {{"u8", 1},   {"i8", 1},   {"u16", 2},   {"i16", 2}, {"u32", 4}, {"i32", 4}, {"f32", 4},
                               {"bool", 1}, {"text", 0}, {"array", 0}, {"u64", 8}, {"i64", 8}, {"f64", 8}};

template <class T>
T read_item(const GgufValue& value, uint64_t index) {
  T item;
  std::memcpy(&item, value.raw.data() + index * sizeof(T), sizeof(T));
  return item;
}

bool is_float(const GgufValue& value) { return value.type == GgufType::f32 || value.type == GgufType::f64; }

bool is_number(const GgufValue& value) { return value.type != GgufType::boolean && value.type != GgufType::text; }

/// Item of an integer type; u64 above the range of int64 is reported as absent.
std::optional<int64_t> integer_item(const GgufValue& value, uint64_t index) {
  switch (value.type) {
    case GgufType::u8:
      return read_item<uint8_t>(value, index);
    case GgufType::i8:
      return read_item<int8_t>(value, index);
    case GgufType::u16:
      return read_item<uint16_t>(value, index);
    case GgufType::i16:
      return read_item<int16_t>(value, index);
    case GgufType::u32:
      return read_item<uint32_t>(value, index);
    case GgufType::i32:
      return read_item<int32_t>(value, index);
    case GgufType::i64:
      return read_item<int64_t>(value, index);
    case GgufType::u64: {
      const auto item = read_item<uint64_t>(value, index);
      if (item > INT64_MAX) return std::nullopt;
      return static_cast<int64_t>(item);
    }
    default:
      return std::nullopt;
  }
}

double float_item(const GgufValue& value, uint64_t index) {
  return value.type == GgufType::f32 ? read_item<float>(value, index) : read_item<double>(value, index);
}

/// "an array of text", "u32"
std::string describe(const GgufValue& value) {
  return fmt::format("{}{}", value.is_array ? "an array of " : "", name_of(value.type));
}

}  // namespace

const char* name_of(GgufType type) { return kTypes[static_cast<size_t>(type)].name; }

size_t size_of(GgufType type) { return kTypes[static_cast<size_t>(type)].size; }

const GgufValue& GgufFile::value(std::string_view key) const {
  const auto found = values_.find(key);
  check(found != values_.end(), ExitCode::bad_input, "{}: metadata '{}' is missing", name_, printable(key));
  return found->second;
}

const GgufValue& GgufFile::scalar(std::string_view key) const {
  const GgufValue& found = value(key);
  check(!found.is_array, ExitCode::bad_input, "{}: metadata '{}' is {}, expected a single value", name_, printable(key),
        describe(found));
  return found;
}

int64_t GgufFile::integer(std::string_view key) const {
  scalar(key);
  return integers(key).front();
}

double GgufFile::real(std::string_view key) const {
  scalar(key);
  return reals(key).front();
}

bool GgufFile::boolean(std::string_view key) const {
  scalar(key);
  return booleans(key).front();
}

std::string_view GgufFile::text(std::string_view key) const {
  scalar(key);
  return texts(key).front();
}

std::vector<int64_t> GgufFile::integers(std::string_view key) const {
  constexpr double kLargestExact = 0x1p53;
  const GgufValue& found = value(key);
  std::vector<int64_t> out(found.count);
  for (uint64_t i = 0; i < found.count; ++i) {
    std::optional<int64_t> item = integer_item(found, i);
    if (is_float(found)) {
      const double number = float_item(found, i);
      if (std::fabs(number) <= kLargestExact && number == std::trunc(number)) item = static_cast<int64_t>(number);
    }
    check(item.has_value(), ExitCode::bad_input, "{}: metadata '{}' is {}, item {} is not an integer of 64 bits", name_,
          printable(key), describe(found), i);
    out[i] = *item;
  }
  return out;
}

std::vector<double> GgufFile::reals(std::string_view key) const {
  const GgufValue& found = value(key);
  check(is_number(found), ExitCode::bad_input, "{}: metadata '{}' is {}, expected numbers", name_, printable(key),
        describe(found));
  std::vector<double> out(found.count);
  for (uint64_t i = 0; i < found.count; ++i) {
    const std::optional<int64_t> item = integer_item(found, i);
    if (item) {
      out[i] = static_cast<double>(*item);
    } else if (is_float(found)) {
      out[i] = float_item(found, i);
    } else {
      out[i] = static_cast<double>(read_item<uint64_t>(found, i));
    }
  }
  return out;
}

std::vector<bool> GgufFile::booleans(std::string_view key) const {
  const GgufValue& found = value(key);
  check(found.type == GgufType::boolean, ExitCode::bad_input, "{}: metadata '{}' is {}, expected bool", name_,
        printable(key), describe(found));
  std::vector<bool> out(found.count);
  for (uint64_t i = 0; i < found.count; ++i) {
    const auto byte = read_item<uint8_t>(found, i);
    check(byte <= 1, ExitCode::bad_input, "{}: metadata '{}', item {}: a bool is 0 or 1, found {}", name_,
          printable(key), i, byte);
    out[i] = byte != 0;
  }
  return out;
}

const std::vector<std::string_view>& GgufFile::texts(std::string_view key) const {
  const GgufValue& found = value(key);
  check(found.type == GgufType::text, ExitCode::bad_input, "{}: metadata '{}' is {}, expected text", name_,
        printable(key), describe(found));
  return found.texts;
}

}  // namespace saaz
