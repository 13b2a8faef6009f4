#include <algorithm>
#include <random>
#include <unordered_set>

#include "infer/grammar.h"
#include "serve/openai.h"
#include "serve/openai_fields.h"
#include "tokenizer/chat_template.h"

namespace saaz {
namespace {

constexpr size_t kMaxValues = 1 << 18;  // of a body: more than the ids of the longest context
constexpr size_t kMaxMessages = 4096, kMaxPrompts = 64, kMaxStops = 16, kMaxStopBytes = 256, kMaxStopIds = 64,
                 kMaxBiases = 1024;
constexpr size_t kAnyText = std::numeric_limits<size_t>::max();

std::string at(const std::string& name, size_t index) { return fmt::format("{}[{}]", name, index); }

/// Commas outside of strings: one less than the values of a list or object.
size_t count_values(const std::string& json) {
  size_t n = 1;
  bool in_text = false;
  for (size_t i = 0; i < json.size(); ++i) {
    if (in_text && json[i] == '\\')
      ++i;
    else if (json[i] == '"')
      in_text = !in_text;
    else if (!in_text && (json[i] == ',' || json[i] == '[' || json[i] == '{'))
      ++n;
  }
  return n;
}

int32_t checked_id(const Value& value, const std::string& where, const Tokenizer& tokenizer) {
  return static_cast<int32_t>(checked_integer(value, where, 0, static_cast<double>(tokenizer.size()) - 1));
}

std::vector<int32_t> checked_ids(const Value& value, const std::string& where, size_t max_items,
                                 const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  const std::vector<Value>& items = checked_list(value, where, 1, max_items);
  for (size_t i = 0; i < items.size(); ++i) ids.push_back(checked_id(items[i], at(where, i), tokenizer));
  return ids;
}

/// The texts of a message's content: a string, or a list of parts of which only texts are served.
std::vector<std::string> content_parts(const Value& content, const std::string& where) {
  if (content.is_string()) return {content.as_string()};
  std::vector<std::string> parts;
  const std::vector<Value>& items = checked_list(content, where, 1, kMaxMessages);
  for (size_t i = 0; i < items.size(); ++i) {
    const Value *type = items[i].find("type"), *text = items[i].find("text");
    if (type == nullptr || !type->is_string() || type->as_string() != "text" || text == nullptr)
      throw WebFault(400,
                     fmt::format("{}: expected {{\"type\": \"text\", \"text\": ...}}: images and sound are not served",
                                 at(where, i)),
                     "messages");
    parts.push_back(checked_text(*text, at(where, i) + ".text", 0, kAnyText));
  }
  return parts;
}

ChatMessage chat_message(const Value& value, const std::string& where) {
  if (!value.is_object())
    throw WebFault(400, fmt::format("{}: expected an object, found {}", where, value.kind_name()), "messages");
  static const std::unordered_set<std::string> kKnown = {"role", "content", "name"};
  for (const auto& [name, member] : value.members()) {
    const bool is_empty = member.is_null() || (member.is_array() && member.items().empty());
    if (!kKnown.contains(name) && !is_empty)
      throw WebFault(400, fmt::format("{}: '{}' is not served", where, printable(name, 60)), "messages");
  }
  const Value *role = find_field(value, "role"), *content = find_field(value, "content");
  if (role == nullptr || content == nullptr)
    throw WebFault(400, fmt::format("{}: role and content are needed", where), "messages");
  std::string name = checked_text(*role, where + ".role", 1, 32);
  if (name == "developer") name = "system";
  if (name != "system" && name != "user" && name != "assistant")
    throw WebFault(400, fmt::format("{}.role: expected system, user or assistant, found '{}'", where, printable(name)),
                   "messages");
  return {name, content_parts(*content, where + ".content")};
}

std::vector<int32_t> encode_messages(const Value& messages, const Tokenizer& tokenizer, AddGenerationPrompt prompt) {
  std::vector<ChatMessage> turns;
  const std::vector<Value>& items = checked_list(messages, "messages", 1, kMaxMessages);
  for (size_t i = 0; i < items.size(); ++i) turns.push_back(chat_message(items[i], at("messages", i)));
  try {
    return encode_chat(tokenizer, turns, prompt).ids;
  } catch (const Error& error) {
    throw WebFault(400, error.what(), "messages");
  }
}

std::vector<int32_t> encode_prompt(const Value& prompt, const std::string& where, const Tokenizer& tokenizer) {
  if (prompt.is_array()) return checked_ids(prompt, where, kMaxValues, tokenizer);
  return tokenizer.encode(checked_text(prompt, where, 0, kAnyText), ControlTokens::as_text, AddBos::yes);
}

/// A prompt, or several.
std::vector<std::vector<int32_t>> encode_prompts(const Value& prompt, const Tokenizer& tokenizer) {
  const bool are_several =
      prompt.is_array() && !prompt.items().empty() && (prompt.items()[0].is_array() || prompt.items()[0].is_string());
  if (!are_several) return {encode_prompt(prompt, "prompt", tokenizer)};
  std::vector<std::vector<int32_t>> prompts;
  const std::vector<Value>& items = checked_list(prompt, "prompt", 1, kMaxPrompts);
  for (size_t i = 0; i < items.size(); ++i) prompts.push_back(encode_prompt(items[i], at("prompt", i), tokenizer));
  return prompts;
}

std::vector<std::string> stop_texts(const Value& body) {
  const Value* stop = find_field(body, "stop");
  if (stop == nullptr) return {};
  if (stop->is_string()) return {checked_text(*stop, "stop", 1, kMaxStopBytes)};
  std::vector<std::string> texts;
  const std::vector<Value>& items = checked_list(*stop, "stop", 0, kMaxStops);
  for (size_t i = 0; i < items.size(); ++i) texts.push_back(checked_text(items[i], at("stop", i), 1, kMaxStopBytes));
  return texts;
}

std::vector<std::pair<int32_t, float>> logit_bias(const Value& body, const Tokenizer& tokenizer) {
  const Value* map = find_field(body, "logit_bias");
  if (map == nullptr) return {};
  if (!map->is_object() || map->members().size() > kMaxBiases)
    throw WebFault(400, fmt::format("logit_bias: expected an object of up to {} ids", kMaxBiases), "logit_bias");
  std::vector<std::pair<int32_t, float>> biases;
  std::unordered_set<int64_t> seen;
  for (const auto& [name, value] : map->members()) {
    const std::string where = fmt::format("logit_bias['{}']", printable(name, 20));
    const bool is_number = !name.empty() && name.size() <= 9 &&
                           std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
    const int64_t id = is_number ? std::stoll(name) : -1;
    if (id < 0 || id >= static_cast<int64_t>(tokenizer.size()) || !seen.insert(id).second)
      throw WebFault(400, fmt::format("{}: expected distinct ids of 0 to {}", where, tokenizer.size() - 1),
                     "logit_bias");
    biases.emplace_back(static_cast<int32_t>(id), static_cast<float>(checked_number(value, where, -100, 100)));
  }
  return biases;
}

std::optional<GuardOptions> guard(const Value& body) {
  const Value* value = find_field(body, "guard");
  if (value == nullptr) return std::nullopt;
  if (value->kind() == Value::Kind::boolean) return value->as_bool() ? std::optional(GuardOptions{}) : std::nullopt;
  const Value* digits = value->find("digits");
  if (!value->is_object() || value->members().size() > (digits != nullptr ? 1u : 0u))
    throw WebFault(400, "guard: expected true, false or {\"digits\": \"fa\", \"en\" or \"keep\"}", "guard");
  if (digits == nullptr) return GuardOptions{};
  const std::string& word = checked_text(*digits, "guard.digits", 1, 8);
  if (word == "fa") return GuardOptions{Digits::fa};
  if (word == "en") return GuardOptions{Digits::en};
  if (word == "keep") return GuardOptions{Digits::keep};
  throw WebFault(400, "guard.digits: expected \"fa\", \"en\" or \"keep\"", "guard");
}

uint64_t drawn_seed() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

/// All of a request but its prompt and log probabilities.
Request shared_part(const Value& body, const Tokenizer& tokenizer, const OpenAiDefaults& defaults) {
  Request request;
  SamplingOptions& sampling = request.sampling = defaults.sampling;
  sampling.temperature = number_or(body, "temperature", sampling.temperature);
  sampling.top_p = number_or(body, "top_p", sampling.top_p);
  sampling.top_k = std::max<int64_t>(0, integer_or(body, "top_k", sampling.top_k));
  sampling.min_p = number_or(body, "min_p", sampling.min_p);
  sampling.repetition_penalty = number_or(body, "repetition_penalty", sampling.repetition_penalty);
  sampling.presence_penalty = number_or(body, "presence_penalty", sampling.presence_penalty);
  sampling.frequency_penalty = number_or(body, "frequency_penalty", sampling.frequency_penalty);
  sampling.logit_bias = logit_bias(body, tokenizer);
  sampling.seed =
      find_field(body, "seed") != nullptr ? static_cast<uint64_t>(integer_or(body, "seed", 0)) : drawn_seed();
  request.max_tokens = integer_or(body, "max_tokens", defaults.max_tokens);
  request.n = static_cast<int>(integer_or(body, "n", 1));
  request.stop = stop_texts(body);
  if (!flag_or(body, "ignore_eos", false)) request.stop_ids = tokenizer.stop_ids();
  if (const Value* ids = find_field(body, "stop_token_ids");
      ids != nullptr && !(ids->is_array() && ids->items().empty()))
    for (const int32_t id : checked_ids(*ids, "stop_token_ids", kMaxStopIds, tokenizer)) request.stop_ids.push_back(id);
  request.guard = guard(body);
  return request;
}

void read_stream_options(const Value& body, OpenAiRequest& out) {
  out.model = text_or(body, "model", "");
  out.stream = flag_or(body, "stream", false);
  const Value* options = find_field(body, "stream_options");
  if (options == nullptr) return;
  if (!out.stream) throw WebFault(400, "stream_options: only with \"stream\": true", "stream_options");
  static constexpr BodyField kFields[] = {
      {"include_usage", BodyField::Kind::boolean, 0, 0, ""},
      {"include_obfuscation", BodyField::Kind::ignored, 0, 0, ""},
  };
  check_fields(*options, kFields);
  out.include_usage = flag_or(*options, "include_usage", false);
}

/// What response_format asks of the text; null for any text.
std::shared_ptr<const Grammar> response_grammar(const Value& body) {
  const Value* format = find_field(body, "response_format");
  if (format == nullptr) return nullptr;
  const Value* type = format->find("type");
  const std::string word = type != nullptr && type->is_string() ? type->as_string() : "";
  if (word == "text") return nullptr;
  if (word == "json_object") return Grammar::json_object();
  const Value* named = format->find("json_schema");
  const Value* schema = named == nullptr ? nullptr : named->find("schema");
  if (word != "json_schema" || schema == nullptr)
    throw WebFault(400,
                   "response_format: expected {\"type\": \"text\"}, {\"type\": \"json_object\"} or {\"type\": "
                   "\"json_schema\", \"json_schema\": {\"name\": ..., \"schema\": {...}}}",
                   "response_format");
  try {
    return Grammar::json_schema(*schema);
  } catch (const Error& error) {
    throw WebFault(400, std::string("response_format: ") + error.what(), "response_format");
  }
}

void check_words(const Value& body) {
  if (const Value* choice = find_field(body, "tool_choice")) {
    const std::string& word = checked_text(*choice, "tool_choice", 0, 16);
    if (word != "none" && word != "auto")
      throw WebFault(400, "tool_choice: expected \"none\" or \"auto\": tools are not served", "tool_choice");
  }
  if (const Value* modalities = find_field(body, "modalities")) {
    const std::vector<Value>& items = checked_list(*modalities, "modalities", 1, 1);
    if (checked_text(items[0], "modalities[0]", 1, 16) != "text")
      throw WebFault(400, "modalities: only [\"text\"] is served", "modalities");
  }
}

const Value& needed(const Value& body, const char* name) {
  const Value* value = find_field(body, name);
  if (value == nullptr) throw WebFault(400, fmt::format("{} is missing", name), name);
  return *value;
}

}  // namespace

Value parse_body(const std::string& body) {
  if (count_values(body) > kMaxValues) throw WebFault(400, fmt::format("the body has more than {} values", kMaxValues));
  try {
    return parse_json(body, "body");
  } catch (const Error& error) {
    throw WebFault(400, error.what(), "", "invalid_json");
  }
}

OpenAiRequest parse_chat_body(const Value& body, const Tokenizer& tokenizer, const OpenAiDefaults& defaults) {
  check_fields(body, chat_fields());
  check_words(body);
  OpenAiRequest out;
  read_stream_options(body, out);
  Request request = shared_part(body, tokenizer, defaults);
  request.max_tokens = integer_or(body, "max_completion_tokens", request.max_tokens);
  request.grammar = response_grammar(body);
  const Value* top = find_field(body, "top_logprobs");
  if (flag_or(body, "logprobs", false))
    request.top_logprobs = static_cast<int>(integer_or(body, "top_logprobs", 0));
  else if (top != nullptr && top->as_integer() > 0)
    throw WebFault(400, "top_logprobs: only with \"logprobs\": true", "top_logprobs");
  request.prompt = encode_messages(needed(body, "messages"), tokenizer, AddGenerationPrompt::yes);
  out.n = request.n;
  out.requests.push_back(std::move(request));
  return out;
}

OpenAiRequest parse_completion_body(const Value& body, const Tokenizer& tokenizer, const OpenAiDefaults& defaults) {
  check_fields(body, completion_fields());
  OpenAiRequest out;
  out.endpoint = OpenAiEndpoint::text;
  read_stream_options(body, out);
  Request request = shared_part(body, tokenizer, defaults);
  request.top_logprobs = static_cast<int>(integer_or(body, "logprobs", -1));
  if (integer_or(body, "best_of", request.n) != request.n) throw WebFault(400, "best_of: must be n", "best_of");
  out.n = request.n;
  for (std::vector<int32_t>& ids : encode_prompts(needed(body, "prompt"), tokenizer)) {
    out.requests.push_back(request);
    out.requests.back().prompt = std::move(ids);
  }
  return out;
}

std::vector<int32_t> parse_tokenize_body(const Value& body, const Tokenizer& tokenizer) {
  static constexpr BodyField kFields[] = {
      {"model", BodyField::Kind::text, 0, 512, ""},
      {"prompt", BodyField::Kind::any, 0, 0, ""},
      {"messages", BodyField::Kind::any, 0, 0, ""},
      {"add_special_tokens", BodyField::Kind::boolean, 0, 0, ""},
      {"add_generation_prompt", BodyField::Kind::boolean, 0, 0, ""},
  };
  check_fields(body, kFields);
  if (const Value* messages = find_field(body, "messages"))
    return encode_messages(
        *messages, tokenizer,
        flag_or(body, "add_generation_prompt", true) ? AddGenerationPrompt::yes : AddGenerationPrompt::no);
  return tokenizer.encode(checked_text(needed(body, "prompt"), "prompt", 0, kAnyText), ControlTokens::as_text,
                          flag_or(body, "add_special_tokens", true) ? AddBos::yes : AddBos::no);
}

std::vector<int32_t> parse_detokenize_body(const Value& body, const Tokenizer& tokenizer) {
  static constexpr BodyField kFields[] = {
      {"model", BodyField::Kind::text, 0, 512, ""},
      {"tokens", BodyField::Kind::any, 0, 0, ""},
  };
  check_fields(body, kFields);
  return checked_ids(needed(body, "tokens"), "tokens", kMaxValues, tokenizer);
}

WebFault fault_of(const Submitted& refused) {
  switch (refused.refusal) {
    case Refusal::too_long:
      return {400, refused.message, "messages", "context_length_exceeded"};
    case Refusal::unknown_adapter:
      return {404, refused.message, "model", "model_not_found"};
    case Refusal::queue_full:
      return retry_later(429, refused.message, "queue_full", 1);
    case Refusal::draining:
      return retry_later(503, refused.message, "shutting_down", 5);
    case Refusal::broken:
      return {503, refused.message, "", "engine_failed"};
    default:
      return {400, refused.message};
  }
}

Value chat_schema() { return schema_of(chat_fields(), {"messages"}); }
Value completion_schema() { return schema_of(completion_fields(), {"prompt"}); }

}  // namespace saaz
