#include "data/normalize_rows.h"

#include <algorithm>

#include "base/check.h"
#include "base/unicode.h"

namespace saaz {

namespace {

/// The texts of a row that may change.
std::vector<std::string*> texts_of(Row& row) {
  std::vector<std::string*> out;
  if (row.is_text()) out.push_back(&row.text);
  for (ChatMessage& message : row.messages)
    for (std::string& part : message.parts) out.push_back(&part);
  return out;
}

bool has_blank_message(const Row& row) {
  const auto is_blank = [](const std::string& text) { return strip_like_python(text).empty(); };
  if (row.is_text()) return is_blank(row.text);
  return std::any_of(row.messages.begin(), row.messages.end(), [&](const ChatMessage& message) {
    return message.role != "system" && std::all_of(message.parts.begin(), message.parts.end(), is_blank);
  });
}

}  // namespace

void normalize_rows(std::vector<Row>& rows, const NormalizeOptions& options, BadRows& bad, NormalizedRows& result) {
  std::vector<Row> kept;
  kept.reserve(rows.size());
  for (Row& row : rows) {
    bool is_changed = false;
    for (std::string* text : texts_of(row)) {
      std::string normalized = normalize_text(*text, options, result.counts);
      is_changed |= normalized != *text;
      *text = std::move(normalized);
    }
    ++result.n_rows;
    result.n_changed += is_changed ? 1 : 0;
    const bool is_good = bad.attempt([&] {
      check(!has_blank_message(row), ExitCode::bad_input, "{}: nothing is left of a message after data.normalize",
            row.place());
    });
    if (is_good) kept.push_back(std::move(row));
  }
  rows = std::move(kept);
}

}  // namespace saaz
