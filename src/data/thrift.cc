#include "data/thrift.h"

namespace saaz {
namespace {

struct ListHeader {
  ThriftType item;
  uint64_t size;
};

ListHeader read_list_header(ByteReader& in, std::string_view what) {
  const auto head = in.read<uint8_t>(what);
  const uint64_t size = head >> 4 == 15 ? read_varint(in, what) : head >> 4;
  in.expect_items(size, 1, what);
  return {static_cast<ThriftType>(head & 15), size};
}

}  // namespace

uint64_t read_varint(ByteReader& in, std::string_view what) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const auto byte = in.read<uint8_t>(what);
    value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  fail(ExitCode::bad_input, "{}: byte {}: {}: a number of more than 64 bits", in.name(), in.offset(), what);
}

int64_t read_zigzag(ByteReader& in, std::string_view what) {
  const uint64_t value = read_varint(in, what);
  return static_cast<int64_t>(value >> 1 ^ (0 - (value & 1)));
}

bool ThriftReader::next_field(ThriftField& field) {
  const auto head = in_.read<uint8_t>("a field of the metadata");
  field.type = static_cast<ThriftType>(head & 15);
  if (field.type == ThriftType::stop) return false;
  // Ids are small and rise; a long form states the id itself.
  field.id = head >> 4 != 0 ? field.id + (head >> 4) : read_zigzag(in_, "the id of a field") & 0xFFFF;
  return true;
}

void ThriftReader::expect(const ThriftField& field, ThriftType type, std::string_view what) const {
  check(field.type == type, ExitCode::bad_input, "{}: byte {}: {} has type {}, expected {}", in_.name(), in_.offset(),
        what, static_cast<int>(field.type), static_cast<int>(type));
}

int64_t ThriftReader::read_integer(const ThriftField& field, std::string_view what) {
  check(field.type >= ThriftType::i8 && field.type <= ThriftType::i64, ExitCode::bad_input,
        "{}: byte {}: {} has type {}, expected an integer", in_.name(), in_.offset(), what,
        static_cast<int>(field.type));
  return field.type == ThriftType::i8 ? in_.read<int8_t>(what) : read_zigzag(in_, what);
}

std::string_view ThriftReader::read_text(const ThriftField& field, std::string_view what) {
  expect(field, ThriftType::binary, what);
  return read_text_item(what);
}

std::string_view ThriftReader::read_text_item(std::string_view what) {
  const uint64_t n = read_varint(in_, what);
  return in_.take_text(n, what);
}

bool ThriftReader::read_boolean(const ThriftField& field, std::string_view what) {
  if (field.type != ThriftType::boolean_false) expect(field, ThriftType::boolean_true, what);
  return field.type == ThriftType::boolean_true;
}

uint64_t ThriftReader::list_size(const ThriftField& field, ThriftType item_type, std::string_view what) {
  expect(field, ThriftType::list, what);
  const ListHeader header = read_list_header(in_, what);
  check(header.size == 0 || header.item == item_type, ExitCode::bad_input,
        "{}: byte {}: {} is a list of type {}, expected {}", in_.name(), in_.offset(), what,
        static_cast<int>(header.item), static_cast<int>(item_type));
  return header.size;
}

void ThriftReader::enter() {
  check(++depth_ <= kMaxThriftDepth, ExitCode::bad_input, "{}: byte {}: metadata nested more than {} deep", in_.name(),
        in_.offset(), kMaxThriftDepth);
}

void ThriftReader::skip_items(ThriftType key, ThriftType item, uint64_t n) {
  const auto skip_item = [&](ThriftType type) {
    // In a list a boolean is a byte; in a structure it has none.
    if (type == ThriftType::boolean_true || type == ThriftType::boolean_false) {
      in_.take(1, "a boolean");
    } else {
      skip(type);
    }
  };
  enter();
  for (; n > 0; --n) {
    if (key != ThriftType::stop) skip_item(key);
    skip_item(item);
  }
  --depth_;
}

void ThriftReader::skip(ThriftType type) {
  constexpr std::string_view kWhat = "an unknown field";
  switch (type) {
    case ThriftType::boolean_true:
    case ThriftType::boolean_false:
      return;
    case ThriftType::i8:
      in_.take(1, kWhat);
      return;
    case ThriftType::i16:
    case ThriftType::i32:
    case ThriftType::i64:
      read_varint(in_, kWhat);
      return;
    case ThriftType::real:
      in_.take(8, kWhat);
      return;
    case ThriftType::binary:
      read_text_item(kWhat);
      return;
    case ThriftType::list:
    case ThriftType::set: {
      const ListHeader header = read_list_header(in_, kWhat);
      return skip_items(ThriftType::stop, header.item, header.size);
    }
    case ThriftType::map: {
      const uint64_t n = read_varint(in_, kWhat);
      if (n == 0) return;
      in_.expect_items(n, 1, kWhat);
      const auto types = in_.read<uint8_t>(kWhat);
      return skip_items(static_cast<ThriftType>(types >> 4), static_cast<ThriftType>(types & 15), n);
    }
    case ThriftType::structure:
      return read_structure([](const ThriftField&) { return false; });
    case ThriftType::stop:
      break;
  }
  fail(ExitCode::bad_input, "{}: byte {}: a field of unknown type {}", in_.name(), in_.offset(),
       static_cast<int>(type));
}

}  // namespace saaz
