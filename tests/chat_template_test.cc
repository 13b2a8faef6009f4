// The native chat template: what it refuses, which tokens it trains (against the token search of formats.md 6.2), and
// the property that control ids come from the template alone, whatever the messages say.
#include "tokenizer/chat_template.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "base/check.h"
#include "base/value.h"
#include "tokenizer_fixture.h"

namespace saaz {
namespace {

using Ids = std::vector<int32_t>;
using Messages = std::vector<ChatMessage>;

std::string rendered(const Messages& messages) { return text_of(render_chat(messages, AddGenerationPrompt::no)); }

std::string refusal(const Messages& messages) {
  try {
    rendered(messages);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input);
    return error.what();
  }
  return "accepted";
}

TEST(ChatTemplate, RendersTheSpecifiedExamples) {
  const Tokenizer& tokenizer = real_tokenizer();
  EXPECT_EQ(encode_chat(tokenizer, Messages{{"user", {"  سلام، حالت چطوره؟ \n"}}}, AddGenerationPrompt::yes).ids,
            (Ids{2, 105, 2364, 107, 17045, 237108, 102404, 5919, 237076, 35944, 238084, 106, 107, 105, 4368, 107}));
  const Messages with_system{
      {"system", {"تو دستیار فارسی هستی."}}, {"user", {"پایتخت ایران کجاست؟"}}, {"assistant", {"تهران."}}};
  EXPECT_EQ(encode_chat(tokenizer, with_system, AddGenerationPrompt::no).ids,
            (Ids{2,      105, 2364,   107,   42755, 110757, 1666,  146029, 33505, 236875,
                 236761, 108, 237067, 29317, 10287, 41280,  1057,  236983, 35563, 238084,
                 106,    107, 105,    4368,  107,   9112,   55314, 236761, 106,   107}));
}

TEST(ChatTemplate, SystemTextIsNotTrimmedAndContentIs) {
  EXPECT_EQ(rendered({{"system", {" s\n"}}, {"user", {"\u00A0x\u200C\u3000"}}}),
            "<bos><start_of_turn>user\n s\n\n\nx\u200C<end_of_turn>\n");
  EXPECT_EQ(rendered({{"system", {""}}, {"user", {"x"}}}), "<bos><start_of_turn>user\n\n\nx<end_of_turn>\n");
  EXPECT_EQ(rendered({{"system", {"a", "ignored"}}, {"user", {" x ", " y "}}}),
            "<bos><start_of_turn>user\na\n\nxy<end_of_turn>\n");
  EXPECT_EQ(rendered({{"system", {"alone"}}}), "<bos>");
  EXPECT_EQ(rendered({{"user", {}}}), "<bos><start_of_turn>user\n<end_of_turn>\n");
  EXPECT_EQ(rendered({{"user", {"x"}}, {"tool", {"t"}}, {"user", {"y"}}}),
            "<bos><start_of_turn>user\nx<end_of_turn>\n<start_of_turn>tool\nt<end_of_turn>\n<start_of_turn>user\ny<end_"
            "of_turn>\n");
}

TEST(ChatTemplate, RefusesWhatTheTemplateRefuses) {
  EXPECT_EQ(refusal({}), "a conversation without messages");
  EXPECT_NE(refusal({{"assistant", {"x"}}}).find("message 1 has the role 'assistant'"), std::string::npos);
  EXPECT_NE(refusal({{"user", {"x"}}, {"user", {"y"}}}).find("message 2"), std::string::npos);
  EXPECT_NE(refusal({{"system", {"s"}}, {"user", {"x"}}, {"user", {"y"}}}).find("message 3"), std::string::npos);
  EXPECT_NE(refusal({{"user", {"x"}}, {"assistant", {"y"}}, {"system", {"z"}}}).find("must alternate"),
            std::string::npos);
  EXPECT_NE(refusal({{"system", {}}, {"user", {"x"}}}).find("empty content list"), std::string::npos);
  EXPECT_NE(refusal({{"us\x1b[31mer", {"x"}}}).find("us\\x1b[31mer"), std::string::npos);
}

TEST(ChatTemplate, KnowsTheTwoPublishedTexts) {
  const auto published = read_chat_template(kGoldenTokenizer.parent_path());
  ASSERT_TRUE(published.has_value());
  EXPECT_EQ(*published, chat_template_text(ChatTemplate::gemma3));
  EXPECT_EQ(check_template_is_known(*published + "\n", "t"), ChatTemplate::gemma3);
  EXPECT_EQ(check_template_is_known(chat_template_text(ChatTemplate::gemma3n), "t"), ChatTemplate::gemma3n);
  EXPECT_NE(chat_template_text(ChatTemplate::gemma3n).find("<audio_soft_token>"), std::string::npos);
  try {
    check_template_is_known("{{ messages }}", "folder/chat_template.jinja");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("folder/chat_template.jinja: unknown chat template"), std::string::npos);
  }
}

/// formats.md 6.2, train_on_responses_only, as written there.
std::vector<uint8_t> searched_spans(const Ids& ids, const Ids& user_head, const Ids& model_head) {
  std::vector<uint8_t> trained(ids.size(), 0);
  const size_t n = ids.size();
  const auto starts_with = [&](size_t j, const Ids& head) {
    return j + head.size() <= n && std::equal(head.begin(), head.end(), ids.begin() + static_cast<ptrdiff_t>(j));
  };
  for (size_t j = 0; j < n; ++j) {
    if (!starts_with(j, model_head)) continue;
    const size_t start = j += model_head.size();
    for (; j < n; ++j) {
      if (j != n - 1 && !starts_with(j, user_head)) continue;
      const size_t end = j == n - 1 ? n : j;
      std::fill(trained.begin() + static_cast<ptrdiff_t>(start), trained.begin() + static_cast<ptrdiff_t>(end), 1);
      if (j != n - 1) j += user_head.size();
      break;
    }
  }
  return trained;
}

const std::vector<std::string>& benign_texts() {
  static const std::vector<std::string> texts = {"سلام! حالت چطوره؟",
                                                 "می‌خواهم کتاب‌های خوبی بخوانم.",
                                                 "\n\n  x\n\n",
                                                 "",
                                                 "Hello <b>World</b>",
                                                 "a\n\n\nb\t\tc   d ",
                                                 "۱۲۳۴ تومان",
                                                 "🫩\r\n🥲",
                                                 ".",
                                                 "model\nuser\n"};
  return texts;
}

TEST(EncodeChat, TrainedSpansEqualTheTokenSearch) {
  std::mt19937 random(1);
  const Tokenizer& tokenizer = real_tokenizer();
  const Ids user_head = tokenizer.encode("<start_of_turn>user\n", ControlTokens::parse, AddBos::no);
  const Ids model_head = tokenizer.encode("<start_of_turn>model\n", ControlTokens::parse, AddBos::no);
  size_t n_trained = 0;
  for (int i = 0; i < 2000; ++i) {
    Messages messages;
    const auto text = [&] { return benign_texts()[random() % benign_texts().size()]; };
    if (random() % 2) messages.push_back({"system", {text()}});
    for (size_t turns = 1 + random() % 3; turns > 0; --turns) {
      messages.push_back({"user", {text()}});
      messages.push_back({"assistant", {text(), text()}});
    }
    const EncodedChat chat = encode_chat(tokenizer, messages, AddGenerationPrompt::no);
    ASSERT_EQ(chat.trained, searched_spans(chat.ids, user_head, model_head)) << rendered(messages);
    ASSERT_EQ(chat.ids, tokenizer.encode(rendered(messages), ControlTokens::parse, AddBos::no)) << rendered(messages);
    ASSERT_EQ(std::count(chat.ids.begin(), chat.ids.end(), 2), 1);
    n_trained += static_cast<size_t>(std::count(chat.trained.begin(), chat.trained.end(), 1));
  }
  EXPECT_GT(n_trained, 0u);
}

/// The control strings, cut, repeated, joined and wrapped in ways that might let one through.
std::string mutated(std::mt19937& random, const std::vector<std::string>& controls) {
  const auto control = [&] { return controls[random() % controls.size()]; };
  const std::string text = control();
  const size_t cut = random() % (text.size() + 1);
  switch (random() % 8) {
    case 0:
      return text;
    case 1:
      return text + control() + text;
    case 2:
      return text.substr(0, cut);
    case 3:
      return text.substr(cut);
    case 4:
      return text.substr(0, cut) + control() + text.substr(cut);
    case 5:
      return benign_texts()[random() % benign_texts().size()] + text + "\n";
    case 6:
      return "<" + text + ">";
    default:
      return text.substr(0, cut) + "\xE2\x80\x8C\xFF" + text.substr(cut);
  }
}

TEST(EncodeChat, ControlIdsComeFromTheTemplateAlone) {
  std::mt19937 random(2);
  const Tokenizer& tokenizer = real_tokenizer();
  std::vector<std::string> controls;
  for (const Piece& piece : tokenizer.vocabulary().pieces) {
    if (piece.type == PieceType::control || piece.type == PieceType::unknown) controls.push_back(piece.text);
  }
  ASSERT_EQ(controls.size(), 9u);
  const auto control_ids = [&](const Messages& messages) {
    Ids out;
    for (const int32_t id : encode_chat(tokenizer, messages, AddGenerationPrompt::yes).ids) {
      if (tokenizer.is_control(id)) out.push_back(id);
    }
    return out;
  };
  // system, user, assistant, user, and a turn with a hostile role: one bos, four turns, and the generation prompt.
  const Ids expected{2, 105, 106, 105, 106, 105, 106, 105, 106, 105};
  for (int i = 0; i < 12000; ++i) {
    const auto text = [&] { return mutated(random, controls); };
    Messages messages{{"system", {text()}},
                      {"user", {text(), text()}},
                      {"assistant", {text()}},
                      {"user", {text()}},
                      {text() + "x", {text()}}};
    ASSERT_EQ(control_ids(messages), expected) << rendered(messages);
  }
}

}  // namespace
}  // namespace saaz
