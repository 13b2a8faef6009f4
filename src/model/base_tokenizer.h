// The tokenizer of a base model, wherever it lies: beside the weights in a folder, or in a GGUF file's header.
// Invariant of load_base_tokenizer: what it makes of texts and chats are rows of the model's tables.
#pragma once

#include <optional>
#include <string>

#include "model/weight_source.h"
#include "tokenizer/tokenizer.h"

namespace saaz {

/// False for a folder without tokenizer files (test models).
bool has_tokenizer(const fs::path& base);

/// The tokenizer of an opened base, for ids that go through its weights. bad_input naming file and key when there is
/// none or when it is damaged; and naming the id when a text or a chat can become one that the tables have no row for.
/// Media tokens, which only towers make, may lie above: Gemma 3's text models ship so.
Tokenizer load_base_tokenizer(const BaseModel& base);
/// The same, held against nothing: for looking at text without weights. The only files needed are the tokenizer's.
Tokenizer load_tokenizer_alone(const fs::path& base);

/// The chat template that the base carries, in its folder or its header.
std::optional<std::string> base_chat_template(const fs::path& base);

/// A sentence for people when the base carries a chat template other than Gemma's published ones: chats are rendered
/// with Gemma's all the same. Empty otherwise.
std::string chat_template_note(const fs::path& base);

}  // namespace saaz
