// The rows of a data file before anybody asks what they mean: JSON lines, one JSON document, or Parquet. Enters: the
// file's bytes and its name, which together tell the kind. Leaves: each row's place and value, in file order.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "base/value.h"

namespace saaz {

/// Called for each row with its line (1-based; 0 where lines mean nothing). `parse` gives the value, once; it throws
/// bad_input for a row that is none, and the reading can go on after that.
using RowVisitor = std::function<void(int64_t line, const std::function<Value()>& parse)>;

enum class FileKind { json_lines, json_document, parquet };
/// bad_input for what is no data file at all (a Git LFS pointer).
FileKind file_kind(std::string_view file, const std::string& name);

/// bad_input when the file as a whole is damaged.
void for_each_row(std::string_view file, const std::string& name, const RowVisitor& visit);

/// Takes the next line off `text`, without its end.
std::string_view take_line(std::string_view& text);
bool is_blank_line(std::string_view line);

}  // namespace saaz
