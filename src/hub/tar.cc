#include "hub/tar.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "base/stop.h"

namespace saaz {
namespace {

constexpr size_t kBlock = 512;
using Block = std::array<char, kBlock>;

// Fields of a header: where they begin and how long they are.
struct Field {
  size_t begin, size;
};
constexpr Field kName{0, 100}, kMode{100, 8}, kOwner{108, 8}, kGroup{116, 8}, kSize{124, 12}, kTime{136, 12},
    kChecksum{148, 8}, kType{156, 1}, kLink{157, 100}, kMagic{257, 8}, kPrefix{345, 155};

void put_text(Block& block, Field field, std::string_view text) {
  std::copy(text.begin(), text.end(), block.begin() + static_cast<std::ptrdiff_t>(field.begin));
}

void put_octal(Block& block, Field field, uint64_t value) {
  put_text(block, field, fmt::format("{:0{}o}", value, field.size - 1));
}

void put_size(Block& block, uint64_t size) {
  if (size < 1ull << 33) return put_octal(block, kSize, size);
  block[kSize.begin] = static_cast<char>(0x80);
  for (size_t i = 0; i < 8; ++i) block[kSize.begin + kSize.size - 1 - i] = static_cast<char>(size >> (8 * i));
}

/// The sum of all bytes, with the checksum's own field taken as blanks.
uint64_t checksum_of(std::string_view block) {
  uint64_t sum = 0;
  for (size_t i = 0; i < kBlock; ++i) {
    const bool is_own = i >= kChecksum.begin && i < kChecksum.begin + kChecksum.size;
    sum += is_own ? ' ' : static_cast<unsigned char>(block[i]);
  }
  return sum;
}

std::string_view text_in(std::string_view block, Field field) {
  const std::string_view text = block.substr(field.begin, field.size);
  return text.substr(0, text.find('\0'));
}

uint64_t octal_in(std::string_view block, Field field, const std::string& where) {
  const std::string_view text = block.substr(field.begin, field.size);
  uint64_t value = 0;
  for (const char c : text.substr(0, text.find_first_of(std::string_view(" \0", 2), 1))) {
    check(c >= '0' && c <= '7', ExitCode::bad_input, "{}: no number in the header: the tar is damaged", where);
    value = value << 3 | static_cast<uint64_t>(c - '0');
  }
  return value;
}

uint64_t size_in(std::string_view block, const std::string& where) {
  const std::string_view field = block.substr(kSize.begin, kSize.size);
  if (static_cast<unsigned char>(field[0]) != 0x80) return octal_in(block, kSize, where);
  uint64_t value = 0;
  for (const char c : field.substr(field.size() - 8)) value = value << 8 | static_cast<unsigned char>(c);
  return value;
}

size_t padding_of(uint64_t size) { return static_cast<size_t>((kBlock - size % kBlock) % kBlock); }

}  // namespace

void TarWriter::add_header(const std::string& name, uint64_t size, char type, const std::string& target) {
  Block block{};
  // A long name is cut at a slash into prefix and name.
  size_t cut = 0;
  if (name.size() > kName.size) cut = name.find('/', name.size() - kName.size - 1);
  check(cut != std::string::npos && cut <= kPrefix.size && target.size() <= kLink.size, ExitCode::resource,
        "the name {} is too long for a tar", printable(name));
  put_text(block, kPrefix, std::string_view(name).substr(0, cut));
  put_text(block, kName, std::string_view(name).substr(cut == 0 ? 0 : cut + 1));
  put_octal(block, kMode, 0644);
  put_octal(block, kOwner, 0);
  put_octal(block, kGroup, 0);
  put_octal(block, kTime, 0);  // the same content gives the same bundle
  put_size(block, size);
  block[kType.begin] = type;
  put_text(block, kLink, target);
  put_text(block, kMagic, std::string_view("ustar\00000", 8));
  put_text(block, kChecksum, fmt::format("{:06o}", checksum_of({block.data(), block.size()})));
  block[kChecksum.begin + 7] = ' ';
  file_.write(block.data(), block.size());
}

void TarWriter::add_file(const std::string& name, Bytes content) {
  add_header(name, content.size(), '0', "");
  constexpr size_t kChunk = 1 << 20;
  for (Bytes rest = content; !rest.empty(); rest = rest.subspan(std::min(kChunk, rest.size()))) {
    check_stop();
    file_.write(rest.data(), std::min(kChunk, rest.size()));
  }
  static constexpr char kZeros[kBlock] = {};
  file_.write(kZeros, padding_of(content.size()));
}

void TarWriter::add_link(const std::string& name, const std::string& target) { add_header(name, 0, '2', target); }

void TarWriter::commit() {
  static constexpr char kEnd[2 * kBlock] = {};
  file_.write(kEnd, sizeof kEnd);
  file_.commit();
}

std::optional<TarEntry> TarReader::next() {
  const std::string where = fmt::format("{}: byte {}", printable(reader_.name()), reader_.offset());
  const std::string_view block = reader_.take_text(kBlock, "a header");
  if (block.find_first_not_of('\0') == std::string_view::npos) return std::nullopt;
  check(octal_in(block, kChecksum, where) == checksum_of(block), ExitCode::bad_input,
        "{}: the header's checksum is wrong: no tar, or a damaged one", where);
  TarEntry entry;
  const std::string_view prefix = text_in(block, kPrefix);
  entry.name = prefix.empty() ? text_in(block, kName) : fmt::format("{}/{}", prefix, text_in(block, kName));
  const char type = block[kType.begin];
  check(type == '0' || type == '2', ExitCode::bad_input, "{}: '{}' is of a kind that a bundle does not hold", where,
        printable(entry.name));
  entry.is_link = type == '2';
  entry.link_target = text_in(block, kLink);
  const uint64_t size = size_in(block, where);
  check(!entry.is_link || size == 0, ExitCode::bad_input, "{}: a link with content: the tar is damaged", where);
  entry.content = reader_.take(size, "the content of an entry");
  reader_.take(padding_of(size), "padding");
  return entry;
}

}  // namespace saaz
