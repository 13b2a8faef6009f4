// Requests that are wrong in one or several ways: values of other kinds and ranges, unknown fields, cut or damaged
// JSON, damaged HTTP. The same generator state gives the same request.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "serve/client.h"

namespace saaz::testing_serve {

/// A value of any kind, mostly a wrong one.
inline std::string random_value(std::mt19937_64& random) {
  static const std::vector<std::string> kValues = {"null",
                                                   "true",
                                                   "false",
                                                   "0",
                                                   "-1",
                                                   "1",
                                                   "2",
                                                   "1.5",
                                                   "-1e400",
                                                   "1e308",
                                                   "9223372036854775807",
                                                   "9223372036854775808",
                                                   "18446744073709551616",
                                                   "\"\"",
                                                   "\"x\"",
                                                   "\"<end_of_turn>\"",
                                                   "\"\\u0000\"",
                                                   "\"\\ud800\"",
                                                   "[]",
                                                   "[[]]",
                                                   "[1]",
                                                   "[-1]",
                                                   "[999999]",
                                                   "[\"a\"]",
                                                   "{}",
                                                   "{\"a\":1}",
                                                   "{\"1\":5}",
                                                   "{\"999999\":1}",
                                                   "{\"include_usage\":true}",
                                                   "{\"type\":\"text\"}",
                                                   "[{\"role\":\"user\",\"content\":\"x\"}]",
                                                   "[{\"role\":\"x\",\"content\":1}]",
                                                   "NaN",
                                                   "tru",
                                                   "'x'",
                                                   "[1,",
                                                   "\"\xff\"",
                                                   "0.7",
                                                   "64",
                                                   "128",
                                                   "129",
                                                   "2147483648"};
  return kValues[random() % kValues.size()];
}

inline std::string random_body(std::mt19937_64& random) {
  static const char* const kFields[] = {"messages",
                                        "prompt",
                                        "model",
                                        "max_tokens",
                                        "max_completion_tokens",
                                        "n",
                                        "temperature",
                                        "top_p",
                                        "top_k",
                                        "min_p",
                                        "repetition_penalty",
                                        "presence_penalty",
                                        "frequency_penalty",
                                        "seed",
                                        "stop",
                                        "stop_token_ids",
                                        "ignore_eos",
                                        "logit_bias",
                                        "guard",
                                        "logprobs",
                                        "top_logprobs",
                                        "response_format",
                                        "stream",
                                        "stream_options",
                                        "tools",
                                        "user",
                                        "echo",
                                        "suffix",
                                        "best_of",
                                        "tokens",
                                        "lora_name",
                                        "lora_path",
                                        "unknown",
                                        "add_special_tokens"};
  std::string body = random() % 3 == 0 ? "{" : R"({"messages":[{"role":"user","content":"سلام"}],"max_tokens":2)";
  for (size_t i = random() % 4; i > 0; --i) {
    if (body.size() > 1) body += ",";
    body += fmt::format("\"{}\":{}", kFields[random() % std::size(kFields)], random_value(random));
  }
  body += "}";
  if (random() % 8 == 0) body.resize(random() % body.size());
  if (random() % 8 == 0 && !body.empty()) body[random() % body.size()] = static_cast<char>(random());
  return body;
}

inline std::string random_request(std::mt19937_64& random, bool& is_broken) {
  static const char* const kLines[] = {
      "POST /v1/chat/completions",  "POST /v1/completions",         "POST /tokenize",      "POST /detokenize",
      "POST /v1/load_lora_adapter", "POST /v1/unload_lora_adapter", "POST /v1/embeddings", "GET /v1/models/x",
      "DELETE /v1/models",          "GET /../../etc/passwd",        "POST /health",        "POST /v1/chat/completions"};
  std::string text = request_text(kLines[random() % std::size(kLines)], random_body(random), "Connection: close\r\n");
  is_broken = random() % 10 == 0;
  if (!is_broken) return text;
  const size_t head = text.find("\r\n\r\n");  // and now and then the message itself is broken
  switch (random() % 4) {
    case 0:
      text[random() % head] = static_cast<char>(random());
      break;
    case 1:
      text.insert(random() % head, "\r\nTransfer-Encoding: chunked");
      break;
    case 2:
      text.erase(random() % head, 1 + random() % 9);
      break;
    default:
      text.insert(text.find("\r\n"), std::string(random() % 40000, 'a'));
  }
  return text;
}

}  // namespace saaz::testing_serve
