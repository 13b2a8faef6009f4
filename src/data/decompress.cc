#include "data/decompress.h"

#include <snappy.h>
#include <zlib.h>
#include <zstd.h>

#include <array>

namespace saaz {
namespace {

constexpr std::array kCodecNames = {"UNCOMPRESSED", "SNAPPY", "GZIP", "LZO", "BROTLI", "LZ4", "ZSTD", "LZ4_RAW"};

const char* chars(Bytes bytes) { return reinterpret_cast<const char*>(bytes.data()); }

bool unsnap(Bytes in, std::string& out) {
  size_t n = 0;
  return snappy::GetUncompressedLength(chars(in), in.size(), &n) && n == out.size() &&
         snappy::RawUncompress(chars(in), in.size(), out.data());
}

/// gzip or zlib form, told by the header; several gzip members may follow one another.
bool inflate_all(Bytes in, std::string& out) {
  z_stream stream{};
  if (inflateInit2(&stream, 15 + 32) != Z_OK) throw std::bad_alloc();
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(in.data()));
  stream.avail_in = static_cast<uInt>(in.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  int state = Z_OK;
  while ((state = inflate(&stream, Z_NO_FLUSH)) == Z_STREAM_END && stream.avail_in > 0 && inflateReset(&stream) == Z_OK)
    ;
  inflateEnd(&stream);
  return state == Z_STREAM_END && stream.avail_in == 0 && stream.avail_out == 0;
}

bool unzstd(Bytes in, std::string& out) {
  const size_t n = ZSTD_decompress(out.data(), out.size(), in.data(), in.size());
  return ZSTD_isError(n) == 0 && n == out.size();
}

}  // namespace

Codec codec_of(int64_t number, const std::string& name) {
  if (number == 0 || number == 1 || number == 2 || number == 6) return static_cast<Codec>(number);
  const bool is_known = number >= 0 && static_cast<size_t>(number) < kCodecNames.size();
  fail(ExitCode::bad_input,
       "{}: compressed with {}; read are none, snappy, gzip and zstd: write the file with one of them", name,
       is_known ? kCodecNames[static_cast<size_t>(number)] : fmt::format("codec {}", number));
}

std::string decompress(Codec codec, Bytes in, size_t n_out, const std::string& name) {
  std::string out(n_out, '\0');
  bool is_whole = false;
  switch (codec) {
    case Codec::none:
      is_whole = in.size() == n_out;
      if (is_whole) out.assign(chars(in), in.size());
      break;
    case Codec::snappy:
      is_whole = unsnap(in, out);
      break;
    case Codec::gzip:
      is_whole = inflate_all(in, out);
      break;
    case Codec::zstd:
      is_whole = unzstd(in, out);
      break;
  }
  check(is_whole, ExitCode::bad_input, "{}: a {} page of {} bytes does not decompress to the {} it claims: damaged",
        name, kCodecNames[static_cast<size_t>(codec)], in.size(), n_out);
  return out;
}

uint32_t crc32_of(Bytes bytes) {
  return static_cast<uint32_t>(crc32(0, reinterpret_cast<const Bytef*>(bytes.data()), static_cast<uInt>(bytes.size())));
}

}  // namespace saaz
