// `saaz chat`: a conversation in the terminal, answered as it is made. On a terminal messages are typed with a line
// editor and answers laid out by their direction; anywhere else every line of the input is a message, and answers are
// written as they are.
#include <unistd.h>

#include <algorithm>
#include <iostream>

#include "base/check.h"
#include "base/system.h"
#include "base/unicode.h"
#include "cli/answer.h"
#include "cli/prompt.h"
#include "tokenizer/chat_template.h"

namespace saaz {
namespace {

struct ChatFlags {
  ModelFlags model;
  std::string system;
  int64_t context = 4096;
  BidiChoice bidi = BidiChoice::automatic;
  AnswerFlags answer;
};

constexpr std::string_view kHelp =
    "/help               this list\n"
    "/clear              a new conversation (also /reset)\n"
    "/system [TEXT]      sets the system text, or drops it; a new conversation\n"
    "/regenerate         another answer to the last message\n"
    "/save FILE          the conversation: .md for people, .json or .jsonl as training data\n"
    "/exit               ends (also Ctrl+D)\n"
    "Enter sends; Alt+Enter or a backslash at the end starts a new line; arrows move and recall; Ctrl+C stops an "
    "answer";

class Chat {
 public:
  Chat(Session& session, Engine& engine, const ChatFlags& flags, const Globals& globals, Bidi bidi)
      : session_(session), engine_(engine), flags_(flags), globals_(globals), bidi_(bidi), system_(flags.system) {}

  /// One message or command of the person. Returns false when the conversation is over.
  bool take(const std::string& message) {
    const std::string_view stripped = strip_like_python(message);
    if (stripped.starts_with('/')) return command(stripped) && stop_signal() == 0;
    if (!stripped.empty()) {
      turns_.push_back({"user", {message}});
      answer();
    }
    return stop_signal() == 0;
  }

 private:
  bool command(std::string_view line) {
    const std::string_view name = line.substr(0, line.find_first_of(" \n"));
    const std::string argument(strip_like_python(line.substr(name.size())));
    if (name == "/exit" || name == "/quit") return false;
    if (name == "/clear" || name == "/reset") {
      turns_.clear();
      log_line(globals_, "a new conversation");
    } else if (name == "/system") {
      system_ = argument;
      turns_.clear();
      log_line(globals_,
               argument.empty() ? "no system text; a new conversation" : "system text set; a new conversation");
    } else if (name == "/regenerate") {
      regenerate();
    } else if (name == "/save") {
      save(argument);
    } else {
      if (name != "/help") log_line(globals_, fmt::format("there is no command {}", printable(name)));
      log_line(globals_, std::string(kHelp));
    }
    return true;
  }

  std::vector<ChatMessage> messages() const {
    std::vector<ChatMessage> out;
    if (!system_.empty()) out.push_back({"system", {system_}});
    out.insert(out.end(), turns_.begin(), turns_.end());
    return out;
  }

  /// Answers the last message.
  void answer() {
    std::vector<int32_t> prompt = encode_chat(session_.tokenizer(), messages(), AddGenerationPrompt::yes).ids;
    if (static_cast<int64_t>(prompt.size()) >= flags_.context) {
      turns_.pop_back();
      log_line(globals_,
               fmt::format("the conversation would have {} tokens, but --context is {}: start anew with /clear",
                           prompt.size(), flags_.context));
      return;
    }
    Request request = request_for(session_, flags_.answer, std::move(prompt));
    request.sampling.seed += n_again_;
    AnswerPrinter printer(bidi_);
    const Answer answer = stream_answer(engine_, std::move(request),
                                        {[&](std::string_view text) { printer.push(text); },
                                         [] { return stop_signal() != 0 || Prompt::was_interrupted(); }});
    printer.finish();
    if (answer.finish == Finish::length) log_line(globals_, "(cut: --max-new-tokens or --context)");
    if (answer.finish == Finish::cancelled) log_line(globals_, "(stopped)");
    turns_.push_back({"assistant", {answer.text}});
  }

  /// The same message with the next seed.
  void regenerate() {
    if (turns_.empty()) return log_line(globals_, "there is nothing to answer again");
    if (flags_.answer.request.sampling.temperature == 0)
      log_line(globals_, "(--temperature is 0: the answer will be the same)");
    turns_.pop_back();
    ++n_again_;
    answer();
  }

  void save(const std::string& name) const {
    const fs::path path(name);
    const std::string kind = path.extension();
    if (kind != ".md" && kind != ".json" && kind != ".jsonl")
      return log_line(globals_, "/save FILE: name a file that ends in .md, .json or .jsonl");
    if (fs::exists(path))
      return log_line(globals_, fmt::format("{} exists already: name another file", printable(name)));
    try {
      write_file_atomically(path, kind == ".md" ? as_markdown() : as_row());
    } catch (const Error& error) {
      return log_line(globals_, error.what());
    }
    log_line(globals_, fmt::format("saved {}", printable(name)));
  }

  std::string as_markdown() const {
    std::string out = "# Saaz chat\n";
    for (const ChatMessage& message : messages())
      out += fmt::format("\n## {}\n\n{}\n", message.role, strip_like_python(message.parts[0]));
    return out;
  }

  /// One row as `saaz data` reads it.
  std::string as_row() const {
    Value rows = Value::array();
    for (const ChatMessage& message : messages())
      rows.push_back(Value::object({{"role", message.role}, {"content", message.parts[0]}}));
    return to_json(Value::object({{"messages", rows}})) + "\n";
  }

  Session& session_;
  Engine& engine_;
  const ChatFlags& flags_;
  const Globals& globals_;
  Bidi bidi_;
  std::string system_;
  std::vector<ChatMessage> turns_;
  uint64_t n_again_ = 0;
};

/// Messages as they are typed; Ctrl+C ends an answer and no more.
void talk_on_terminal(Chat& chat, Bidi bidi) {
  Prompt prompt(bidi);
  while (const std::optional<std::string> message = prompt.read())
    if (!chat.take(*message)) return;
}

int run_chat(ChatFlags& flags, const Globals& globals) {
  Session session(flags.model, globals);
  flags.context = std::min(flags.context, session.context());
  session.load(flags.context);
  const std::unique_ptr<Engine> engine = make_engine(session, {.max_running = 1, .context = flags.context}, globals);
  const Bidi bidi = bidi_for(flags.bidi);
  Chat chat(session, *engine, flags, globals, bidi);
  log_line(globals, "/help lists the commands, /exit ends");
  if (isatty(STDIN_FILENO) == 1 && isatty(STDERR_FILENO) == 1) {
    talk_on_terminal(chat, bidi);
    return signal_exit_code();
  }
  std::string line;
  while (true) {
    if (!globals.quiet) print_log("> ");
    if (!std::getline(std::cin, line) || !chat.take(line)) return signal_exit_code();
  }
}

}  // namespace

Action declare_chat(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<ChatFlags>();
  declare_model(arguments, flags->model);
  arguments.text("--system", flags->system, Arguments::Need::optional, "a system text before the conversation");
  arguments.integer("--context", flags->context, 16, 1 << 20, "tokens of the whole conversation");
  arguments.choice("--bidi", flags->bidi,
                   {{"auto", BidiChoice::automatic},
                    {"terminal", BidiChoice::terminal},
                    {"visual", BidiChoice::visual},
                    {"off", BidiChoice::off}},
                   "who orders right-to-left lines: the terminal, or saaz (visual); 'saaz doctor' shows both");
  declare_answer(arguments, flags->answer);
  return [flags, &globals] { return run_chat(*flags, globals); };
}

}  // namespace saaz
