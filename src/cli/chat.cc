// `saaz chat`: a conversation in the terminal, answered as it is made.
#include <algorithm>
#include <iostream>

#include "base/check.h"
#include "base/system.h"
#include "base/unicode.h"
#include "cli/answer.h"
#include "tokenizer/chat_template.h"

namespace saaz {
namespace {

struct ChatFlags {
  ModelFlags model;
  std::string system;
  int64_t context = 4096;
  AnswerFlags answer;
};

class Chat {
 public:
  Chat(Session& session, Engine& engine, const ChatFlags& flags, const Globals& globals)
      : session_(session), engine_(engine), flags_(flags), globals_(globals), system_(flags.system) {}

  /// One line of the person: a command, or a message to answer. Returns false when the conversation is over.
  bool take(const std::string& line) {
    if (line == "/exit") return false;
    if (line == "/reset") {
      turns_.clear();
      log_line(globals_, "a new conversation");
    } else if (line == "/system" || line.starts_with("/system ")) {
      system_ = strip_like_python(std::string_view(line).substr(7));
      turns_.clear();
      log_line(globals_,
               system_.empty() ? "no system text; a new conversation" : "system text set; a new conversation");
    } else if (line.starts_with("/")) {
      log_line(globals_, "commands: /exit, /reset, /system TEXT");
    } else if (!strip_like_python(line).empty()) {
      answer(line);
    }
    return stop_signal() == 0;
  }

 private:
  void answer(const std::string& line) {
    turns_.push_back({"user", {line}});
    std::vector<ChatMessage> messages;
    if (!system_.empty()) messages.push_back({"system", {system_}});
    messages.insert(messages.end(), turns_.begin(), turns_.end());
    std::vector<int32_t> prompt = encode_chat(session_.tokenizer(), messages, AddGenerationPrompt::yes).ids;
    if (static_cast<int64_t>(prompt.size()) >= flags_.context) {
      turns_.pop_back();
      log_line(globals_,
               fmt::format("the conversation would have {} tokens, but --context is {}: start anew with /reset",
                           prompt.size(), flags_.context));
      return;
    }
    const Answer answer = stream_answer(engine_, request_for(session_, flags_.answer, std::move(prompt)));
    if (answer.finish == Finish::length) log_line(globals_, "(cut: --max-new-tokens or --context)");
    turns_.push_back({"assistant", {answer.text}});
  }

  Session& session_;
  Engine& engine_;
  const ChatFlags& flags_;
  const Globals& globals_;
  std::string system_;
  std::vector<ChatMessage> turns_;
};

int run_chat(ChatFlags& flags, const Globals& globals) {
  Session session(flags.model, globals);
  flags.context = std::min(flags.context, session.context());
  session.load(flags.context);
  const std::unique_ptr<Engine> engine = make_engine(session, {.max_running = 1, .context = flags.context}, globals);
  Chat chat(session, *engine, flags, globals);
  log_line(globals, "/exit ends, /reset starts anew, /system TEXT sets the system text");
  std::string line;
  while (true) {
    if (!globals.quiet) fmt::print(stderr, "> ");
    if (!std::getline(std::cin, line) || !chat.take(line)) return signal_exit_code();
  }
}

}  // namespace

Action declare_chat(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<ChatFlags>();
  declare_model(arguments, flags->model);
  arguments.text("--system", flags->system, Arguments::Need::optional, "a system text before the conversation");
  arguments.integer("--context", flags->context, 16, 1 << 20, "tokens of the whole conversation");
  declare_answer(arguments, flags->answer);
  return [flags, &globals] { return run_chat(*flags, globals); };
}

}  // namespace saaz
