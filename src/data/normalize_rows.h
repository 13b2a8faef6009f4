// Normalising rows as they are loaded for a run (the recipe's data.normalize). Enters: rows and options. Leaves: the
// same rows in one spelling, and what changed, for the run's events. A row of which a message has nothing left is bad.
#pragma once

#include <vector>

#include "data/conversation.h"
#include "data/normalize.h"

namespace saaz {

struct NormalizedRows {
  int64_t n_rows = 0, n_changed = 0;
  NormalizeCounts counts;
};
/// Adds to `result`. bad_input, naming the row, unless `bad` allows it.
void normalize_rows(std::vector<Row>& rows, const NormalizeOptions& options, BadRows& bad, NormalizedRows& result);

}  // namespace saaz
