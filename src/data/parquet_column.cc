#include "data/parquet_column.h"

#include <algorithm>

#include "data/parquet_encodings.h"

namespace saaz {
namespace {

/// A file may always unfold to the size of one long row, and to a thousand times its own size: text compressed well
/// stays below a hundred.
constexpr uint64_t kMinBudgetBytes = 16 << 20, kMaxUnfolding = 1000;
constexpr uint64_t kMaxPageBytes = 256 << 20;
/// What a value costs beside its text.
constexpr uint64_t kValueBytes = 128;

Bytes bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

/// The chunk's bytes; the offset and the size come from the file.
Bytes bytes_of_chunk(Bytes file, const ColumnChunk& chunk, const std::string& where) {
  check(chunk.offset <= file.size() && chunk.n_bytes <= file.size() - chunk.offset, ExitCode::bad_input,
        "{}: its pages should lie at byte {}, {} bytes long, but the file has {}: truncated or damaged", where,
        chunk.offset, chunk.n_bytes, file.size());
  return file.subspan(chunk.offset, chunk.n_bytes);
}

}  // namespace

UnfoldBudget::UnfoldBudget(size_t file_bytes, std::string name)
    : name_(std::move(name)), left_(kMinBudgetBytes + kMaxUnfolding * file_bytes) {}

void UnfoldBudget::spend(uint64_t n_bytes) {
  check(n_bytes <= left_, ExitCode::bad_input,
        "{}: unfolds to more than {} times its size: damaged, or made to fill memory", name_, kMaxUnfolding);
  left_ -= n_bytes;
}

ColumnReader::ColumnReader(Bytes file, const ColumnChunk& chunk, const ColumnShape& shape, const std::string& name,
                           UnfoldBudget& budget)
    : shape_(shape),
      where_(name + ": column " + printable(shape.path, 80)),
      budget_(budget),
      in_(bytes_of_chunk(file, chunk, where_), where_),
      codec_(codec_of(chunk.codec, where_)),
      n_left_(chunk.num_values) {}

bool ColumnReader::at_end() {
  while (at_ == n_in_page_ && n_left_ > 0) next_page();
  return at_ == n_in_page_;
}

void ColumnReader::need_value() {
  check(!at_end(), ExitCode::bad_input, "{}: fewer values than the file claims: damaged", where_);
}

uint32_t ColumnReader::def() {
  need_value();
  return shape_.max_def == 0 ? 0 : defs_[at_];
}

uint32_t ColumnReader::rep() {
  need_value();
  return shape_.max_rep == 0 ? 0 : reps_[at_];
}

std::string_view ColumnReader::take_text() {
  check(shape_.is_text, ExitCode::bad_input, "{}: holds no text; expected strings", where_);
  const std::string_view text = values_[at_value_++];
  ++at_;
  budget_.spend(kValueBytes + text.size());
  return text;
}

void ColumnReader::take_absent() {
  ++at_;
  budget_.spend(kValueBytes);
}

void ColumnReader::next_page() {
  const PageHeader header = read_page_header(in_);
  check(header.uncompressed_bytes <= std::min(kMaxPageBytes, budget_.left()), ExitCode::bad_input,
        "{}: a page claims {} bytes unpacked, more than is read from a file of this size", where_,
        header.uncompressed_bytes);
  const Bytes page = in_.take(header.compressed_bytes, "a page");
  check(!header.crc || *header.crc == crc32_of(page), ExitCode::bad_input,
        "{}: a page's checksum is wrong: the file is damaged", where_);
  switch (header.kind) {
    case PageHeader::Kind::dictionary:
      return read_dictionary(header, page);
    case PageHeader::Kind::index:
      return;
    case PageHeader::Kind::data:
    case PageHeader::Kind::data_v2:
      check(header.num_values <= n_left_, ExitCode::bad_input, "{}: more values than the file claims: damaged", where_);
      n_left_ -= header.num_values;
      return read_data(header, page);
  }
}

std::string ColumnReader::unpacked(const PageHeader& header, Bytes page, size_t n_out) const {
  return decompress(header.is_compressed ? codec_ : Codec::none, page, n_out, where_);
}

void ColumnReader::read_dictionary(const PageHeader& header, Bytes page) {
  check(!has_dictionary_, ExitCode::bad_input, "{}: two dictionaries: the file is damaged", where_);
  has_dictionary_ = true;
  if (!shape_.is_text) return;
  dictionary_bytes_ = unpacked(header, page, header.uncompressed_bytes);
  ByteReader in(bytes_of(dictionary_bytes_), where_ + ": dictionary");
  dictionary_ = read_plain(in, static_cast<size_t>(header.num_values));
}

/// v1: levels and values are compressed as one; v2: the levels stand before the values, as they are.
void ColumnReader::read_data(const PageHeader& header, Bytes page) {
  const auto n = static_cast<size_t>(header.num_values);
  if (header.kind == PageHeader::Kind::data_v2) {
    ByteReader levels(page, where_);
    reps_ = read_levels_v2(levels.take(header.rep_level_bytes, "repetition levels"), shape_.max_rep, n);
    defs_ = read_levels_v2(levels.take(header.def_level_bytes, "definition levels"), shape_.max_def, n);
    const uint64_t n_levels = levels.offset();
    check(n_levels <= header.uncompressed_bytes, ExitCode::bad_input, "{}: a page shorter than its levels: damaged",
          where_);
    page_bytes_ = unpacked(header, page.subspan(n_levels), header.uncompressed_bytes - n_levels);
  } else {
    page_bytes_ = unpacked(header, page, header.uncompressed_bytes);
  }
  ByteReader in(bytes_of(page_bytes_), where_ + ": page");
  if (header.kind == PageHeader::Kind::data) {
    reps_ = read_levels_v1(in, header.level_encodings[1], shape_.max_rep, n);
    defs_ = read_levels_v1(in, header.level_encodings[0], shape_.max_def, n);
  }
  const bool all_present = shape_.max_def == 0;
  const auto n_present = all_present ? n : static_cast<size_t>(std::count(defs_.begin(), defs_.end(), shape_.max_def));
  n_in_page_ = n, at_ = 0, at_value_ = 0;
  values_.clear();
  if (n_present > 0 && shape_.is_text) read_values(in, header.encoding, n_present);
}

std::vector<uint32_t> ColumnReader::read_levels_v1(ByteReader& in, int64_t encoding, uint32_t max, size_t n) {
  if (max == 0) return {};
  check(encoding == static_cast<int64_t>(Encoding::rle), ExitCode::bad_input,
        "{}: levels in encoding {}; only RLE is read: write the file with a newer tool", where_, encoding);
  const auto n_bytes = in.read<uint32_t>("the size of levels");
  return read_levels_v2(in.take(n_bytes, "levels"), max, n);
}

std::vector<uint32_t> ColumnReader::read_levels_v2(Bytes bytes, uint32_t max, size_t n) {
  if (max == 0) return {};
  ByteReader in(bytes, where_ + ": levels");
  std::vector<uint32_t> out = read_rle(in, bit_width_of(max), n);
  const auto too_large = std::find_if(out.begin(), out.end(), [&](uint32_t level) { return level > max; });
  check(too_large == out.end(), ExitCode::bad_input, "{}: a level beyond {}: the file is damaged", where_, max);
  return out;
}

void ColumnReader::read_values(ByteReader& in, int64_t encoding, size_t n) {
  switch (static_cast<Encoding>(encoding)) {
    case Encoding::plain:
      values_ = read_plain(in, n);
      return;
    case Encoding::plain_dictionary:
    case Encoding::rle_dictionary: {
      const auto width = in.read<uint8_t>("the width of indices");
      check(width <= 32, ExitCode::bad_input, "{}: indices of {} bits: the file is damaged", where_, width);
      for (const uint32_t index : read_rle(in, width, n)) {
        check(index < dictionary_.size(), ExitCode::bad_input,
              "{}: index {} of a dictionary of {}: the file is damaged", where_, index, dictionary_.size());
        values_.push_back(dictionary_[index]);
      }
      return;
    }
    case Encoding::delta_length_byte_array:
      values_ = read_delta_lengths(in, n);
      return;
    case Encoding::delta_byte_array:
      values_ = read_delta_texts(in, n, kMaxPageBytes, page_text_);
      return;
    case Encoding::rle:
      break;
  }
  fail(ExitCode::bad_input,
       "{}: texts in encoding {}; read are plain, dictionary, DELTA_LENGTH_BYTE_ARRAY and DELTA_BYTE_ARRAY", where_,
       encoding);
}

}  // namespace saaz
