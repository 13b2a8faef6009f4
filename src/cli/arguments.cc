// The one file that knows CLI11.
#include "cli/arguments.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <sstream>

#include "base/check.h"
#include "cli/cli.h"

namespace saaz {
namespace {

// What the library lets through: "-1" would wrap around, and nan compares false with both ends of a range.
std::string not_negative(const std::string& text) {
  return text.find('-') != std::string::npos ? "Value " + text + " is negative" : "";
}

std::string a_number(const std::string& text) {
  return std::isnan(std::strtod(text.c_str(), nullptr)) ? "Value " + text + " is not a number" : "";
}

}  // namespace

void Arguments::positional(const std::string& name, std::string& target, const std::string& doc) {
  app_.add_option(name, target, doc)->required();
}

void Arguments::positionals(const std::string& name, std::vector<std::string>& target, const std::string& doc) {
  app_.add_option(name, target, doc)->required();
}

void Arguments::text(const std::string& flag, std::string& target, Need need, const std::string& doc) {
  app_.add_option(flag, target, doc)->required(need == Need::required);
}

void Arguments::texts(const std::string& flag, std::vector<std::string>& target, Need need, const std::string& doc) {
  // Without extra arguments a value in square brackets stays the text it is.
  app_.add_option(flag, target, doc)
      ->required(need == Need::required)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

void Arguments::text_or_word(const std::string& flag, std::string& target, const std::string& alone,
                             const std::string& doc) {
  app_.add_flag(flag + "{" + alone + "}", target, doc);
}

void Arguments::integer(const std::string& flag, int64_t& target, int64_t min, int64_t max, const std::string& doc) {
  app_.add_option(flag, target, doc)->check(CLI::Range(min, max))->capture_default_str();
}

void Arguments::unsigned_integer(const std::string& flag, uint64_t& target, const std::string& doc) {
  app_.add_option(flag, target, doc)->check(not_negative)->capture_default_str();
}

void Arguments::real(const std::string& flag, double& target, double min, double max, const std::string& doc) {
  app_.add_option(flag, target, doc)->check(CLI::Range(min, max))->check(a_number)->capture_default_str();
}

void Arguments::bytes(const std::string& flag, uint64_t& target, const std::string& doc) {
  app_.add_option(flag, target, doc)->transform(CLI::AsSizeValue(true))->transform(CLI::Validator(not_negative, ""));
}

void Arguments::toggle(const std::string& flag, bool& target, const std::string& doc) {
  app_.add_flag(flag, target, doc);
}

Arguments Arguments::subcommand(const std::string& name, const std::string& doc, std::function<void()> chosen) {
  CLI::App* sub = app_.add_subcommand(name, doc);
  sub->fallthrough();
  sub->callback(std::move(chosen));
  app_.require_subcommand(1);
  return Arguments(*sub);
}

void Arguments::choice_of_words(const std::string& flag, const std::vector<std::string>& words,
                                const std::function<void(size_t)>& set, const std::string& doc) {
  const auto on_word = [words, set](const std::string& word) {
    set(static_cast<size_t>(std::find(words.begin(), words.end(), word) - words.begin()));
  };
  app_.add_option_function<std::string>(flag, on_word, doc)->check(CLI::IsMember(words));
}

namespace {

void declare_globals(Arguments& arguments, Globals& globals, bool& no_colours, int64_t& n_threads) {
  arguments.integer("--threads", n_threads, 0, 1024, "threads; 0 = one per core (SAAZ_THREADS, OMP_NUM_THREADS)");
  arguments.text("--instruction-set", globals.backend.instruction_set, Arguments::Need::optional,
                 "plain, avx2, avx512 or avx512-bf16; the best there is unless given");
  arguments.choice("--device", globals.device,
                   {{"auto", Device::automatic}, {"cpu", Device::cpu}, {"cuda", Device::cuda}},
                   "where to compute (auto: a GPU when there is one)");
  arguments.toggle("--json", globals.json, "results as JSON on stdout");
  arguments.toggle("--quiet", globals.quiet, "no log on stderr");
  arguments.toggle("--no-color", no_colours, "no colours (NO_COLOR)");
}

[[noreturn]] void fail_usage(const CLI::App& app, std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  // Of two faults the unknown word is the more useful one.
  if (const std::vector<std::string> unknown = app.remaining(true); !unknown.empty())
    text = "unknown argument '" + unknown[0] + "'";
  std::string name = app.get_name();
  for (const CLI::App* at = &app; !at->get_subcommands().empty();) {
    at = at->get_subcommands().back();
    name += " " + at->get_name();
  }
  fail(ExitCode::usage, "{}; see '{} --help'", printable(text, 400), name);
}

}  // namespace

std::optional<std::function<int()>> parse_command_line(int argc, char** argv, const std::vector<Command>& commands,
                                                       Globals& globals) {
  CLI::App app("Fine-tunes Gemma 3 and Gemma 3n on Persian conversations, merges, proves the merge, and chats.",
               "saaz");
  app.set_version_flag("--version", std::string("saaz ") + kVersion);
  app.require_subcommand(1);
  bool no_colours = false;
  int64_t n_threads = globals.backend.n_threads;
  Arguments top(app);
  declare_globals(top, globals, no_colours, n_threads);
  std::optional<Action> chosen;
  for (const Command& command : commands) {
    const auto action = std::make_shared<Action>();
    Arguments arguments = top.subcommand(command.name, command.summary, [&chosen, action] { chosen = *action; });
    *action = command.declare(arguments, globals);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    std::ostringstream text;
    app.exit(success, text, text);
    print_text(text.str());
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    fail_usage(app, error.what());
  }
  globals.backend.n_threads = static_cast<int>(n_threads);
  if (no_colours) globals.colours = false;
  return chosen;
}

}  // namespace saaz
