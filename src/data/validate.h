// The data doctor: what a training file is likely to have wrong with it. Enters: the rows of the file, and those of an
// evaluation file it should not overlap with. Leaves: figures and places, for people and machines. Nothing is changed:
// `data normalize` repairs what can be.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/system.h"
#include "base/value.h"
#include "data/conversation.h"
#include "data/report.h"

namespace saaz {

/// Two rows that say the same: a later and an earlier one, or one of training and one of evaluation.
struct RowPair {
  std::string row, other;  // their places
  double similarity = 1;   // Jaccard over runs of five characters (near_duplicates.h)
};

/// Counts of characters over all rows.
struct ScriptProfile {
  int64_t arabic_letters = 0, latin_letters = 0, other_letters = 0;
  int64_t persian_digits = 0, arabic_digits = 0, latin_digits = 0;
  int64_t zwnj = 0, arabic_yeh = 0, arabic_kaf = 0, tatweel = 0, presentation_forms = 0, invisible_marks = 0;
};

struct Validation {
  int64_t n_rows = 0;
  std::vector<std::string> bad_rows;       // what is wrong with rows that cannot be used
  std::vector<RowPair> duplicates;         // equal in all
  std::vector<RowPair> near_duplicates;    // at least kNearDuplicate, not equal
  std::vector<RowPair> overlaps;           // with the evaluation file: near duplicates of whole rows
  std::vector<RowPair> shared_prompts;     // with the evaluation file: the same first question, another answer
  std::vector<std::string> empty_targets;  // places of assistant turns without a letter or digit
  std::vector<std::string> mojibake;       // places of rows in a wrong encoding
  std::vector<int64_t> lengths;            // characters of each row, ascending
  ScriptProfile script;
  std::string license;               // and where it says so; empty: none found
  std::optional<DataReport> tokens;  // with a tokenizer
  bool was_compared = false;         // with an evaluation file
};

/// `against`: rows of the evaluation file, or none. `tokens` and `bad_rows` are left to the caller.
Validation validate(const std::vector<Row>& rows, const std::vector<Row>& against);

/// What the rows, a licence file beside the data or the header of its README say. Empty when nothing does.
std::string find_license(const std::vector<Row>& rows, const fs::path& file);

/// A text that was decoded by the wrong table: UTF-8 read as Latin-1 or Windows-1252 ("Ø³Ù„Ø§Ù…"), Windows-1256 read as
/// either ("ÓáÇã"), or replacement characters.
bool is_mojibake(std::string_view text);

std::string to_text(const Validation& validation);
Value to_value(const Validation& validation);

}  // namespace saaz
