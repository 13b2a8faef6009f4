// Persian text in one form: the `chat` profile. Enters: valid UTF-8 and options. Leaves: the text with the same words,
// written one way; code, LaTeX, URLs, Latin runs and quoted Arabic are untouched (protected_spans.h). Invariant:
// normalising twice is normalising once. Rules and reasons: docs/data.md.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "config/recipe.h"

namespace saaz {

enum class Digits { keep, fa, en };     // fa: Arabic-Indic to Persian; en: both to Latin
enum class HehYeh { keep, hamza, ye };  // ۀ and هٔ: as they are, both هٔ, or both ه‌ی

struct NormalizeOptions {
  Digits digits = Digits::fa;
  HehYeh heh_yeh = HehYeh::hamza;
  bool strip_harakat = false;
  bool fix_affixes = false;  // half spaces for می, ها, تر written apart
};

/// The options of a recipe's word: `strict` is `chat` with strip_harakat and fix_affixes. `none` has none: our own bug.
NormalizeOptions options_of(NormalizeProfile profile);

enum class Rule {
  line_ends,
  trailing_blanks,
  invisible_marks,
  presentation_forms,
  composition,
  yeh,
  kaf,
  tatweel,
  heh_yeh,
  digits,
  harakat,
  half_spaces,
  affixes,
};
constexpr size_t kNumRules = 13;
/// "yeh", for reports.
const char* name_of(Rule rule);

/// How many characters each rule changed, added or removed.
struct NormalizeCounts {
  std::array<int64_t, kNumRules> changes{};
  int64_t n_quoted_arabic = 0;  // spans left alone as quoted Arabic
  /// "yeh 12, kaf 3": the rules that changed something.
  std::string text() const;
  int64_t& operator[](Rule rule) { return changes[static_cast<size_t>(rule)]; }
};

std::string normalize_text(std::string_view text, const NormalizeOptions& options, NormalizeCounts& counts);

}  // namespace saaz
