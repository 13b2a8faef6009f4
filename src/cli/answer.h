// What generate and chat share: the flags of a request, and writing an answer while it is made.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "cli/session.h"
#include "infer/engine.h"

namespace saaz {

/// The name under which --adapter is loaded into an engine.
inline constexpr const char* kFlagAdapter = "adapter";

/// How to answer, as the flags say; prompts are added later.
struct AnswerFlags {
  Request request;
  int64_t max_new_tokens = 256;
};
/// --temperature, --top-k, --top-p, --min-p, the penalties
void declare_sampling(Arguments& arguments, SamplingOptions& sampling);
/// The same, --max-new-tokens, --stop, --seed
void declare_answer(Arguments& arguments, AnswerFlags& flags);
/// A request for this prompt, by the session's adapter if it has one.
Request request_for(const Session& session, const AnswerFlags& flags, std::vector<int32_t> prompt);

/// An engine for a loaded session, with the adapter that its flags name.
std::unique_ptr<Engine> make_engine(Session& session, const EngineOptions& options, const Globals& globals);

/// Where an answer goes while it is made, and what ends it early. `write` is called on the engine's thread.
struct AnswerStream {
  std::function<void(std::string_view)> write;
  std::function<bool()> wants_stop;
};
/// Answers one prompt and writes its text, without control characters, as it becomes certain.
Answer stream_answer(Engine& engine, Request request, const AnswerStream& stream);

}  // namespace saaz
