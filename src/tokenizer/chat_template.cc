// Rendering without Jinja: one template is known, so its rules are written out. Enters: messages of any content.
// Leaves: segments; whatever a message says, role included, is user text. Invariant: refuses exactly what the template
// refuses.
#include "tokenizer/chat_template.h"

#include "base/check.h"
#include "base/system.h"
#include "base/unicode.h"
#include "base/value.h"

namespace saaz {
namespace {

using Origin = Segment::Origin;
using Loss = Segment::Loss;

/// The system text, which opens the first turn: only its first part counts, and it is not trimmed.
std::string system_prefix(const ChatMessage& message) {
  check(!message.parts.empty(), ExitCode::bad_input,
        "message 1: the system message has an empty content list; give it a text");
  return message.parts[0];
}

/// The role as it is printed. Only the two names that the template itself knows are template text.
Segment role_segment(const std::string& role) {
  if (role == "assistant") return {"model", Origin::template_text};
  return {role, role == "user" ? Origin::template_text : Origin::user_text};
}

std::string trimmed_content(const ChatMessage& message) {
  std::string out;
  for (const std::string& part : message.parts) out += strip_like_python(part);
  return out;
}

}  // namespace

std::vector<Segment> render_chat(std::span<const ChatMessage> messages, AddGenerationPrompt prompt) {
  check(!messages.empty(), ExitCode::bad_input, "a conversation without messages");
  std::vector<Segment> out{{"<bos>", Origin::template_text}};
  const bool has_system = messages[0].role == "system";
  const std::span<const ChatMessage> turns = messages.subspan(has_system ? 1 : 0);
  for (size_t i = 0; i < turns.size(); ++i) {
    const ChatMessage& message = turns[i];
    check((message.role == "user") == (i % 2 == 0), ExitCode::bad_input,
          "message {} has the role '{}': Conversation roles must alternate user/assistant/user/assistant/... (after an "
          "optional system message)",
          i + (has_system ? 2 : 1), printable(message.role));
    const Loss loss = message.role == "assistant" ? Loss::trained : Loss::masked;
    out.push_back({"<start_of_turn>", Origin::template_text});
    out.push_back(role_segment(message.role));
    out.push_back({"\n", Origin::template_text});
    if (has_system && i == 0) {
      out.push_back({system_prefix(messages[0]), Origin::user_text});
      out.push_back({"\n\n", Origin::template_text});
    }
    out.push_back({trimmed_content(message), Origin::user_text, loss});
    out.push_back({"<end_of_turn>\n", Origin::template_text, loss});
  }
  if (has_system && turns.empty()) system_prefix(messages[0]);
  if (prompt == AddGenerationPrompt::yes) out.push_back({"<start_of_turn>model\n", Origin::template_text});
  return out;
}

std::string text_of(std::span<const Segment> segments) {
  std::string out;
  for (const Segment& segment : segments) out += segment.text;
  return out;
}

EncodedChat encode_chat(const Tokenizer& tokenizer, std::span<const ChatMessage> messages, AddGenerationPrompt prompt) {
  const std::vector<Segment> segments = render_chat(messages, prompt);
  EncodedChat out;
  for (const SegmentToken& token : tokenizer.encode_segments(segments)) {
    out.ids.push_back(token.id);
    out.trained.push_back(segments[token.segment].loss == Loss::trained ? 1 : 0);
  }
  return out;
}

namespace {
std::string_view without_trailing_space(std::string_view text) {
  const size_t last = text.find_last_not_of(" \t\r\n");
  return text.substr(0, last == std::string_view::npos ? 0 : last + 1);
}
}  // namespace

ChatTemplate check_template_is_known(std::string_view text, const std::string& source) {
  for (const ChatTemplate family : {ChatTemplate::gemma3, ChatTemplate::gemma3n}) {
    if (without_trailing_space(text) == without_trailing_space(chat_template_text(family))) return family;
  }
  fail(ExitCode::bad_input,
       "{}: unknown chat template (SHA-256 {}); only those of Gemma 3 (SHA-256 {}) and Gemma 3n are built in: use a "
       "model "
       "with one of them, or data that needs no template",
       source, sha256_hex(text).substr(0, 16), sha256_hex(chat_template_text(ChatTemplate::gemma3)).substr(0, 16));
}

std::optional<std::string> read_chat_template(const std::filesystem::path& folder) {
  const fs::path jinja = folder / "chat_template.jinja", config = folder / "tokenizer_config.json";
  if (fs::exists(jinja)) return read_file(jinja, 1 << 20);
  if (!fs::exists(config)) return std::nullopt;
  const Value root = parse_json(read_file(config, 64 << 20), config.string());
  const Value* found = root.find("chat_template");
  if (!found || found->is_null()) return std::nullopt;
  check(found->is_string(), ExitCode::bad_input, "{}: chat_template is {}; expected a string", config.string(),
        found->kind_name());
  return found->as_string();
}

}  // namespace saaz
