// Parquet files as rows: the reading half of the format, as far as text needs it. Enters: a whole file's bytes, not
// trusted. Leaves: one object for each row, with texts, lists and objects as the schema nests them (list<struct<role,
// content>> becomes a list of objects). Columns and members that nothing here trains on are left out. Codecs: none,
// snappy, gzip, zstd; pages v1 and v2; encodings: parquet_encodings.h. Source: docs/formats.md 10.1.
#pragma once

#include <functional>
#include <string>

#include "base/bytes.h"
#include "base/value.h"

namespace saaz {

bool is_parquet(Bytes file);

/// Calls `visit` for each row, in order, one row group after the other; only one page of each column is in memory.
/// bad_input for a damaged file, or one that uses what is not read. Texts are not checked for valid UTF-8.
void read_parquet(Bytes file, const std::string& name, const std::function<void(Value)>& visit);

}  // namespace saaz
