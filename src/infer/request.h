// What is asked of generation and what comes back. A request is one prompt, already in token ids, and how to continue
// it: the caller renders messages with encode_chat (tokenizer/chat_template.h), so that tokenising costs its own thread
// and never the one that generates. It is answered by `n` choices, each a sequence of its own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "infer/guard.h"
#include "infer/sampler.h"

namespace saaz {

class Grammar;  // infer/grammar.h

struct Request {
  std::vector<int32_t> prompt;    // at least one id
  std::string adapter;            // a loaded adapter's name; empty: the base
  SamplingOptions sampling;       // choice i draws from the stream (seed, i)
  int64_t max_tokens = 0;         // of each choice; 0: as many as the context has room for
  int n = 1;                      // choices
  int top_logprobs = -1;          // -1: no log probabilities; 0: of the tokens alone; k: and of the k likeliest besides
  std::vector<int32_t> stop_ids;  // end a choice and are no part of it; mostly Tokenizer::stop_ids()
  std::vector<std::string> stop;  // texts that end a choice and are no part of it; empty ones are refused
  std::optional<GuardOptions> guard;       // off unless given
  std::shared_ptr<const Grammar> grammar;  // what the text must be; null: anything
  std::string client;                      // whom it is for: clients take turns, requests of one stand in line
};

enum class Finish : uint8_t { stop, length, cancelled, failed };
/// "stop", "length", "cancelled", "failed"
const char* name_of(Finish finish);

/// Natural logarithms of the model's own distribution (temperature 1, before penalties, bias, guard and grammar).
struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;  // best first, ties by id; the token itself only if it is among them
};

/// A piece of one choice. Text never splits a code point and never holds any part of a stop text; ids (and their log
/// probabilities, when asked for) come together with the text that they end in. The pieces of a choice, put together,
/// are its whole answer.
struct Delta {
  int choice = 0;
  std::string text;
  std::vector<int32_t> ids;
  std::vector<TokenLogprob> logprobs;
  std::optional<Finish> finish;  // set in the choice's last piece
  std::string stop;              // the stop text that ended it, if one did
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;      // of the prompt, not computed again
  int64_t completion_tokens = 0;  // sampled by all choices, stop ids and cut ends included
};

/// The end of a request.
struct Outcome {
  Usage usage;
  std::string error;                                  // one line, when a choice failed
  ExitCode code = ExitCode::ok;                       // then what that means to the shell: resource, io or diverged
  double queue_seconds = 0;                           // until its first choice ran
  double first_token_seconds = 0, total_seconds = 0;  // since it was submitted
};

/// Called from the thread that generates: they must not block it, nor call the engine's blocking functions. They are
/// called in order, on_end last and exactly once.
struct Callbacks {
  std::function<void(const Delta&)> on_delta;
  std::function<void(const Outcome&)> on_end;
};

using RequestId = uint64_t;

/// Why a request was not taken.
enum class Refusal : uint8_t {
  none,
  invalid,          // a field is out of its range
  too_long,         // the prompt leaves no room for an answer
  unknown_adapter,  //
  queue_full,       // try again later
  draining,         // no new requests any more
  broken,           // the engine stopped after a fault of the backend
};
struct Submitted {
  RequestId id = 0;  // when refusal is none
  Refusal refusal = Refusal::none;
  std::string message;  // one line for the client: the field, its range, what was given
};
/// What a request is checked against.
struct RequestLimits {
  int64_t vocab_size = 0, context = 0;
  bool has_tokenizer = true;  // without one there is no text, and nothing that looks at it
};
/// invalid or too_long when a request cannot be answered.
Submitted check_request(const Request& request, const RequestLimits& limits);

}  // namespace saaz
