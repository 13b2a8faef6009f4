// The wire format of protocol buffers, writing only: what TensorBoard and W&B files need. A message is built field by
// field and is its own bytes. Checksums of both files stand here too.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string>
#include <string_view>

namespace saaz {

/// The `sizeof(v)` bytes of an integer, little-endian.
template <class T>
std::string little_endian(T v) {
  std::string out;
  for (size_t i = 0; i < sizeof(T); ++i) out += static_cast<char>(v >> (8 * i) & 0xff);
  return out;
}

class ProtoMessage {
 public:
  ProtoMessage& integer(int field, uint64_t v) {
    tag(field, 0);
    varint(v);
    return *this;
  }
  ProtoMessage& real(int field, double v) {
    tag(field, 1);
    bytes_ += little_endian(std::bit_cast<uint64_t>(v));
    return *this;
  }
  ProtoMessage& real(int field, float v) {
    tag(field, 5);
    bytes_ += little_endian(std::bit_cast<uint32_t>(v));
    return *this;
  }
  ProtoMessage& text(int field, std::string_view v) {
    tag(field, 2);
    varint(v.size());
    bytes_ += v;
    return *this;
  }
  ProtoMessage& message(int field, const ProtoMessage& v) { return text(field, v.bytes_); }
  const std::string& bytes() const { return bytes_; }

 private:
  void tag(int field, uint64_t wire_type) { varint(static_cast<uint64_t>(field) << 3 | wire_type); }
  void varint(uint64_t v) {
    for (; v >= 0x80; v >>= 7) bytes_ += static_cast<char>(v | 0x80);
    bytes_ += static_cast<char>(v);
  }
  std::string bytes_;
};

/// CRC-32 with the given reflected polynomial.
inline constexpr uint32_t kCrc32Ieee = 0xEDB88320, kCrc32Castagnoli = 0x82F63B78;
template <uint32_t kPolynomial>
uint32_t crc32(std::string_view bytes) {
  static constexpr auto kTable = [] {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int bit = 0; bit < 8; ++bit) c = c >> 1 ^ (c & 1 ? kPolynomial : 0);
      table[i] = c;
    }
    return table;
  }();
  uint32_t c = ~0u;
  for (const char byte : bytes) c = kTable[(c ^ static_cast<uint8_t>(byte)) & 0xff] ^ c >> 8;
  return ~c;
}

}  // namespace saaz
