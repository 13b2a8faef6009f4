// How healthy a Persian text is: the measures that probes of a training run report. Enters: valid UTF-8, as a model
// wrote it. Leaves: counts, which can be added over texts, and rates of them. Only prose counts: code, LaTeX, URLs,
// Latin runs and quoted Arabic do not (protected_spans.h), and what is right is what `normalize` leaves alone.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/value.h"

namespace saaz {

struct TextHealth {
  int64_t n_letters = 0;           // of prose, in any script
  int64_t n_arabic_letters = 0;    // ي ى ك in the place of ی and ک
  int64_t n_foreign_letters = 0;   // neither of Persian's script nor Latin
  int64_t n_half_spaces = 0;       // ZWNJ between two letters of a word
  int64_t n_bad_half_spaces = 0;   // ZWNJ doubled, at the edge of a word or beside a blank
  int64_t n_lost_half_spaces = 0;  // a blank where می, ها or تر want a ZWNJ
  int64_t n_runs = 0;              // of four words
  int64_t n_repeated_runs = 0;     // of them, those that stood before in the same text

  void add(const TextHealth& other);
  // Rates from 0 to 1; NaN where there is nothing to measure.
  double half_space_accuracy() const;  // right ones among the places that have or want one
  double arabic_letter_rate() const;   // of letters
  double foreign_rate() const;         // of letters
  double repetition() const;           // of runs of four words (seq-rep-4 of Welleck et al. 2020)
};

TextHealth measure_text(std::string_view text);
/// The counts and rates under their names; an unknown rate is null.
Value to_value(const TextHealth& health);

}  // namespace saaz
