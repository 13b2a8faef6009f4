// The prose of a model card in English and Persian, around rows of figures that both languages share.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace saaz {

/// One line of a table: what it is and its value, in both languages.
struct CardRow {
  std::string en, fa, value_en, value_fa;
};

struct CardContent {
  std::string name, base, base_hub_id;
  bool is_merged = false, has_validation = false, has_charts = false;
  std::vector<CardRow> results, training, data, merge;
  std::string recipe;  // a table of its own
  std::string notice;
  std::vector<std::string> citations;  // BibTeX of the datasets
};

/// Everything below the YAML header.
std::string card_body(const CardContent& content);

/// "1234567" as "1,234,567"
std::string grouped(int64_t n);
/// Persian digits, decimal and thousands separators in place of Latin ones.
std::string persian_number(std::string_view text);
/// "3 h 12 min", "12 min 30 s", "41 s"
std::string duration(double seconds);
std::string persian_duration(double seconds);

}  // namespace saaz
