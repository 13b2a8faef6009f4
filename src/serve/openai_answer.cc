#include <cmath>
#include <ctime>

#include "base/unicode.h"
#include "infer/text_stream.h"
#include "serve/openai.h"

namespace saaz {
namespace {

constexpr double kLeastLogprob = -9999;  // of what cannot be; JSON has no infinity

double finite(float logprob) { return std::isfinite(logprob) ? static_cast<double>(logprob) : kLeastLogprob; }

/// A token's bytes as text; bytes that are none become U+FFFD.
std::string shown(std::string_view bytes) {
  std::string out;
  while (!bytes.empty()) {
    const CodePoint point = decode_utf8(bytes);
    append_utf8(out, point.value);
    bytes.remove_prefix(static_cast<size_t>(point.length));
  }
  return out;
}

int64_t count_code_points(std::string_view text) {
  int64_t n = 0;
  for (const char c : text) n += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  return n;
}

Value chat_token(int32_t id, float logprob, const Tokenizer& tokenizer) {
  const std::string bytes = token_bytes(tokenizer, id);
  Value list = Value::array();
  for (const char c : bytes) list.push_back(static_cast<int>(static_cast<unsigned char>(c)));
  return Value::object({{"token", shown(bytes)}, {"logprob", finite(logprob)}, {"bytes", list}});
}

Value chat_logprobs(const std::vector<TokenLogprob>& tokens, const Tokenizer& tokenizer) {
  Value content = Value::array();
  for (const TokenLogprob& token : tokens) {
    Value row = chat_token(token.id, token.logprob, tokenizer), top = Value::array();
    for (const auto& [id, logprob] : token.top) top.push_back(chat_token(id, logprob, tokenizer));
    row.set("top_logprobs", top);
    content.push_back(row);
  }
  return Value::object({{"content", content}, {"refusal", Value()}});
}

Value text_logprobs(const std::vector<TokenLogprob>& tokens, int64_t offset, const Tokenizer& tokenizer) {
  Value texts = Value::array(), logprobs = Value::array(), tops = Value::array(), offsets = Value::array();
  for (const TokenLogprob& token : tokens) {
    const std::string text = shown(token_bytes(tokenizer, token.id));
    texts.push_back(text);
    logprobs.push_back(finite(token.logprob));
    Value top = Value::object();
    for (const auto& [id, logprob] : token.top) top.set(shown(token_bytes(tokenizer, id)), finite(logprob));
    tops.push_back(top);
    offsets.push_back(offset);
    offset += count_code_points(text);
  }
  return Value::object(
      {{"text_offset", offsets}, {"token_logprobs", logprobs}, {"tokens", texts}, {"top_logprobs", tops}});
}

Value finish_value(const std::optional<Finish>& finish) { return finish ? Value(name_of(*finish)) : Value(); }

Value head_object(const OpenAiHead& head, const char* kind) {
  return Value::object({{"id", head.id},
                        {"object", kind},
                        {"created", head.created},
                        {"model", head.model},
                        {"system_fingerprint", Value()}});
}

Value chat_chunk_of(const OpenAiHead& head, int index, const Value& delta, const Value& logprobs, const Value& finish) {
  Value chunk = head_object(head, "chat.completion.chunk");
  const Value choice =
      Value::object({{"index", index}, {"delta", delta}, {"logprobs", logprobs}, {"finish_reason", finish}});
  chunk.set("choices", Value::array({choice}));
  return chunk;
}

}  // namespace

void OpenAiChoice::add(Delta&& delta) {
  text += delta.text;
  logprobs.insert(logprobs.end(), std::make_move_iterator(delta.logprobs.begin()),
                  std::make_move_iterator(delta.logprobs.end()));
  if (delta.finish) finish = delta.finish;
}

OpenAiHead make_head(OpenAiEndpoint endpoint, const std::string& request_id, const std::string& model) {
  const char* prefix = endpoint == OpenAiEndpoint::chat ? "chatcmpl-" : "cmpl-";
  const std::string id = request_id.starts_with("req-") ? request_id.substr(4) : request_id;
  return {endpoint, prefix + id, model, static_cast<int64_t>(time(nullptr))};
}

Value completion_object(const OpenAiHead& head, std::span<const OpenAiChoice> choices, const Usage& usage,
                        const Tokenizer& tokenizer) {
  const bool is_chat = head.endpoint == OpenAiEndpoint::chat;
  Value list = Value::array();
  for (size_t i = 0; i < choices.size(); ++i) {
    const OpenAiChoice& choice = choices[i];
    Value row = Value::object({{"index", static_cast<int64_t>(i)}}), logprobs;
    if (is_chat) {
      row.set("message", Value::object({{"role", "assistant"}, {"content", choice.text}, {"refusal", Value()}}));
      if (head.with_logprobs) logprobs = chat_logprobs(choice.logprobs, tokenizer);
    } else {
      row.set("text", choice.text);
      if (head.with_logprobs) logprobs = text_logprobs(choice.logprobs, 0, tokenizer);
    }
    row.set("logprobs", logprobs);
    row.set("finish_reason", finish_value(choice.finish));
    list.push_back(row);
  }
  Value out = head_object(head, is_chat ? "chat.completion" : "text_completion");
  out.set("choices", list);
  out.set("usage", usage_object(usage));
  return out;
}

Value chunk_object(const OpenAiHead& head, int index, const OpenAiChoice& piece, int64_t offset,
                   const Tokenizer& tokenizer) {
  Value logprobs;
  if (head.endpoint == OpenAiEndpoint::chat) {
    if (!piece.logprobs.empty()) logprobs = chat_logprobs(piece.logprobs, tokenizer);
    Value delta = Value::object();
    if (!piece.text.empty()) delta.set("content", piece.text);
    return chat_chunk_of(head, index, delta, logprobs, finish_value(piece.finish));
  }
  if (!piece.logprobs.empty()) logprobs = text_logprobs(piece.logprobs, offset, tokenizer);
  Value chunk = head_object(head, "text_completion");
  const Value choice = Value::object(
      {{"index", index}, {"text", piece.text}, {"logprobs", logprobs}, {"finish_reason", finish_value(piece.finish)}});
  chunk.set("choices", Value::array({choice}));
  return chunk;
}

Value role_chunk(const OpenAiHead& head, int index) {
  return chat_chunk_of(head, index, Value::object({{"role", "assistant"}, {"content", ""}}), {}, {});
}

Value usage_chunk(const OpenAiHead& head, const Usage& usage) {
  const bool is_chat = head.endpoint == OpenAiEndpoint::chat;
  Value chunk = head_object(head, is_chat ? "chat.completion.chunk" : "text_completion");
  chunk.set("choices", Value::array());
  chunk.set("usage", usage_object(usage));
  return chunk;
}

Value usage_object(const Usage& usage) {
  return Value::object({{"prompt_tokens", usage.prompt_tokens},
                        {"completion_tokens", usage.completion_tokens},
                        {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
                        {"prompt_tokens_details", Value::object({{"cached_tokens", usage.cached_tokens}})}});
}

}  // namespace saaz
