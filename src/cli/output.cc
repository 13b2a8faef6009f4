// The two streams: data on stdout, the log on stderr. Nothing else in the program writes to them.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include <cerrno>

#include "base/check.h"
#include "base/system.h"
#include "base/unicode.h"
#include "cli/cli.h"

namespace saaz {

namespace {

/// Writes all of `text`; 0, or the errno that ended it. A descriptor that does not block is waited for; a stop signal
/// ends the wait for a reader who takes nothing.
int write_all(int descriptor, std::string_view text) noexcept {
  while (!text.empty()) {
    const ssize_t n = ::write(descriptor, text.data(), text.size());
    if (n >= 0) {
      text.remove_prefix(static_cast<size_t>(n));
    } else if (errno == EAGAIN) {
      pollfd room{.fd = descriptor, .events = POLLOUT, .revents = 0};
      if (::poll(&room, 1, -1) < 0 && (errno != EINTR || stop_signal() != 0)) return errno;
    } else if (errno != EINTR || stop_signal() != 0) {
      return errno;
    }
  }
  return 0;
}

}  // namespace

void open_missing_streams() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (fcntl(descriptor, F_GETFD) < 0 && errno == EBADF)
      // For the other direction, so that its use fails as it would have. The lowest free number is this one.
      open("/dev/null", descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY);
}

void log_line(const Globals& globals, const std::string& line) {
  if (!globals.quiet) print_log(line + "\n");
}

void print_log(std::string_view text) noexcept { write_all(STDERR_FILENO, text); }

void print_json(const Value& value) { print_text(to_json(value) + "\n"); }

void print_event(const Value& event) {
  // A line that was cut would spoil those after it.
  static bool is_over = false;
  is_over = is_over || write_all(STDOUT_FILENO, to_json(event) + "\n") != 0;
}

void print_text(std::string_view text) {
  const int error = write_all(STDOUT_FILENO, text);
  if (error == 0) return;
  if (error == EPIPE) throw Error(static_cast<ExitCode>(128 + SIGPIPE), "");
  check(stop_signal() == 0, static_cast<ExitCode>(128 + stop_signal()), "stopped by a signal");
  fail(ExitCode::io, "cannot write to standard output: {}", strerror(error));
}

int signal_exit_code() { return stop_signal() == 0 ? 0 : 128 + stop_signal(); }

std::string without_controls(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const CodePoint point = decode_utf8(text);
    const bool control = point.value < 0x20 || (point.value >= 0x7f && point.value < 0xa0);
    if (!control || point.value == '\n' || point.value == '\t') append_utf8(out, point.value);
    text.remove_prefix(static_cast<size_t>(point.length));
  }
  return out;
}

std::string bytes_text(double bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) bytes /= 1024, ++unit;
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.2f} {}", bytes, kUnits[unit]);
}

}  // namespace saaz
