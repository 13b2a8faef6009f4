// The files of a merged folder beside its weights.
#include <array>
#include <optional>

#include "base/check.h"
#include "model/base_tokenizer.h"
#include "publish/merge.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/sentencepiece_model.h"
#include "tokenizer/tokenizer_json.h"

namespace saaz {

namespace {

constexpr std::array kCopied = {"tokenizer.json",
                                "tokenizer.model",
                                "tokenizer_config.json",
                                "special_tokens_map.json",
                                "added_tokens.json",
                                "chat_template.jinja",
                                "chat_template.json",
                                "preprocessor_config.json",
                                "processor_config.json",
                                "LICENSE",
                                "NOTICE"};

const char* torch_name(StoredDType dtype) {
  return dtype == StoredDType::f32 ? "float32" : dtype == StoredDType::f16 ? "float16" : "bfloat16";
}

Value merged_config(const BaseModel& base, StoredDType dtype) {
  Value config;
  if (base.is_gguf) {
    config = to_config_json(base.config);
  } else {
    const fs::path path = base.path / "config.json";
    config = parse_json(read_file(path, 16 << 20), path.string());
  }
  std::erase_if(config.members(), [](const Value::Member& member) { return member.first == "quantization_config"; });
  // Old readers look for torch_dtype, new ones for dtype; a nested text_config repeats it.
  const auto set_dtype = [&](Value& object) {
    if (object.find("torch_dtype") != nullptr) object.set("torch_dtype", torch_name(dtype));
    if (object.find("dtype") != nullptr || object.find("torch_dtype") == nullptr)
      object.set("dtype", torch_name(dtype));
  };
  set_dtype(config);
  for (Value::Member& member : config.members())
    if (member.first == "text_config" && member.second.is_object()) set_dtype(member.second);
  return config;
}

/// `tokenizer` may be absent. Its stop ids go before the config's: neither GGUF metadata nor many a config.json names
/// `<end_of_turn>`, and a model that is not stopped there talks on for ever.
Value default_generation_config(const ModelConfig& config, const Tokenizer* tokenizer) {
  std::vector<Value> eos(config.eos_ids.begin(), config.eos_ids.end());
  if (tokenizer != nullptr) {
    const std::vector<int32_t> ids = tokenizer->stop_ids();
    eos.assign(ids.begin(), ids.end());
  }
  return Value::object({{"bos_token_id", Value(config.bos_id)},
                        {"do_sample", Value(true)},
                        {"eos_token_id", Value::array(std::move(eos))},
                        {"pad_token_id", Value(config.pad_id)},
                        {"temperature", Value(1.0)},
                        {"top_k", Value(64)},
                        {"top_p", Value(0.95)}});
}

void write_if_absent(const fs::path& path, const std::function<std::string()>& text) {
  if (!fs::exists(path)) write_file_atomically(path, text());
}

}  // namespace

void write_side_files(const BaseModel& base, StoredDType dtype, const fs::path& folder) {
  write_file_atomically(folder / "config.json", to_json(merged_config(base, dtype), 2) + "\n");
  if (!base.is_gguf) {
    for (const char* name : kCopied)
      if (fs::is_regular_file(base.path / name)) copy_file_atomically(base.path / name, folder / name);
    if (fs::is_regular_file(base.path / "generation_config.json"))
      copy_file_atomically(base.path / "generation_config.json", folder / "generation_config.json");
  }
  std::optional<Tokenizer> tokenizer;
  if (has_tokenizer(base.path)) tokenizer.emplace(load_base_tokenizer(base));
  write_if_absent(folder / "generation_config.json", [&] {
    return to_json(default_generation_config(base.config, tokenizer ? &*tokenizer : nullptr), 2) + "\n";
  });
  // A base without a tokenizer (test models) gives a folder without one; otherwise the missing forms are rebuilt.
  if (!tokenizer) return;
  const Vocabulary& vocabulary = tokenizer->vocabulary();
  const std::string chat_template =
      chat_template_text(base.config.family == Family::gemma3 ? ChatTemplate::gemma3 : ChatTemplate::gemma3n);
  write_if_absent(folder / "tokenizer.json", [&] { return write_tokenizer_json(vocabulary); });
  write_if_absent(folder / "tokenizer.model", [&] { return write_sentencepiece_model(vocabulary); });
  write_if_absent(folder / "tokenizer_config.json", [&] {
    return write_tokenizer_config(vocabulary, chat_template, base.config.max_position_embeddings);
  });
  write_if_absent(folder / "special_tokens_map.json", [&] { return write_special_tokens_map(vocabulary); });
  write_if_absent(folder / "chat_template.jinja", [&] { return chat_template; });
}

}  // namespace saaz
