// The decoding guard: its rules on texts, its table on the real vocabulary, and answers that obey it.
#include "infer/guard.h"

#include <set>

#include "base/unicode.h"
#include "data/script.h"
#include "engine_testing.h"
#include "infer/text_stream.h"

namespace saaz {
namespace {

/// The first character of `text` that the rules do not let follow; nothing when all may.
std::string refused(std::string_view text, Digits digits = Digits::fa) {
  GuardState state;
  while (!text.empty()) {
    const CodePoint c = decode_utf8(text);
    if (!state.is_free() && !guard_allows(state.before(), c.value, digits))
      return std::string(text.substr(0, static_cast<size_t>(c.length)));
    state.push(c.value);
    text.remove_prefix(static_cast<size_t>(c.length));
  }
  return "";
}

TEST(Guard, PersianTextPasses) {
  for (const char* text :
       {"سلام! حالت چطور است؟", "می‌روم؛ کتاب‌هایم را «بخوان».",
        "سال ۱۴۰۳ و ۱۲٫۵٪ از آن‌ها", "مُحَمَّد و خانهٔ ما",
        "نرم‌افزار PDF و C++17 و GPT-4o را ببین.", "نشانی: https://example.org/2024/a?b=1&c=2 است",
        "PDF‌ها و کتابِ ۳", "1. اول\n2. دوم\n12. دوازدهم\n- بعد", "۱۲‌ساله", "عدد π و ≥ و →",
        "خوب 👍🏽 و ❤️ و 👨‍👩‍👧", "# سرخط\n\n| نام | سن |\n|---|---|\n", "قیمت $x_1 = 5$ است",
        "\\(a_1 + 2\\) و \\[b = 3\\] و $$c = 4$$ تمام"})
    EXPECT_EQ(refused(text), "") << text;
}

TEST(Guard, WhatBreaksARuleIsRefused) {
  const std::vector<std::pair<const char*, const char*>> cases = {{"علي", "ي"},
                                                                  {"كتاب", "ك"},
                                                                  {"موسى", "ى"},
                                                                  {"سلام \u200fعلی", "\u200f"},
                                                                  {"a\u200bb", "\u200b"},
                                                                  {"سلام мир", "м"},
                                                                  {"ی中", "中"},
                                                                  {"کتابbook", "b"},
                                                                  {"سال 1403", "1"},
                                                                  {"سال ١٤٠٣", "١"},
                                                                  {"رفت\u200c\u200cم", "\u200c"},
                                                                  {"رفت \u200cم", "\u200c"},
                                                                  {"رفت\u200c ", " "},
                                                                  {"ﻼ", "ﻼ"},
                                                                  {"سلاـــم", "ـ"},
                                                                  {"ہے", "ہ"},
                                                                  {"1403 سال", "0"},
                                                                  {"123. سوم", "3"},
                                                                  {"αβ", "β"},
                                                                  {"\x01", "\x01"},
                                                                  {"شد\u200dم", "\u200d"},
                                                                  {"\ufeffسلام", "\ufeff"}};
  for (const auto& [text, bad] : cases) EXPECT_EQ(refused(text), bad) << text;
  EXPECT_EQ(refused("سال ۱۴۰۳", Digits::en), "۱");
  EXPECT_EQ(refused("سال 1403", Digits::en), "");
  EXPECT_EQ(refused("سال ١٤ و 14 و ۱۴", Digits::keep), "");
}

TEST(Guard, CodeIsUntouched) {
  for (const char* text :
       {"کد `x = 12; ي مир` بود", "``a ` 1 ك`` بود", "```python\nx = 1  # علي мир\n```\nتمام", "~~~\n1 ك\n~~~\n",
        "متن:\n\n```\nprint(\"كتاب 1403\")\n````\nپایان", "   ```\nx 1\n   ```\nخوب"})
    EXPECT_EQ(refused(text), "") << text;
  EXPECT_EQ(refused("کد `x = 1` و 2"), "2");
  EXPECT_EQ(refused("```\nx = 1\n```\nسال 2"), "2");
  EXPECT_EQ(refused("`باز\n\nسال 2"), "2");  // code that its paragraph does not close is none
  EXPECT_EQ(refused("``a ` 1`` سال 2"), "2");
}

const Tokenizer& real_tokenizer() {
  static const Tokenizer tokenizer = load_tokenizer(fs::path(SAAZ_BINARY_DIR) / "tests/golden-tokenizer");
  return tokenizer;
}

/// Every token that the table lets follow leaves a text without a fault, and the other way round.
TEST(Guard, TheTableSaysWhatTheRulesSay) {
  const Tokenizer& tokenizer = real_tokenizer();
  const GuardTable table(tokenizer, {});
  int64_t n_banned = 0;
  for (const char* before : {"", "سلام", "سلام ", "می\u200c", "PDF", "۱", "1", "12", "π", "👍", "سلام.\n", "`"}) {
    GuardState state;
    state.push(std::string_view(before));
    for (size_t i = 0; i < tokenizer.size(); i += 7) {
      const auto id = static_cast<int32_t>(i);
      const Piece& piece = tokenizer.vocabulary().pieces[i];
      if (piece.type == PieceType::unused || piece.type == PieceType::byte || tokenizer.is_control(id)) continue;
      const std::string text = before + token_bytes(tokenizer, id);
      EXPECT_EQ(table.allows(state, id), refused(text).empty()) << text;
      n_banned += table.allows(state, id) ? 0 : 1;
    }
  }
  EXPECT_GT(n_banned, 50000);  // more than half of the vocabulary is of other scripts
}

TEST(Guard, ProbabilityGoesToThePersianSpelling) {
  const Tokenizer& tokenizer = real_tokenizer();
  const GuardTable table(tokenizer, {});
  const int32_t arabic = tokenizer.encode("علي", ControlTokens::as_text, AddBos::no)[0];
  const int32_t persian = tokenizer.encode("علی", ControlTokens::as_text, AddBos::no)[0];
  ASSERT_EQ(token_bytes(tokenizer, arabic), "علي");
  ASSERT_EQ(token_bytes(tokenizer, persian), "علی");
  std::vector<float> logits(tokenizer.size(), -100.0f);
  logits[static_cast<size_t>(arabic)] = 2;
  logits[static_cast<size_t>(persian)] = 1;
  table.apply(GuardState(), logits);
  EXPECT_EQ(logits[static_cast<size_t>(arabic)], -std::numeric_limits<float>::infinity());
  EXPECT_NEAR(logits[static_cast<size_t>(persian)], std::log(std::exp(2.0) + std::exp(1.0)), 1e-6);
}

TEST(Guard, NothingElseChanges) {
  const Tokenizer& tokenizer = real_tokenizer();
  const GuardTable table(tokenizer, {});
  GuardState code;
  code.push(std::string_view("```\n"));
  std::vector<float> logits(tokenizer.size(), 0.5f), before = logits;
  table.apply(code, logits);
  EXPECT_EQ(logits, before);
}

TEST(Guard, AnswersObeyItAtAnyTemperature) {
  test::TinyModel tiny;
  Engine engine(*tiny.backend, *tiny.model, &tiny.tokenizer, {.max_running = 16, .context = 256});
  std::vector<Request> requests(40);
  std::set<std::string> without;
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].prompt = tiny.chat("", "نام تو چیست؟");
    requests[i].max_tokens = 80;
    requests[i].sampling = {.temperature = 2.5, .seed = i};
  }
  for (const Completion& c : test::answers(engine, requests)) without.insert(refused(c.choices[0].text));
  EXPECT_GT(without.size(), 3u);  // at this temperature the model breaks many rules by itself
  for (const Digits digits : {Digits::fa, Digits::en, Digits::keep}) {
    for (Request& r : requests) r.guard = GuardOptions{.digits = digits};
    for (const Completion& c : test::answers(engine, requests)) {
      EXPECT_EQ(c.outcome.error, "");
      EXPECT_EQ(refused(c.choices[0].text, digits), "") << c.choices[0].text;
    }
  }
}

}  // namespace
}  // namespace saaz
