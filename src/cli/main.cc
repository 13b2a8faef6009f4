// Entry: the table of commands, and what an exception means to the shell.
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <clocale>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>

#include "base/check.h"
#include "base/out_of_memory.h"
#include "base/system.h"
#include "base/threads.h"
#include "cli/cli.h"
#include "cli/watch.h"

namespace saaz {
namespace {

Action declare_train(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<TrainFlags>();
  arguments.positional("recipe", flags->recipe, "a recipe file (see 'saaz recipe ls')");
  arguments.texts("--set", flags->overrides, Arguments::Need::optional, "key.path=value: overrides the recipe");
  arguments.text_or_word("--resume", flags->resume, "newest", "go on from the newest checkpoint, or --resume=DIR");
  arguments.text_or_word("--watch", flags->watch, kAnyAddress, "serve the dashboard, or --watch=HOST:PORT");
  arguments.toggle("--allow-anonymous", flags->allow_anonymous, "let other machines see the dashboard, without a key");
  arguments.toggle("--accept-changes", flags->accept_changes, "resume although data or base changed since");
  arguments.bytes("--max-memory", flags->max_memory, "refuse a run that needs more memory, like 1500MiB");
  arguments.bytes("--max-gpu-memory", flags->max_gpu_memory, "keep to so much of the GPU's memory in use, like 6GiB");
  return [flags, &globals] { return run_train(*flags, globals); };
}

Action declare_try(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<TryFlags>();
  arguments.text("--out", flags->out, Arguments::Need::optional, "the folder to work in");
  return [flags, &globals] { return run_try(*flags, globals); };
}

const std::vector<Command>& commands() {
  static const std::vector<Command> kCommands = {
      {"try", "the whole job on a tiny model, offline, in a minute", declare_try},
      {"doctor", "what this machine and terminal can do", declare_doctor},
      {"recipe", "list, show, copy and check recipes", declare_recipe},
      {"data", "look into training data", declare_data},
      {"plan", "memory, time and disk of a training run, before it starts", declare_plan},
      {"train", "fine-tune as a recipe says", declare_train},
      {"watch", "show runs live, in a browser or the terminal", declare_watch},
      {"runs", "list, show, compare and draw training runs", declare_runs},
      {"merge", "write base + adapter as one model, with a proof", declare_merge},
      {"verify", "prove a merged folder again", declare_verify},
      {"quantize", "write a model in 4 or 8 bits", declare_quantize},
      {"export", "write a model for llama.cpp or Ollama, or a run's model card", declare_export},
      {"eval", "loss and perplexity on a data file", declare_eval},
      {"generate", "answer prompts", declare_generate},
      {"chat", "talk with a model in the terminal", declare_chat},
      {"serve", "answer OpenAI's requests over HTTP, one base and many adapters", declare_serve},
      {"fetch", "get a model or dataset from the Hugging Face hub", declare_fetch},
      {"push", "send a folder to the Hugging Face hub", declare_push},
      {"bundle", "carry a fetched model to a machine without a network", declare_bundle},
  };
  return kCommands;
}

/// The whole number `text` starts with; OMP_NUM_THREADS may be a list.
int leading_number(const char* text) {
  int n = 0;
  std::from_chars(text, text + std::strlen(text), n);
  return n > 0 ? n : 0;
}

Globals globals_from_environment() {
  Globals globals;
  for (const char* name : {"OMP_NUM_THREADS", "SAAZ_THREADS"})
    if (const char* value = std::getenv(name)) globals.backend.n_threads = leading_number(value);
  const char* no_color = std::getenv("NO_COLOR");
  globals.colours = isatty(STDOUT_FILENO) == 1 && (no_color == nullptr || *no_color == '\0');
  return globals;
}

int run(int argc, char** argv) {
  Globals globals = globals_from_environment();
  if (argc > 0) globals.program = without_controls(argv[0]);
  const std::optional<Action> action = parse_command_line(argc, argv, commands(), globals);
  set_default_threads(globals.backend.n_threads);
  return action ? (*action)() : 0;
}

std::atomic<bool> memory_was_refused{false};

void refuse_memory() {
  memory_was_refused = true;
  throw std::bad_alloc();
}

/// Libraries end the process where memory fails inside their noexcept functions; the shell still hears why.
[[noreturn]] void give_up() {
  if (!memory_was_refused) std::abort();
  for (const char* text : {"error: ", kOutOfMemory, "\n"})
    if (write(STDERR_FILENO, text, std::strlen(text)) < 0) break;
  _exit(static_cast<int>(ExitCode::resource));
}

int report(ExitCode code, std::string_view message) {
  if (!message.empty()) print_log(fmt::format("error: {}\n", message));
  return static_cast<int>(code);
}

}  // namespace
}  // namespace saaz

int main(int argc, char** argv) {
  using namespace saaz;
  open_missing_streams();
  std::setlocale(LC_CTYPE, "");
  install_signal_handlers();
  std::set_new_handler(refuse_memory);
  std::set_terminate(give_up);
  try {
    return run(argc, argv);
  } catch (const Error& error) {
    return report(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return report(ExitCode::resource, kOutOfMemory);
  } catch (const std::system_error& error) {  // of a thread that cannot start, or the file system library's
    return report(exit_code_of(error.code().value()), error.what());
  } catch (const std::exception& error) {
    return report(ExitCode::bug, fmt::format("{} (this is a bug)", error.what()));
  }
}
