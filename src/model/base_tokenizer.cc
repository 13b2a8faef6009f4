#include "model/base_tokenizer.h"

#include "base/check.h"
#include "checkpoint/gguf.h"
#include "tokenizer/chat_template.h"

namespace saaz {

namespace {

GgufVocabulary read_gguf_vocabulary(const GgufFile& file) {
  GgufVocabulary out;
  out.source = file.name();
  check(file.text("tokenizer.ggml.model") == "llama", ExitCode::bad_input,
        "{}: tokenizer '{}' is not SentencePiece ('llama')", file.name(), printable(file.text("tokenizer.ggml.model")));
  for (const std::string_view token : file.texts("tokenizer.ggml.tokens")) out.tokens.emplace_back(token);
  for (const double score : file.reals("tokenizer.ggml.scores")) out.scores.push_back(static_cast<float>(score));
  for (const int64_t type : file.integers("tokenizer.ggml.token_type"))
    out.token_types.push_back(static_cast<int32_t>(type));
  const auto id = [&](const char* key) { return file.has(key) ? std::optional(file.integer(key)) : std::nullopt; };
  out.bos = id("tokenizer.ggml.bos_token_id");
  out.eos = id("tokenizer.ggml.eos_token_id");
  out.unk = id("tokenizer.ggml.unknown_token_id");
  out.pad = id("tokenizer.ggml.padding_token_id");
  if (file.has("tokenizer.ggml.add_bos_token")) out.add_bos = file.boolean("tokenizer.ggml.add_bos_token");
  return out;
}

/// No text and no chat becomes such a piece.
bool is_out_of_reach(const Piece& piece) {
  return piece.type == PieceType::unused || piece.text == "<image_soft_token>" || piece.text == "<audio_soft_token>";
}

}  // namespace

bool has_tokenizer(const fs::path& base) {
  return base.extension() == ".gguf" || fs::exists(base / "tokenizer.json") || fs::exists(base / "tokenizer.model");
}

Tokenizer load_base_tokenizer(const BaseModel& base) {
  Tokenizer tokenizer = load_tokenizer_alone(base.path);
  const Vocabulary& vocabulary = tokenizer.vocabulary();
  const auto n_rows = static_cast<size_t>(base.config.vocab_size);
  for (size_t id = n_rows; id < vocabulary.pieces.size(); ++id)
    check(is_out_of_reach(vocabulary.pieces[id]), ExitCode::bad_input,
          "{}: token {} ('{}') has no row in the model's table: expected ids below {}, found {} tokens; put in the "
          "tokenizer that belongs to these weights",
          vocabulary.source, id, printable(vocabulary.pieces[id].text), n_rows, vocabulary.pieces.size());
  return tokenizer;
}

Tokenizer load_tokenizer_alone(const fs::path& base) {
  if (base.extension() != ".gguf") return load_tokenizer(base);
  return Tokenizer(vocabulary_from_gguf(read_gguf_vocabulary(GgufFile(base))));
}

std::optional<std::string> base_chat_template(const fs::path& base) {
  if (base.extension() != ".gguf") return read_chat_template(base);
  constexpr const char* kKey = "tokenizer.chat_template";
  const GgufFile file(base);
  if (!file.has(kKey)) return std::nullopt;
  return std::string(file.text(kKey));
}

std::string chat_template_note(const fs::path& base) {
  const std::optional<std::string> text = base_chat_template(base);
  if (!text.has_value()) return "";
  try {
    check_template_is_known(*text, base.string());
  } catch (const Error& error) {
    return std::string(error.what()) + "; Gemma's own is used";
  }
  return "";
}

}  // namespace saaz
