#include "infer/request.h"

#include <cmath>

#include "base/check.h"
#include "base/unicode.h"

namespace saaz {

const char* name_of(Finish finish) {
  switch (finish) {
    case Finish::stop:
      return "stop";
    case Finish::length:
      return "length";
    case Finish::cancelled:
      return "cancelled";
    default:
      return "failed";
  }
}

namespace {

constexpr int kMostChoices = 128, kMostTopLogprobs = 20;
constexpr size_t kMostStops = 16, kMostStopBytes = 256, kMostBiases = 4096;

std::string out_of_range(const char* field, double value, double least, double most) {
  if (std::isfinite(value) && value >= least && value <= most) return "";
  return fmt::format("{} is {}; it must be from {} to {}", field, value, least, most);
}

std::string sampling_fault(const SamplingOptions& o, int64_t vocab_size) {
  constexpr double kMost = 1e6;
  for (const std::string& fault :
       {out_of_range("temperature", o.temperature, 0, 100), out_of_range("top_p", o.top_p, 0, 1),
        out_of_range("min_p", o.min_p, 0, 1), out_of_range("top_k", static_cast<double>(o.top_k), 0, 2147483647),
        out_of_range("repetition_penalty", o.repetition_penalty, 0.01, 100),
        out_of_range("presence_penalty", o.presence_penalty, -kMost, kMost),
        out_of_range("frequency_penalty", o.frequency_penalty, -kMost, kMost)})
    if (!fault.empty()) return fault;
  if (o.logit_bias.size() > kMostBiases)
    return fmt::format("logit_bias has {} entries; at most {} are taken", o.logit_bias.size(), kMostBiases);
  for (const auto& [id, bias] : o.logit_bias) {
    if (id < 0 || id >= vocab_size)
      return fmt::format("logit_bias names token {}; the vocabulary has tokens 0 to {}", id, vocab_size - 1);
    if (const std::string fault = out_of_range("logit_bias", static_cast<double>(bias), -kMost, kMost); !fault.empty())
      return fault;
  }
  return "";
}

std::string fault_of(const Request& request, const RequestLimits& limits) {
  const int64_t vocab_size = limits.vocab_size;
  if (request.prompt.empty()) return "the prompt is empty; it must have at least one token";
  for (const std::vector<int32_t>* ids : {&request.prompt, &request.stop_ids})
    for (const int32_t id : *ids)
      if (id < 0 || id >= vocab_size)
        return fmt::format("token {} is not in the vocabulary of {} tokens", id, vocab_size);
  if (request.n < 1 || request.n > kMostChoices)
    return fmt::format("n is {}; it must be from 1 to {}", request.n, kMostChoices);
  if (request.top_logprobs < -1 || request.top_logprobs > kMostTopLogprobs)
    return fmt::format("top_logprobs is {}; it must be from 0 to {}", request.top_logprobs, kMostTopLogprobs);
  if (request.max_tokens < 0) return fmt::format("max_tokens is {}; it must be at least 1", request.max_tokens);
  if (!limits.has_tokenizer && (!request.stop.empty() || request.guard || request.grammar))
    return "stop texts, the guard and grammars need a tokenizer, and this model has none";
  if (request.stop.size() > kMostStops)
    return fmt::format("stop has {} texts; at most {} are taken", request.stop.size(), kMostStops);
  for (const std::string& stop : request.stop)
    if (stop.empty() || stop.size() > kMostStopBytes || find_invalid_utf8(stop) != std::string_view::npos)
      return fmt::format("a stop text has {} bytes; it must be UTF-8 of 1 to {} bytes", stop.size(), kMostStopBytes);
  return sampling_fault(request.sampling, vocab_size);
}

}  // namespace

Submitted check_request(const Request& request, const RequestLimits& limits) {
  if (std::string fault = fault_of(request, limits); !fault.empty()) return {0, Refusal::invalid, std::move(fault)};
  if (static_cast<int64_t>(request.prompt.size()) >= limits.context)
    return {0, Refusal::too_long,
            fmt::format("the prompt has {} tokens and the context is {}: at least one must be left for the answer; "
                        "shorten the prompt or raise the limit",
                        request.prompt.size(), limits.context)};
  return {};
}

}  // namespace saaz
