// tokenizer.json and its companions. Enters: a Hugging Face tokenizer.json (BPE with byte fallback, as Gemma's).
// Leaves: a Vocabulary, or the files again, complete for `tokenizers` and `transformers`. Invariant: reading what was
// written gives the same vocabulary; for Gemma's own file the text written is the text read, byte for byte. Source:
// gemma3n.md 9.1, 9.3.
#pragma once

#include <string>
#include <string_view>

#include "base/bytes.h"
#include "tokenizer/vocabulary.h"

namespace saaz {

/// `name` (a path) opens every message. bad_input when the JSON is broken, a component is not the one Gemma uses, or
/// ids, pieces, added tokens or merges contradict each other.
Vocabulary read_tokenizer_json(Bytes text, const std::string& name);

/// The whole tokenizer.json.
std::string write_tokenizer_json(const Vocabulary& vocabulary);
/// tokenizer_config.json with `chat_template` inside; `max_length` is the model's context in tokens.
std::string write_tokenizer_config(const Vocabulary& vocabulary, std::string_view chat_template, int64_t max_length);
/// special_tokens_map.json.
std::string write_special_tokens_map(const Vocabulary& vocabulary);

}  // namespace saaz
