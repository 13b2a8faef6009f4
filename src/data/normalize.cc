// Each rule is a pass over the characters that may change; what is protected only serves as a neighbour. Passes run
// until nothing changes, so that one rule's result never waits for the next call.
#include "data/normalize.h"

#include <algorithm>
#include <cassert>
#include <initializer_list>
#include <vector>

#include "base/check.h"
#include "base/unicode.h"
#include "data/protected_spans.h"
#include "data/script.h"

namespace saaz {
namespace {

struct Character {
  uint32_t value = 0;
  bool is_protected = false;
  bool is(uint32_t c) const { return !is_protected && value == c; }
};
using Characters = std::vector<Character>;

Characters characters_of(std::string_view text, const std::vector<ProtectedSpan>& spans) {
  Characters out;
  auto span = spans.begin();
  for (size_t i = 0; i < text.size();) {
    while (span != spans.end() && span->end <= i) ++span;
    const CodePoint c = decode_utf8(text.substr(i));
    out.push_back({c.value, span != spans.end() && i >= span->begin});
    i += static_cast<size_t>(c.length);
  }
  return out;
}

std::string text_of(const Characters& characters) {
  std::string out;
  for (const Character& c : characters) append_utf8(out, c.value);
  return out;
}

/// Removes the open characters that `is_noise(index)` names; returns how many.
template <class IsNoise>
int64_t remove_if(Characters& characters, IsNoise&& is_noise) {
  Characters kept;
  for (size_t i = 0; i < characters.size(); ++i)
    if (characters[i].is_protected || !is_noise(i)) kept.push_back(characters[i]);
  const auto n = static_cast<int64_t>(characters.size() - kept.size());
  characters = std::move(kept);
  return n;
}

/// Replaces open characters by what `replacement(c)` gives; returns how many changed.
template <class Replacement>
int64_t replace(Characters& characters, Replacement&& replacement) {
  int64_t n = 0;
  for (Character& c : characters) {
    if (c.is_protected) continue;
    const uint32_t value = replacement(c.value);
    n += value != c.value ? 1 : 0;
    c.value = value;
  }
  return n;
}

int64_t unify_line_ends(Characters& text) {
  return remove_if(text,
                   [&](size_t i) { return text[i].value == '\r' && i + 1 < text.size() && text[i + 1].is('\n'); });
}

/// Blanks before a line end or the end of the text, from the back.
int64_t remove_trailing_blanks(Characters& text) {
  std::vector<bool> is_trailing(text.size());
  bool is_at_end = true;
  for (size_t i = text.size(); i-- > 0;) {
    const bool is_blank = text[i].is(' ') || text[i].is('\t');
    is_trailing[i] = is_blank && is_at_end;
    is_at_end = text[i].value == '\n' || is_trailing[i];
  }
  return remove_if(text, [&](size_t i) { return is_trailing[i]; });
}

int64_t replace_presentation_forms(Characters& text) {
  Characters out;
  int64_t n = 0;
  for (const Character& c : text) {
    const std::u32string_view letters = c.is_protected ? std::u32string_view() : letters_of_presentation_form(c.value);
    n += letters.empty() ? 0 : 1;
    if (letters.empty()) out.push_back(c);
    for (const char32_t letter : letters) out.push_back({static_cast<uint32_t>(letter)});
  }
  text = std::move(out);
  return n;
}

/// The letter that a base and the mark after it make, as in NFC; 0 when they make none. Yeh in any of its forms takes
/// its hamza along, so that the yeh rule cannot part them.
uint32_t composed(uint32_t base, uint32_t mark) {
  constexpr uint32_t kMadda = 0x0653, kHamzaBelow = 0x0655;
  if (base == U'ا') return mark == kMadda ? U'آ' : mark == kHamzaAbove ? U'أ' : mark == kHamzaBelow ? U'إ' : 0;
  if (mark != kHamzaAbove) return 0;
  if (base == U'و') return U'ؤ';
  return base == kArabicYeh || base == kPersianYeh || base == kAlefMaksura ? U'ئ' : 0;
}

int64_t compose(Characters& text) {
  std::vector<bool> is_used(text.size());
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    if (text[i].is_protected || text[i + 1].is_protected || is_used[i]) continue;
    const uint32_t letter = composed(text[i].value, text[i + 1].value);
    if (letter == 0) continue;
    text[i].value = letter;
    is_used[i + 1] = true;
  }
  return remove_if(text, [&](size_t i) { return is_used[i]; });
}

int64_t unify_heh_yeh(Characters& text, HehYeh form) {
  if (form == HehYeh::keep) return 0;
  Characters out;
  int64_t n = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool is_pair = text[i].is(kHeh) && i + 1 < text.size() && text[i + 1].is(kHamzaAbove);
    if (!text[i].is(kHehWithYeh) && !(is_pair && form == HehYeh::ye)) {
      out.push_back(text[i]);
      continue;
    }
    ++n;
    i += is_pair ? 1 : 0;
    out.push_back({kHeh});
    if (form == HehYeh::ye) out.push_back({kZwnj});
    out.push_back({form == HehYeh::ye ? kPersianYeh : kHamzaAbove});
  }
  text = std::move(out);
  return n;
}

uint32_t unified_digit(uint32_t c, Digits form) {
  if (form == Digits::fa && is_arabic_digit(c)) return c - 0x0660 + 0x06F0;
  if (form == Digits::en && is_arabic_digit(c)) return c - 0x0660 + '0';
  if (form == Digits::en && is_persian_digit(c)) return c - 0x06F0 + '0';
  return c;
}

/// A half space is kept once, between two characters of words; protected text counts as a word, so that `list`‌ها
/// stays.
int64_t tidy_half_spaces(Characters& text) {
  const auto is_word = [](const Character& c) {
    return c.is_protected ? !is_space(c.value) : is_word_character(c.value);
  };
  return remove_if(text, [&](size_t i) {
    if (text[i].value != kZwnj) return false;
    const bool is_between = i > 0 && i + 1 < text.size() && is_word(text[i - 1]);
    if (!is_between) return true;
    size_t next = i + 1;
    while (next < text.size() && text[next].is(kZwnj)) ++next;
    return next == text.size() || !is_word(text[next]);
  });
}

/// The word from `begin` on, of open Arabic letters and half spaces.
std::u32string word_from(const Characters& text, size_t begin) {
  std::u32string out;
  for (size_t i = begin; i < text.size() && !text[i].is_protected; ++i) {
    if (!is_word_character(text[i].value) && text[i].value != kZwnj) break;
    out += static_cast<char32_t>(text[i].value);
  }
  return out;
}

bool is_one_of(const std::u32string& word, std::initializer_list<std::u32string_view> words) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

/// «می رود» and «کتاب ها» get their half space. After a letter that does not join no half space would be seen, and the
/// field writes «کارها» there, so those are left to people.
int64_t join_affixes(Characters& text) {
  int64_t n = 0;
  size_t word_begin = 0;
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    const bool is_in_word = text[i].value == kZwnj || is_word_character(text[i].value);
    if (!text[i].is(' ')) {
      if (!is_in_word) word_begin = i + 1;
      continue;
    }
    const std::u32string before = word_from(text, word_begin).substr(0, i - word_begin);
    const std::u32string after = word_from(text, i + 1);
    const bool is_prefix = is_one_of(before, {U"می", U"نمی"}) && after.size() > 1 && is_arabic_letter(after[0]);
    const bool is_suffix = !before.empty() && is_arabic_letter(before.back()) && !is_non_joining(before.back()) &&
                           is_one_of(after, {U"ها", U"های", U"هایی", U"هایم", U"هایت", U"هایش", U"هایمان", U"هایتان",
                                             U"هایشان", U"تر", U"ترین"});
    if (i > word_begin && before.size() == i - word_begin && (is_prefix || is_suffix)) {
      text[i].value = kZwnj;
      ++n;
    } else {
      word_begin = i + 1;
    }
  }
  return n;
}

void apply_rules(Characters& text, const NormalizeOptions& options, NormalizeCounts& counts) {
  counts[Rule::line_ends] += unify_line_ends(text);
  counts[Rule::invisible_marks] += remove_if(text, [&](size_t i) { return is_invisible_mark(text[i].value); });
  counts[Rule::trailing_blanks] += remove_trailing_blanks(text);
  counts[Rule::presentation_forms] += replace_presentation_forms(text);
  counts[Rule::composition] += compose(text);
  counts[Rule::yeh] += replace(text, [](uint32_t c) { return c == kArabicYeh || c == kAlefMaksura ? kPersianYeh : c; });
  counts[Rule::kaf] += replace(text, [](uint32_t c) { return c == kArabicKaf ? kPersianKaf : c; });
  counts[Rule::tatweel] += remove_if(text, [&](size_t i) { return text[i].value == kTatweel; });
  counts[Rule::heh_yeh] += unify_heh_yeh(text, options.heh_yeh);
  counts[Rule::digits] += replace(text, [&](uint32_t c) { return unified_digit(c, options.digits); });
  if (options.strip_harakat)
    counts[Rule::harakat] += remove_if(text, [&](size_t i) { return is_haraka(text[i].value); });
  counts[Rule::half_spaces] += tidy_half_spaces(text);
  if (options.fix_affixes) counts[Rule::affixes] += join_affixes(text);
}

}  // namespace

const char* name_of(Rule rule) {
  static constexpr std::array<const char*, kNumRules> kNames = {
      "line_ends", "trailing_blanks", "invisible_marks", "presentation_forms", "composition", "yeh", "kaf", "tatweel",
      "heh_yeh",   "digits",          "harakat",         "half_spaces",        "affixes"};
  return kNames[static_cast<size_t>(rule)];
}

NormalizeOptions options_of(NormalizeProfile profile) {
  assert(profile != NormalizeProfile::none);
  const bool is_strict = profile == NormalizeProfile::strict;
  return {.strip_harakat = is_strict, .fix_affixes = is_strict};
}

std::string NormalizeCounts::text() const {
  std::string out;
  for (size_t i = 0; i < kNumRules; ++i)
    if (changes[i] > 0)
      out += fmt::format("{}{} {}", out.empty() ? "" : ", ", name_of(static_cast<Rule>(i)), changes[i]);
  return out;
}

std::string normalize_text(std::string_view text, const NormalizeOptions& options, NormalizeCounts& counts) {
  std::string current(text);
  // Every pass makes the text shorter or moves characters towards forms that no rule leaves, so this ends.
  while (true) {
    const std::vector<ProtectedSpan> spans = find_protected_spans(current);
    Characters characters = characters_of(current, spans);
    apply_rules(characters, options, counts);
    std::string next = text_of(characters);
    if (next == current) {
      counts.n_quoted_arabic += std::count_if(
          spans.begin(), spans.end(), [](const auto& span) { return span.kind == ProtectedSpan::Kind::arabic; });
      return current;
    }
    current = std::move(next);
  }
}

}  // namespace saaz
