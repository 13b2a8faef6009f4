// Gemma's chat template, rendered natively. Enters: messages. Leaves: segments that know whether the template or a
// person wrote them, and whether their tokens are trained. Invariant: the concatenated segments are the text Jinja
// renders, and control ids come from the template alone. Source: gemma3n.md 7; trained spans: formats.md 6.2.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace saaz {

struct ChatMessage {
  std::string role;                // user, assistant, system first; others as the template takes them
  std::vector<std::string> parts;  // a content string is one part; of a content list, its text items
};

/// yes: the text ends with the head of the model's turn, ready to be continued.
enum class AddGenerationPrompt { no, yes };

/// bad_input when the template refuses the messages: none at all, a system message without text, roles that do not
/// alternate. The message names the position; the caller adds the file and row.
std::vector<Segment> render_chat(std::span<const ChatMessage> messages, AddGenerationPrompt prompt);
/// The rendered text.
std::string text_of(std::span<const Segment> segments);

struct EncodedChat {
  std::vector<int32_t> ids;      // bos included, once
  std::vector<uint8_t> trained;  // 1: the token is a label when the loss is on assistant turns
};
/// Trained are the content of each assistant turn, its <end_of_turn> and the newline after it.
EncodedChat encode_chat(const Tokenizer& tokenizer, std::span<const ChatMessage> messages, AddGenerationPrompt prompt);

/// The two families' templates differ only in how they mark images and sound.
enum class ChatTemplate { gemma3, gemma3n };
/// The Jinja text, as published with the models.
std::string chat_template_text(ChatTemplate family);
/// Which template `text` is (white space at its end does not count). bad_input, naming `source`, when it is neither:
/// then render_chat would not be what the model was trained on.
ChatTemplate check_template_is_known(std::string_view text, const std::string& source);
/// The chat template a folder carries: chat_template.jinja, else tokenizer_config.json's; nothing when it has neither.
std::optional<std::string> read_chat_template(const std::filesystem::path& folder);

}  // namespace saaz
