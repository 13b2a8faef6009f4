#include "data/parquet_metadata.h"

#include "data/thrift.h"

namespace saaz {
namespace {

constexpr size_t kMagicBytes = 4, kTrailerBytes = 8;
constexpr int64_t kListConverted = 3, kListLogical = 3;
constexpr int64_t kMaxPageValues = 1 << 24;

/// A count or a size: not negative.
uint64_t read_size(ThriftReader& thrift, const ThriftField& field, std::string_view what, const std::string& name) {
  const int64_t n = thrift.read_integer(field, what);
  check(n >= 0, ExitCode::bad_input, "{}: {} is {}: the file is damaged", name, what, n);
  return static_cast<uint64_t>(n);
}

bool read_logical_type(ThriftReader& thrift, const ThriftField& field, SchemaElement& out) {
  thrift.expect(field, ThriftType::structure, "the logical type");
  thrift.read_structure([&](const ThriftField& kind) {
    out.is_list |= kind.id == kListLogical;
    return false;
  });
  return true;
}

SchemaElement read_schema_element(ThriftReader& thrift, const std::string& name) {
  SchemaElement out;
  thrift.read_structure([&](const ThriftField& field) {
    switch (field.id) {
      case 1:
        out.type = thrift.read_integer(field, "a column's type");
        return true;
      case 3: {
        const int64_t repetition = thrift.read_integer(field, "a column's repetition");
        check(repetition >= 0 && repetition <= 2, ExitCode::bad_input, "{}: a column's repetition is {}", name,
              repetition);
        out.repetition = static_cast<Repetition>(repetition);
        return true;
      }
      case 4:
        out.name = thrift.read_text(field, "a column's name");
        return true;
      case 5:
        out.num_children = static_cast<int64_t>(read_size(thrift, field, "a group's size", name));
        return true;
      case 6:
        out.is_list |= thrift.read_integer(field, "a column's converted type") == kListConverted;
        return true;
      case 10:
        return read_logical_type(thrift, field, out);
      default:
        return false;
    }
  });
  return out;
}

/// Pages lie from the dictionary (when there is one) for total_compressed_size bytes.
void read_column_metadata(ThriftReader& thrift, const std::string& name, ColumnChunk& out) {
  uint64_t data_offset = 0;
  std::optional<uint64_t> dictionary_offset;
  thrift.read_structure([&](const ThriftField& field) {
    switch (field.id) {
      case 4:
        out.codec = thrift.read_integer(field, "a column's codec");
        return true;
      case 5:
        out.num_values = static_cast<int64_t>(read_size(thrift, field, "a column's number of values", name));
        return true;
      case 7:
        out.n_bytes = read_size(thrift, field, "a column's compressed size", name);
        return true;
      case 9:
        data_offset = read_size(thrift, field, "a column's offset", name);
        return true;
      case 11:
        dictionary_offset = read_size(thrift, field, "a dictionary's offset", name);
        return true;
      default:
        return false;
    }
  });
  // Some writers state 0 for no dictionary.
  const bool has_dictionary = dictionary_offset && *dictionary_offset > 0 && *dictionary_offset < data_offset;
  out.offset = has_dictionary ? *dictionary_offset : data_offset;
}

ColumnChunk read_column_chunk(ThriftReader& thrift, const std::string& name) {
  ColumnChunk out;
  bool is_complete = false;
  thrift.read_structure([&](const ThriftField& field) {
    if (field.id == 1) {
      thrift.read_text(field, "a column's file");
      fail(ExitCode::bad_input, "{}: its columns lie in other files; write it as one file", name);
    }
    if (field.id != 3) return false;
    thrift.expect(field, ThriftType::structure, "a column's metadata");
    read_column_metadata(thrift, name, out);
    return is_complete = true;
  });
  check(is_complete, ExitCode::bad_input, "{}: a column without metadata (encrypted?)", name);
  return out;
}

RowGroup read_row_group(ThriftReader& thrift, const std::string& name) {
  RowGroup out;
  thrift.read_structure([&](const ThriftField& field) {
    switch (field.id) {
      case 1:
        thrift.read_list(field, ThriftType::structure, "a row group's columns",
                         [&] { out.columns.push_back(read_column_chunk(thrift, name)); });
        return true;
      case 3:
        out.num_rows = static_cast<int64_t>(read_size(thrift, field, "a row group's number of rows", name));
        return true;
      default:
        return false;
    }
  });
  return out;
}

/// The part of a page's header that its kind decides.
void read_page_details(ThriftReader& thrift, const std::string& name, PageHeader& out) {
  const bool is_v2 = out.kind == PageHeader::Kind::data_v2;
  thrift.read_structure([&](const ThriftField& field) {
    if (field.id == 1) {
      out.num_values = static_cast<int64_t>(read_size(thrift, field, "a page's number of values", name));
    } else if (field.id == (is_v2 ? 4 : 2)) {
      out.encoding = thrift.read_integer(field, "a page's encoding");
    } else if (!is_v2 && out.kind == PageHeader::Kind::data && (field.id == 3 || field.id == 4)) {
      out.level_encodings[field.id - 3] = thrift.read_integer(field, "a page's level encoding");
    } else if (is_v2 && field.id == 5) {
      out.def_level_bytes = read_size(thrift, field, "the size of definition levels", name);
    } else if (is_v2 && field.id == 6) {
      out.rep_level_bytes = read_size(thrift, field, "the size of repetition levels", name);
    } else if (is_v2 && field.id == 7) {
      out.is_compressed = thrift.read_boolean(field, "is_compressed");
    } else {
      return false;
    }
    return true;
  });
}

/// The field of a page header that holds the details of a kind; 0 for index pages, which nothing is read of.
int64_t details_field(PageHeader::Kind kind) {
  switch (kind) {
    case PageHeader::Kind::data:
      return 5;
    case PageHeader::Kind::dictionary:
      return 7;
    case PageHeader::Kind::data_v2:
      return 8;
    case PageHeader::Kind::index:
      break;
  }
  return 0;
}

}  // namespace

ParquetMetadata read_parquet_metadata(Bytes file, const std::string& name) {
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  check(!text.ends_with("PARE"), ExitCode::bad_input, "{}: an encrypted Parquet file; decrypt it first", name);
  check(file.size() >= kMagicBytes + kTrailerBytes && text.starts_with("PAR1") && text.ends_with("PAR1"),
        ExitCode::bad_input, "{}: a Parquet file begins and ends with PAR1, this one does not: truncated or damaged",
        name);
  ByteReader trailer(file.last(kTrailerBytes), name);
  const uint64_t n_metadata = trailer.read<uint32_t>("the size of the metadata");
  check(n_metadata <= file.size() - kMagicBytes - kTrailerBytes, ExitCode::bad_input,
        "{}: the metadata claims {} bytes of a file of {}: truncated or damaged", name, n_metadata, file.size());
  ByteReader in(file.subspan(file.size() - kTrailerBytes - n_metadata, n_metadata), name + ": metadata");
  ThriftReader thrift(in);
  ParquetMetadata out;
  thrift.read_structure([&](const ThriftField& field) {
    switch (field.id) {
      case 2:
        thrift.read_list(field, ThriftType::structure, "the schema",
                         [&] { out.schema.push_back(read_schema_element(thrift, name)); });
        return true;
      case 4:
        thrift.read_list(field, ThriftType::structure, "the row groups",
                         [&] { out.row_groups.push_back(read_row_group(thrift, name)); });
        return true;
      default:
        return false;
    }
  });
  return out;
}

PageHeader read_page_header(ByteReader& in) {
  PageHeader out;
  ThriftReader thrift(in);
  thrift.read_structure([&](const ThriftField& field) {
    switch (field.id) {
      case 1: {
        const int64_t kind = thrift.read_integer(field, "a page's kind");
        check(kind >= 0 && kind <= 3, ExitCode::bad_input, "{}: a page of unknown kind {}", in.name(), kind);
        out.kind = static_cast<PageHeader::Kind>(kind);
        return true;
      }
      case 2:
        out.uncompressed_bytes = read_size(thrift, field, "a page's size", in.name());
        return true;
      case 3:
        out.compressed_bytes = read_size(thrift, field, "a page's compressed size", in.name());
        return true;
      case 4:
        out.crc = static_cast<uint32_t>(thrift.read_integer(field, "a page's checksum"));
        return true;
      default:
        // The kind comes first: ids rise.
        if (field.id != details_field(out.kind)) return false;
        thrift.expect(field, ThriftType::structure, "a page's details");
        read_page_details(thrift, in.name(), out);
        return true;
    }
  });
  check(out.num_values <= kMaxPageValues, ExitCode::bad_input, "{}: a page claims {} values, at most {} are read",
        in.name(), out.num_values, kMaxPageValues);
  return out;
}

}  // namespace saaz
