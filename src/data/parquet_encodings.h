// How Parquet stores levels and byte arrays. Enters: a page's bytes. Leaves: exactly the number of values asked for, as
// views into the page where the encoding allows it. Source: the Encodings page of the Parquet format.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"

namespace saaz {

/// Bits that hold 0..max.
int bit_width_of(uint32_t max);

/// RLE and bit-packed runs of `width` (0 to 32) bits: `n` values.
std::vector<uint32_t> read_rle(ByteReader& in, int width, size_t n);

/// Each with a 4-byte length before it: `n` views into `in`.
std::vector<std::string_view> read_plain(ByteReader& in, size_t n);

/// DELTA_BINARY_PACKED: at most `max` values.
std::vector<int64_t> read_delta_integers(ByteReader& in, size_t max);

/// DELTA_LENGTH_BYTE_ARRAY: `n` views into `in`.
std::vector<std::string_view> read_delta_lengths(ByteReader& in, size_t n);

/// DELTA_BYTE_ARRAY, where each value shares a prefix with the one before: `n` views into `storage`, which will hold at
/// most `max_bytes`.
std::vector<std::string_view> read_delta_texts(ByteReader& in, size_t n, size_t max_bytes, std::string& storage);

}  // namespace saaz
