// The shipped text: the Persian sample is well-formed, well-spelled, free of near copies and cleanly split; the
// questions of `saaz try` share no word with its training rows; the shipped recipes parse. Enters: data/sample-fa,
// data/try, recipes. Invariant: a word is what stands between white space and punctuation, so a ZWNJ never ends one.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>
#include <unordered_map>

#include "base/check.h"
#include "base/system.h"
#include "base/unicode.h"
#include "base/value.h"
#include "data/conversation.h"

namespace saaz {
namespace {

constexpr uint32_t kZwnj = 0x200C;
constexpr size_t kGramWords = 5;

fs::path source_dir() { return SAAZ_SOURCE_DIR; }
fs::path sample_file(const char* name) { return source_dir() / "data" / "sample-fa" / name; }

std::vector<Row> load(const fs::path& file) {
  BadRows none(0);
  return load_rows(file, DataFormat::messages, none);
}

std::string content(const ChatMessage& message) {
  std::string out;
  for (const std::string& part : message.parts) out += part;
  return out;
}

std::vector<uint32_t> code_points(std::string_view text) {
  std::vector<uint32_t> out;
  while (!text.empty()) {
    const CodePoint point = decode_utf8(text);
    out.push_back(point.value);
    text.remove_prefix(point.length);
  }
  return out;
}

bool is_separator(uint32_t c) {
  if (c < 0x80) return std::isalnum(static_cast<int>(c)) == 0;
  if (c < 0xC0 || c == 0xD7 || c == 0xF7) return true;          // Latin-1 signs and guillemets
  if (c >= 0x2000 && c < 0x2C00) return c != kZwnj;             // general punctuation, arrows, signs
  if (c >= 0x66A && c <= 0x66D) return true;                    // percent and decimal signs
  return c == 0x60C || c == 0x61B || c == 0x61F || c == 0x6D4;  // Persian comma, semicolon, question mark, full stop
}

std::vector<std::string> words(std::string_view text) {
  std::vector<std::string> out(1);
  for (const uint32_t c : code_points(text)) {
    if (!is_separator(c)) {
      append_utf8(out.back(), c);
    } else if (!out.back().empty()) {
      out.emplace_back();
    }
  }
  if (out.back().empty()) out.pop_back();
  return out;
}

/// The distinct runs of five words; a shorter text is one run.
std::set<std::string> grams(std::string_view text) {
  const std::vector<std::string> all = words(text);
  std::set<std::string> out;
  for (size_t first = 0; first == 0 || first + kGramWords <= all.size(); ++first) {
    std::string gram;
    for (size_t i = first; i < std::min(first + kGramWords, all.size()); ++i) gram += all[i] + " ";
    out.insert(gram);
  }
  return out;
}

struct Overlap {
  double share = 0;  // of the shorter text's runs
  size_t first = 0, second = 0;
};

/// The two texts that share most. Only texts that meet in some run are compared: one hash table leads to them.
Overlap worst_overlap(const std::vector<std::string>& texts) {
  std::vector<size_t> sizes;
  std::unordered_map<std::string, std::vector<size_t>> holders;
  std::map<std::pair<size_t, size_t>, size_t> shared;
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::set<std::string> own = grams(texts[i]);
    sizes.push_back(own.size());
    for (const std::string& gram : own) {
      std::vector<size_t>& before = holders[gram];
      for (const size_t other : before) ++shared[{other, i}];
      before.push_back(i);
    }
  }
  Overlap worst;
  for (const auto& [pair, count] : shared) {
    const double share =
        static_cast<double>(count) / static_cast<double>(std::min(sizes[pair.first], sizes[pair.second]));
    if (share > worst.share) worst = {share, pair.first, pair.second};
  }
  return worst;
}

/// "" when the spelling is clean.
std::string spelling_fault(std::string_view text) {
  const std::vector<uint32_t> points = code_points(text);
  const auto is_space = [&](size_t i) { return i >= points.size() || points[i] == ' ' || points[i] == '\n'; };
  for (size_t i = 0; i < points.size(); ++i) {
    if (points[i] == 0x64A || points[i] == 0x643) return "Arabic yeh or kaf";
    if (points[i] != kZwnj) continue;
    if (i == 0 || is_space(i - 1) || is_space(i + 1)) return "ZWNJ at a space";
    if (points[i - 1] == kZwnj) return "ZWNJ twice";
  }
  return "";
}

/// A prefix or ending that stands alone, where a ZWNJ joins it to its word; "" when there is none.
std::string loose_affix(const std::string& text) {
  static const std::set<std::string> kPrefixes = {"می", "نمی"}, kEndings = {"ها", "های", "هایی"};
  std::istringstream between_spaces(text);
  for (std::string part; between_spaces >> part;) {
    const std::vector<std::string> inside = words(part);
    if (inside.size() != 1) continue;
    if (kPrefixes.contains(inside[0]) && part.ends_with(inside[0])) return inside[0];
    if (kEndings.contains(inside[0]) && part.starts_with(inside[0])) return inside[0];
  }
  return "";
}

struct Sample {
  std::vector<Row> train = load(sample_file("train.jsonl"));
  std::vector<Row> valid = load(sample_file("valid.jsonl"));

  std::vector<Row> all() const {
    std::vector<Row> out = train;
    out.insert(out.end(), valid.begin(), valid.end());
    return out;
  }
};

const Sample& sample() {
  static const Sample loaded;
  return loaded;
}

/// Rows per domain; the reader of rows leaves that column out.
std::map<std::string, int> domains(const char* name) {
  std::map<std::string, int> out;
  const std::string text = read_file(sample_file(name));
  for (std::string_view rest = text; !rest.empty();) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    const Value row = parse_json(line, name);
    const Value* domain = row.find("domain");
    ++out[domain == nullptr ? "" : domain->as_string()];
  }
  return out;
}

/// All that is asked and answered; a system message may serve many conversations.
std::set<std::string> turns(const std::vector<Row>& rows) {
  std::set<std::string> out;
  for (const Row& row : rows) {
    for (const ChatMessage& message : row.messages) {
      if (message.role != "system") out.insert(content(message));
    }
  }
  return out;
}

std::set<std::string> all_words(const std::vector<Row>& rows) {
  std::set<std::string> out;
  for (const Row& row : rows) {
    for (const ChatMessage& message : row.messages) {
      for (std::string& word : words(content(message))) out.insert(std::move(word));
    }
  }
  return out;
}

TEST(Words, EndAtSpacesAndPunctuationButNotAtZwnj) {
  EXPECT_EQ(words("«می‌خوای؟» x+1، ۲٫۵\n"),
            (std::vector<std::string>{"می‌خوای", "x", "1", "۲", "۵"}));
  EXPECT_TRUE(words(" ؟").empty());
}

TEST(Overlaps, FindTheNearCopy) {
  const std::vector<std::string> texts = {"a b c d e f", "p q r s t u", "b c d e f g", "short one", "short, one!"};
  EXPECT_EQ(worst_overlap({texts[0], texts[1]}).share, 0);
  const Overlap half = worst_overlap({texts[0], texts[1], texts[2]});
  EXPECT_EQ(half.share, 0.5);
  EXPECT_EQ(half.first, 0u);
  EXPECT_EQ(half.second, 2u);
  EXPECT_EQ(worst_overlap(texts).share, 1);
}

TEST(Spelling, FaultsAreSeen) {
  EXPECT_EQ(spelling_fault("می‌روم"), "");
  EXPECT_NE(spelling_fault("علي"), "");
  EXPECT_NE(spelling_fault("كتاب"), "");
  EXPECT_NE(spelling_fault("می‌ روم"), "");
  EXPECT_NE(spelling_fault("می ‌روم"), "");
  EXPECT_NE(spelling_fault("روم‌"), "");
  EXPECT_EQ(loose_affix("کتاب‌ها را می‌خرند"), "");
  EXPECT_EQ(loose_affix("«نمی توانیم»"), "نمی");
  EXPECT_EQ(loose_affix("کتاب ها."), "ها");
}

TEST(SampleData, HasEnoughConversationsOfEveryKind) {
  const std::vector<Row> rows = sample().all();
  EXPECT_GE(rows.size(), 300u);
  const auto count = [&](auto&& is_kind) { return std::count_if(rows.begin(), rows.end(), is_kind); };
  EXPECT_GT(count([](const Row& row) { return row.messages.front().role == "system"; }), 0);
  EXPECT_GT(count([](const Row& row) { return row.messages.size() > 3; }), 0) << "several questions and answers";
  for (const Row& row : rows) EXPECT_EQ(row.messages.back().role, "assistant") << row.place();
}

TEST(SampleData, ValidationIsDisjointFromTraining) {
  const std::set<std::string> trained = turns(sample().train);
  for (const std::string& turn : turns(sample().valid)) EXPECT_FALSE(trained.contains(turn)) << turn;
}

TEST(SampleData, EveryDomainIsInBothFilesAndOnTheCard) {
  const std::map<std::string, int> train = domains("train.jsonl"), valid = domains("valid.jsonl");
  const std::string card = read_file(sample_file("README.md"));
  EXPECT_FALSE(train.contains(""));
  EXPECT_FALSE(valid.contains(""));
  EXPECT_EQ(train.size(), valid.size());
  for (const auto& [domain, count] : train) {
    ASSERT_TRUE(valid.contains(domain)) << domain;
    const std::string line = fmt::format("| `{}` | {} | {} |", domain, count, valid.at(domain));
    EXPECT_NE(card.find(line), std::string::npos) << "the card lacks: " << line;
  }
}

TEST(SampleData, NoTwoAnswersShareHalfOfTheirWordRuns) {
  std::vector<std::string> answers, places;
  for (const Row& row : sample().all()) {
    for (const ChatMessage& message : row.messages) {
      if (message.role != "assistant") continue;
      answers.push_back(content(message));
      places.push_back(row.place());
    }
  }
  const Overlap worst = worst_overlap(answers);
  EXPECT_LT(worst.share, 0.5) << places[worst.first] << " and " << places[worst.second];
}

TEST(SampleData, SpellingIsClean) {
  for (const Row& row : sample().all()) {
    for (const ChatMessage& message : row.messages) {
      EXPECT_EQ(spelling_fault(content(message)), "") << row.place() << ": " << content(message);
      // A lesson about the ZWNJ shows what is wrong without it.
      if (content(row.messages.front()).find("نیم‌فاصله") != std::string::npos) continue;
      EXPECT_EQ(loose_affix(content(message)), "") << row.place() << ": " << content(message);
    }
  }
}

TEST(TryData, NoWordOfTheQuestionsIsTrained) {
  const fs::path folder = source_dir() / "data" / "try";
  const std::set<std::string> trained = all_words(load(folder / "train.jsonl"));
  ASSERT_FALSE(trained.empty());
  const Value document = parse_json(read_file(folder / "questions.json"), "questions.json");
  const Value* questions = document.find("questions");
  ASSERT_TRUE(questions != nullptr && !questions->items().empty());
  for (const Value& item : questions->items()) {
    const std::vector<std::string> asked = words(item.find("question")->as_string());
    EXPECT_FALSE(asked.empty());
    for (const std::string& word : asked) EXPECT_FALSE(trained.contains(word)) << word;
  }
}

TEST(ShippedRecipes, Parse) {
  int n_recipes = 0;
  for (const auto& entry : fs::directory_iterator(source_dir() / "recipes")) {
    if (entry.path().extension() != ".yaml") continue;
    const std::string name = entry.path().filename().string();
    EXPECT_NO_THROW(parse_recipe(parse_yaml(read_file(entry.path()), name), name)) << name;
    ++n_recipes;
  }
  EXPECT_GT(n_recipes, 0);
}

TEST(ShippedRecipes, SampleRecipeNamesShippedRows) {
  const std::string name = "gemma3-270m-fa.yaml";
  const Recipe recipe = parse_recipe(parse_yaml(read_file(source_dir() / "recipes" / name), name), name);
  ASSERT_EQ(recipe.data.train.size(), 1u);
  EXPECT_TRUE(fs::equivalent(source_dir() / recipe.data.train[0], sample_file("train.jsonl")));
  EXPECT_TRUE(fs::equivalent(source_dir() / recipe.data.validation.file, sample_file("valid.jsonl")));
}

}  // namespace
}  // namespace saaz
