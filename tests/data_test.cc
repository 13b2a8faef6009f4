// Data: every format gives the same conversation, every bad file its place, and batches are what formats.md 6.1 to 6.3
// say.
#include "data/batcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "base/error.h"
#include "base/system.h"
#include "data/preview.h"
#include "data/report.h"
#include "tokenizer_fixture.h"

namespace saaz {
namespace {

std::vector<Row> parse(std::string_view text, const std::string& name = "t.jsonl") {
  BadRows none(0);
  return parse_rows(text, name, DataFormat::automatic, none);
}

std::string show(const Row& row) {
  std::string out = row.text;
  for (const ChatMessage& message : row.messages) {
    out += message.role + ":";
    for (const std::string& part : message.parts) out += "[" + part + "]";
  }
  return out;
}

const Tokenizer& small_tokenizer() {
  static const Tokenizer tokenizer(small_vocabulary());
  return tokenizer;
}

TEST(Rows, ReadsEveryFormat) {
  const struct {
    const char* text;
    const char* expected;
  } kCases[] = {
      {R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"id":7})",
       "user:[a]assistant:[b]"},
      {R"({"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"c"}]},{"role":"model","content":"b"}]})",
       "system:[s]user:[a][c]assistant:[b]"},
      {R"({"messages":[{"role":"user","content":"a","name":null},{"role":"assistant","content":"b"}],"text":null})",
       "user:[a]assistant:[b]"},
      {R"({"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]})", "user:[a]assistant:[b]"},
      {R"({"conversations":[{"from":"input","value":"a"},{"from":"output","value":"b"}]})", "user:[a]assistant:[b]"},
      {R"({"conversations":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]})",
       "user:[a]assistant:[b]"},
      {R"({"instruction":"a","input":"","output":"b"})", "user:[a]assistant:[b]"},
      {R"({"instruction":"a","input":"i","output":"b"})", "user:[a\n\ni]assistant:[b]"},
      {R"({"prompt":"a","completion":"b"})", "user:[a]assistant:[b]"},
      {R"({"prompt":[{"role":"user","content":"a"}],"completion":[{"role":"assistant","content":"b"}]})",
       "user:[a]assistant:[b]"},
      {R"({"inputs":"a","targets":"b","language":"pes"})", "user:[a]assistant:[b]"},
      {R"({"text":"سلام"})", "سلام"},
  };
  for (const auto& c : kCases) {
    const std::vector<Row> rows = parse(c.text);
    ASSERT_EQ(rows.size(), 1u) << c.text;
    EXPECT_EQ(show(rows[0]), c.expected);
  }
}

TEST(Rows, KnowTheirPlaceInLinesAndDocuments) {
  const std::string row = R"({"text":"a"})";
  std::vector<Row> rows = parse("\xEF\xBB\xBF" + row + "\r\n\n  \n" + row + "\n" + row);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[1].place(), "t.jsonl: row 2 (line 4)");
  rows = parse("[" + row + ",\n" + row + "]", "t.json");
  EXPECT_EQ(rows[1].place(), "t.json: row 2");
  EXPECT_EQ(parse(R"({"version": 1, "data": [)" + row + "]}", "t.json").size(), 1u);
  EXPECT_EQ(parse(row + "\n" + row + "\n", "t.json").size(), 2u) << "JSON lines in a file named .json";
  EXPECT_EQ(parse("{\n \"data\": [" + row + "]\n}", "t.json").size(), 1u);
}

struct BadFile {
  std::string text;
  const char* name;
  const char* fragment;
};

std::string messages(const std::string& items) { return "{\"messages\":[" + items + "]}"; }
std::string message(const std::string& role, const std::string& content) {
  return "{\"role\":\"" + role + "\",\"content\":" + content + "}";
}

const std::string kGoodRow = messages(message("user", "\"a\"") + "," + message("assistant", "\"b\""));

const BadFile kBadFiles[] = {
    {"", "t.jsonl", "t.jsonl: no usable row in it"},
    {"\n \n", "t.jsonl", "no usable row"},
    {kGoodRow + "\n{\"messages\": [", "t.jsonl", "t.jsonl: row 2 (line 2): JSON: byte"},
    {kGoodRow + "\n\n" + "{'a': 1}", "t.jsonl", "t.jsonl: row 2 (line 3): JSON: byte 2: invalid JSON"},
    {"{\"text\": \"a\xFF\"}", "t.jsonl", "row 1 (line 1): JSON: byte"},
    {"{\"text\": \"a\\u0000\"}", "t.jsonl", "text: a NUL character"},
    {std::string("{\"text\": \"a\0\"}", 14), "t.jsonl", "a NUL byte"},
    {"{\"text\": \"" + std::string(17 << 20, 'a') + "\"}", "t.jsonl", "a line of 17825804 bytes; at most 16777216"},
    {"{\"text\": 1}", "t.jsonl", "text: expected a string, found an integer"},
    {"{\"text\": \" \\n\"}", "t.jsonl", "text: no text in it"},
    {"[1, 2]", "t.jsonl", "expected an object, found a list"},
    {"{\"foo\": 1, \"bar\": 2}", "t.jsonl", "the keys (foo, bar) tell no known format"},
    {kGoodRow + "\n{\"text\": \"a\"}", "t.jsonl", "row 2 (line 2): the key 'messages' is missing"},
    {messages(""), "t.jsonl", "an empty conversation"},
    {"{\"messages\": \"a\"}", "t.jsonl", "messages: expected a list of messages, found a string"},
    {messages("3"), "t.jsonl", "messages, message 1: expected an object"},
    {messages(message("system", "\"s\"")), "t.jsonl", "nothing but a system message"},
    {messages(message("assistant", "\"a\"")), "t.jsonl", "message 1 is from assistant, but user was expected"},
    {messages(message("user", "\"a\"") + "," + message("user", "\"b\"")), "t.jsonl",
     "message 2 is from user, but assistant"},
    {messages(message("user", "\"a\"") + "," + message("system", "\"b\"")), "t.jsonl", "message 2 is from system"},
    {messages(message("tool", "\"a\"")), "t.jsonl", "message 1: the role 'tool' is not known"},
    {messages(message("user", "7")), "t.jsonl", "message 1: expected a string, found an integer"},
    {messages(message("user", "null")), "t.jsonl", "message 1: no 'content' (or 'value')"},
    {messages("{\"content\":\"a\"}"), "t.jsonl", "message 1: no 'role' (or 'from')"},
    {messages(message("user", "\"a\"") + "," + message("assistant", "\" \"")), "t.jsonl",
     "message 2 (assistant) has no text"},
    {messages(message("user", "[{\"type\":\"image\"}]")), "t.jsonl", "expected text parts"},
    {messages(message("user", "[]") + "," + message("assistant", "\"b\"")), "t.jsonl", "message 1 (user) has no text"},
    {"{\"instruction\": \"a\", \"output\": \"\"}", "t.jsonl", "message 2 (assistant) has no text"},
    {"{\"prompt\": [], \"completion\": \"b\"}", "t.jsonl", "message 1 is from assistant"},
    {"{\"rows\": []}", "t.json", "t.json: expected a list of rows, or an object with one under 'data'"},
    {"[" + kGoodRow + ", {\"text\": \"a\"}]", "t.json", "t.json: row 2: the key 'messages' is missing"},
    {"[" + kGoodRow, "t.json", "t.json: byte"},
    {"[]", "t.json", "no usable row"},
    {"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "t.jsonl", "a Git LFS pointer"},
    {"PAR1xxxx", "t.jsonl", "a Parquet file begins and ends with PAR1, this one does not"},
};

TEST(Rows, RefusesBadFilesAndNamesThePlace) {
  for (const BadFile& c : kBadFiles) {
    try {
      parse(c.text, c.name);
      ADD_FAILURE() << "accepted: " << c.text.substr(0, 80);
    } catch (const Error& error) {
      const std::string what = error.what();
      EXPECT_EQ(error.code(), ExitCode::bad_input) << what;
      EXPECT_NE(what.find(c.fragment), std::string::npos) << what << "\n  lacks: " << c.fragment;
      EXPECT_EQ(what.find('\n'), std::string::npos) << what;
    }
  }
}

TEST(Rows, SkipsNoMoreBadRowsThanAllowed) {
  const std::string text = kGoodRow + "\nbroken\n" + kGoodRow + "\n{\"messages\":[]}\n";
  BadRows two(2);
  const std::vector<Row> rows = parse_rows(text, "t.jsonl", DataFormat::automatic, two);
  EXPECT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[1].number, 3);
  ASSERT_EQ(two.reasons().size(), 2u);
  EXPECT_EQ(two.reasons()[1], "t.jsonl: row 4 (line 4): an empty conversation");
  BadRows one(1);
  EXPECT_THROW(parse_rows(text, "t.jsonl", DataFormat::automatic, one), Error);
}

TEST(Rows, FindsFilesInAFolder) {
  const fs::path folder = fs::path(SAAZ_BINARY_DIR) / "data_test_folder";
  fs::remove_all(folder);
  fs::create_directories(folder);
  EXPECT_THROW(find_data_files(folder, Split::train), Error);
  EXPECT_TRUE(find_data_files(folder, Split::validation).empty());
  std::ofstream(folder / "train.jsonl") << kGoodRow << "\n";
  std::ofstream(folder / "validation.jsonl") << kGoodRow << "\n";
  EXPECT_EQ(find_data_files(folder, Split::train), std::vector<fs::path>{folder / "train.jsonl"});
  EXPECT_EQ(find_data_files(folder, Split::validation), std::vector<fs::path>{folder / "validation.jsonl"});
  BadRows none(0);
  EXPECT_EQ(load_rows(folder / "train.jsonl", DataFormat::messages, none).size(), 1u);
  EXPECT_THROW(load_rows(folder / "absent.jsonl", DataFormat::messages, none), Error);
  EXPECT_THROW(load_rows(folder / "x.parquet", DataFormat::messages, none), Error);
}

TEST(Samples, ScoreAssistantTurnsOrAll) {
  const Row row = parse(messages(message("user", "\"a\"") + "," + message("assistant", "\"b\"") + "," +
                                 message("user", "\"c\"") + "," + message("assistant", "\"ab\"")))[0];
  const Sample assistant = encode_row(small_tokenizer(), row, {100, LossOn::assistant});
  const EncodedChat chat = encode_chat(small_tokenizer(), row.messages, AddGenerationPrompt::no);
  EXPECT_EQ(assistant.ids, chat.ids);
  EXPECT_EQ(assistant.scored, chat.trained);
  const Sample all = encode_row(small_tokenizer(), row, {100, LossOn::all});
  EXPECT_EQ(all.n_scored(), static_cast<int64_t>(all.ids.size()) - 1);
  EXPECT_EQ(all.scored[0], 0);
}

TEST(Samples, ScoreOnlyTheCompletionAfterAPromptOfMessages) {
  const std::string turns =
      message("user", "\"a\"") + "," + message("assistant", "\"b\"") + "," + message("user", "\"c\"");
  const Row whole = parse(messages(turns + "," + message("assistant", "\"ab\"")))[0];
  const Row split = parse("{\"prompt\":[" + turns + "],\"completion\":[" + message("assistant", "\"ab\"") + "]}")[0];
  const Sample expected = encode_row(small_tokenizer(), whole, {100, LossOn::assistant});
  const Sample got = encode_row(small_tokenizer(), split, {100, LossOn::assistant});
  EXPECT_EQ(got.ids, expected.ids);
  // Of the two assistant turns ("b" and "ab", each with <end_of_turn> and newline) only the second stays.
  EXPECT_EQ(expected.n_scored() - got.n_scored(), 3);
  const auto first_scored = std::find(got.scored.begin(), got.scored.end(), 1) - got.scored.begin();
  EXPECT_EQ(small_tokenizer().decode(std::span(got.ids).subspan(first_scored), SkipSpecial::no), "ab<end_of_turn>\n");
}

TEST(Samples, ScoreRawTextWhole) {
  const Sample s = encode_row(small_tokenizer(), parse(R"({"text":"abc<bos>"})")[0], {100, LossOn::assistant});
  EXPECT_EQ(s.n_scored(), static_cast<int64_t>(s.ids.size()) - 1);
  EXPECT_EQ(s.ids[0], 2);
  EXPECT_EQ(std::count(s.ids.begin(), s.ids.end(), 2), 1) << "a control token written in data is plain text";
}

TEST(Samples, KeepTheFirstTokensAndRefuseWhatTrainsNothing) {
  const std::string long_user(50, 'x');
  const std::string text =
      kGoodRow + "\n" + messages(message("user", "\"" + long_user + "\"") + "," + message("assistant", "\"b\""));
  const std::vector<Row> rows = parse(text);
  const Sample whole = encode_whole(small_tokenizer(), rows[0], LossOn::assistant);
  const auto n = static_cast<int64_t>(whole.ids.size());
  const Sample cut = encode_row(small_tokenizer(), rows[0], {n - 2, LossOn::assistant});
  EXPECT_EQ(cut.n_cut, 2);
  EXPECT_TRUE(std::equal(cut.ids.begin(), cut.ids.end(), whole.ids.begin()));

  BadRows one(1);
  const EncodedRows encoded = encode_rows(small_tokenizer(), rows, {40, LossOn::assistant}, one);
  EXPECT_EQ(encoded.rows.size(), 1u);
  EXPECT_EQ(encoded.samples.size(), 1u);
  ASSERT_EQ(one.reasons().size(), 1u);
  EXPECT_NE(one.reasons()[0].find("t.jsonl: row 2 (line 2): nothing to learn from: none of its 40 tokens"),
            std::string::npos)
      << one.reasons()[0];
  BadRows none(0);
  EXPECT_THROW(encode_rows(small_tokenizer(), rows, {40, LossOn::assistant}, none), Error);
}

TEST(Order, IsTorchsPermutation) {
  const std::vector<int64_t> order = shuffled(5897, 3407);
  const std::vector<int64_t> first = {1433, 3549, 4968, 3598, 5344, 2543, 1278, 1557, 2085, 3987, 5433, 3899};
  const std::vector<int64_t> last = {1892, 832, 4048};
  EXPECT_TRUE(std::equal(first.begin(), first.end(), order.begin()));
  EXPECT_TRUE(std::equal(last.begin(), last.end(), order.end() - 3));
  std::vector<int64_t> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(sorted.front(), 0);
  EXPECT_EQ(sorted.back(), 5896);
  EXPECT_EQ(std::unique(sorted.begin(), sorted.end()), sorted.end());
  EXPECT_TRUE(shuffled(0, 1).empty());
}

std::vector<Sample> samples_of_lengths(const std::vector<int>& lengths) {
  std::vector<Sample> samples;
  for (const int n : lengths) {
    Sample s;
    for (int i = 0; i < n; ++i) s.ids.push_back(static_cast<int32_t>(100 * samples.size() + i));
    s.scored.assign(n, 1);
    s.scored[0] = 0;
    samples.push_back(s);
  }
  return samples;
}

TEST(Epoch, HasTheSourcesNumberOfUpdates) {
  const std::vector<Sample> samples = samples_of_lengths(std::vector<int>(5897, 2));
  const BatchOptions options{2, 4, 4000, Packing::off, 3407};
  const EpochPlan plan = plan_epoch(samples, options, 0);
  EXPECT_EQ(plan.micro_batches.size(), 2949u);
  EXPECT_EQ(plan.n_updates(), 738);
  EXPECT_EQ(plan.update(0).size(), 4u);
  EXPECT_EQ(plan.update(737).size(), 1u);
  EXPECT_EQ(plan.update(737)[0], std::vector<int64_t>{4048});
  EXPECT_EQ(plan.micro_batches[0], (std::vector<int64_t>{1433, 3549}));
  EXPECT_EQ(plan_epoch(samples, options, 0).micro_batches, plan.micro_batches);
  EXPECT_NE(plan_epoch(samples, options, 1).micro_batches, plan.micro_batches);
}

TEST(Epoch, PackingFillsTheBudgetAndLosesNothing) {
  std::vector<int> lengths;
  for (int i = 0; i < 200; ++i) lengths.push_back(2 + i * 7 % 31);
  const std::vector<Sample> samples = samples_of_lengths(lengths);
  const EpochPlan plan = plan_epoch(samples, {2, 4, 32, Packing::on, 1}, 0);
  std::vector<int64_t> seen;
  for (size_t b = 0; b < plan.micro_batches.size(); ++b) {
    const auto& batch = plan.micro_batches[b];
    const int total =
        std::accumulate(batch.begin(), batch.end(), 0, [&](int sum, int64_t i) { return sum + lengths[i]; });
    EXPECT_LE(total, 64);
    const bool is_last = b + 1 == plan.micro_batches.size();
    EXPECT_TRUE(is_last || total + lengths[plan.micro_batches[b + 1][0]] > 64)
        << "micro-batch " << b << " has room left";
    seen.insert(seen.end(), batch.begin(), batch.end());
  }
  EXPECT_EQ(seen, shuffled(200, 1));
}

TEST(Packed, TargetsNeverCrossSequences) {
  std::vector<Sample> samples = samples_of_lengths({3, 1, 4});
  samples[2].scored = {0, 0, 1, 1};
  const std::vector<int64_t> indices = {2, 1, 0};
  const PackedBatch batch = pack(samples, indices);
  EXPECT_EQ(batch.ids, (std::vector<int32_t>{200, 201, 202, 203, 100, 0, 1, 2}));
  EXPECT_EQ(batch.positions, (std::vector<int32_t>{0, 1, 2, 3, 0, 0, 1, 2}));
  EXPECT_EQ(batch.targets, (std::vector<int32_t>{-1, 202, 203, -1, -1, 1, 2, -1}));
  EXPECT_EQ(batch.seq_starts, (std::vector<int64_t>{0, 4, 5, 8}));
  EXPECT_EQ(batch.n_scored, 4);
}

TEST(Split, IsDeterministicAndKeepsOrder) {
  std::string text;
  for (int i = 0; i < 10; ++i) text += "{\"text\":\"" + std::to_string(i) + "\"}\n";
  const RowSplit split = split_rows(parse(text), 0.3, 3407);
  EXPECT_EQ(split.validation.size(), 3u);
  EXPECT_EQ(split.train.size(), 7u);
  std::vector<int64_t> chosen = shuffled(10, 3407);
  chosen.resize(3);
  std::sort(chosen.begin(), chosen.end());
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(split.validation[i].number, chosen[i] + 1);
  EXPECT_TRUE(
      std::is_sorted(split.train.begin(), split.train.end(), [](auto& a, auto& b) { return a.number < b.number; }));
  EXPECT_EQ(split_rows(parse(text), 0, 1).train.size(), 10u);
  EXPECT_EQ(split_rows(parse(text), 0.01, 1).validation.size(), 1u);
  EXPECT_THROW(split_rows(parse(R"({"text":"a"})"), 0.5, 1), Error);
}

TEST(Report, CountsWhatIsThere) {
  const std::string text = kGoodRow + "\n" + kGoodRow + "\n" +
                           messages(message("system", "\"s\"") + "," + message("user", "\"كي‌ي\"") + "," +
                                    message("assistant", "\"" + std::string(100, 'x') + "\""));
  const std::vector<Row> rows = parse(text);
  const DataReport report = inspect(small_tokenizer(), rows, {60, LossOn::assistant}, {"t.jsonl: row 9: bad"});
  EXPECT_EQ(report.n_rows, 3);
  EXPECT_EQ(report.n_with_system, 1);
  EXPECT_EQ(report.n_assistant_messages, 3);
  EXPECT_EQ(report.n_duplicates, 1);
  EXPECT_EQ(report.n_zwnj, 1);
  EXPECT_EQ(report.n_arabic_yeh, 2);
  EXPECT_EQ(report.n_arabic_kaf, 1);
  EXPECT_EQ(report.n_cut_rows, 1);
  EXPECT_EQ(report.length_quantile(0.5), report.length_quantile(0));
  EXPECT_EQ(report.length_quantile(1), 60 + report.n_cut_tokens);
  EXPECT_NE(to_text(report).find("t.jsonl: row 9: bad"), std::string::npos);
  EXPECT_EQ(to_value(report).find("duplicate_rows")->as_integer(), 1);
}

TEST(Report, PreviewTellsScoredFromMasked) {
  const Row row = parse(messages(message("user", "\"a\\u001b[31m\"") + "," + message("assistant", "\"abc\\nb\"")))[0];
  const std::string plain = preview(small_tokenizer(), row, {100, LossOn::assistant}, Colours::none);
  EXPECT_NE(plain.find("⟦abc|↵\n|b|<end_of_turn>|↵\n⟧"), std::string::npos) << plain;
  EXPECT_EQ(plain.find('\x1b'), std::string::npos) << "the data's escape byte must not reach the terminal";
  EXPECT_NE(plain.find("tokens, 5 scored, 0 cut off"), std::string::npos) << plain;
  const std::string coloured = preview(small_tokenizer(), row, {100, LossOn::assistant}, Colours::ansi);
  EXPECT_NE(coloured.find("\x1b[1;32mabc|"), std::string::npos);
}

TEST(SampleData, EveryShippedFileLoads) {
  for (const auto& entry : fs::directory_iterator(fs::path(SAAZ_SOURCE_DIR) / "data" / "sample-fa")) {
    if (entry.path().extension() != ".jsonl") continue;
    BadRows none(0);
    const std::vector<Row> rows = load_rows(entry.path(), DataFormat::automatic, none);
    EXPECT_FALSE(rows.empty()) << entry.path();
  }
}

}  // namespace
}  // namespace saaz
