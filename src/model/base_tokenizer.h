// The tokenizer of a base model, wherever it lies: beside the weights in a folder, or in a GGUF file's header.
#pragma once

#include <optional>
#include <string>

#include "base/system.h"
#include "tokenizer/tokenizer.h"

namespace saaz {

/// False for a folder without tokenizer files (test models).
bool has_tokenizer(const fs::path& base);

/// bad_input naming file and key when there is none or when it is damaged.
Tokenizer load_base_tokenizer(const fs::path& base);

/// The chat template that the base carries, in its folder or its header.
std::optional<std::string> base_chat_template(const fs::path& base);

/// A sentence for people when the base carries a chat template other than Gemma's published ones: chats are rendered
/// with Gemma's all the same. Empty otherwise.
std::string chat_template_note(const fs::path& base);

}  // namespace saaz
