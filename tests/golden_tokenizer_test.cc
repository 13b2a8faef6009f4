// Token ids, decoded texts and rendered chats against Hugging Face's, for every case file: the one in tests/golden and
// those named in SAAZ_TOKENIZER_CASES (colon-separated), with the tokenizer.json in SAAZ_TOKENIZER
// (tokenizer_config.json beside it). One line for each file and check.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <sstream>

#include "base/check.h"
#include "base/value.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/sentencepiece_model.h"
#include "tokenizer_fixture.h"

namespace saaz {
namespace {

using Ids = std::vector<int32_t>;

Ids ids_of(const Value& array) {
  Ids out;
  for (const Value& id : array.items()) out.push_back(static_cast<int32_t>(id.as_integer()));
  return out;
}

/// A member that a case file must have.
const Value& member(const Value& object, std::string_view key) {
  const Value* found = object.find(key);
  check(found, ExitCode::bad_input, "a golden case lacks '{}': {}", key, to_json(object).substr(0, 200));
  return *found;
}

std::vector<ChatMessage> messages_of(const Value& chat) {
  std::vector<ChatMessage> out;
  for (const Value& message : member(chat, "messages").items()) {
    const Value& content = member(message, "content");
    ChatMessage item{.role = member(message, "role").as_string()};
    if (content.is_string()) item.parts.push_back(content.as_string());
    if (content.is_array()) {
      for (const Value& part : content.items()) item.parts.push_back(member(part, "text").as_string());
    }
    out.push_back(std::move(item));
  }
  return out;
}

/// Prints "golden FILE CHECK: n of m equal" and fails the test unless n == m.
void compare(const fs::path& file, const std::string& check_name, const std::vector<Value>& cases,
             const std::function<bool(const Value&)>& equal) {
  size_t good = 0;
  for (const Value& item : cases) {
    const bool same = equal(item);
    good += same;
    EXPECT_TRUE(same) << file << ' ' << check_name << ": " << to_json(item).substr(0, 300);
  }
  std::cout << "golden " << file.filename().string() << ' ' << check_name << ": " << good << " of " << cases.size()
            << " equal\n";
}

bool refused(const std::vector<ChatMessage>& messages) {
  try {
    render_chat(messages, AddGenerationPrompt::no);
  } catch (const Error& error) {
    return error.code() == ExitCode::bad_input;
  }
  return false;
}

void compare_texts(const fs::path& file, const std::string& from, const Tokenizer& tokenizer, const Value& root) {
  const auto& cases = member(root, "cases").items();
  const auto text = [](const Value& item, std::string_view key) { return member(item, key).as_string(); };
  const auto encoded = [&](const Value& item, AddBos bos) {
    return tokenizer.encode(text(item, "text"), ControlTokens::parse, bos);
  };
  const auto decoded = [&](const Value& item, SkipSpecial skip) {
    return tokenizer.decode(ids_of(member(item, "ids")), skip);
  };
  compare(file, "ids" + from, cases,
          [&](const Value& item) { return encoded(item, AddBos::no) == ids_of(member(item, "ids")); });
  compare(file, "ids_bos" + from, cases,
          [&](const Value& item) { return encoded(item, AddBos::yes) == ids_of(member(item, "ids_bos")); });
  compare(file, "decoded" + from, cases,
          [&](const Value& item) { return decoded(item, SkipSpecial::no) == text(item, "decoded"); });
  compare(file, "decoded_skip" + from, cases,
          [&](const Value& item) { return decoded(item, SkipSpecial::yes) == text(item, "decoded_skip"); });
}

std::vector<Segment> rendered(const Value& chat) {
  const bool prompt = member(chat, "add_generation_prompt").as_bool();
  return render_chat(messages_of(chat), prompt ? AddGenerationPrompt::yes : AddGenerationPrompt::no);
}

/// Hugging Face makes control tokens out of what a message spells; we do not: such chats have equal ids only in raw
/// mode.
bool spells_a_control_token(const Tokenizer& tokenizer, const Value& chat) {
  for (const Segment& segment : rendered(chat)) {
    if (segment.origin != Segment::Origin::user_text) continue;
    const Ids ids = tokenizer.encode(segment.text, ControlTokens::parse, AddBos::no);
    if (std::any_of(ids.begin(), ids.end(), [&](int32_t id) { return tokenizer.is_control(id); })) return true;
  }
  return false;
}

void compare_chats(const fs::path& file, const std::string& from, const Tokenizer& tokenizer, const Value& root) {
  const auto& chats = member(root, "chats").items();
  std::vector<Value> plain;
  for (const Value& chat : chats) {
    if (!spells_a_control_token(tokenizer, chat)) plain.push_back(chat);
  }
  compare(file, "chat ids" + from, plain, [&](const Value& chat) {
    Ids ids;
    for (const SegmentToken& token : tokenizer.encode_segments(rendered(chat))) ids.push_back(token.id);
    return ids == ids_of(member(chat, "ids"));
  });
  compare(file, "chat ids in raw mode" + from, chats, [&](const Value& chat) {
    return tokenizer.encode(text_of(rendered(chat)), ControlTokens::parse, AddBos::no) == ids_of(member(chat, "ids"));
  });
}

void compare_templates(const fs::path& file, const Value& root) {
  compare(file, "chat text", member(root, "chats").items(),
          [](const Value& chat) { return text_of(rendered(chat)) == member(chat, "text").as_string(); });
  compare(file, "bad chats refused", member(root, "bad_chats").items(),
          [](const Value& chat) { return refused(messages_of(chat)); });
}

std::vector<fs::path> case_files() {
  std::vector<fs::path> out{fs::path(SAAZ_SOURCE_DIR) / "tests/golden/tokenizer-cases.json"};
  const char* extra = std::getenv("SAAZ_TOKENIZER_CASES");
  std::istringstream names(extra ? extra : "");
  for (std::string name; std::getline(names, name, ':');) {
    if (!name.empty()) out.emplace_back(name);
  }
  return out;
}

fs::path tokenizer_file() {
  const char* named = std::getenv("SAAZ_TOKENIZER");
  return named && *named ? fs::path(named) : kGoldenTokenizer;
}

/// `from` names a source other than tokenizer.json in the printed lines.
void compare_all(const Tokenizer& tokenizer, const std::string& from) {
  for (const fs::path& file : case_files()) {
    const Value root = parse_json(read_file(file), file.string());
    compare_texts(file, from, tokenizer, root);
    compare_chats(file, from, tokenizer, root);
  }
}

/// GGUF and tokenizer.model store no merges: only a tokenizer whose merges its pieces imply survives them.
bool merges_are_implied(const Vocabulary& vocabulary) {
  const auto implied = merges_from_pieces(vocabulary, PieceIndex(vocabulary.pieces, vocabulary.source));
  return std::equal(implied.begin(), implied.end(), vocabulary.merges.begin(), vocabulary.merges.end(),
                    [](const Merge& a, const Merge& b) { return a.left == b.left && a.right == b.right; });
}

TEST(GoldenTokenizer, FromTokenizerJson) { compare_all(load_tokenizer(tokenizer_file()), ""); }

TEST(GoldenTokenizer, FromGgufVocabulary) {
  const Tokenizer source = load_tokenizer(tokenizer_file());
  if (!merges_are_implied(source.vocabulary())) GTEST_SKIP() << "this tokenizer cannot be stored as GGUF";
  compare_all(Tokenizer(vocabulary_from_gguf(gguf_of(source.vocabulary()))), " from GGUF");
}

TEST(GoldenTokenizer, FromTokenizerModel) {
  const Tokenizer source = load_tokenizer(tokenizer_file());
  if (!merges_are_implied(source.vocabulary())) GTEST_SKIP() << "this tokenizer cannot be stored as tokenizer.model";
  const std::string model = write_sentencepiece_model(source.vocabulary());
  compare_all(Tokenizer(read_sentencepiece_model(bytes_of(model), "written.model")), " from tokenizer.model");
}

TEST(GoldenChats, RenderedNatively) {
  const fs::path folder = tokenizer_file().parent_path();
  const auto published = read_chat_template(folder);
  ASSERT_TRUE(published.has_value()) << "no chat template in " << folder;
  check_template_is_known(*published, folder.string());
  for (const fs::path& file : case_files()) compare_templates(file, parse_json(read_file(file), file.string()));
}

}  // namespace
}  // namespace saaz
