// `saaz generate`: answers to prompts, several of them together. One prompt on a terminal streams.
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <iterator>

#include "base/check.h"
#include "base/system.h"
#include "cli/answer.h"
#include "cli/batch.h"
#include "tokenizer/chat_template.h"

namespace saaz {
namespace {

struct GenerateFlags {
  ModelFlags model;
  std::vector<std::string> prompts;
  std::string system;
  bool raw = false;
  AnswerFlags answer;
  BatchFlags batch;
};

/// "-" is standard input, "@file" a file's text without its last newline.
std::string prompt_text(const std::string& argument) {
  std::string text = argument;
  if (argument == "-")
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
  else if (argument.starts_with("@"))
    text = read_file(argument.substr(1));
  else
    return text;
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

std::vector<int32_t> prompt_ids(const Tokenizer& tokenizer, const GenerateFlags& flags, const std::string& text) {
  if (flags.raw) return tokenizer.encode(text, ControlTokens::parse, AddBos::yes);
  std::vector<ChatMessage> messages;
  if (!flags.system.empty()) messages.push_back({"system", {flags.system}});
  messages.push_back({"user", {text}});
  return encode_chat(tokenizer, messages, AddGenerationPrompt::yes).ids;
}

void print_answers(const std::vector<std::string>& prompts, const std::vector<Completion>& answers,
                   const Globals& globals) {
  const bool terminal = isatty(STDOUT_FILENO) == 1;
  for (size_t i = 0; i < answers.size(); ++i) {
    const Answer& answer = answers[i].choices[0];
    if (globals.json) {
      print_json(Value::object({{"index", i},
                                {"prompt", prompts[i]},
                                {"text", answer.text},
                                {"n_tokens", answer.ids.size()},
                                {"finish_reason", name_of(answer.finish)}}));
      continue;
    }
    if (answers.size() > 1) print_text(fmt::format("{}--- {} ---\n", i == 0 ? "" : "\n", i + 1));
    print_text((terminal ? without_controls(answer.text) : answer.text) + "\n");
  }
}

/// Room for all prompts at once, up to as many as are worth running together.
EngineOptions engine_options(size_t n_prompts, int64_t context) {
  constexpr int64_t kTogether = 32, kPrefixBytes = int64_t{64} << 20;
  const auto n = static_cast<int64_t>(n_prompts);
  return {.max_running = std::min(n, kTogether),
          .context = context,
          .max_waiting = n,
          .prefix_bytes = n > 1 ? kPrefixBytes : 0};
}

int run_generate(GenerateFlags& flags, const Globals& globals) {
  check(flags.prompts.empty() != flags.batch.input.empty(), ExitCode::usage,
        "generate takes --prompt TEXT, or --batch IN.jsonl with -o OUT.jsonl");
  if (!flags.batch.input.empty()) return run_batch(flags.model, flags.answer, flags.batch, globals);
  Session session(flags.model, globals);
  std::vector<Request> requests;
  size_t longest = 0;
  for (std::string& prompt : flags.prompts) {
    prompt = prompt_text(prompt);
    requests.push_back(request_for(session, flags.answer, prompt_ids(session.tokenizer(), flags, prompt)));
    longest = std::max(longest, requests.back().prompt.size());
  }
  const int64_t wanted = static_cast<int64_t>(longest) + flags.answer.max_new_tokens;
  const int64_t length = std::min(wanted, session.context());
  session.load(length);
  const std::unique_ptr<Engine> engine = make_engine(session, engine_options(requests.size(), length), globals);
  const double start = monotonic_seconds();
  size_t n_tokens = 0;
  if (requests.size() == 1 && !globals.json && isatty(STDOUT_FILENO) == 1) {
    const AnswerStream stream = {print_text, [] { return stop_signal() != 0; }};
    n_tokens = stream_answer(*engine, std::move(requests[0]), stream).ids.size();
    print_text("\n");
  } else {
    const std::vector<Completion> answers =
        complete_all(*engine, std::move(requests), {.on_delta = {}, .wants_stop = [] { return stop_signal() != 0; }});
    for (const Completion& answer : answers) check_answered(answer), n_tokens += answer.choices[0].ids.size();
    print_answers(flags.prompts, answers, globals);
  }
  log_line(globals, fmt::format("{} tokens in {:.2f} s", n_tokens, monotonic_seconds() - start));
  return signal_exit_code();
}

}  // namespace

Action declare_generate(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<GenerateFlags>();
  declare_model(arguments, flags->model);
  arguments.texts("--prompt", flags->prompts, Arguments::Need::optional,
                  "a text, @file, or - for standard input; may be given again");
  arguments.text("--system", flags->system, Arguments::Need::optional, "a system text before the prompt");
  arguments.toggle("--raw", flags->raw, "no chat template; control tokens in the prompt count");
  declare_answer(arguments, flags->answer);
  arguments.text("--batch", flags->batch.input, Arguments::Need::optional,
                 "a file of requests in OpenAI's batch format; goes on where an earlier run stopped");
  arguments.text("-o,--output", flags->batch.output, Arguments::Need::optional, "of --batch: the answers, appended");
  arguments.integer("--context", flags->batch.context, 16, 1 << 20, "of --batch: tokens of a prompt and its answer");
  arguments.integer("--parallel", flags->batch.parallel, 1, 1024, "of --batch: answers made together");
  return [flags, &globals] { return run_generate(*flags, globals); };
}

}  // namespace saaz
