// The shapes a row may have (formats.md 10), one function for each. Enters: one parsed row. Leaves: the messages or the
// text of a Row, with the invariants of conversation.h. Errors: bad_input without the place, which the caller puts in
// front.
#pragma once

#include <algorithm>
#include <array>
#include <string_view>

#include "base/value.h"
#include "data/conversation.h"

namespace saaz {

/// The columns that hold what is trained on, and the members of messages and their parts that do.
constexpr std::array<std::string_view, 10> kTextColumns = {
    "messages", "conversations", "instruction", "input", "output", "prompt", "completion", "inputs", "targets", "text"};
constexpr std::array<std::string_view, 3> kTextMembers = {"content", "value", "text"};

template <size_t n>
constexpr bool is_one_of(std::string_view name, const std::array<std::string_view, n>& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// The format that the keys of `row` tell.
DataFormat detect_format(const Value& row);
/// Fills in messages or text of `row`.
void read_row(const Value& value, DataFormat format, Row& row);

}  // namespace saaz
