#include "cli/answer.h"

#include <limits>

#include "base/check.h"

namespace saaz {

namespace {

constexpr int64_t kMax = std::numeric_limits<int32_t>::max();

}  // namespace

void declare_sampling(Arguments& arguments, SamplingOptions& sampling) {
  arguments.real("--temperature", sampling.temperature, 0, 100, "0 always takes the most likely token");
  arguments.integer("--top-k", sampling.top_k, 0, kMax, "draw from the k most likely; 0 = all");
  arguments.real("--top-p", sampling.top_p, 0, 1, "draw from the smallest set with this probability; 1 = all");
  arguments.real("--min-p", sampling.min_p, 0, 1, "drop tokens below this share of the best; 0 = none");
  arguments.real("--repetition-penalty", sampling.repetition_penalty, 0.01, 100, "1 = off");
  arguments.real("--presence-penalty", sampling.presence_penalty, -100, 100, "for tokens that the answer has; 0 = off");
  arguments.real("--frequency-penalty", sampling.frequency_penalty, -100, 100, "for each time it has them; 0 = off");
}

void declare_answer(Arguments& arguments, AnswerFlags& flags) {
  arguments.integer("--max-new-tokens", flags.max_new_tokens, 1, kMax, "the longest answer");
  declare_sampling(arguments, flags.request.sampling);
  arguments.texts("--stop", flags.request.stop, Arguments::Need::optional,
                  "a text that ends the answer and is no part of it; may be given again");
  arguments.unsigned_integer("--seed", flags.request.sampling.seed, "of the draws");
  arguments.choice("--guard", flags.request.guard,
                   {{"off", std::nullopt},
                    {"fa", GuardOptions{Digits::fa}},
                    {"en", GuardOptions{Digits::en}},
                    {"keep", GuardOptions{Digits::keep}}},
                   "clean Persian outside code, with Persian, Latin or the model's own digits (off)");
}

Request request_for(const Session& session, const AnswerFlags& flags, std::vector<int32_t> prompt) {
  Request request = flags.request;
  request.prompt = std::move(prompt);
  request.max_tokens = flags.max_new_tokens;
  request.stop_ids = session.tokenizer().stop_ids();
  if (!session.adapter_folder().empty()) request.adapter = kFlagAdapter;
  return request;
}

std::unique_ptr<Engine> make_engine(Session& session, const EngineOptions& options, const Globals& globals) {
  auto engine = std::make_unique<Engine>(session.backend(), session.model(), &session.tokenizer(), options);
  if (!session.adapter_folder().empty())
    for (const std::string& note : engine->load_adapter(kFlagAdapter, session.adapter_folder()))
      log_line(globals, note);
  return engine;
}

Answer stream_answer(Engine& engine, Request request, const AnswerStream& stream) {
  std::vector<Request> requests;
  requests.push_back(std::move(request));
  const Completion completion =
      complete_all(engine, std::move(requests),
                   {.on_delta = [&](size_t, const Delta& delta) { stream.write(without_controls(delta.text)); },
                    .wants_stop = stream.wants_stop})[0];
  check_answered(completion);
  return completion.choices[0];
}

}  // namespace saaz
