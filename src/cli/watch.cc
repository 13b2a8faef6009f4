// `saaz watch`: runs shown while they train and afterwards, in a browser or in the terminal.
#include "cli/watch.h"

#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <poll.h>
#include <cstdlib>
#include <thread>

#include "base/check.h"
#include "cli/page_files.h"
#include "cli/prompt.h"
#include "report/run_record.h"
#include "serve/terminal_view.h"

namespace saaz {
namespace {

constexpr const char* kDefaultAddress = "127.0.0.1:8080";

struct WatchFlags {
  std::vector<std::string> runs;
  DashboardFlags dashboard;
  bool terminal = false;
  BidiChoice bidi = BidiChoice::automatic;
};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool is_ssh() { return !environment("SSH_CONNECTION").empty() || !environment("SSH_TTY").empty(); }

TerminalSize terminal_size() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0) return {80, 40};
  return {size.ws_col, size.ws_row};
}

/// The second screen, without a cursor, and keys that come at once; all is as before afterwards.
class FullScreen {
 public:
  FullScreen() {
    has_keys_ = tcgetattr(STDIN_FILENO, &before_) == 0;
    if (has_keys_) {
      termios raw = before_;
      raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
      tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    print_text("\x1b[?1049h\x1b[?25l");
  }
  ~FullScreen() {
    try {
      print_text("\x1b[?25h\x1b[?1049l");
    } catch (const Error&) {  // the terminal is gone
    }
    if (has_keys_) tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  }
  FullScreen(const FullScreen&) = delete;
  FullScreen& operator=(const FullScreen&) = delete;

  void show(const std::vector<std::string>& lines) const {
    std::string out = "\x1b[H";
    for (size_t i = 0; i < lines.size(); ++i) out += (i > 0 ? "\r\n" : "") + lines[i] + "\x1b[K";
    print_text(out + "\x1b[J");
  }
  /// Waits for a second, a key or a signal. True when the key was q.
  bool was_left() const {
    pollfd keys{STDIN_FILENO, POLLIN, 0};
    if (!has_keys_ || ::poll(&keys, 1, 1000) <= 0) {
      if (!has_keys_) std::this_thread::sleep_for(std::chrono::seconds(1));
      return false;
    }
    char key = 0;
    return ::read(STDIN_FILENO, &key, 1) <= 0 || key == 'q';
  }

 private:
  termios before_{};
  bool has_keys_ = false;
};

/// The runs one below another.
std::vector<std::string> frames(std::vector<RunView>& views, TerminalSize size, Bidi bidi) {
  std::vector<std::string> lines;
  for (RunView& view : views) {
    view.poll();
    for (std::string& line : terminal_frame(view, {size.columns, size.rows / views.size()}, bidi))
      lines.push_back(std::move(line));
  }
  return lines;
}

int watch_in_terminal(const WatchFlags& flags) {
  std::vector<RunView> views;
  for (const std::string& run : flags.runs) views.emplace_back(run);
  const bool is_terminal = isatty(STDOUT_FILENO) == 1;
  const Bidi bidi = !is_terminal && flags.bidi == BidiChoice::automatic ? Bidi::off : bidi_for(flags.bidi);
  if (!is_terminal) {
    for (const std::string& line : frames(views, {100, 60 * views.size()}, bidi)) print_text(line + "\n");
    return 0;
  }
  const FullScreen screen;
  do screen.show(frames(views, terminal_size(), bidi));
  while (stop_signal() == 0 && !screen.was_left());
  return 0;
}

/// bad_input for what is no run. A view takes any path, and waits for what is not there yet.
void check_run(const std::string& run) {
  if (fs::is_directory(run)) {
    check(is_run(run), ExitCode::bad_input, "{} is no run folder: it has neither events.jsonl nor trainer_state.json",
          printable(run));
    if (fs::exists(fs::path(run) / "events.jsonl")) return;  // a view leaves out lines that are none
  }
  with_context("'saaz watch' expects a run folder or a trainer_state.json", [&] { read_run(run); });
}

int run_watch(const WatchFlags& flags, const Globals& globals) {
  for (const std::string& run : flags.runs) check_run(run);
  if (globals.json) {
    for (const std::string& run : flags.runs) {
      RunView view(run);
      view.poll();
      Value state = view.state();
      state.set("schema_version", 1);
      print_json(state);
    }
    return 0;
  }
  const bool is_served = flags.dashboard.address != kAnyAddress;
  if (flags.terminal || (!is_served && is_ssh() && isatty(STDOUT_FILENO) == 1)) return watch_in_terminal(flags);
  const std::vector<fs::path> runs(flags.runs.begin(), flags.runs.end());
  const std::unique_ptr<Dashboard> dashboard = open_dashboard(runs, flags.dashboard, globals);
  while (stop_signal() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  return 0;
}

}  // namespace

std::unique_ptr<Dashboard> open_dashboard(const std::vector<fs::path>& runs, const DashboardFlags& flags,
                                          const Globals& globals) {
  const bool is_any = flags.address == kAnyAddress;
  WebOptions options = listen_at(is_any ? kDefaultAddress : flags.address);
  if (flags.allow_anonymous) options.anonymous = WebOptions::Anonymous::anywhere;
  const std::vector<PageFile> files = page_files();
  std::unique_ptr<Dashboard> dashboard;
  try {
    dashboard = std::make_unique<Dashboard>(runs, options, files);
  } catch (const Error& error) {
    if (!is_any || error.code() != ExitCode::usage) throw;
    options.port = 0;
    dashboard = std::make_unique<Dashboard>(runs, options, files);
  }
  log_line(globals, "dashboard: " + dashboard->address());
  return dashboard;
}

Action declare_watch(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<WatchFlags>();
  flags->dashboard.address = kAnyAddress;
  arguments.positionals("runs", flags->runs, "run folders, shown side by side, or trainer_state.json files");
  arguments.text("--listen", flags->dashboard.address, Arguments::Need::optional,
                 "HOST:PORT of the dashboard (127.0.0.1:8080, or any port when that is taken)");
  arguments.toggle("--allow-anonymous", flags->dashboard.allow_anonymous, "let other machines see it, without a key");
  arguments.toggle("--terminal", flags->terminal, "show it here; the default over ssh, unless --listen is given");
  arguments.choice("--bidi", flags->bidi,
                   {{"auto", BidiChoice::automatic},
                    {"terminal", BidiChoice::terminal},
                    {"visual", BidiChoice::visual},
                    {"off", BidiChoice::off}},
                   "who puts Persian lines in order: the terminal, or saaz (visual)");
  return [flags, &globals] { return run_watch(*flags, globals); };
}

}  // namespace saaz
