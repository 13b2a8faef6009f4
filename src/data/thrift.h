// Thrift's compact protocol, reading only: the metadata of Parquet files. Enters: untrusted bytes through a ByteReader.
// Leaves: fields, handed one by one to the caller, who reads those it knows; the rest is skipped. Structures nest at
// most kMaxThriftDepth deep, and no count is believed before its bytes are there.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/bytes.h"

namespace saaz {

constexpr int kMaxThriftDepth = 16;

/// Numbered as the protocol numbers them. A boolean field's value is its type.
enum class ThriftType : uint8_t {
  stop = 0,
  boolean_true = 1,
  boolean_false = 2,
  i8 = 3,
  i16 = 4,
  i32 = 5,
  i64 = 6,
  real = 7,
  binary = 8,
  list = 9,
  set = 10,
  map = 11,
  structure = 12,
};

struct ThriftField {
  int64_t id = 0;
  ThriftType type = ThriftType::stop;
};

/// 7 bits a byte, the lowest first; at most 64 bits.
uint64_t read_varint(ByteReader& in, std::string_view what);
/// A varint whose lowest bit is the sign.
int64_t read_zigzag(ByteReader& in, std::string_view what);

class ThriftReader {
 public:
  explicit ThriftReader(ByteReader& in) : in_(in) {}

  /// Calls `read_field(field)` for each field; it reads the value and returns true, or reads nothing and returns false.
  template <class ReadField>
  void read_structure(ReadField&& read_field) {
    enter();
    ThriftField field;
    while (next_field(field))
      if (!read_field(field)) skip(field.type);
    --depth_;
  }
  /// Calls `read_item()` for each item of a list of `item_type`.
  template <class ReadItem>
  void read_list(const ThriftField& field, ThriftType item_type, std::string_view what, ReadItem&& read_item) {
    for (uint64_t n = list_size(field, item_type, what); n > 0; --n) read_item();
  }
  /// Any of the integer types.
  int64_t read_integer(const ThriftField& field, std::string_view what);
  std::string_view read_text(const ThriftField& field, std::string_view what);
  /// The bytes of an item of a list of binaries.
  std::string_view read_text_item(std::string_view what);
  bool read_boolean(const ThriftField& field, std::string_view what);
  void expect(const ThriftField& field, ThriftType type, std::string_view what) const;

 private:
  bool next_field(ThriftField& field);
  uint64_t list_size(const ThriftField& field, ThriftType item_type, std::string_view what);
  void enter();
  void skip(ThriftType type);
  void skip_items(ThriftType key, ThriftType item, uint64_t n);

  ByteReader& in_;
  int depth_ = 0;
};

}  // namespace saaz
