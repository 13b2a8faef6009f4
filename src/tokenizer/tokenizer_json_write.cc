// Writing tokenizer.json, tokenizer_config.json and special_tokens_map.json. Enters: a checked Vocabulary. Leaves: the
// text Hugging Face's libraries write (two spaces, no escapes beyond JSON's own). Invariant: read_tokenizer_json reads
// the same vocabulary back. Built by hand: as a tree of nodes the 33 MB file would take ten times its size.
#include "base/check.h"
#include "base/value.h"
#include "tokenizer/tokenizer_json.h"

namespace saaz {
namespace {

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<uint8_t>(c) < 0x20) out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
        if (static_cast<uint8_t>(c) >= 0x20) out += c;
    }
  }
  return out += '"';
}

bool is_added(PieceType type) {
  return type == PieceType::control || type == PieceType::unknown || type == PieceType::user_defined;
}
bool is_special(PieceType type) { return type != PieceType::user_defined; }

/// Ids from here on are no part of the model's vocabulary, only added to it: the control tokens at the end.
size_t model_size(const Vocabulary& vocabulary) {
  size_t n = vocabulary.pieces.size();
  while (n > 0 &&
         (vocabulary.pieces[n - 1].type == PieceType::control || vocabulary.pieces[n - 1].type == PieceType::unused))
    --n;
  return n;
}

std::string added_token_flags(PieceType type, std::string_view indent) {
  std::string out;
  for (const std::string_view flag : {"single_word", "lstrip", "rstrip", "normalized"})
    out += fmt::format("{}\"{}\": false,\n", indent, flag);
  return out + fmt::format("{}\"special\": {}\n", indent, is_special(type));
}

void append_added_tokens(const Vocabulary& vocabulary, std::string& out) {
  std::string_view separator = "";
  out += "  \"added_tokens\": [";
  for (size_t id = 0; id < vocabulary.pieces.size(); ++id) {
    const Piece& piece = vocabulary.pieces[id];
    if (!is_added(piece.type)) continue;
    out +=
        fmt::format("{}\n    {{\n      \"id\": {},\n      \"content\": {},\n", separator, id, json_string(piece.text));
    out += added_token_flags(piece.type, "      ") + "    }";
    separator = ",";
  }
  out += "\n  ],\n";
}

constexpr std::string_view kNormalizer = R"(  "normalizer": {
    "type": "Replace",
    "pattern": {
      "String": " "
    },
    "content": "▁"
  },
  "pre_tokenizer": {
    "type": "Split",
    "pattern": {
      "String": " "
    },
    "behavior": "MergedWithPrevious",
    "invert": false
  },
)";

constexpr std::string_view kDecoder = R"(  "decoder": {
    "type": "Sequence",
    "decoders": [
      {
        "type": "Replace",
        "pattern": {
          "String": "▁"
        },
        "content": " "
      },
      {
        "type": "ByteFallback"
      },
      {
        "type": "Fuse"
      }
    ]
  },
)";

Value template_item(std::string_view kind, std::string_view id, int type_id) {
  return Value::object({{std::string(kind), Value::object({{"id", id}, {"type_id", type_id}})}});
}

/// Two spaces deeper, for text that becomes a member of the file's object.
std::string indented(std::string_view text) {
  std::string out;
  for (const char c : text) {
    out += c;
    if (c == '\n') out += "  ";
  }
  return out;
}

std::string post_processor(const Vocabulary& vocabulary) {
  if (!vocabulary.add_bos) return "null";
  const std::string& bos = vocabulary.pieces[vocabulary.bos.value()].text;
  const Value token = template_item("SpecialToken", bos, 0), text = template_item("Sequence", "A", 0);
  const Value entry = Value::object(
      {{"id", bos}, {"ids", Value::array({Value(*vocabulary.bos)})}, {"tokens", Value::array({Value(bos)})}});
  return indented(to_json(Value::object({{"type", "TemplateProcessing"},
                                         {"single", Value::array({token, text})},
                                         {"pair", Value::array({token, text, template_item("SpecialToken", bos, 1),
                                                                template_item("Sequence", "B", 1)})},
                                         {"special_tokens", Value::object({{bos, entry}})}}),
                          2));
}

void append_model(const Vocabulary& vocabulary, std::string& out) {
  const auto& pieces = vocabulary.pieces;
  out += "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": ";
  out += vocabulary.unk ? json_string(pieces[*vocabulary.unk].text) : "null";
  out +=
      ",\n    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n    \"fuse_unk\": true,\n"
      "    \"byte_fallback\": true,\n    \"ignore_merges\": false,\n    \"vocab\": {";
  std::string_view separator = "";
  for (size_t id = 0; id < model_size(vocabulary); ++id) {
    if (pieces[id].type == PieceType::unused) continue;
    out += fmt::format("{}\n      {}: {}", separator, json_string(pieces[id].text), id);
    separator = ",";
  }
  out += "\n    },\n    \"merges\": [";
  separator = "";
  for (const Merge& merge : vocabulary.merges) {
    out += fmt::format("{}\n      [\n        {},\n        {}\n      ]", separator, json_string(pieces[merge.left].text),
                       json_string(pieces[merge.right].text));
    separator = ",";
  }
  out += vocabulary.merges.empty() ? "]\n  }\n" : "\n    ]\n  }\n";
}

void set_token(Value& object, std::string key, const Vocabulary& vocabulary, std::optional<int32_t> id) {
  if (id) object.set(std::move(key), vocabulary.pieces[*id].text);
}

Value added_token_object(const Piece& piece) {
  return Value::object({{"content", piece.text},
                        {"lstrip", false},
                        {"normalized", false},
                        {"rstrip", false},
                        {"single_word", false},
                        {"special", is_special(piece.type)}});
}

}  // namespace

std::string write_tokenizer_json(const Vocabulary& vocabulary) {
  std::string out = "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n";
  append_added_tokens(vocabulary, out);
  out += kNormalizer;
  out += "  \"post_processor\": " + post_processor(vocabulary) + ",\n";
  out += kDecoder;
  append_model(vocabulary, out);
  return out += "}";
}

std::string write_tokenizer_config(const Vocabulary& vocabulary, std::string_view chat_template, int64_t max_length) {
  Value added = Value::object();
  for (size_t id = 0; id < vocabulary.pieces.size(); ++id) {
    if (is_added(vocabulary.pieces[id].type))
      added.members().push_back({std::to_string(id), added_token_object(vocabulary.pieces[id])});
  }
  Value out = Value::object(
      {{"add_bos_token", vocabulary.add_bos}, {"add_eos_token", false}, {"added_tokens_decoder", std::move(added)}});
  set_token(out, "bos_token", vocabulary, vocabulary.bos);
  out.set("chat_template", chat_template);
  out.set("clean_up_tokenization_spaces", false);
  set_token(out, "eos_token", vocabulary, vocabulary.eos);
  out.set("model_max_length", max_length);
  set_token(out, "pad_token", vocabulary, vocabulary.pad);
  out.set("padding_side", "left");
  out.set("spaces_between_special_tokens", false);
  out.set("tokenizer_class", "GemmaTokenizer");
  set_token(out, "unk_token", vocabulary, vocabulary.unk);
  out.set("use_default_system_prompt", false);
  return to_json(out, 2) + "\n";
}

std::string write_special_tokens_map(const Vocabulary& vocabulary) {
  Value out = Value::object();
  const auto set = [&](std::string key, std::optional<int32_t> id) {
    if (id) out.set(std::move(key), added_token_object(vocabulary.pieces[*id]));
  };
  set("bos_token", vocabulary.bos);
  set("eos_token", vocabulary.eos);
  set("pad_token", vocabulary.pad);
  set("unk_token", vocabulary.unk);
  return to_json(out, 2) + "\n";
}

}  // namespace saaz
