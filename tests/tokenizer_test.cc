// The tokenizer beyond its goldens: round trips, control tokens never from text, streaming, files written and read
// back, and damaged files refused with a named place.
#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <iostream>
#include <random>

#include "base/check.h"
#include "base/unicode.h"
#include "base/value.h"
#include "tokenizer/sentencepiece_model.h"
#include "tokenizer_fixture.h"

namespace saaz {
namespace {

using Ids = std::vector<int32_t>;

std::string error_of(const std::string& text, const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "accepted: " << text.substr(0, 200);
  return "";
}

/// Random text of code points from all planes, biased to what tokenizers treat specially.
std::string random_text(std::mt19937& random, size_t n_points) {
  static const std::vector<std::string> kSpecial = {
      " ", "  ",  "\n",  "\n\n\n", "\t",   "\r\n",  "‌", "می‌خواهم", "<unused7>", "<b>", "<0x41>",
      "a", "===", "۱۲۳", "</s>",   "🫩", "Hello", "<"};
  std::string out;
  for (size_t i = 0; i < n_points; ++i) {
    if (random() % 3 != 0) {
      out += kSpecial[random() % kSpecial.size()];
      continue;
    }
    uint32_t value = random() % 2 ? random() % 0x3000 : random() % 0x110000;
    if ((value >= 0xD800 && value < 0xE000) || value == 0x2581)
      value = 0x627;  // no surrogates; the mark decodes to a space
    append_utf8(out, value);
  }
  return out;
}

TEST(Tokenizer, DecodingGivesTheTextBack) {
  std::mt19937 random(7);
  const Tokenizer& tokenizer = real_tokenizer();
  for (int i = 0; i < 5000; ++i) {
    const std::string text = random_text(random, 1 + random() % 40);
    const Ids ids = tokenizer.encode(text, ControlTokens::as_text, AddBos::no);
    ASSERT_EQ(tokenizer.decode(ids, SkipSpecial::no), text) << "case " << i;
    for (const int32_t id : ids) ASSERT_FALSE(tokenizer.is_control(id)) << text;
  }
}

TEST(Tokenizer, EveryPieceIsWithinBoundsAndEveryByteHasOne) {
  const Tokenizer& tokenizer = real_tokenizer();
  EXPECT_EQ(tokenizer.size(), 262145u);
  EXPECT_EQ(tokenizer.stop_ids(), (Ids{1, 106}));
  EXPECT_EQ(tokenizer.find_token("<start_of_turn>"), 105);
  EXPECT_EQ(tokenizer.find_token("<start_of"), std::nullopt);
  for (int32_t id = 238; id < 494; ++id) EXPECT_EQ(byte_of_piece(tokenizer.vocabulary().pieces[id].text), id - 238);
}

TEST(Tokenizer, InvalidUtf8CountsAsReplacementCharacters) {
  const Tokenizer& tokenizer = real_tokenizer();
  const std::string broken = "a\xFF\xE2\x96 \xC0\xAF\xED\xA0\x80z";
  const std::string repaired =
      "a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD \xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBDz";
  EXPECT_EQ(tokenizer.encode(broken, ControlTokens::as_text, AddBos::yes),
            tokenizer.encode(repaired, ControlTokens::as_text, AddBos::yes));
  const std::vector<Segment> segments{{broken, Segment::Origin::user_text}};
  EXPECT_EQ(tokenizer.encode_segments(segments).size(),
            tokenizer.encode(repaired, ControlTokens::as_text, AddBos::no).size());
}

TEST(Tokenizer, OneMegabyteOfOneCharacter) {
  const Tokenizer& tokenizer = real_tokenizer();
  for (const std::string unit : {"a", " ", "\n", "=", "<", "\r", "ب", "🫩"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    const double start = monotonic_seconds();
    const Ids ids = tokenizer.encode(text, ControlTokens::as_text, AddBos::no);
    std::cout << "1 MB of '" << printable(unit) << "': " << ids.size() << " ids in " << monotonic_seconds() - start
              << " s\n";
    EXPECT_EQ(tokenizer.decode(ids, SkipSpecial::no), text);
  }
}

/// Merging by trying every pair at every step: quadratic, but plainly the rule.
Ids merged_naively(const Vocabulary& vocabulary, Ids ids) {
  for (;;) {
    size_t best_rank = vocabulary.merges.size(), best_at = 0;
    for (size_t at = 0; at + 1 < ids.size(); ++at) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (vocabulary.merges[rank].left == ids[at] && vocabulary.merges[rank].right == ids[at + 1])
          best_rank = rank, best_at = at;
      }
    }
    if (best_rank == vocabulary.merges.size()) return ids;
    ids[best_at] = vocabulary.merges[best_rank].result;
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(best_at) + 1);
  }
}

TEST(Bpe, HeapEqualsTheNaiveRuleOnRandomMerges) {
  std::mt19937 random(11);
  for (int round = 0; round < 300; ++round) {
    Vocabulary vocabulary;
    std::vector<uint64_t> seen;
    const int32_t letters = 2 + static_cast<int32_t>(random() % 3);
    for (int32_t next = letters; next < letters + 12; ++next) {
      const Merge merge{static_cast<int32_t>(random() % next), static_cast<int32_t>(random() % next), next};
      const uint64_t pair = static_cast<uint64_t>(merge.left) << 32 | static_cast<uint32_t>(merge.right);
      if (std::find(seen.begin(), seen.end(), pair) != seen.end()) continue;
      seen.push_back(pair);
      vocabulary.merges.push_back(merge);
    }
    std::shuffle(vocabulary.merges.begin(), vocabulary.merges.end(), random);
    Ids start(1 + random() % 60);
    std::vector<Symbol> symbols;
    for (int32_t& id : start) symbols.push_back({id = static_cast<int32_t>(random() % letters), 0});
    merge_symbols(MergeTable(vocabulary.merges), symbols);
    Ids merged;
    for (const Symbol& symbol : symbols) merged.push_back(symbol.id);
    ASSERT_EQ(merged, merged_naively(vocabulary, start)) << "round " << round;
  }
}

TEST(Matcher, TakesTheLongestOfNestedTokens) {
  const TokenMatcher matcher({{"<a", 1}, {"<a><b>", 2}, {"<a>", 3}, {"b", 4}});
  EXPECT_EQ(matcher.match("<a><b")->id, 3);
  EXPECT_EQ(matcher.match("<a><b>x")->id, 2);
  EXPECT_EQ(matcher.match("<ax")->length, 2u);
  EXPECT_FALSE(matcher.match("<b"));
  EXPECT_FALSE(matcher.match(""));
}

TEST(Tokenizer, ControlStringsInTextAreOrdinaryText) {
  const Tokenizer& tokenizer = real_tokenizer();
  for (const Piece& piece : tokenizer.vocabulary().pieces) {
    if (piece.type != PieceType::control && piece.type != PieceType::unknown) continue;
    const Ids plain = tokenizer.encode(piece.text, ControlTokens::as_text, AddBos::no);
    EXPECT_GT(plain.size(), 1u) << piece.text;
    EXPECT_EQ(tokenizer.decode(plain, SkipSpecial::yes), piece.text);
    const Ids raw = tokenizer.encode(piece.text, ControlTokens::parse, AddBos::no);
    ASSERT_EQ(raw.size(), 1u) << piece.text;
    EXPECT_TRUE(tokenizer.is_control(raw[0]));
  }
}

TEST(Tokenizer, MergesThatSpellAControlTokenAreLeftOut) {
  Vocabulary vocabulary = small_vocabulary();
  std::string json = write_tokenizer_json(vocabulary);
  // "abc" becomes special: its merge ("ab", "c") must not make it out of text.
  const std::string piece = "\"added_tokens\": [";
  json.replace(json.find(piece), piece.size(), piece + R"({"id": 265, "content": "abc", "special": true},)");
  const Tokenizer tokenizer(read_tokenizer_json(bytes_of(json), "t"));
  EXPECT_EQ(tokenizer.encode("abc", ControlTokens::as_text, AddBos::no), (Ids{264, 269}));
  EXPECT_EQ(tokenizer.encode("abc", ControlTokens::parse, AddBos::no), (Ids{265}));
}

TEST(Segments, TemplateTextInAdjacentSegmentsFormsOneControlToken) {
  const Tokenizer tokenizer(small_vocabulary());
  using Origin = Segment::Origin;
  const auto ids = [&](std::vector<Segment> segments) {
    Ids out;
    for (const SegmentToken& token : tokenizer.encode_segments(segments)) out.push_back(token.id);
    return out;
  };
  EXPECT_EQ(ids({{"<bo", Origin::template_text}, {"s>", Origin::template_text}}), (Ids{2}));
  EXPECT_EQ(ids({{"<bos>", Origin::template_text}, {"<bos>", Origin::user_text}}).size(), 6u);  // five bytes
  const Ids split = ids({{"<bo", Origin::template_text}, {"s>", Origin::user_text}});
  EXPECT_EQ(std::count(split.begin(), split.end(), 2), 0);
  EXPECT_EQ(ids({{"a\n", Origin::template_text}, {"\nb", Origin::user_text}}),
            (Ids{267, 7, 268}));  // ordinary tokens cross borders
}

TEST(StreamDecoder, EqualsDecodeAndNeverSplitsACodePoint) {
  std::mt19937 random(3);
  const Tokenizer& tokenizer = real_tokenizer();
  for (int i = 0; i < 2000; ++i) {
    Ids ids(1 + random() % 30);
    for (int32_t& id : ids)
      id = static_cast<int32_t>(random() % 2 ? 238 + random() % 256 : random() % (tokenizer.size() + 50));
    for (const SkipSpecial skip : {SkipSpecial::no, SkipSpecial::yes}) {
      StreamDecoder decoder(tokenizer, skip);
      std::string streamed;
      for (const int32_t id : ids) {
        const std::string piece = decoder.push(id);
        ASSERT_EQ(find_invalid_utf8(piece), std::string::npos);
        streamed += piece;
      }
      streamed += decoder.finish();
      ASSERT_EQ(streamed, tokenizer.decode(ids, skip));
    }
  }
}

TEST(StreamDecoder, HoldsTheBytesOfACharacterAndReplacesBadRuns) {
  const Tokenizer& tokenizer = real_tokenizer();
  StreamDecoder decoder(tokenizer, SkipSpecial::yes);
  for (const int32_t id : {478, 397, 409, 407}) EXPECT_EQ(decoder.push(id), "");
  EXPECT_EQ(decoder.push(105), "");  // a skipped token leaves the run whole
  EXPECT_EQ(decoder.push(9259), "🫩Hello");
  EXPECT_EQ(decoder.push(478), "");
  EXPECT_EQ(decoder.finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(decoder.finish(), "");
  EXPECT_EQ(tokenizer.decode(Ids{478, 397, 409, 407, 478}, SkipSpecial::no).size(),
            15u);  // Hugging Face replaces the whole run
  EXPECT_EQ(tokenizer.decode(Ids{-1, 1 << 30}, SkipSpecial::no), "");
}

TEST(TokenizerFiles, EverySourceWritesTheRealFileByteForByte) {
  const std::string original = read_file(kGoldenTokenizer);
  const Vocabulary& vocabulary = real_tokenizer().vocabulary();
  EXPECT_TRUE(write_tokenizer_json(vocabulary) == original) << "from tokenizer.json";
  EXPECT_TRUE(write_tokenizer_json(vocabulary_from_gguf(gguf_of(vocabulary))) == original) << "from a GGUF vocabulary";
  const std::string model = write_sentencepiece_model(vocabulary);
  EXPECT_TRUE(write_tokenizer_json(read_sentencepiece_model(bytes_of(model), "m")) == original)
      << "from tokenizer.model";
}

TEST(TokenizerFiles, CompanionsNameTheSpecialTokens) {
  Vocabulary vocabulary = small_vocabulary();
  const Value config = parse_json(write_tokenizer_config(vocabulary, "a \"template\"\n", 2048), "config");
  EXPECT_EQ(config.find("chat_template")->as_string(), "a \"template\"\n");
  EXPECT_EQ(config.find("bos_token")->as_string(), "<bos>");
  EXPECT_EQ(config.find("model_max_length")->as_integer(), 2048);
  EXPECT_EQ(config.find("added_tokens_decoder")->members().size(), 8u);
  EXPECT_TRUE(config.find("added_tokens_decoder")->find("4")->find("special")->as_bool());
  EXPECT_FALSE(config.find("added_tokens_decoder")->find("6")->find("special")->as_bool());
  const Value map = parse_json(write_special_tokens_map(vocabulary), "map");
  EXPECT_EQ(map.find("unk_token")->find("content")->as_string(), "<unk>");
}

TEST(TokenizerFiles, HolesBetweenIdsAreKeptButNeverProduced) {
  std::string json = write_tokenizer_json(small_vocabulary());
  const std::string added = "\"added_tokens\": [";
  json.replace(json.find(added), added.size(), added + R"({"id": 300, "content": "<far>", "special": true},)");
  const Tokenizer tokenizer(read_tokenizer_json(bytes_of(json), "t"));
  EXPECT_EQ(tokenizer.size(), 301u);
  EXPECT_EQ(tokenizer.encode("<far>", ControlTokens::parse, AddBos::yes), (Ids{2, 300}));
  EXPECT_EQ(tokenizer.decode(Ids{299, 300}, SkipSpecial::no), "<far>");
  const Tokenizer again(read_tokenizer_json(bytes_of(write_tokenizer_json(tokenizer.vocabulary())), "again"));
  EXPECT_EQ(again.find_token("<far>"), 300);
}

struct Damage {
  const char* from;  // replaced once in the small tokenizer.json; the whole text when empty
  const char* to;
  const char* says;  // a part of the message
};

TEST(TokenizerFiles, DamagedTokenizerJsonIsRefusedWithItsPlace) {
  const std::string good = write_tokenizer_json(small_vocabulary());
  read_tokenizer_json(bytes_of(good), "t.json");
  const Damage damages[] = {
      {"", "", "t.json"},
      {"", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "t.json"},
      {"", "[]", "expected an object"},
      {"\"model\": {", "\"modle\": {", "'model' is missing"},
      {"\"type\": \"BPE\"", "\"type\": \"WordPiece\"", "model.type: unsupported: 'WordPiece'"},
      {"\"byte_fallback\": true", "\"byte_fallback\": false", "model.byte_fallback"},
      {"\"ignore_merges\": false", "\"ignore_merges\": true", "model.ignore_merges"},
      {"\"dropout\": null", "\"dropout\": 0.1", "model.dropout"},
      {"\"end_of_word_suffix\": null", "\"end_of_word_suffix\": \"</w>\"", "end_of_word_suffix"},
      {"\"type\": \"Replace\"", "\"type\": \"NFKC\"", "normalizer: unsupported"},
      {"\"type\": \"Split\"", "\"type\": \"ByteLevel\"", "pre_tokenizer: unsupported"},
      {"\"type\": \"TemplateProcessing\"", "\"type\": \"RobertaProcessing\"", "post_processor: unsupported"},
      {"\"type\": \"Fuse\"", "\"type\": \"Strip\"", "decoder: unsupported"},
      {"\"abc\": 265", "\"abc\": 264", "both have id 264"},
      {"\"abc\": 265", "\"abc\": 2147483648", "id 2147483648 of 'abc' is out of range"},
      {"\"abc\": 265", "\"abc\": -1", "id -1 of 'abc' is out of range"},
      {"\"abc\": 265", "\"abc\": 99999999999999999999", "t.json"},
      {"\"abc\": 265", "\"abc\": 1000000", "sparse"},
      {"\"abc\": 265", "\"abc\": \"x\"", "the id of 'abc' is no integer"},
      {"\"abc\": 265", "\"ab\": 265", "piece 'ab' has two ids"},
      {"\"abc\": 265", "\"\": 265", "the piece with id 265 is empty"},
      {"\"abc\": 265", "\"abd\": 265", "merges["},
      {"\"<0x41>\": 73,", "", "'<0x41>' is missing"},
      {"\"unk_token\": \"<unk>\"", "\"unk_token\": \"<nix>\"", "unk_token: '<nix>'"},
      {"\"id\": 0,\n      \"content\": \"<pad>\"", "\"id\": 1,\n      \"content\": \"<pad>\"",
       "added_tokens[0]: '<eos>' and '<pad>' both have id 1"},
      {"\"lstrip\": false", "\"lstrip\": true", "added_tokens[0].lstrip"},
      {"\"normalized\": false", "\"normalized\": 1", "added_tokens[0].normalized: expected true or false"},
      {"\"merges\": [", "\"merges\": [[\"a\"], ", "merges[0]: expected two strings"},
      {"\"merges\": [", "\"merges\": [[\"zz\", \"b\"], ", "merges[0]: 'zzb' is no piece"},
      {"\"merges\": [", "\"merges\": [[\"a\", \"b\"], ", "'a' and 'b' are merged twice"},
      {"\"merges\": [", "\"merges\": {", "t.json"},
      {"\"ids\": [\n          2\n", "\"ids\": [\n          2000\n", "bos id 2000 is outside"},
  };
  for (const Damage& damage : damages) {
    std::string text = damage.to;
    if (*damage.from) {
      text = good;
      ASSERT_NE(text.find(damage.from), std::string::npos) << damage.from;
      text.replace(text.find(damage.from), std::string(damage.from).size(), damage.to);
    }
    const std::string message = error_of(damage.to, [&] { Tokenizer(read_tokenizer_json(bytes_of(text), "t.json")); });
    EXPECT_NE(message.find("t.json"), std::string::npos) << message;
    EXPECT_NE(message.find(damage.says), std::string::npos) << damage.to << " -> " << message;
  }
}

TEST(TokenizerFiles, TruncatedFilesAreRefusedAtEveryByte) {
  const std::string json = write_tokenizer_json(small_vocabulary()),
                    model = write_sentencepiece_model(small_vocabulary());
  for (size_t n = 0; n < json.size(); n += 37) {
    error_of("json", [&] { read_tokenizer_json(bytes_of(std::string_view(json).substr(0, n)), "t.json"); });
  }
  for (size_t n = 0; n < model.size(); ++n) {
    error_of("model", [&] { read_sentencepiece_model(bytes_of(std::string_view(model).substr(0, n)), "t.model"); });
  }
}

TEST(TokenizerFiles, DamagedModelsNeverCrash) {
  std::mt19937 random(5);
  const std::string good = write_sentencepiece_model(small_vocabulary());
  for (int i = 0; i < 20000; ++i) {
    std::string text = good;
    for (size_t n = 1 + random() % 4; n > 0; --n) text[random() % text.size()] = static_cast<char>(random());
    try {
      Tokenizer(read_sentencepiece_model(bytes_of(text), "t.model")).encode("abc س", ControlTokens::parse, AddBos::no);
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), ExitCode::bad_input);
    }
  }
}

TEST(TokenizerFiles, DamagedGgufVocabulariesAreRefused) {
  const auto refused = [](const char* says, const std::function<void(GgufVocabulary&)>& damage) {
    GgufVocabulary gguf = gguf_of(small_vocabulary());
    damage(gguf);
    const std::string message = error_of(says, [&] { vocabulary_from_gguf(gguf); });
    EXPECT_NE(message.find(says), std::string::npos) << message;
  };
  refused("equal length", [](GgufVocabulary& g) { g.scores.pop_back(); });
  refused("token_type[5] is 9", [](GgufVocabulary& g) { g.token_types[5] = 9; });
  refused("bos_token_id is -1", [](GgufVocabulary& g) { g.bos = -1; });
  refused("eos_token_id is 4294967298", [](GgufVocabulary& g) { g.eos = 4294967298; });
  refused("piece 264 is empty", [](GgufVocabulary& g) { g.tokens[264].clear(); });
  refused("has two ids", [](GgufVocabulary& g) { g.tokens[264] = "abc"; });
  refused("not valid UTF-8", [](GgufVocabulary& g) { g.tokens[264] = "a\xFF"; });
  refused("no finite number", [](GgufVocabulary& g) { g.scores[264] = NAN; });
  refused("the limit is 1024", [](GgufVocabulary& g) { g.tokens[264] = std::string(2000, 'x'); });
  refused("marked as a byte", [](GgufVocabulary& g) { g.token_types[264] = 6; });
  refused("'<0x00>' is missing", [](GgufVocabulary& g) { g.token_types[8] = 1; });
}

}  // namespace
}  // namespace saaz
