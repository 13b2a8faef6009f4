// Parquet: files that pyarrow wrote give the rows of the JSON lines beside them; files cut or changed anywhere end in
// an error, never in a crash or an endless read.
#include <gtest/gtest.h>

#include <map>

#include "base/error.h"
#include "base/system.h"
#include "data/conversation.h"
#include "data/row_source.h"

namespace saaz {
namespace {

const fs::path kFixtures = fs::path(SAAZ_SOURCE_DIR) / "tests" / "golden" / "parquet";

std::string show(const std::vector<Row>& rows) {
  std::string out;
  for (const Row& row : rows) {
    out += std::to_string(row.number) + " " + row.license + " " + row.text;
    for (const ChatMessage& message : row.messages) {
      out += message.role + ":";
      for (const std::string& part : message.parts) out += "[" + part + "]";
    }
    out += "\n";
  }
  return out;
}

std::string load(const fs::path& file) {
  BadRows none(0);
  return show(load_rows(file, DataFormat::automatic, none));
}

std::string parse(std::string_view bytes) {
  BadRows none(0);
  return show(parse_rows(bytes, "t.parquet", DataFormat::automatic, none));
}

/// The files that must be read, by name.
std::vector<fs::path> good_files() {
  std::vector<fs::path> out;
  for (const auto& entry : fs::directory_iterator(kFixtures))
    if (entry.path().extension() == ".parquet" && !entry.path().filename().string().starts_with("refused"))
      out.push_back(entry.path());
  std::sort(out.begin(), out.end());
  return out;
}

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input) << error.what();
    return error.what();
  }
  return "no error";
}

TEST(Parquet, GivesTheRowsThatPyarrowWrote) {
  ASSERT_EQ(good_files().size(), 20u);
  for (const fs::path& file : good_files()) {
    const std::string name = file.filename().string();
    const std::string expected = load(kFixtures / (name.substr(0, name.find('-')) + ".jsonl"));
    EXPECT_EQ(load(file), expected) << name;
  }
}

TEST(Parquet, IsToldByItsFirstBytesWhateverItsName) {
  const std::string bytes = read_file(kFixtures / "sharegpt-snappy-v1.parquet");
  BadRows none(0);
  EXPECT_EQ(parse_rows(bytes, "t.jsonl", DataFormat::automatic, none).size(), 5u);
  EXPECT_EQ(file_kind("{}", "t.parquet"), FileKind::parquet);
}

TEST(Parquet, ShardsOfAFolderAreFoundInOrder) {
  const fs::path folder = fs::path(SAAZ_BINARY_DIR) / "tests" / "parquet-shards";
  fs::remove_all(folder);
  fs::create_directories(folder / "data");
  for (const char* name : {"train-00001-of-00002.parquet", "train-00000-of-00002.parquet", "validation-0.parquet"})
    fs::copy_file(kFixtures / "sharegpt-snappy-v1.parquet", folder / "data" / name);
  const std::vector<fs::path> train = find_data_files(folder, Split::train);
  ASSERT_EQ(train.size(), 2u);
  EXPECT_EQ(train[0].filename(), "train-00000-of-00002.parquet");
  EXPECT_EQ(find_data_files(folder, Split::validation).size(), 1u);
}

TEST(Parquet, RefusalsNameWhatIsWrong) {
  const auto refusal = [](const char* name) { return message_of([&] { load(kFixtures / name); }); };
  EXPECT_NE(refusal("refused-brotli.parquet").find("column text: compressed with BROTLI"), std::string::npos);
  EXPECT_NE(refusal("refused-integers.parquet").find("column text: holds no text"), std::string::npos);
  EXPECT_NE(message_of([] { parse("PAR1 and then nothing"); }).find("truncated or damaged"), std::string::npos);
  EXPECT_NE(message_of([] { parse("{\"text\":\"a\"}"); }).find("begins and ends with PAR1"), std::string::npos);
  EXPECT_NE(message_of([] { parse("PAR1xxxxPARE"); }).find("encrypted"), std::string::npos);
  EXPECT_NE(message_of([] { parse("PAR1\xFF\xFF\xFF\xFFPAR1"); }).find("claims 4294967295 bytes"), std::string::npos);
}

TEST(Parquet, EveryTruncationIsAnError) {
  for (const fs::path& file : good_files()) {
    const std::string bytes = read_file(file);
    for (size_t n = 0; n < bytes.size(); ++n)
      EXPECT_NE(message_of([&] { parse(std::string_view(bytes).substr(0, n)); }), "no error")
          << file << " cut at " << n;
  }
}

TEST(Parquet, EveryChangedByteIsAnErrorOrReadable) {
  for (const fs::path& file : good_files()) {
    std::string bytes = read_file(file);
    if (bytes.size() > 2000) continue;  // the smaller files have every encoding and codec, and sanitizers are slow
    for (char& byte : bytes) {
      const char before = byte;
      byte = static_cast<char>(byte ^ 0x55);
      message_of([&] { parse(bytes); });
      byte = before;
    }
  }
}

TEST(Parquet, AChecksumFindsEveryChangeOfAPage) {
  std::string bytes = read_file(kFixtures / "messages-snappy-v1-pages.parquet");
  const size_t at = bytes.find("assistant");
  ASSERT_NE(at, std::string::npos);
  bytes[at] = 'A';
  EXPECT_NE(message_of([&] { parse(bytes); }).find("checksum is wrong"), std::string::npos);
}

}  // namespace
}  // namespace saaz
