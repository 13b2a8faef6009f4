#include "data/text_health.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "base/unicode.h"
#include "data/normalize.h"
#include "data/protected_spans.h"
#include "data/script.h"

namespace saaz {
namespace {

constexpr size_t kRunWords = 4;

double rate(int64_t part, int64_t whole) {
  return whole == 0 ? std::numeric_limits<double>::quiet_NaN() : static_cast<double>(part) / static_cast<double>(whole);
}

/// Visits the characters of `text` that stand in no protected span.
template <class Visit>
void for_each_of_prose(std::string_view text, Visit&& visit) {
  const std::vector<ProtectedSpan> spans = find_protected_spans(text);
  auto span = spans.begin();
  for (size_t at = 0; at < text.size();) {
    if (span != spans.end() && at >= span->begin) {
      at = std::max(at + 1, span->end);
      ++span;
      continue;
    }
    const CodePoint c = decode_utf8(text.substr(at));
    visit(c.value);
    at += static_cast<size_t>(c.length);
  }
}

void count_letters(std::string_view text, TextHealth& out) {
  for_each_of_prose(text, [&](uint32_t c) {
    const bool is_foreign = is_foreign_letter(c);
    out.n_foreign_letters += is_foreign ? 1 : 0;
    out.n_letters += is_foreign || is_arabic_letter(c) || is_latin_letter(c) ? 1 : 0;
    out.n_half_spaces += c == kZwnj ? 1 : 0;
  });
}

/// Words of letters and digits; a half space belongs to its word.
std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  const auto end_word = [&] {
    if (!word.empty()) words.push_back(std::move(word));
    word.clear();
  };
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text.substr(at));
    if (is_word_character(c.value) || c.value == kZwnj) {
      append_utf8(word, c.value);
    } else {
      end_word();
    }
    at += static_cast<size_t>(c.length);
  }
  end_word();
  return words;
}

void count_runs(std::string_view text, TextHealth& out) {
  const std::vector<std::string> words = words_of(text);
  std::set<std::array<std::string_view, kRunWords>> seen;
  for (size_t i = 0; i + kRunWords <= words.size(); ++i) {
    std::array<std::string_view, kRunWords> run;
    std::copy_n(words.begin() + static_cast<int64_t>(i), kRunWords, run.begin());
    ++out.n_runs;
    out.n_repeated_runs += seen.insert(run).second ? 0 : 1;
  }
}

}  // namespace

void TextHealth::add(const TextHealth& other) {
  n_letters += other.n_letters;
  n_arabic_letters += other.n_arabic_letters;
  n_foreign_letters += other.n_foreign_letters;
  n_half_spaces += other.n_half_spaces;
  n_bad_half_spaces += other.n_bad_half_spaces;
  n_lost_half_spaces += other.n_lost_half_spaces;
  n_runs += other.n_runs;
  n_repeated_runs += other.n_repeated_runs;
}

double TextHealth::half_space_accuracy() const {
  return rate(n_half_spaces, n_half_spaces + n_bad_half_spaces + n_lost_half_spaces);
}
double TextHealth::arabic_letter_rate() const { return rate(n_arabic_letters, n_letters); }
double TextHealth::foreign_rate() const { return rate(n_foreign_letters, n_letters); }
double TextHealth::repetition() const { return rate(n_repeated_runs, n_runs); }

TextHealth measure_text(std::string_view text) {
  TextHealth out;
  count_letters(text, out);
  count_runs(text, out);
  NormalizeCounts changes;
  normalize_text(text, {.fix_affixes = true}, changes);
  out.n_arabic_letters = changes[Rule::yeh] + changes[Rule::kaf];
  out.n_bad_half_spaces = std::min(changes[Rule::half_spaces], out.n_half_spaces);
  out.n_half_spaces -= out.n_bad_half_spaces;
  out.n_lost_half_spaces = changes[Rule::affixes];
  return out;
}

Value to_value(const TextHealth& health) {
  const auto known = [](double value) { return std::isfinite(value) ? Value(value) : Value(); };
  return Value::object({{"n_letters", health.n_letters},
                        {"n_arabic_letters", health.n_arabic_letters},
                        {"n_foreign_letters", health.n_foreign_letters},
                        {"n_half_spaces", health.n_half_spaces},
                        {"n_bad_half_spaces", health.n_bad_half_spaces},
                        {"n_lost_half_spaces", health.n_lost_half_spaces},
                        {"half_space_accuracy", known(health.half_space_accuracy())},
                        {"arabic_letter_rate", known(health.arabic_letter_rate())},
                        {"foreign_rate", known(health.foreign_rate())},
                        {"repetition", known(health.repetition())}});
}

}  // namespace saaz
