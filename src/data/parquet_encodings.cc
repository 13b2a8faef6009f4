#include "data/parquet_encodings.h"

#include <algorithm>
#include <bit>

#include "data/thrift.h"

namespace saaz {
namespace {

/// Appends `n` values of `width` bits, the lowest bit first, from `bytes`, which hold them all.
template <class T>
void unpack(Bytes bytes, int width, size_t n, std::vector<T>& out) {
  uint64_t bit = 0;
  for (size_t i = 0; i < n; ++i) {
    uint64_t value = 0;
    for (int have = 0; have < width; ++bit, ++have)
      value |= static_cast<uint64_t>(std::to_integer<uint8_t>(bytes[bit / 8]) >> bit % 8 & 1) << have;
    out.push_back(static_cast<T>(value));
  }
}

/// `n` delta-packed values.
std::vector<int64_t> read_exact_delta_integers(ByteReader& in, size_t n) {
  std::vector<int64_t> out = read_delta_integers(in, n);
  check(out.size() == n, ExitCode::bad_input, "{}: byte {}: {} lengths, expected {}: the file is damaged", in.name(),
        in.offset(), out.size(), n);
  return out;
}

/// A length or a shared prefix, which must lie in 0..max.
size_t checked_length(const ByteReader& in, int64_t length, size_t max) {
  check(length >= 0 && static_cast<uint64_t>(length) <= max, ExitCode::bad_input,
        "{}: byte {}: a length of {}, at most {} is possible: the file is damaged", in.name(), in.offset(), length,
        max);
  return static_cast<size_t>(length);
}

}  // namespace

int bit_width_of(uint32_t max) { return std::bit_width(max); }

std::vector<uint32_t> read_rle(ByteReader& in, int width, size_t n) {
  std::vector<uint32_t> out;
  while (out.size() < n) {
    const uint64_t head = read_varint(in, "a run");
    const uint64_t count = head >> 1;
    check(count > 0, ExitCode::bad_input, "{}: byte {}: an empty run: the file is damaged", in.name(), in.offset());
    const size_t n_left = n - out.size();
    if ((head & 1) != 0) {  // `count` groups of eight; the last may be padded
      const Bytes packed = in.take(checked_mul(count, static_cast<uint64_t>(width), in.name()), "a bit-packed run");
      unpack(packed, width, std::min<uint64_t>(n_left, checked_mul(count, 8, in.name())), out);
    } else {
      uint32_t value = 0;
      const Bytes bytes = in.take(static_cast<uint64_t>(width + 7) / 8, "a run's value");
      for (size_t i = 0; i < bytes.size(); ++i) value |= std::to_integer<uint32_t>(bytes[i]) << 8 * i;
      out.insert(out.end(), std::min<uint64_t>(count, n_left), value);
    }
  }
  return out;
}

std::vector<std::string_view> read_plain(ByteReader& in, size_t n) {
  in.expect_items(n, sizeof(uint32_t), "a page of texts");
  std::vector<std::string_view> out;
  out.reserve(n);
  while (out.size() < n) {
    const auto length = in.read<uint32_t>("the length of a text");
    out.push_back(in.take_text(length, "a text"));
  }
  return out;
}

std::vector<int64_t> read_delta_integers(ByteReader& in, size_t max) {
  constexpr uint64_t kMaxBlock = 1 << 20;
  const uint64_t block_size = read_varint(in, "a block size");
  const uint64_t n_miniblocks = read_varint(in, "the number of miniblocks");
  const size_t n = read_varint(in, "the number of deltas");
  check(n_miniblocks > 0 && block_size % n_miniblocks == 0 && block_size / n_miniblocks % 8 == 0 &&
            block_size <= kMaxBlock && block_size > 0 && n <= max,
        ExitCode::bad_input, "{}: byte {}: blocks of {} in {} parts for {} values: the file is damaged", in.name(),
        in.offset(), block_size, n_miniblocks, n);
  const size_t per_miniblock = block_size / n_miniblocks;
  auto value = static_cast<uint64_t>(read_zigzag(in, "the first value"));
  std::vector<int64_t> out;
  if (n > 0) out.push_back(static_cast<int64_t>(value));
  while (out.size() < n) {
    const auto min_delta = static_cast<uint64_t>(read_zigzag(in, "a smallest delta"));
    const Bytes widths = in.take(n_miniblocks, "the widths of miniblocks");
    for (size_t i = 0; i < n_miniblocks && out.size() < n; ++i) {
      const auto width = std::to_integer<int>(widths[i]);
      check(width <= 64, ExitCode::bad_input, "{}: byte {}: deltas of {} bits: the file is damaged", in.name(),
            in.offset(), width);
      std::vector<uint64_t> deltas;
      unpack(in.take(per_miniblock / 8 * width, "a miniblock"), width, std::min(per_miniblock, n - out.size()), deltas);
      for (const uint64_t delta : deltas) {
        value += min_delta + delta;  // wraps, as the format says
        out.push_back(static_cast<int64_t>(value));
      }
    }
  }
  return out;
}

std::vector<std::string_view> read_delta_lengths(ByteReader& in, size_t n) {
  std::vector<std::string_view> out;
  for (const int64_t length : read_exact_delta_integers(in, n))
    out.push_back(in.take_text(checked_length(in, length, in.remaining()), "a text"));
  return out;
}

std::vector<std::string_view> read_delta_texts(ByteReader& in, size_t n, size_t max_bytes, std::string& storage) {
  const std::vector<int64_t> prefixes = read_exact_delta_integers(in, n);
  const std::vector<std::string_view> suffixes = read_delta_lengths(in, n);
  storage.clear();
  std::vector<size_t> ends;
  size_t start = 0;  // of the value before
  for (size_t i = 0; i < n; ++i) {
    const size_t next = storage.size();
    const size_t prefix = checked_length(in, prefixes[i], next - start);
    check(next + prefix + suffixes[i].size() <= max_bytes, ExitCode::bad_input,
          "{}: a page's texts grow beyond {} bytes: damaged, or made to fill memory", in.name(), max_bytes);
    storage.append(storage, start, prefix);
    storage += suffixes[i];
    ends.push_back(storage.size());
    start = next;
  }
  std::vector<std::string_view> out;
  start = 0;
  for (const size_t end : ends) {
    out.push_back(std::string_view(storage).substr(start, end - start));
    start = end;
  }
  return out;
}

}  // namespace saaz
