// Normalising: each rule of the `chat` profile, what it leaves alone, that twice is once, and that the patch leads back
// to the original bytes.
#include <gtest/gtest.h>

#include <random>

#include "base/error.h"
#include "base/system.h"
#include "base/unicode.h"
#include "data/normalize_file.h"
#include "data/protected_spans.h"

namespace saaz {
namespace {

std::string normalized(std::string_view text, const NormalizeOptions& options = {}) {
  NormalizeCounts counts;
  return normalize_text(text, options, counts);
}

struct Case {
  const char* before;
  const char* after;
};

const Case kRules[] = {
    {"كتاب علي", "کتاب علی"},
    {"موسى", "موسی"},
    {"مسئول، رؤیا، أحمد، إبراهیم، آب، صلاة", "مسئول، رؤیا، أحمد، إبراهیم، آب، صلاة"},
    {"ا\u0653ب، ي\u0654، ی\u0654، و\u0654", "آب، ئ، ئ، ؤ"},
    {"\uFEE3\uFED4\uFEFB", "مفلا"},
    {"\uFB58\uFB8E", "پک"},
    {"کتـــاب", "کتاب"},
    {"خانۀ ما، خانهٔ ما", "خانهٔ ما، خانهٔ ما"},
    {"سال ١٤٠٣ و ۱۴۰۳ و 1403", "سال ۱۴۰۳ و ۱۴۰۳ و 1403"},
    {"مُحَمَّد", "مُحَمَّد"},
    {"می\u200c\u200cرود", "می‌رود"},
    {"می\u200c رود \u200cاو، \u200cکه\u200c.", "می رود او، که."},
    {"\u200fسلام\u202c\ufeff\u00ad", "سلام"},
    {"می\u200dرود", "می\u200dرود"},
    {"الف\r\nب  \n\nپ\t", "الف\nب\n\nپ"},
    {"الف\n\n\n\nب", "الف\n\n\n\nب"},
    {"PDF\u200cها و `list`\u200cها", "PDF\u200cها و `list`\u200cها"},
};

/// Nothing of these may change.
const char* const kUntouched[] = {
    "```python\nx = 'كتاب ي'  \nprint(\"١٢\")\r\n```",
    "~~~\nك\n",
    "از `ك` و ``ي ` ك`` استفاده کن",
    "https://fa.wikipedia.org/wiki/كتاب_علي را ببین",
    "رابطهٔ $ك_1 + ي$ و \\(ك\\) و $$\nك\n$$",
    "co\u00adoperate با name@example.org",
    "<start_of_turn>user",
    "فرمود: «إِنَّ ٱللَّهَ مَعَ ٱلصَّابِرِينَ»",
    "آیهٔ ﴿في قلوبهم مرض﴾ را خواند",
    "اصطلاح «البيت العتيق الكبير» عربی است",
};

TEST(Normalize, EveryRule) {
  for (const Case& c : kRules) EXPECT_EQ(normalized(c.before), c.after) << c.before;
}

TEST(Normalize, LeavesWhatIsNoPersianProse) {
  for (const char* text : kUntouched) EXPECT_EQ(normalized(text), text);
}

TEST(Normalize, QuotedPersianIsStillPersian) { EXPECT_EQ(normalized("گفت: «كتاب خوبي است»"), "گفت: «کتاب خوبی است»"); }

TEST(Normalize, Options) {
  EXPECT_EQ(normalized("۱۲ ٣ 4", {.digits = Digits::keep}), "۱۲ ٣ 4");
  EXPECT_EQ(normalized("۱۲ ٣ 4", {.digits = Digits::en}), "12 3 4");
  EXPECT_EQ(normalized("خانۀ ما، خانهٔ ما", {.heh_yeh = HehYeh::keep}), "خانۀ ما، خانهٔ ما");
  EXPECT_EQ(normalized("خانۀ ما، خانهٔ ما", {.heh_yeh = HehYeh::ye}), "خانه‌ی ما، خانه‌ی ما");
  EXPECT_EQ(normalized("مُحَمَّد هٔ", {.strip_harakat = true}), "محمد هٔ");
  const NormalizeOptions affixes{.fix_affixes = true};
  EXPECT_EQ(normalized("او می رود و نمی گوید", affixes), "او می‌رود و نمی‌گوید");
  EXPECT_EQ(normalized("کتاب های بزرگ تر\nمی خواهم", affixes), "کتاب‌های بزرگ‌تر\nمی‌خواهم");
  EXPECT_EQ(normalized("کار ها و ها و می", affixes), "کار ها و ها و می");
}

TEST(Normalize, CountsByRule) {
  NormalizeCounts counts;
  normalize_text("كيك ي ١٢ «إِنَّ»", {}, counts);
  EXPECT_EQ(counts[Rule::yeh], 2);
  EXPECT_EQ(counts[Rule::kaf], 2);
  EXPECT_EQ(counts[Rule::digits], 2);
  EXPECT_EQ(counts[Rule::tatweel], 0);
  EXPECT_EQ(counts.n_quoted_arabic, 1);
}

/// Texts of pieces that meet in every rule, in every order.
std::string random_text(std::mt19937& generator) {
  static const std::vector<std::string> kPieces = {
      "ك",      "ي",       "ى",       "ا",      "ه",      "و",   "ل",  "می",  "ها",     "ال",
      "\u0653", "\u0654",  "\u064E",  "ـ",      "ۀ",      "١",   "۲",  "3",   "\u200c", "\u200d",
      "\u200f", "\ufeff",  "\u00ad",  "\uFEFB", "\uFED9", " ",   "\t", "\n",  "\r\n",   "\r",
      "`",      "```",     "\n```\n", "$",      "\\(",    "\\)", "«",  "»",   "\"",     "﴿",
      "﴾",      "http://", "a",       "PDF",    "@",      ".",   "،",  "~~~", "😀",      "\xEF\xB7\xBA"};
  std::string out;
  for (size_t n = generator() % 24; n > 0; --n) out += kPieces[generator() % kPieces.size()];
  return out;
}

TEST(Normalize, TwiceIsOnce) {
  std::mt19937 generator(3407);
  for (int i = 0; i < 20000; ++i) {
    const std::string text = random_text(generator);
    NormalizeOptions options;
    options.digits = static_cast<Digits>(generator() % 3);
    options.heh_yeh = static_cast<HehYeh>(generator() % 3);
    options.strip_harakat = generator() % 2 == 0;
    options.fix_affixes = generator() % 2 == 0;
    const std::string once = normalized(text, options);
    ASSERT_EQ(normalized(once, options), once) << to_json(Value(text));
    ASSERT_EQ(find_invalid_utf8(once), std::string::npos);
  }
}

TEST(Normalize, SpansAreAscendingAndOnBorders) {
  std::mt19937 generator(1);
  for (int i = 0; i < 20000; ++i) {
    const std::string text = random_text(generator);
    size_t end = 0;
    for (const ProtectedSpan& span : find_protected_spans(text)) {
      ASSERT_TRUE(span.begin >= end && span.end > span.begin && span.end <= text.size()) << to_json(Value(text));
      end = span.end;
      ASSERT_EQ(find_invalid_utf8(text.substr(span.begin, span.end - span.begin)), std::string::npos);
    }
  }
}

TEST(Normalize, DirectionComesFromProse) {
  EXPECT_EQ(is_right_to_left("`print` را بزن"), true);
  EXPECT_EQ(is_right_to_left("- https://example.org سایت"), true);
  EXPECT_EQ(is_right_to_left("PDF چیست؟"), false);
  EXPECT_EQ(is_right_to_left("12 + 3"), std::nullopt);
}

const std::string kLines =
    "{\"id\": 1.50,  \"messages\": [{\"role\": \"ك\", \"content\": \"a\\u0643\\n\\\"ي\"}, {\"content\": [{\"type\": "
    "\"text\", \"text\": \"ك\"}], \"role\":\"assistant\"}], \"note\": \"ك\"}\r\n"
    "\n"
    "{\"text\": \"خوب\", \"text2\": \"ك\"}\n"
    "{\"instruction\": \"علي\", \"input\": null, \"output\": \"ي\"}";

TEST(NormalizeFile, ChangesTrainingTextAndNothingElse) {
  const NormalizedFile file = normalize_lines(kLines, "t.jsonl", {});
  EXPECT_EQ(file.lines,
            "{\"id\": 1.50,  \"messages\": [{\"role\": \"ك\", \"content\": \"aک\\n\\\"ی\"}, {\"content\": [{\"type\": "
            "\"text\", \"text\": \"ک\"}], \"role\":\"assistant\"}], \"note\": \"ك\"}\r\n"
            "\n"
            "{\"text\": \"خوب\", \"text2\": \"ك\"}\n"
            "{\"instruction\": \"علی\", \"input\": null, \"output\": \"ی\"}");
  EXPECT_EQ(file.n_rows, 3);
  EXPECT_EQ(file.n_changed_rows, 2);
  EXPECT_EQ(file.n_changed_texts, 4);
  EXPECT_EQ(to_value(file).find("rules")->find("kaf")->as_integer(), 2);
}

TEST(NormalizeFile, ThePatchLeadsBackByteForByte) {
  for (const std::string& lines : {kLines, "\xEF\xBB\xBF" + kLines + "\n\n", std::string("{\"text\":\"خوب\"}")}) {
    const NormalizedFile file = normalize_lines(lines, "t.jsonl", {});
    EXPECT_EQ(revert_lines(file.lines, file.patch, "p"), lines);
    EXPECT_EQ(normalize_lines(file.lines, "t.jsonl", {}).lines, file.lines);
  }
  const std::string sample = read_file(fs::path(SAAZ_SOURCE_DIR) / "data" / "sample-fa" / "train.jsonl");
  const NormalizedFile file = normalize_lines(sample, "train.jsonl", {.digits = Digits::en, .heh_yeh = HehYeh::ye});
  EXPECT_GT(file.n_changed_rows, 0);
  EXPECT_EQ(revert_lines(file.lines, file.patch, "p"), sample);
}

TEST(NormalizeFile, AWrongPatchIsRefused) {
  const NormalizedFile file = normalize_lines(kLines, "t.jsonl", {});
  const auto code_of = [](const std::string& lines, const std::string& patch) {
    try {
      revert_lines(lines, patch, "p");
    } catch (const Error& error) {
      return error.code();
    }
    return ExitCode::ok;
  };
  EXPECT_EQ(code_of(file.lines + "\n", file.patch), ExitCode::verification);
  EXPECT_EQ(code_of(file.lines, ""), ExitCode::bad_input);
  EXPECT_EQ(code_of(file.lines, "{}"), ExitCode::bad_input);
  const std::string patch = file.patch;
  for (size_t at = 0; at < patch.size(); at += 7) {
    std::string damaged = patch;
    damaged[at] = damaged[at] == '1' ? '2' : '1';
    EXPECT_NE(code_of(file.lines, damaged), ExitCode::bug);
    const ExitCode code = code_of(file.lines, damaged);
    EXPECT_TRUE(code == ExitCode::bad_input || code == ExitCode::verification ||
                (code == ExitCode::ok && revert_lines(file.lines, damaged, "p") == kLines));
  }
  EXPECT_THROW(normalize_lines("[1]", "t.jsonl", {}), Error);
}

TEST(NormalizeFile, OtherKindsBecomeLines) {
  EXPECT_EQ(json_lines_of("{\"data\": [{\"text\": \"a\"}, {\"text\": \"b\"}]}", "t.json"),
            "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
  const fs::path folder = fs::path(SAAZ_SOURCE_DIR) / "tests" / "golden" / "parquet";
  const std::string parquet = read_file(folder / "seed-none-v1.parquet");
  EXPECT_EQ(json_lines_of(parquet, "t.parquet"), "{\"text\": \"آب\"}\n{\"text\": \"آبان\"}\n{\"text\": \"آب\"}\n");
}

}  // namespace
}  // namespace saaz
