// `saaz generate`: answers to prompts, several of them together. One prompt on a terminal streams.
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <iterator>

#include "base/check.h"
#include "base/system.h"
#include "cli/answer.h"
#include "tokenizer/chat_template.h"

namespace saaz {
namespace {

struct GenerateFlags {
  ModelFlags model;
  std::vector<std::string> prompts;
  std::string system;
  bool raw = false;
  GenerateOptions options;
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

const char* name_of(Answer::Finish finish) {
  switch (finish) {
    case Answer::Finish::stop:
      return "stop";
    case Answer::Finish::length:
      return "length";
    default:
      return "interrupted";
  }
}

void print_answers(const std::vector<std::string>& prompts, const std::vector<Answer>& answers,
                   const Tokenizer& tokenizer, const Globals& globals) {
  const bool terminal = isatty(STDOUT_FILENO) == 1;
  for (size_t i = 0; i < answers.size(); ++i) {
    const std::string text = tokenizer.decode(answers[i].ids, SkipSpecial::yes);
    if (globals.json) {
      print_json(Value::object({{"index", i},
                                {"prompt", prompts[i]},
                                {"text", text},
                                {"n_tokens", answers[i].ids.size()},
                                {"finish_reason", name_of(answers[i].finish)}}));
      continue;
    }
    if (answers.size() > 1) print_text(fmt::format("{}--- {} ---\n", i == 0 ? "" : "\n", i + 1));
    print_text((terminal ? without_controls(text) : text) + "\n");
  }
}

int run_generate(GenerateFlags& flags, const Globals& globals) {
  Session session(flags.model, globals);
  std::vector<std::vector<int32_t>> prompts;
  size_t longest = 0;
  for (std::string& prompt : flags.prompts) {
    prompt = prompt_text(prompt);
    prompts.push_back(prompt_ids(session.tokenizer(), flags, prompt));
    longest = std::max(longest, prompts.back().size());
  }
  const int64_t wanted = static_cast<int64_t>(longest) + flags.options.max_new_tokens;
  const int64_t length = std::min(wanted, session.context());
  session.load(length);
  flags.options.stop_ids = session.tokenizer().stop_ids();
  Generator generator(session.backend(), session.model(), static_cast<int64_t>(prompts.size()), length);
  const double start = monotonic_seconds();
  std::vector<Answer> answers;
  const bool streams = prompts.size() == 1 && !globals.json && isatty(STDOUT_FILENO) == 1;
  if (streams) {
    answers.push_back(stream_answer(generator, session.tokenizer(), prompts[0], flags.options));
  } else {
    answers = generator.generate(prompts, flags.options, [](size_t, int32_t) { return stop_signal() == 0; });
    print_answers(flags.prompts, answers, session.tokenizer(), globals);
  }
  size_t n_tokens = 0;
  for (const Answer& answer : answers) n_tokens += answer.ids.size();
  log_line(globals, fmt::format("{} tokens in {:.2f} s", n_tokens, monotonic_seconds() - start));
  return signal_exit_code();
}

}  // namespace

Action declare_generate(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<GenerateFlags>();
  declare_model(arguments, flags->model);
  arguments.texts("--prompt", flags->prompts, Arguments::Need::required,
                  "a text, @file, or - for standard input; may be given again");
  arguments.text("--system", flags->system, Arguments::Need::optional, "a system text before the prompt");
  arguments.toggle("--raw", flags->raw, "no chat template; control tokens in the prompt count");
  declare_sampling(arguments, flags->options);
  return [flags, &globals] { return run_generate(*flags, globals); };
}

}  // namespace saaz
