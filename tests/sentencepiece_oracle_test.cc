// The tokenizer.model that we write, read by SentencePiece itself: it must give the ids that Hugging Face gives, on
// every golden text without control tokens and on Persian text of its own.
#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <iostream>

#include "base/value.h"
#include "tokenizer/sentencepiece_model.h"
#include "tokenizer_fixture.h"

namespace saaz {
namespace {

TEST(SentencePieceOracle, WrittenModelGivesTheGoldenIds) {
  const Tokenizer& tokenizer = real_tokenizer();
  sentencepiece::SentencePieceProcessor oracle;
  const auto loaded = oracle.LoadFromSerializedProto(write_sentencepiece_model(tokenizer.vocabulary()));
  ASSERT_TRUE(loaded.ok()) << loaded.ToString();
  EXPECT_EQ(oracle.GetPieceSize(), static_cast<int>(tokenizer.size()));
  EXPECT_EQ(oracle.bos_id(), 2);
  EXPECT_EQ(oracle.eos_id(), 1);
  EXPECT_EQ(oracle.unk_id(), 3);
  EXPECT_EQ(oracle.pad_id(), 0);

  const fs::path file = fs::path(SAAZ_SOURCE_DIR) / "tests/golden/tokenizer-cases.json";
  const Value root = parse_json(read_file(file), file.string());
  size_t compared = 0;
  for (const Value& item : root.find("cases")->items()) {
    const std::string& text = item.find("text")->as_string();
    std::vector<int32_t> expected;
    bool has_control = false;
    for (const Value& id : item.find("ids")->items()) {
      expected.push_back(static_cast<int32_t>(id.as_integer()));
      has_control |= tokenizer.is_control(expected.back());
    }
    if (has_control) continue;
    std::vector<int> ids;
    ASSERT_TRUE(oracle.Encode(text, &ids).ok());
    EXPECT_EQ(ids, expected) << text;
    ++compared;
  }
  EXPECT_GT(compared, 80u);
  std::cout << "sentencepiece on the written tokenizer.model: " << compared << " golden texts compared\n";
}

}  // namespace
}  // namespace saaz
