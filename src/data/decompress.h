// The codecs of Parquet pages: snappy, gzip and zstd, from Debian's libraries, which only decompress.cc knows. Enters:
// untrusted bytes and the size that the page's header claims. Leaves: exactly so many bytes, or bad_input.
#pragma once

#include <cstdint>
#include <string>

#include "base/bytes.h"

namespace saaz {

/// Numbered as Parquet's metadata numbers them.
enum class Codec : uint8_t { none = 0, snappy = 1, gzip = 2, zstd = 6 };

/// bad_input, naming the codec and `name`, for a codec that is not read.
Codec codec_of(int64_t number, const std::string& name);

/// `n_out` is checked by the caller against its limit; it is what will be allocated.
std::string decompress(Codec codec, Bytes in, size_t n_out, const std::string& name);

/// CRC-32 as of gzip, which pages may carry.
uint32_t crc32_of(Bytes bytes);

}  // namespace saaz
