#include "eval/probes.h"

#include <algorithm>

#include "backend/plan.h"
#include "base/check.h"
#include "base/system.h"
#include "base/unicode.h"
#include "data/text_health.h"
#include "infer/scheduler.h"
#include "tokenizer/chat_template.h"

namespace saaz {
namespace {

/// One prompt a line; blank lines and lines that start with "# " are left out.
std::vector<std::string> prompts_of(std::string_view text) {
  std::vector<std::string> prompts;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = strip_like_python(text.substr(0, end));
    if (!line.empty() && line != "#" && !line.starts_with("# ")) prompts.emplace_back(line);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return prompts;
}

}  // namespace

Probes::Probes(Tokenizer tokenizer, std::string_view text, const std::string& name, int64_t max_positions)
    : tokenizer_(std::move(tokenizer)) {
  check(find_invalid_utf8(text) == std::string::npos, ExitCode::bad_input, "{}: byte {} is no UTF-8: save it as UTF-8",
        printable(name), find_invalid_utf8(text));
  prompts_ = prompts_of(text);
  check(!prompts_.empty() && prompts_.size() <= kMaxPrompts, ExitCode::bad_input,
        "{}: expected 1 to {} prompts, one a line, found {}", printable(name), kMaxPrompts, prompts_.size());
  for (const std::string& prompt : prompts_) {
    const std::vector<ChatMessage> messages = {{"user", {prompt}}};
    ids_.push_back(encode_chat(tokenizer_, messages, AddGenerationPrompt::yes).ids);
    const auto n = static_cast<int64_t>(ids_.back().size());
    check(n < max_positions, ExitCode::bad_input,
          "{}: prompt {} has {} tokens, which leaves no room for an answer: shorten it or raise model.max_seq_length "
          "({})",
          printable(name), ids_.size(), n, max_positions);
    max_length_ = std::max(max_length_, n + kMaxNewTokens);
  }
}

EngineOptions Probes::options_for(const Model& model) const {
  // Rings of sliding layers hold a chunk beside the window: no larger a chunk than a prompt needs.
  return {.max_running = static_cast<int64_t>(ids_.size()),
          .context = std::min(max_length_, model.max_positions()),
          .prefill_chunk = max_length_ - kMaxNewTokens,
          .prefix_bytes = 0};
}

std::vector<Completion> Probes::complete(Backend& backend, Model& model, int64_t max_tokens) const {
  std::vector<Request> requests;
  for (const std::vector<int32_t>& ids : ids_)
    requests.push_back({.prompt = ids, .max_tokens = max_tokens, .stop_ids = tokenizer_.stop_ids()});
  Engine engine(backend, model, &tokenizer_, options_for(model));
  return complete_all(engine, std::move(requests), {.on_delta = {}, .wants_stop = [] { return stop_signal() != 0; }});
}

int64_t Probes::bytes(const Backend& like, const Model& model) const {
  PlanBackend counter(like);
  const Scheduler scheduler(counter, model, &tokenizer_, options_for(model));
  return counter.report.total_bytes();
}

double Probes::seconds(Backend& backend, Model& model) const {
  constexpr int64_t kFew = 8;
  const double began = monotonic_seconds();
  complete(backend, model, 1);
  const double first = monotonic_seconds() - began;
  complete(backend, model, 1 + kFew);
  const double more = monotonic_seconds() - began - 2 * first;
  return first + std::max(0.0, more) / kFew * (kMaxNewTokens - 1);
}

Value Probes::answer(Backend& backend, Model& model) const {
  const std::vector<Completion> completions = complete(backend, model, kMaxNewTokens);
  std::vector<Value> list;
  TextHealth together;
  for (size_t i = 0; i < completions.size() && stop_signal() == 0; ++i) {
    check_answered(completions[i]);
    const Answer& answer = completions[i].choices[0];
    const TextHealth health = measure_text(answer.text);
    together.add(health);
    list.push_back(Value::object({{"prompt", prompts_[i]},
                                  {"answer", answer.text},
                                  {"n_tokens", answer.ids.size()},
                                  {"finish_reason", name_of(answer.finish)},
                                  {"health", to_value(health)}}));
  }
  return Value::object({{"answers", Value::array(std::move(list))}, {"health", to_value(together)}});
}

}  // namespace saaz
