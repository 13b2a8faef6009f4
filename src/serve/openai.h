// OpenAI's JSON on one side, requests and answers of the engine on the other. Free of sockets and of the engine itself:
// the server, `saaz generate --batch` and the fuzzer use the same functions. Enters: a body from outside. Leaves: typed
// requests in which every number is inside its range and every id inside the vocabulary, or a WebFault (400) that names
// the field. Invariants: text of a request never becomes a control token; a field that is not served is refused, never
// ignored. The fields and their ranges: openai_fields.cc.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "infer/request.h"
#include "serve/http.h"
#include "tokenizer/tokenizer.h"

namespace saaz {

enum class OpenAiEndpoint : uint8_t { chat, text };

struct OpenAiRequest {
  OpenAiEndpoint endpoint = OpenAiEndpoint::chat;
  std::string model;  // empty: not said
  bool stream = false, include_usage = false;
  std::vector<Request> requests;  // one for each prompt; their adapter and client are the caller's to set
  int n = 1;                      // choices of each
};

/// What holds where a body says nothing. Temperature and top_p 1, as OpenAI's, unless the caller sets them.
struct OpenAiDefaults {
  SamplingOptions sampling{.temperature = 1};
  int64_t max_tokens = 0;  // 0: to the end of the context
};

/// The JSON of a body. 400 for what is none, or has so many values that they would cost more memory than they are
/// worth.
Value parse_body(const std::string& body);
/// The body of /v1/chat/completions and of /v1/completions. Draws a seed when the body has none.
OpenAiRequest parse_chat_body(const Value& body, const Tokenizer& tokenizer, const OpenAiDefaults& defaults);
OpenAiRequest parse_completion_body(const Value& body, const Tokenizer& tokenizer, const OpenAiDefaults& defaults);
/// The ids a body's `messages` or `prompt` stand for, as the endpoints above would read them (for /tokenize).
std::vector<int32_t> parse_tokenize_body(const Value& body, const Tokenizer& tokenizer);
/// `tokens` of /detokenize, all inside the vocabulary.
std::vector<int32_t> parse_detokenize_body(const Value& body, const Tokenizer& tokenizer);

/// The status for a refusal of the engine.
WebFault fault_of(const Submitted& refused);

/// What all objects of one answer share.
struct OpenAiHead {
  OpenAiEndpoint endpoint = OpenAiEndpoint::chat;
  std::string id, model;
  int64_t created = 0;         // seconds since 1970
  bool with_logprobs = false;  // a whole answer without tokens has an empty list of them, not null
};
/// One choice's answer so far, pieces put together.
struct OpenAiChoice {
  std::string text;
  std::vector<TokenLogprob> logprobs;
  std::optional<Finish> finish;

  void add(Delta&& delta);
};
OpenAiHead make_head(OpenAiEndpoint endpoint, const std::string& request_id, const std::string& model);
/// The whole answer.
Value completion_object(const OpenAiHead& head, std::span<const OpenAiChoice> choices, const Usage& usage,
                        const Tokenizer& tokenizer);
/// One piece of a stream. `offset`: code points of the choice before it (text_offset of /v1/completions).
Value chunk_object(const OpenAiHead& head, int index, const OpenAiChoice& piece, int64_t offset,
                   const Tokenizer& tokenizer);
/// The first piece of a chat choice: its role.
Value role_chunk(const OpenAiHead& head, int index);
/// The last piece, when usage was asked for.
Value usage_chunk(const OpenAiHead& head, const Usage& usage);
/// "prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"
Value usage_object(const Usage& usage);

/// The fields of the two endpoints, as JSON schema, for /openapi.json.
Value chat_schema();
Value completion_schema();

}  // namespace saaz
