// Each shape ends in the same checks (check_conversation), so that no format lets through what another refuses.
#include "data/row_formats.h"

#include <algorithm>

#include "base/check.h"
#include "base/unicode.h"

namespace saaz {
namespace {

template <class... Args>
[[noreturn]] void refuse(Message<std::type_identity_t<Args>...> message, Args&&... args) {
  fail(ExitCode::bad_input, message, std::forward<Args>(args)...);
}

/// The member unless absent or null: table formats pad missing keys with null.
const Value* find_set(const Value& row, std::string_view key) {
  const Value* value = row.find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

const Value& need(const Value& row, std::string_view key) {
  const Value* value = find_set(row, key);
  check(value != nullptr, ExitCode::bad_input, "the key '{}' is missing", key);
  return *value;
}

std::string read_text(const Value& value, std::string_view what) {
  check(value.is_string(), ExitCode::bad_input, "{}: expected a string, found {}", what, value.kind_name());
  check(value.as_string().find('\0') == std::string::npos, ExitCode::bad_input, "{}: a NUL character in the text",
        what);
  return value.as_string();
}

bool is_blank(std::string_view text) { return strip_like_python(text).empty(); }

/// "user", "assistant" or "system", from the words that datasets use.
std::string read_role(const Value& value, std::string_view what) {
  const std::string role = read_text(value, what);
  if (role == "system") return role;
  for (const char* word : {"user", "human", "input"}) {
    if (role == word) return "user";
  }
  for (const char* word : {"assistant", "gpt", "output", "model"}) {
    if (role == word) return "assistant";
  }
  refuse("{}: the role '{}' is not known; expected system, user or assistant", what, printable(role, 40));
}

std::vector<std::string> read_parts(const Value& content, const std::string& what) {
  if (!content.is_array()) return {read_text(content, what)};
  std::vector<std::string> parts;
  for (const Value& part : content.items()) {
    const Value* type = find_set(part, "type");
    const bool is_text = type != nullptr && type->is_string() && type->as_string() == "text";
    check(is_text, ExitCode::bad_input, "{}: expected text parts ({{\"type\": \"text\", \"text\": ...}}), found {}",
          what, printable(to_json(part), 60));
    parts.push_back(read_text(need(part, "text"), what));
  }
  return parts;
}

/// A list of {role, content} or {from, value}; both spellings occur under either column name.
std::vector<ChatMessage> read_messages(const Value& list, std::string_view column) {
  check(list.is_array(), ExitCode::bad_input, "{}: expected a list of messages, found {}", column, list.kind_name());
  std::vector<ChatMessage> messages;
  for (const Value& item : list.items()) {
    const std::string what = fmt::format("{}, message {}", column, messages.size() + 1);
    check(item.is_object(), ExitCode::bad_input, "{}: expected an object, found {}", what, item.kind_name());
    const Value* role = find_set(item, "role");
    if (role == nullptr) role = find_set(item, "from");
    const Value* content = find_set(item, "content");
    if (content == nullptr) content = find_set(item, "value");
    check(role != nullptr, ExitCode::bad_input, "{}: no 'role' (or 'from')", what);
    check(content != nullptr, ExitCode::bad_input, "{}: no 'content' (or 'value')", what);
    messages.push_back({read_role(*role, what), read_parts(*content, what)});
  }
  return messages;
}

void check_conversation(const std::vector<ChatMessage>& messages) {
  check(!messages.empty(), ExitCode::bad_input, "an empty conversation");
  const size_t n_system = messages[0].role == "system" ? 1 : 0;
  check(messages.size() > n_system, ExitCode::bad_input, "a conversation with nothing but a system message");
  check(n_system == 0 || !messages[0].parts.empty(), ExitCode::bad_input, "message 1 (system) has no text");
  for (size_t i = n_system; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    const char* expected = (i - n_system) % 2 == 0 ? "user" : "assistant";
    check(
        message.role == expected, ExitCode::bad_input,
        "message {} is from {}, but {} was expected (user and assistant take turns, after an optional system message)",
        i + 1, message.role, expected);
    const bool all_blank = std::all_of(message.parts.begin(), message.parts.end(), is_blank);
    check(!all_blank, ExitCode::bad_input, "message {} ({}) has no text", i + 1, message.role);
  }
}

void read_alpaca(const Value& value, Row& row) {
  std::string prompt = read_text(need(value, "instruction"), "instruction");
  if (const Value* input = find_set(value, "input")) {
    const std::string text = read_text(*input, "input");
    if (!is_blank(text)) prompt += "\n\n" + text;
  }
  row.messages = {{"user", {prompt}}, {"assistant", {read_text(need(value, "output"), "output")}}};
}

/// Strings make one exchange; lists of messages are joined, and only what the completion adds is scored.
void read_prompt_completion(const Value& value, Row& row) {
  const bool is_aya = find_set(value, "prompt") == nullptr && find_set(value, "inputs") != nullptr;
  const char* prompt_key = is_aya ? "inputs" : "prompt";
  const char* completion_key = is_aya ? "targets" : "completion";
  const Value& prompt = need(value, prompt_key);
  const Value& completion = need(value, completion_key);
  if (prompt.is_array()) {
    row.messages = read_messages(prompt, prompt_key);
    row.n_prompt_messages = row.messages.size();
  } else {
    row.messages = {{"user", {read_text(prompt, prompt_key)}}};
  }
  if (completion.is_array()) {
    for (ChatMessage& message : read_messages(completion, completion_key)) row.messages.push_back(std::move(message));
  } else {
    row.messages.push_back({"assistant", {read_text(completion, completion_key)}});
  }
}

void read_raw_text(const Value& value, Row& row) {
  row.text = read_text(need(value, "text"), "text");
  check(!is_blank(row.text), ExitCode::bad_input, "text: no text in it");
}

}  // namespace

DataFormat detect_format(const Value& row) {
  const auto has = [&](const char* key) { return find_set(row, key) != nullptr; };
  if (has("messages")) return DataFormat::messages;
  if (has("conversations")) return DataFormat::sharegpt;
  if (has("instruction") && has("output")) return DataFormat::alpaca;
  if ((has("prompt") && has("completion")) || (has("inputs") && has("targets"))) return DataFormat::prompt_completion;
  if (has("text")) return DataFormat::text;
  check(row.is_object(), ExitCode::bad_input, "expected an object, found {}", row.kind_name());
  std::string keys;
  for (const auto& [key, value] : row.members()) keys += (keys.empty() ? "" : ", ") + printable(key, 40);
  refuse(
      "the keys ({}) tell no known format; expected messages, conversations, instruction and output, prompt and "
      "completion, inputs and targets, or text",
      printable(keys, 120));
}

void read_row(const Value& value, DataFormat format, Row& row) {
  check(value.is_object(), ExitCode::bad_input, "expected an object, found {}", value.kind_name());
  const Value* license = find_set(value, "license");
  if (license != nullptr && license->is_string()) row.license = license->as_string();
  switch (format) {
    case DataFormat::automatic:
      return read_row(value, detect_format(value), row);
    case DataFormat::messages:
      row.messages = read_messages(need(value, "messages"), "messages");
      break;
    case DataFormat::sharegpt:
      row.messages = read_messages(need(value, "conversations"), "conversations");
      break;
    case DataFormat::alpaca:
      read_alpaca(value, row);
      break;
    case DataFormat::prompt_completion:
      read_prompt_completion(value, row);
      break;
    case DataFormat::text:
      return read_raw_text(value, row);
  }
  check_conversation(row.messages);
}

}  // namespace saaz
