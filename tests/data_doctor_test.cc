// The data doctor: duplicates found and no others, mojibake, overlap, licence; and the preview page, which no row can
// break out of.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "base/error.h"
#include "base/system.h"
#include "base/unicode.h"
#include "data/near_duplicates.h"
#include "data/preview.h"
#include "data/validate.h"
#include "tokenizer_fixture.h"

namespace saaz {
namespace {

std::vector<Row> rows_of(const std::string& text, const std::string& name = "t.jsonl") {
  BadRows none(0);
  return parse_rows(text, name, DataFormat::automatic, none);
}

std::string text_row(const std::string& text) { return to_json(Value::object({{"text", text}})) + "\n"; }
std::string chat_row(const std::string& user, const std::string& assistant) {
  return to_json(Value::object({{"prompt", user}, {"completion", assistant}})) + "\n";
}

/// Words from a small list: texts of `n` words that mostly differ.
std::string random_words(std::mt19937& generator, size_t n) {
  std::string out;
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 2 + generator() % 6; j > 0; --j) append_utf8(out, 0x0627 + generator() % 20);
    out += ' ';
  }
  return out;
}

/// The definition, said plainly: common over all sets of five characters.
double jaccard(const std::string& a, const std::string& b) {
  const auto runs = [](const std::string& text) {
    std::vector<std::string> points;
    for (size_t i = 0; i < text.size();) {
      const CodePoint c = decode_utf8(std::string_view(text).substr(i));
      points.push_back(text.substr(i, static_cast<size_t>(c.length)));
      i += static_cast<size_t>(c.length);
    }
    std::set<std::string> out;
    for (size_t i = 0; i + 5 <= points.size(); ++i)
      out.insert(points[i] + points[i + 1] + points[i + 2] + points[i + 3] + points[i + 4]);
    return out;
  };
  const std::set<std::string> x = runs(a), y = runs(b);
  std::vector<std::string> common;
  std::set_intersection(x.begin(), x.end(), y.begin(), y.end(), std::back_inserter(common));
  return static_cast<double>(common.size()) / static_cast<double>(x.size() + y.size() - common.size());
}

TEST(NearDuplicates, AgreeWithTheDefinition) {
  std::mt19937 generator(3407);
  int n_near = 0, n_missed = 0;
  for (int i = 0; i < 400; ++i) {
    const std::string text = random_words(generator, 60);
    std::string changed;  // every word is replaced with a chance that puts pairs on both sides of the threshold
    for (size_t at = 0; at < text.size();) {
      const size_t end = text.find(' ', at) + 1;
      changed += generator() % 16 == 0 ? random_words(generator, 1) : text.substr(at, end - at);
      at = end;
    }
    const std::string a = comparable_text(text), b = comparable_text(changed);
    const double expected = jaccard(a, b);
    NearDuplicates index;
    index.add(NearDuplicates::sketch_of(a), 7);
    const auto match = index.find(NearDuplicates::sketch_of(b));
    if (expected < kNearDuplicate) {
      EXPECT_FALSE(match) << expected;
      continue;
    }
    ++n_near;
    n_missed += match ? 0 : 1;
    if (match) {
      EXPECT_EQ(match->key, 7u);
      EXPECT_DOUBLE_EQ(match->similarity, expected);
    }
  }
  EXPECT_GT(n_near, 50);
  EXPECT_LT(n_near, 350);
  EXPECT_EQ(n_missed, 0);
}

TEST(NearDuplicates, ComparableTextIsBlindToSpellingAndMarks) {
  EXPECT_EQ(comparable_text("كتاب‌هاي ١٢ «PDF»!"), comparable_text("کتابهای ۱۲، pdf"));
  EXPECT_EQ(comparable_text(" ... "), "");
}

TEST(Validate, FindsWhatIsThere) {
  std::mt19937 generator(1);
  const std::string one = random_words(generator, 80), two = random_words(generator, 80);
  const std::string text = chat_row("سلام", one) + chat_row("سلام", one) + chat_row("سلام", one + "و بس") +
                           chat_row("درود", two) + chat_row("چه خبر؟", "…") + chat_row("متن", "Ø³Ù„Ø§Ù… Ø¯ÙˆØ³Øª") +
                           chat_row("كي", "ﻻ\u200f ١ ۲ 3 ـ a é");
  const Validation v = validate(rows_of(text), rows_of(chat_row("درود", two) + chat_row("چه خبر؟", "هیچ")));
  EXPECT_EQ(v.n_rows, 7);
  ASSERT_EQ(v.duplicates.size(), 1u);
  EXPECT_EQ(v.duplicates[0].row, "t.jsonl: row 2 (line 2)");
  EXPECT_EQ(v.duplicates[0].other, "t.jsonl: row 1 (line 1)");
  ASSERT_EQ(v.near_duplicates.size(), 1u);
  EXPECT_EQ(v.near_duplicates[0].row, "t.jsonl: row 3 (line 3)");
  ASSERT_EQ(v.overlaps.size(), 1u);
  EXPECT_EQ(v.overlaps[0].row, "t.jsonl: row 4 (line 4)");
  ASSERT_EQ(v.shared_prompts.size(), 1u);
  EXPECT_EQ(v.shared_prompts[0].row, "t.jsonl: row 5 (line 5)");
  EXPECT_EQ(v.empty_targets, std::vector<std::string>{"t.jsonl: row 5 (line 5): message 2"});
  EXPECT_EQ(v.mojibake, std::vector<std::string>{"t.jsonl: row 6 (line 6)"});
  EXPECT_EQ(v.script.arabic_kaf, 1);
  EXPECT_GE(v.script.arabic_yeh, 1);
  EXPECT_EQ(v.script.presentation_forms, 1);
  EXPECT_EQ(v.script.invisible_marks, 1);
  EXPECT_EQ(v.script.arabic_digits, 1);
  EXPECT_EQ(v.script.persian_digits, 1);
  EXPECT_EQ(v.script.latin_digits, 1);
  EXPECT_EQ(v.script.tatweel, 1);
  EXPECT_NE(to_text(v).find("ask what the evaluation file asks"), std::string::npos);
  EXPECT_EQ(to_value(v).find("overlaps")->items().size(), 1u);
}

TEST(Validate, TheSampleDataIsClean) {
  const fs::path folder = fs::path(SAAZ_SOURCE_DIR) / "data" / "sample-fa";
  BadRows none(0);
  const std::vector<Row> rows = load_rows(folder / "train.jsonl", DataFormat::automatic, none);
  const Validation v = validate(rows, load_rows(folder / "valid.jsonl", DataFormat::automatic, none));
  EXPECT_TRUE(v.duplicates.empty() && v.near_duplicates.empty() && v.overlaps.empty() && v.mojibake.empty() &&
              v.empty_targets.empty());
  EXPECT_EQ(find_license(rows, folder / "train.jsonl"), "cc-by-4.0 (README.md beside the data)");
}

TEST(Validate, MojibakeIsToldFromForeignWords) {
  for (const char* text : {"Ø³Ù„Ø§Ù…", "Ú©ØªØ§Ø¨ â€Œ", "ÓáÇã Ïæ", "خوب\uFFFD"}) EXPECT_TRUE(is_mojibake(text)) << text;
  for (const char* text :
       {"سلام دوست من", "café déjà vu, garçon", "Ærø, Øresund og Århus", "naïve Ü ß", "«خوب» – «بد»…"})
    EXPECT_FALSE(is_mojibake(text)) << text;
}

TEST(Validate, LicenseComesFromRowsReadmeOrFile) {
  const fs::path folder = fs::path(SAAZ_BINARY_DIR) / "tests" / "license";
  fs::remove_all(folder);
  fs::create_directories(folder / "data");
  const fs::path file = folder / "data" / "train.jsonl";
  const std::vector<Row> rows = rows_of(text_row("a"));
  EXPECT_EQ(find_license(rows, file), "");
  write_file_atomically(folder / "LICENSE", "x");
  EXPECT_EQ(find_license(rows, file), "see LICENSE beside the data");
  write_file_atomically(folder / "README.md", "---\nlanguage: fa\nlicense: cc0-1.0\n---\n");
  EXPECT_EQ(find_license(rows, file), "cc0-1.0 (README.md beside the data)");
  const std::string licensed = to_json(Value::object({{"text", "a"}, {"license", "mit"}}));
  EXPECT_EQ(find_license(rows_of(licensed), file), "mit (in the rows)");
}

const Tokenizer& small_tokenizer() {
  static const Tokenizer tokenizer(small_vocabulary());
  return tokenizer;
}

std::string page_of(const std::string& user, const std::string& assistant, Language language, bool with_losses) {
  const std::vector<Row> rows = rows_of(chat_row(user, assistant), "<t>.jsonl");
  PreviewRow row{rows[0].file, 7, 0, encode_row(small_tokenizer(), rows[0], {4096, LossOn::assistant}), {}};
  if (with_losses) row.losses.assign(row.sample.ids.size(), 2.5f);
  return preview_page(small_tokenizer(), std::span(&row, 1), "<model>", language);
}

size_t count(std::string_view text, std::string_view part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

/// All tags of a page, without their attributes.
std::set<std::string> tags_of(const std::string& page) {
  std::set<std::string> out;
  for (size_t at = page.find('<'); at != std::string::npos; at = page.find('<', at + 1))
    out.insert(page.substr(at, page.find_first_of(" >", at) - at));
  return out;
}

TEST(PreviewPage, AHostileRowAddsNothingToThePage) {
  const std::string attack = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'--></style>&lt;\u202e\x01`";
  for (const Language language : {Language::en, Language::fa})
    for (const bool with_losses : {false, true}) {
      const std::string plain = page_of("abc", "abc", language, with_losses);
      const std::string page = page_of(attack, attack, language, with_losses);
      EXPECT_EQ(tags_of(page), tags_of(plain));
      EXPECT_EQ(count(page, "</style>"), 1u);
      EXPECT_EQ(count(page, "\u202e") + count(page, "\x01"), 0u);
      // Every quote closes: each token keeps its two attributes, and only the legend has spans with one.
      const auto n_legend = [](const std::string& p) { return count(p, "<span ") - count(p, "\" data-i=\""); };
      EXPECT_EQ(n_legend(page), n_legend(plain));
    }
}

TEST(PreviewPage, ColoursTokensByTrainingAndLoss) {
  const std::string plain = page_of("a", "abc", Language::en, false);
  EXPECT_NE(plain.find(">abc</span>"), std::string::npos);
  EXPECT_EQ(count(plain, "<span class=\"h"), 0u);
  EXPECT_NE(plain.find("3 trained on"), std::string::npos) << plain;
  const std::string heated = page_of("a", "abc", Language::en, true);
  EXPECT_EQ(count(heated, "<span class=\"h4"), 1u + 3u);  // the legend's, and the trained tokens
  EXPECT_NE(heated.find("loss 2.50 · probability 8.2 %"), std::string::npos);
  EXPECT_NE(page_of("a", "abc", Language::fa, true).find("زیان ۲٫۵۰"), std::string::npos);
}

TEST(PreviewPage, LoadsAndRunsNothing) {
  const std::string page = page_of("a", "abc", Language::fa, true);
  EXPECT_NE(page.find("content=\"default-src 'none'; style-src 'sha256-"), std::string::npos);
  for (const char* word : {"http:", "https:", "url(", "<script", "src=", "href=", "@import", "style=\""})
    EXPECT_EQ(page.find(word), std::string::npos) << word;
}

TEST(PreviewPage, EveryLineHasItsOwnDirection) {
  const std::string page = page_of("سس a\na سس", "```\nسس\n```\nسس", Language::en, false);
  EXPECT_NE(page.find("<p dir=\"rtl\"><span class=\"m"), std::string::npos);
  EXPECT_NE(page.find("<p dir=\"ltr\"><span class=\"m"), std::string::npos);
  EXPECT_EQ(count(page, "<p dir=\"ltr\" class=\"code\">"), 3u) << "the two fences and what is between";
}

}  // namespace
}  // namespace saaz
