// What the data is, in figures (`data inspect`). Enters: loaded rows and the tokenizer. Leaves: counts over all rows,
// as text and as a document; nothing is printed here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/value.h"
#include "data/batcher.h"

namespace saaz {

struct DataReport {
  int64_t n_rows = 0, n_texts = 0;  // a row is a conversation or a raw text
  int64_t n_with_system = 0, n_multi_turn = 0;
  int64_t n_user_messages = 0, n_assistant_messages = 0;
  int64_t n_tokens = 0, n_scored_tokens = 0;  // before cutting
  int64_t n_cut_rows = 0, n_cut_tokens = 0;
  int64_t n_unscored_rows = 0;  // after cutting, nothing to learn from
  int64_t n_duplicates = 0;     // rows equal to an earlier one
  int64_t n_zwnj = 0, n_arabic_yeh = 0, n_arabic_kaf = 0;
  std::vector<int64_t> lengths;  // tokens of each row before cutting, ascending
  std::vector<std::string> skipped;

  /// The smallest length that at least a share `q` of the rows does not exceed; 0 without rows.
  int64_t length_quantile(double q) const;
};

/// `skipped`: the reasons of rows that could not be read. Rows are not changed.
DataReport inspect(const Tokenizer& tokenizer, const std::vector<Row>& rows, const EncodeOptions& options,
                   std::vector<std::string> skipped);
std::string to_text(const DataReport& report);
Value to_value(const DataReport& report);

}  // namespace saaz
