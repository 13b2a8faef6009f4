// Counting and showing. Lengths are counted before cutting, scored shares too, so that the figures show what a longer
// max_seq_length would bring.
#include "data/report.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "base/check.h"
#include "base/system.h"
#include "base/unicode.h"
#include "data/script.h"

namespace saaz {
namespace {

constexpr size_t kMaxShownSkips = 20;

void count_characters(std::string_view text, DataReport& report) {
  for (size_t i = 0; i < text.size();) {
    const CodePoint point = decode_utf8(text.substr(i));
    report.n_zwnj += point.value == kZwnj ? 1 : 0;
    report.n_arabic_yeh += point.value == kArabicYeh ? 1 : 0;
    report.n_arabic_kaf += point.value == kArabicKaf ? 1 : 0;
    i += point.length;
  }
}

void count_messages(const Row& row, DataReport& report) {
  ++report.n_rows;
  report.n_texts += row.is_text() ? 1 : 0;
  int64_t n_assistant = 0;
  for (const ChatMessage& message : row.messages) {
    report.n_with_system += message.role == "system" ? 1 : 0;
    report.n_user_messages += message.role == "user" ? 1 : 0;
    n_assistant += message.role == "assistant" ? 1 : 0;
  }
  report.n_assistant_messages += n_assistant;
  report.n_multi_turn += n_assistant > 1 ? 1 : 0;
}

void count_tokens(const Sample& sample, int64_t max_seq_length, DataReport& report) {
  const auto n = static_cast<int64_t>(sample.ids.size());
  const int64_t n_kept = std::min(n, max_seq_length);
  report.lengths.push_back(n);
  report.n_tokens += n;
  report.n_scored_tokens += sample.n_scored();
  report.n_cut_rows += n > n_kept ? 1 : 0;
  report.n_cut_tokens += n - n_kept;
  const bool is_scored =
      std::find(sample.scored.begin(), sample.scored.begin() + n_kept, 1) != sample.scored.begin() + n_kept;
  report.n_unscored_rows += is_scored ? 0 : 1;
}

double percent(int64_t part, int64_t whole) {
  return whole == 0 ? 0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

int64_t DataReport::length_quantile(double q) const {
  if (lengths.empty()) return 0;
  const auto n = static_cast<double>(lengths.size());
  const auto rank = static_cast<int64_t>(std::ceil(q * n)) - 1;
  return lengths[std::clamp<int64_t>(rank, 0, static_cast<int64_t>(lengths.size()) - 1)];
}

DataReport inspect(const Tokenizer& tokenizer, const std::vector<Row>& rows, const EncodeOptions& options,
                   std::vector<std::string> skipped) {
  DataReport report;
  report.skipped = std::move(skipped);
  std::unordered_set<std::string> seen;
  for (const Row& row : rows) {
    const std::string text = text_of_row(row);
    count_messages(row, report);
    count_characters(text, report);
    count_tokens(encode_whole(tokenizer, row, options.loss_on), options.max_seq_length, report);
    report.n_duplicates += seen.insert(sha256_hex(text)).second ? 0 : 1;
  }
  std::sort(report.lengths.begin(), report.lengths.end());
  return report;
}

std::string to_text(const DataReport& r) {
  const double mean = r.n_rows == 0 ? 0 : static_cast<double>(r.n_tokens) / static_cast<double>(r.n_rows);
  std::string out;
  const auto line = [&](const char* name, const std::string& value) { out += fmt::format("{:<18}{}\n", name, value); };
  line("rows", fmt::format("{} ({} conversations, {} raw texts)", r.n_rows, r.n_rows - r.n_texts, r.n_texts));
  line("messages", fmt::format("{} user, {} assistant; {} rows with system text, {} with several turns",
                               r.n_user_messages, r.n_assistant_messages, r.n_with_system, r.n_multi_turn));
  line("tokens", fmt::format("{}; a row has {:.1f} on average", r.n_tokens, mean));
  line("tokens of a row",
       fmt::format("min {}, median {}, 90 % {}, 99 % {}, max {}", r.length_quantile(0), r.length_quantile(0.5),
                   r.length_quantile(0.9), r.length_quantile(0.99), r.length_quantile(1)));
  line("scored tokens", fmt::format("{} ({:.1f} %)", r.n_scored_tokens, percent(r.n_scored_tokens, r.n_tokens)));
  line("cut rows", fmt::format("{} ({} tokens lost)", r.n_cut_rows, r.n_cut_tokens));
  line("unscored rows", fmt::format("{} (nothing to learn from)", r.n_unscored_rows));
  line("duplicate rows", fmt::format("{}", r.n_duplicates));
  line("characters", fmt::format("{} ZWNJ, {} Arabic ي, {} Arabic ك", r.n_zwnj, r.n_arabic_yeh, r.n_arabic_kaf));
  line("skipped rows", fmt::format("{}", r.skipped.size()));
  for (size_t i = 0; i < std::min(r.skipped.size(), kMaxShownSkips); ++i) out += "  " + r.skipped[i] + "\n";
  if (r.skipped.size() > kMaxShownSkips) out += fmt::format("  and {} more\n", r.skipped.size() - kMaxShownSkips);
  return out;
}

Value to_value(const DataReport& r) {
  Value skipped = Value::array();
  for (const std::string& reason : r.skipped) skipped.push_back(reason);
  return Value::object({{"rows", r.n_rows},
                        {"raw_texts", r.n_texts},
                        {"rows_with_system", r.n_with_system},
                        {"multi_turn_rows", r.n_multi_turn},
                        {"user_messages", r.n_user_messages},
                        {"assistant_messages", r.n_assistant_messages},
                        {"tokens", r.n_tokens},
                        {"scored_tokens", r.n_scored_tokens},
                        {"length_min", r.length_quantile(0)},
                        {"length_median", r.length_quantile(0.5)},
                        {"length_p90", r.length_quantile(0.9)},
                        {"length_p99", r.length_quantile(0.99)},
                        {"length_max", r.length_quantile(1)},
                        {"cut_rows", r.n_cut_rows},
                        {"cut_tokens", r.n_cut_tokens},
                        {"unscored_rows", r.n_unscored_rows},
                        {"duplicate_rows", r.n_duplicates},
                        {"zwnj", r.n_zwnj},
                        {"arabic_yeh", r.n_arabic_yeh},
                        {"arabic_kaf", r.n_arabic_kaf},
                        {"skipped", skipped}});
}

}  // namespace saaz
