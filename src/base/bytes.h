// Checked reading of untrusted bytes: every binary parser goes through ByteReader, which never reads past the end and
// names the file and byte offset in its errors (exit code 3). Arithmetic on sizes from files goes through checked_*.
// Little-endian, as safetensors, GGUF and protobuf are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/check.h"

namespace saaz {

using Bytes = std::span<const std::byte>;

/// a * b and a + b for sizes from a file; exit code 3 naming `what` when they do not fit 64 bits.
inline uint64_t checked_mul(uint64_t a, uint64_t b, std::string_view what) {
  uint64_t out = 0;
  check(!__builtin_mul_overflow(a, b, &out), ExitCode::bad_input, "{}: {} * {} overflows 64 bits", what, a, b);
  return out;
}
inline uint64_t checked_add(uint64_t a, uint64_t b, std::string_view what) {
  uint64_t out = 0;
  check(!__builtin_add_overflow(a, b, &out), ExitCode::bad_input, "{}: {} + {} overflows 64 bits", what, a, b);
  return out;
}

class ByteReader {
 public:
  /// Reads `bytes` (not owned); `name` (a path) is used in messages.
  ByteReader(Bytes bytes, std::string name) : bytes_(bytes), name_(std::move(name)) {}

  size_t offset() const { return offset_; }
  size_t remaining() const { return bytes_.size() - offset_; }
  const std::string& name() const { return name_; }

  /// A little-endian integer or IEEE float.
  template <class T>
  T read(std::string_view what) {
    static_assert(std::is_arithmetic_v<T>);
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }
  /// The next `n` bytes as a view.
  Bytes take(uint64_t n, std::string_view what) {
    check(n <= remaining(), ExitCode::bad_input,
          "{}: byte {}: {} needs {} bytes, but only {} are left: the file is truncated or damaged", name_, offset_,
          what, n, remaining());
    Bytes out = bytes_.subspan(offset_, n);
    offset_ += n;
    return out;
  }
  std::string_view take_text(uint64_t n, std::string_view what) {
    Bytes out = take(n, what);
    return {reinterpret_cast<const char*>(out.data()), out.size()};
  }
  /// Checks, before anything is reserved, that `count` items of at least `min_item_bytes` can still follow.
  void expect_items(uint64_t count, uint64_t min_item_bytes, std::string_view what) const {
    check(min_item_bytes == 0 || count <= remaining() / min_item_bytes, ExitCode::bad_input,
          "{}: byte {}: {} claims {} items, but only {} bytes are left", name_, offset_, what, count, remaining());
  }

 private:
  Bytes bytes_;
  std::string name_;
  size_t offset_ = 0;
};

}  // namespace saaz
