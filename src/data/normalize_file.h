// Normalising a data file, and back. Enters: JSON lines; other kinds of files are written as JSON lines first. Leaves:
// the same lines in which only the letters of training texts changed (everything else byte for byte, roles, keys and
// other columns included), and a patch from which the original lines come back, byte for byte.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/value.h"
#include "data/normalize.h"

namespace saaz {

/// The file as JSON lines: itself, or one line for each row of a JSON document or of Parquet (of which only the columns
/// that are trained on are read).
std::string json_lines_of(std::string_view file, const std::string& name);

struct NormalizedFile {
  std::string lines;
  std::string patch;  // JSON lines: a head with two SHA-256, then one edit a line, in order
  int64_t n_rows = 0, n_changed_rows = 0, n_changed_texts = 0;
  NormalizeCounts counts;
};
/// bad_input, naming the line, for a line that is no JSON object.
NormalizedFile normalize_lines(std::string_view lines, const std::string& name, const NormalizeOptions& options);

/// The lines that `patch` was made from. bad_input for a damaged patch, verification when it is another file's.
std::string revert_lines(std::string_view lines, std::string_view patch, const std::string& patch_name);

std::string to_text(const NormalizedFile& file);
Value to_value(const NormalizedFile& file);

}  // namespace saaz
