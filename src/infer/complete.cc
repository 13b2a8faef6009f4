// Callers that wait: the engine's callbacks go through a queue to the calling thread.
#include <algorithm>

#include "base/check.h"
#include "infer/engine.h"
#include "infer/event_queue.h"

namespace saaz {

namespace {

void add_to(Answer& answer, const Delta& delta) {
  answer.text += delta.text;
  answer.ids.insert(answer.ids.end(), delta.ids.begin(), delta.ids.end());
  answer.logprobs.insert(answer.logprobs.end(), delta.logprobs.begin(), delta.logprobs.end());
  if (delta.finish) answer.finish = *delta.finish, answer.stop = delta.stop;
}

ExitCode exit_code_of(const Engine& engine, Refusal refusal) {
  if (refusal == Refusal::broken) return engine.stats().failure_code;
  return refusal == Refusal::too_long ? ExitCode::resource : ExitCode::usage;
}

}  // namespace

std::vector<Completion> complete_all(Engine& engine, std::vector<Request> requests, const Watch& watch) {
  const auto queue = std::make_shared<EventQueue>();
  std::vector<Completion> out(requests.size());
  std::vector<RequestId> ids;
  size_t n_ended = 0;
  const auto hear = [&] {
    for (const EventQueue::Event& event : queue->take()) {
      Completion& completion = out[event.tag];
      if (event.end) {
        completion.outcome = *event.end;
        ++n_ended;
        continue;
      }
      add_to(completion.choices[static_cast<size_t>(event.delta.choice)], event.delta);
      if (watch.on_delta) watch.on_delta(event.tag, event.delta);
    }
  };
  const auto cancel_all = [&] {
    for (const RequestId id : ids) engine.cancel(id);
  };
  bool is_stopped = false;
  try {
    while (n_ended < requests.size()) {
      if (!is_stopped && watch.wants_stop && watch.wants_stop()) {
        is_stopped = true;
        cancel_all();
      }
      if (is_stopped && n_ended == ids.size()) break;
      while (!is_stopped && ids.size() < requests.size()) {
        const size_t at = ids.size();
        out[at].choices.resize(static_cast<size_t>(std::max(1, requests[at].n)));
        const Submitted submitted = engine.submit(requests[at], EventQueue::callbacks(queue, at));
        if (submitted.refusal == Refusal::queue_full) break;
        check(submitted.refusal == Refusal::none, exit_code_of(engine, submitted.refusal), "{}", submitted.message);
        ids.push_back(submitted.id);
      }
      hear();
    }
  } catch (...) {
    cancel_all();
    throw;
  }
  return out;
}

Completion complete(Engine& engine, Request request) {
  std::vector<Request> requests;
  requests.push_back(std::move(request));
  return std::move(complete_all(engine, std::move(requests), {})[0]);
}

void check_answered(const Completion& completion) {
  check(completion.outcome.error.empty(), completion.outcome.code, "{}", completion.outcome.error);
}

}  // namespace saaz
