// What a Parquet file says about itself: the footer (schema, row groups, where each column's pages lie) and the header
// before each page. Enters: untrusted bytes. Leaves: plain structures whose numbers are in range; offsets are checked
// where they are used. Names follow the format's own (parquet.thrift).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"

namespace saaz {

enum class Repetition : uint8_t { required = 0, optional = 1, repeated = 2 };
enum class Encoding : uint8_t {
  plain = 0,
  plain_dictionary = 2,
  rle = 3,
  delta_length_byte_array = 6,
  delta_byte_array = 7,
  rle_dictionary = 8,
};

/// A node of the schema, in depth-first order; a group's children follow it.
struct SchemaElement {
  std::string name;
  Repetition repetition = Repetition::required;
  std::optional<int64_t> type;  // of a leaf's values; a group has none
  int64_t num_children = 0;
  bool is_list = false;  // annotated LIST
};

/// The pages of one leaf in one row group.
struct ColumnChunk {
  int64_t codec = 0;
  uint64_t offset = 0, n_bytes = 0;  // of all its pages, the dictionary first
  int64_t num_values = 0;            // levels, nulls included
};

struct RowGroup {
  std::vector<ColumnChunk> columns;  // one for each leaf of the schema
  int64_t num_rows = 0;
};

struct ParquetMetadata {
  std::vector<SchemaElement> schema;
  std::vector<RowGroup> row_groups;
};

/// The footer of a whole file. bad_input when the file is encrypted or damaged.
ParquetMetadata read_parquet_metadata(Bytes file, const std::string& name);

struct PageHeader {
  enum class Kind : uint8_t { data = 0, index = 1, dictionary = 2, data_v2 = 3 };
  Kind kind = Kind::data;
  uint64_t uncompressed_bytes = 0, compressed_bytes = 0;
  std::optional<uint32_t> crc;
  int64_t num_values = 0;
  int64_t encoding = 0;
  int64_t level_encodings[2] = {3, 3};                // v1; 3 is RLE
  uint64_t def_level_bytes = 0, rep_level_bytes = 0;  // v2
  bool is_compressed = true;                          // v2: the values
};

/// Reads one header; the page's bytes follow.
PageHeader read_page_header(ByteReader& in);

}  // namespace saaz
