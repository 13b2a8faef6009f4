// The shapes a row may have (formats.md 10), one function for each. Enters: one parsed row. Leaves: the messages or the
// text of a Row, with the invariants of conversation.h. Errors: bad_input without the place, which the caller puts in
// front.
#pragma once

#include "base/value.h"
#include "data/conversation.h"

namespace saaz {

/// The format that the keys of `row` tell.
DataFormat detect_format(const Value& row);
/// Fills in messages or text of `row`.
void read_row(const Value& value, DataFormat format, Row& row);

}  // namespace saaz
