// Bytes as a tokenizer.json or, where they do not start with '{', as a tokenizer.model. The member "$" of a JSON text
// stands for the 256 byte pieces (ids 10 to 265), and a model gets them appended: inputs stay small. Either a bad_input
// Error comes out, or a tokenizer whose ids lie inside its vocabulary and that makes no control token of plain text.
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "mutation.h"
#include "tokenizer/sentencepiece_model.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/tokenizer_json.h"

namespace {

using saaz::PieceType;

constexpr std::string_view kJsonSeed =
    R"({"added_tokens":[{"id":0,"content":"<pad>","special":true},{"id":2,"content":"<bos>","special":true,"lstrip":false},)"
    R"({"id":4,"content":"\n\n","special":false}],"normalizer":{"type":"Replace","pattern":{"String":" "},"content":"▁"},)"
    R"("pre_tokenizer":{"type":"Split","pattern":{"String":" "}},"post_processor":{"type":"TemplateProcessing","single":)"
    R"([{"SpecialToken":{"id":"<bos>"}},{"Sequence":{"id":"A"}}],"special_tokens":{"<bos>":{"ids":[2]}}},"decoder":{"type":)"
    R"("Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},)"
    R"({"type":"Fuse"}]},"model":{"type":"BPE","unk_token":"<unk>","byte_fallback":true,"vocab":{"<pad>":0,"<eos>":1,)"
    R"("<bos>":2,"<unk>":3,"\n\n":4,"a":5,"b":6,"ab":7,"▁":8,"▁▁":9,"$":0},"merges":[["a","b"],"▁ ▁"]}})";

std::string model_seed() {
  saaz::Vocabulary vocabulary{.source = "seed"};
  for (const char* text : {"<pad>", "<eos>", "<bos>"}) vocabulary.pieces.push_back({text, PieceType::control});
  vocabulary.pieces.push_back({"<unk>", PieceType::unknown});
  vocabulary.pieces.push_back({"\n\n", PieceType::user_defined});
  for (const char* text : {"ab", "abc", "▁▁", "a", "b", "▁"}) vocabulary.pieces.push_back({text, PieceType::normal});
  vocabulary.pad = 0, vocabulary.eos = 1, vocabulary.bos = 2, vocabulary.unk = 3;
  return saaz::write_sentencepiece_model(vocabulary);
}

const std::vector<std::string>& seeds() {
  static const std::vector<std::string> all = {std::string(kJsonSeed), model_seed()};
  return all;
}

std::string with_byte_pieces_in_json(std::string text) {
  static const std::string all = [] {
    std::string out;
    for (int b = 0; b < 256; ++b) {
      out += (b ? ",\"" : "\"") + saaz::byte_piece_text(static_cast<uint8_t>(b)) + "\":" + std::to_string(10 + b);
    }
    return out;
  }();
  constexpr std::string_view kMark = "\"$\":0";
  if (const size_t at = text.find(kMark); at != std::string::npos) text.replace(at, kMark.size(), all);
  return text;
}

std::string with_byte_pieces_in_model(std::string bytes) {
  for (int b = 0; b < 256; ++b)
    bytes += "\x0A\x0A\x0A\x06" + saaz::byte_piece_text(static_cast<uint8_t>(b)) + "\x18\x06";
  return bytes;
}

saaz::Vocabulary read(const std::string& input) {
  const bool is_json = !input.empty() && input[0] == '{';
  const std::string text = is_json ? with_byte_pieces_in_json(input) : with_byte_pieces_in_model(input);
  const saaz::Bytes bytes{reinterpret_cast<const std::byte*>(text.data()), text.size()};
  return is_json ? saaz::read_tokenizer_json(bytes, "input") : saaz::read_sentencepiece_model(bytes, "input");
}

void encode_and_decode(const saaz::Tokenizer& tokenizer, saaz::ControlTokens control) {
  const std::vector<int32_t> ids = tokenizer.encode("abc  س\n\n<bos><pad>\xFF 🫩", control, saaz::AddBos::no);
  for (const int32_t id : ids) {
    const bool inside = id >= 0 && static_cast<size_t>(id) < tokenizer.size();
    if (!inside || (control == saaz::ControlTokens::as_text && tokenizer.is_control(id))) std::abort();
  }
  tokenizer.decode(ids, saaz::SkipSpecial::no);
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned random) {
  if (const std::string* seed = saaz::fuzz::fresh_seed(seeds(), size, random)) {
    return saaz::fuzz::store_seed(*seed, data, max_size);
  }
  return LLVMFuzzerMutate(data, size, max_size);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const saaz::Tokenizer tokenizer(read(std::string(reinterpret_cast<const char*>(data), size)));
    encode_and_decode(tokenizer, saaz::ControlTokens::as_text);
    encode_and_decode(tokenizer, saaz::ControlTokens::parse);
  } catch (const saaz::Error& error) {
    if (error.code() != saaz::ExitCode::bad_input) std::abort();
  }
  return 0;
}
