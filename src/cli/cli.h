// The commands of the program. Enters: the command line. Leaves: data on stdout, the log for people on stderr, an exit
// code. Each command is one row of the table in main.cc: a name, a summary, and a function that declares its options
// and returns the action. Invariant: only this room prints, in output.cc, and reads the environment; an Error that
// leaves an action becomes one line and its exit code in main().
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "base/value.h"
#include "cli/arguments.h"
#include "config/recipe.h"

namespace saaz {

inline constexpr const char* kVersion = "0.1.0";

/// What every command is told. Precedence: flag, environment, default.
enum class Device : uint8_t { automatic, cpu, cuda };
struct Globals {
  std::string program = "saaz";  // as it was called: what a person types again
  BackendOptions backend;
  Device device = Device::automatic;
  bool json = false;     // one JSON document (or event) a line on stdout
  bool quiet = false;    // no log on stderr
  bool colours = false;  // of stdout: a terminal, no --no-color, no NO_COLOR
};

/// Runs the command and returns its exit code.
using Action = std::function<int()>;

struct Command {
  const char* name;
  const char* summary;
  /// Declares the options; the action keeps what they were set to. `globals` outlives it and is complete when it runs.
  Action (*declare)(Arguments& arguments, const Globals& globals);
};

Action declare_doctor(Arguments& arguments, const Globals& globals);
Action declare_recipe(Arguments& arguments, const Globals& globals);
Action declare_data(Arguments& arguments, const Globals& globals);
Action declare_plan(Arguments& arguments, const Globals& globals);
Action declare_watch(Arguments& arguments, const Globals& globals);
Action declare_runs(Arguments& arguments, const Globals& globals);
Action declare_merge(Arguments& arguments, const Globals& globals);
Action declare_verify(Arguments& arguments, const Globals& globals);
Action declare_quantize(Arguments& arguments, const Globals& globals);
Action declare_export(Arguments& arguments, const Globals& globals);
/// `export card`, in export_card.cc; sets `chosen` when it is named.
void declare_export_card(Arguments& exports, const Globals& globals, const std::shared_ptr<Action>& chosen);
Action declare_eval(Arguments& arguments, const Globals& globals);
Action declare_generate(Arguments& arguments, const Globals& globals);
Action declare_chat(Arguments& arguments, const Globals& globals);
Action declare_serve(Arguments& arguments, const Globals& globals);
Action declare_fetch(Arguments& arguments, const Globals& globals);
Action declare_push(Arguments& arguments, const Globals& globals);
Action declare_bundle(Arguments& arguments, const Globals& globals);

struct TrainFlags {
  std::string recipe;                  // a file
  std::vector<std::string> overrides;  // "train.learning_rate=1e-4"
  std::string resume;                  // empty: a new run; "newest": its newest checkpoint; else a checkpoint folder
  bool accept_changes = false;         // resume although inputs changed
  std::string watch;                   // where to serve the dashboard; empty: as the recipe says
  bool allow_anonymous = false;        // there, to other machines
  uint64_t max_memory = 0;             // bytes; 0: no limit but the machine's
  uint64_t max_gpu_memory = 0;         // the same of a GPU's memory
};
/// In train.cc.
int run_train(const TrainFlags& flags, const Globals& globals);

struct TryFlags {
  std::string out = "saaz-try";  // the folder everything is written to
};
/// In try.cc.
int run_try(const TryFlags& flags, const Globals& globals);

/// The backend a command computes on: the GPU when there is one, unless --device or --instruction-set say otherwise.
/// `on_cpu`: what automatic means without a GPU. In session.cc.
std::unique_ptr<Backend> make_backend(const Globals& globals, ComputeDtype compute_dtype = ComputeDtype::automatic,
                                      ComputeDtype on_cpu = ComputeDtype::f32);

/// Makes the numbers of closed standard streams unusable: a file opened later must not get one, and our text with it.
void open_missing_streams();
/// A line for people on stderr, unless --quiet.
void log_line(const Globals& globals, const std::string& line);
/// Text as it is on stderr. Where it cannot be written it is dropped: there is nobody to tell.
void print_log(std::string_view text) noexcept;
/// The result of a command on stdout: one line of JSON, or text as it is. A reader who left ends the program without a
/// word and with 128 + SIGPIPE, as it ends other programs; other faults are io.
void print_json(const Value& value);
void print_text(std::string_view text);
/// One line of JSON on stdout of work that goes on without a reader: after the first failure nothing more is written.
void print_event(const Value& event);
/// 130 or 143 after a signal, 0 before one.
int signal_exit_code();
/// `text` without control characters other than newline and tab: safe for a terminal.
std::string without_controls(std::string_view text);
/// "1.53 GiB"
std::string bytes_text(double bytes);

}  // namespace saaz
