// What `data validate` found, as a table and as a document.
#include <algorithm>

#include "base/check.h"
#include "data/near_duplicates.h"
#include "data/validate.h"

namespace saaz {
namespace {

constexpr size_t kMaxShown = 10;

int64_t quantile(const std::vector<int64_t>& ascending, double q) {
  if (ascending.empty()) return 0;
  return ascending[static_cast<size_t>(q * static_cast<double>(ascending.size() - 1) + 0.5)];
}

std::string shown(const RowPair& pair) {
  return pair.similarity < 1 ? fmt::format("{}  like  {}  ({:.2f})", pair.row, pair.other, pair.similarity)
                             : fmt::format("{}  as  {}", pair.row, pair.other);
}
std::string shown(const std::string& place) { return place; }

class Table {
 public:
  void line(const char* name, const std::string& value) { text += fmt::format("{:<21}{}\n", name, value); }
  /// The number of findings, and the first of them below.
  template <class Finding>
  void list(const char* name, const std::vector<Finding>& findings, const char* meaning) {
    line(name, findings.empty() ? "0" : fmt::format("{}  {}", findings.size(), meaning));
    for (size_t i = 0; i < std::min(findings.size(), kMaxShown); ++i) text += "  " + shown(findings[i]) + "\n";
    if (findings.size() > kMaxShown)
      text += fmt::format("  and {} more (all with --json)\n", findings.size() - kMaxShown);
  }
  std::string text;
};

std::string percent(int64_t part, int64_t whole) {
  return fmt::format("{:.1f} %", whole == 0 ? 0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

void add_script(const ScriptProfile& s, Table& table) {
  const int64_t n_letters = s.arabic_letters + s.latin_letters + s.other_letters;
  table.line("letters", fmt::format("{} Arabic script, {} Latin, {} other", percent(s.arabic_letters, n_letters),
                                    percent(s.latin_letters, n_letters), percent(s.other_letters, n_letters)));
  table.line("digits",
             fmt::format("{} Persian, {} Arabic, {} Latin", s.persian_digits, s.arabic_digits, s.latin_digits));
  table.line("Persian spelling",
             fmt::format("{} Arabic yeh (ي ى), {} Arabic kaf (ك), {} presentation forms, {} tatweel", s.arabic_yeh,
                         s.arabic_kaf, s.presentation_forms, s.tatweel));
  table.line("marks", fmt::format("{} half spaces, {} invisible marks", s.zwnj, s.invisible_marks));
  if (s.arabic_yeh + s.arabic_kaf + s.presentation_forms + s.tatweel + s.invisible_marks + s.arabic_digits > 0)
    table.text += "  'saaz data normalize' puts these right\n";
}

Value pairs(const std::vector<RowPair>& list) {
  Value out = Value::array();
  for (const RowPair& pair : list)
    out.push_back(Value::object({{"row", pair.row}, {"other", pair.other}, {"similarity", pair.similarity}}));
  return out;
}

Value places(const std::vector<std::string>& list) {
  Value out = Value::array();
  for (const std::string& place : list) out.push_back(place);
  return out;
}

}  // namespace

std::string to_text(const Validation& v) {
  Table table;
  table.line("rows", fmt::format("{} that can be used", v.n_rows));
  table.list("bad rows", v.bad_rows, "cannot be used:");
  table.list("duplicates", v.duplicates, "equal to an earlier row:");
  table.list("near duplicates", v.near_duplicates,
             fmt::format("share at least {} of their 5-character runs with an earlier row:", kNearDuplicate).c_str());
  if (v.was_compared) {
    table.list("overlap", v.overlaps, "also in the evaluation file:");
    table.list("shared prompts", v.shared_prompts, "ask what the evaluation file asks:");
  }
  table.list("empty targets", v.empty_targets, "answers without a letter or digit:");
  table.list("mojibake", v.mojibake, "rows decoded by the wrong table:");
  table.line("characters of a row", fmt::format("min {}, median {}, 90 % {}, 99 % {}, max {}", quantile(v.lengths, 0),
                                                quantile(v.lengths, 0.5), quantile(v.lengths, 0.9),
                                                quantile(v.lengths, 0.99), quantile(v.lengths, 1)));
  if (v.tokens) {
    const DataReport& t = *v.tokens;
    table.line("tokens of a row",
               fmt::format("min {}, median {}, 90 % {}, 99 % {}, max {}", t.length_quantile(0), t.length_quantile(0.5),
                           t.length_quantile(0.9), t.length_quantile(0.99), t.length_quantile(1)));
    table.line("cut rows", fmt::format("{} ({} of {} tokens lost)", t.n_cut_rows, t.n_cut_tokens, t.n_tokens));
  }
  add_script(v.script, table);
  table.line("licence",
             v.license.empty() ? "none found: no 'license' column, README header or LICENSE file" : v.license);
  return table.text;
}

Value to_value(const Validation& v) {
  const ScriptProfile& s = v.script;
  Value out = Value::object({{"schema_version", 1},
                             {"rows", v.n_rows},
                             {"bad_rows", places(v.bad_rows)},
                             {"duplicates", pairs(v.duplicates)},
                             {"near_duplicates", pairs(v.near_duplicates)},
                             {"near_duplicate_threshold", kNearDuplicate},
                             {"empty_targets", places(v.empty_targets)},
                             {"mojibake", places(v.mojibake)},
                             {"characters_min", quantile(v.lengths, 0)},
                             {"characters_median", quantile(v.lengths, 0.5)},
                             {"characters_p90", quantile(v.lengths, 0.9)},
                             {"characters_p99", quantile(v.lengths, 0.99)},
                             {"characters_max", quantile(v.lengths, 1)},
                             {"script", Value::object({{"arabic_letters", s.arabic_letters},
                                                       {"latin_letters", s.latin_letters},
                                                       {"other_letters", s.other_letters},
                                                       {"persian_digits", s.persian_digits},
                                                       {"arabic_digits", s.arabic_digits},
                                                       {"latin_digits", s.latin_digits},
                                                       {"zwnj", s.zwnj},
                                                       {"arabic_yeh", s.arabic_yeh},
                                                       {"arabic_kaf", s.arabic_kaf},
                                                       {"tatweel", s.tatweel},
                                                       {"presentation_forms", s.presentation_forms},
                                                       {"invisible_marks", s.invisible_marks}})},
                             {"license", v.license.empty() ? Value() : Value(v.license)}});
  if (v.was_compared) {
    out.set("overlaps", pairs(v.overlaps));
    out.set("shared_prompts", pairs(v.shared_prompts));
  }
  if (v.tokens) out.set("tokens", to_value(*v.tokens));
  return out;
}

}  // namespace saaz
