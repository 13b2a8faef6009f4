#include "cli/prompt.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "base/check.h"
#include "base/system.h"
#include "cli/cli.h"

namespace saaz {
namespace {

std::string_view environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

int columns_of(int descriptor) {
  winsize size{};
  const bool is_known = ioctl(descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return is_known ? std::max<int>(size.ws_col, 8) : 80;
}

volatile sig_atomic_t g_interrupt = 0;
void on_interrupt(int) { g_interrupt = 1; }

constexpr std::string_view kPasteOn = "\x1b[?2004h", kPasteOff = "\x1b[?2004l";

}  // namespace

Bidi bidi_for(BidiChoice choice) {
  const Bidi found =
      bidi_of({environment("TERM_PROGRAM"), environment("VTE_VERSION"), environment("MLTERM"), environment("TMUX")});
  switch (choice) {
    case BidiChoice::automatic:
      return found;
    case BidiChoice::terminal:
      return found == Bidi::directed ? found : Bidi::padded;
    case BidiChoice::visual:
      return Bidi::visual;
    case BidiChoice::off:
      return Bidi::off;
  }
  fail(ExitCode::bug, "a --bidi that is none");
}

std::string describe(Bidi bidi) {
  switch (bidi) {
    case Bidi::directed:
      return "terminal: it orders and aligns each line";
    case Bidi::padded:
      return "terminal: it orders each line, saaz aligns it";
    case Bidi::visual:
      return "visual: saaz orders, shapes and aligns each line";
    case Bidi::off:
      return "off";
  }
  fail(ExitCode::bug, "a bidi that is none");
}

Prompt::Prompt(Bidi bidi) : bidi_(bidi) {
  check(tcgetattr(STDIN_FILENO, &before_) == 0, ExitCode::io, "cannot read the mode of the terminal");
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  sigaction(SIGINT, &action, &interrupt_before_);
  print_log(kPasteOn);
  set_mode(Mode::quiet);
}

Prompt::~Prompt() {
  set_mode(Mode::as_it_was);
  print_log(kPasteOff);
  sigaction(SIGINT, &interrupt_before_, nullptr);
}

bool Prompt::was_interrupted() { return g_interrupt != 0; }

void Prompt::set_mode(Mode mode) {
  termios wanted = before_;
  if (mode != Mode::as_it_was) wanted.c_lflag &= ~static_cast<tcflag_t>(ECHO | ICANON | IEXTEN);
  if (mode == Mode::editing) {
    wanted.c_lflag &= ~static_cast<tcflag_t>(ISIG);
    wanted.c_iflag &= ~static_cast<tcflag_t>(ICRNL | IXON);
  }
  tcsetattr(STDIN_FILENO, TCSADRAIN, &wanted);
}

std::optional<char> Prompt::read_byte() {
  if (bytes_.empty()) {
    char buffer[512];
    ssize_t n = 0;
    while ((n = ::read(STDIN_FILENO, buffer, sizeof buffer)) < 0 && errno == EINTR && stop_signal() == 0) {
    }
    if (n <= 0) return std::nullopt;
    bytes_.assign(buffer, static_cast<size_t>(n));
  }
  const char byte = bytes_.front();
  bytes_.erase(0, 1);
  return byte;
}

void Prompt::draw() {
  const EditorView view = view_of(editor_.text(), editor_.cursor(), "> ", bidi_, columns_of(STDERR_FILENO));
  std::string out = row_ > 0 ? fmt::format("\r\x1b[{}A\x1b[J", row_) : "\r\x1b[J";
  for (size_t i = 0; i < view.lines.size(); ++i) out += (i > 0 ? "\r\n" : "") + view.lines[i];
  const int up = static_cast<int>(view.lines.size()) - 1 - view.row;
  if (up > 0) out += fmt::format("\x1b[{}A", up);
  out += '\r';
  if (view.column > 0) out += fmt::format("\x1b[{}C", view.column);
  row_ = view.row;
  print_log(out);
}

std::optional<std::string> Prompt::read() {
  set_mode(Mode::editing);
  row_ = 0;
  auto outcome = LineEditor::Outcome::editing;
  draw();
  while (outcome == LineEditor::Outcome::editing) {
    const std::optional<char> byte = read_byte();
    if (!byte) {
      outcome = LineEditor::Outcome::end_of_file;
      break;
    }
    const std::optional<Press> press = keys_.push(*byte);
    if (!press) continue;
    if (press->key == Key::redraw) print_log("\x1b[H\x1b[2J"), row_ = 0;
    outcome = editor_.press(*press);
    if (bytes_.empty() || outcome != LineEditor::Outcome::editing) draw();
  }
  // Leaves the message on the screen, and the cursor below it.
  const EditorView view = view_of(editor_.text(), editor_.cursor(), "> ", bidi_, columns_of(STDERR_FILENO));
  const int down = static_cast<int>(view.lines.size()) - 1 - row_;
  print_log((down > 0 ? fmt::format("\x1b[{}B", down) : "") + "\r\n" +
            std::string(direction_mark(Direction::ltr, bidi_)));
  set_mode(Mode::quiet);
  g_interrupt = 0;
  if (outcome == LineEditor::Outcome::end_of_file) return std::nullopt;
  std::string text = outcome == LineEditor::Outcome::done ? editor_.text() : "";
  editor_.remember();
  return text;
}

AnswerPrinter::AnswerPrinter(Bidi bidi)
    : layout_(isatty(STDOUT_FILENO) == 1 ? bidi : Bidi::off, columns_of(STDOUT_FILENO)) {}

void AnswerPrinter::push(std::string_view text) { print_text(layout_.push(text)); }
void AnswerPrinter::finish() { print_text(layout_.finish()); }

}  // namespace saaz
