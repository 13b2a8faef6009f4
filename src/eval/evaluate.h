// Figures of evaluations for people and machines, and the comparison of two: the paired difference of losses over the
// same rows. Enters: results of model/evaluate_loss.h. Leaves: text and documents. Invariant: a comparison is only made
// between results over the same rows with the same scored tokens.
#pragma once

#include <cstdint>
#include <string>

#include "base/value.h"
#include "model/evaluate_loss.h"

namespace saaz {

/// `after` minus `before`: the mean over rows of the differences of their mean losses, in nats a token.
struct PairedDifference {
  double mean = 0;
  double standard_error = 0;  // of the mean; 0 for fewer than two rows
  int64_t n_rows = 0;         // those with a scored token
};

/// bad_input when the two are not of the same rows.
PairedDifference compare(const EvalResult& before, const EvalResult& after);

Value to_value(const EvalResult& result);
Value to_value(const PairedDifference& difference);
/// Lines, the last with its newline.
std::string to_text(const EvalResult& result);
std::string to_text(const PairedDifference& difference);

}  // namespace saaz
