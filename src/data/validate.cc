#include "data/validate.h"

#include <algorithm>
#include <array>
#include <set>
#include <unordered_map>

#include "base/check.h"
#include "base/unicode.h"
#include "data/near_duplicates.h"
#include "data/script.h"

namespace saaz {
namespace {

std::string joined(const ChatMessage& message) {
  std::string out;
  for (const std::string& part : message.parts) out += part + "\n";
  return out;
}

/// What a row says, without its system message: many rows share that one.
std::string spoken_text(const Row& row) {
  std::string out = row.text;
  for (const ChatMessage& message : row.messages)
    if (message.role != "system") out += joined(message);
  return out;
}

/// The first question; empty for raw text.
std::string prompt_of(const Row& row) {
  for (const ChatMessage& message : row.messages)
    if (message.role == "user") return comparable_text(joined(message));
  return {};
}

template <class Visit>
void for_each_character(std::string_view text, Visit&& visit) {
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = decode_utf8(text.substr(i));
    visit(c.value);
    i += static_cast<size_t>(c.length);
  }
}

void add_characters(std::string_view text, ScriptProfile& out) {
  for_each_character(text, [&](uint32_t c) {
    const bool is_digit = is_persian_digit(c) || is_arabic_digit(c) || is_ascii_digit(c);
    const bool is_letter = is_word_character(c) && !is_digit;
    out.arabic_letters += is_arabic_letter(c) ? 1 : 0;
    out.latin_letters += is_latin_letter(c) ? 1 : 0;
    out.other_letters += is_letter && !is_arabic_script(c) && !is_latin_letter(c) ? 1 : 0;
    out.persian_digits += is_persian_digit(c) ? 1 : 0;
    out.arabic_digits += is_arabic_digit(c) ? 1 : 0;
    out.latin_digits += is_ascii_digit(c) ? 1 : 0;
    out.zwnj += c == kZwnj ? 1 : 0;
    out.arabic_yeh += c == kArabicYeh || c == kAlefMaksura ? 1 : 0;
    out.arabic_kaf += c == kArabicKaf ? 1 : 0;
    out.tatweel += c == kTatweel ? 1 : 0;
    out.presentation_forms += letters_of_presentation_form(c).empty() ? 0 : 1;
    out.invisible_marks += is_invisible_mark(c) ? 1 : 0;
  });
}

int64_t count_characters(std::string_view text) {
  int64_t n = 0;
  for_each_character(text, [&](uint32_t) { ++n; });
  return n;
}

bool has_word(std::string_view text) {
  bool found = false;
  for_each_character(text, [&](uint32_t c) { found |= is_word_character(c); });
  return found;
}

void find_empty_targets(const Row& row, std::vector<std::string>& out) {
  for (size_t i = 0; i < row.messages.size(); ++i)
    if (row.messages[i].role == "assistant" && !has_word(joined(row.messages[i])))
      out.push_back(fmt::format("{}: message {}", row.place(), i + 1));
}

/// What Windows-1252 shows for a byte 0x80 to 0xBF, the second byte of Arabic letters in UTF-8.
bool is_continuation_shown(uint32_t c) {
  constexpr std::u32string_view kWindows1252 = U"€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ";
  return is_within(c, 0x80, 0xBF) || kWindows1252.find(c) != std::u32string_view::npos;
}

void find_duplicates(const std::vector<Row>& rows, const std::vector<NearDuplicates::Sketch>& sketches,
                     Validation& out) {
  std::unordered_map<std::string, size_t> seen;
  NearDuplicates index;
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto [first, is_new] = seen.emplace(sha256_hex(text_of_row(rows[i])), i);
    if (!is_new) {
      out.duplicates.push_back({rows[i].place(), rows[first->second].place(), 1});
      continue;
    }
    if (const auto match = index.find(sketches[i])) {
      out.near_duplicates.push_back({rows[i].place(), rows[match->key].place(), match->similarity});
    } else {
      index.add(sketches[i], i);  // near duplicates are not kept: a later copy is one of the first text, too
    }
  }
}

void find_overlaps(const std::vector<Row>& rows, const std::vector<NearDuplicates::Sketch>& sketches,
                   const std::vector<Row>& against, Validation& out) {
  NearDuplicates index;
  std::unordered_map<std::string, size_t> prompts;
  for (size_t i = 0; i < against.size(); ++i) {
    index.add(NearDuplicates::sketch_of(comparable_text(spoken_text(against[i]))), i);
    if (std::string prompt = prompt_of(against[i]); !prompt.empty()) prompts.emplace(std::move(prompt), i);
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    if (const auto match = index.find(sketches[i])) {
      out.overlaps.push_back({rows[i].place(), against[match->key].place(), match->similarity});
    } else if (const auto prompt = prompts.find(prompt_of(rows[i])); prompt != prompts.end()) {
      out.shared_prompts.push_back({rows[i].place(), against[prompt->second].place(), 1});
    }
  }
}

/// The value of `license:` in the YAML header of a dataset's README; empty when there is none.
std::string license_of_readme(const fs::path& file) {
  std::error_code ignored;
  if (!fs::is_regular_file(file, ignored)) return {};
  std::string text = read_file(file);
  std::string_view rest = text;
  const auto next_line = [&] {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    return strip_like_python(line);
  };
  if (next_line() != "---") return {};
  while (!rest.empty()) {
    const std::string_view line = next_line();
    if (line == "---") return {};
    if (line.starts_with("license:")) return std::string(strip_like_python(line.substr(8)));
  }
  return {};
}

}  // namespace

bool is_mojibake(std::string_view text) {
  int n_pairs = 0, n_high = 0;
  bool found = false;
  uint32_t before = 0;
  for_each_character(text, [&](uint32_t c) {
    const bool is_lead = is_within(before, 0xD8, 0xDB) || before == 0xE2;
    n_pairs += is_lead && is_continuation_shown(c) ? 1 : 0;
    n_high = is_within(c, 0xC0, 0xFF) ? n_high + 1 : 0;
    found |= c == kReplacement || n_pairs >= 2 || n_high >= 4;
    before = c;
  });
  return found;
}

Validation validate(const std::vector<Row>& rows, const std::vector<Row>& against) {
  Validation out;
  out.n_rows = static_cast<int64_t>(rows.size());
  out.was_compared = !against.empty();
  std::vector<NearDuplicates::Sketch> sketches;
  for (const Row& row : rows) {
    const std::string text = text_of_row(row);
    std::string spoken = spoken_text(row);
    add_characters(spoken, out.script);
    out.lengths.push_back(count_characters(spoken));
    if (is_mojibake(text)) out.mojibake.push_back(row.place());
    find_empty_targets(row, out.empty_targets);
    sketches.push_back(NearDuplicates::sketch_of(comparable_text(spoken)));
  }
  std::sort(out.lengths.begin(), out.lengths.end());
  find_duplicates(rows, sketches, out);
  find_overlaps(rows, sketches, against, out);
  return out;
}

std::string find_license(const std::vector<Row>& rows, const fs::path& file) {
  std::set<std::string> named;
  for (const Row& row : rows)
    if (!row.license.empty()) named.insert(row.license);
  if (!named.empty()) {
    std::string out;
    for (const std::string& name : named) out += (out.empty() ? "" : ", ") + name;
    return out + " (in the rows)";
  }
  fs::path folder = fs::absolute(file).parent_path();
  if (folder.filename() == "data" && !fs::exists(folder / "README.md")) folder = folder.parent_path();
  if (std::string license = license_of_readme(folder / "README.md"); !license.empty())
    return license + " (README.md beside the data)";
  constexpr std::array kNames = {"LICENSE",    "LICENSE.md",  "LICENSE.txt", "LICENCE",
                                 "LICENCE.md", "LICENCE.txt", "COPYING"};
  std::error_code ignored;
  for (const char* name : kNames)
    if (fs::is_regular_file(folder / name, ignored)) return std::string("see ") + name + " beside the data";
  return {};
}

}  // namespace saaz
