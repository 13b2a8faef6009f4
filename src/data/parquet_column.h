// One column of text of one row group, read page by page: a row of (repetition level, definition level, text). Enters:
// the file, the chunk's place in it and the column's maximal levels. Leaves: values one by one; a text is present where
// its definition level is the maximal one. Only one page is in memory at a time.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/decompress.h"
#include "data/parquet_metadata.h"

namespace saaz {

/// What all columns of a file may unfold to, so that a small file cannot fill memory.
class UnfoldBudget {
 public:
  UnfoldBudget(size_t file_bytes, std::string name);
  /// bad_input when the budget is used up.
  void spend(uint64_t n_bytes);
  uint64_t left() const { return left_; }

 private:
  std::string name_;
  uint64_t left_ = 0;
};

struct ColumnShape {
  std::string path;     // "messages.content", for messages
  bool is_text = true;  // byte arrays; of any other type only nulls are read
  uint32_t max_def = 0, max_rep = 0;
};

class ColumnReader {
 public:
  /// `name`: the file's, for messages. All arguments are kept by reference or view and must outlive the reader.
  ColumnReader(Bytes file, const ColumnChunk& chunk, const ColumnShape& shape, const std::string& name,
               UnfoldBudget& budget);

  /// True when no value is left.
  bool at_end();
  /// Levels of the next value; bad_input at the end.
  uint32_t def();
  uint32_t rep();
  /// The next value, which must be present; good until the next call of anything.
  std::string_view take_text();
  /// Passes over the next value, which must be absent.
  void take_absent();

 private:
  void next_page();
  void read_dictionary(const PageHeader& header, Bytes page);
  void read_data(const PageHeader& header, Bytes page);
  void read_values(ByteReader& in, int64_t encoding, size_t n);
  std::vector<uint32_t> read_levels_v1(ByteReader& in, int64_t encoding, uint32_t max, size_t n);
  std::vector<uint32_t> read_levels_v2(Bytes bytes, uint32_t max, size_t n);
  std::string unpacked(const PageHeader& header, Bytes page, size_t n_out) const;
  void need_value();

  const ColumnShape& shape_;
  std::string where_;  // "file: column messages.content"
  UnfoldBudget& budget_;
  ByteReader in_;
  Codec codec_;
  int64_t n_left_;  // in pages not yet read

  bool has_dictionary_ = false;
  std::string dictionary_bytes_;
  std::vector<std::string_view> dictionary_;

  std::string page_bytes_, page_text_;  // what `values_` looks into
  std::vector<uint32_t> defs_, reps_;   // of this page; empty where the maximum is 0
  std::vector<std::string_view> values_;
  size_t n_in_page_ = 0, at_ = 0, at_value_ = 0;
};

}  // namespace saaz
