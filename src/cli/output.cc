// The two streams: data on stdout, the log on stderr.
#include <cstdio>

#include "base/check.h"
#include "base/system.h"
#include "base/unicode.h"
#include "cli/cli.h"

namespace saaz {

void log_line(const Globals& globals, const std::string& line) {
  if (!globals.quiet) fmt::print(stderr, "{}\n", line);
}

void print_json(const Value& value) { print_text(to_json(value) + "\n"); }

void print_text(std::string_view text) {
  check(std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0, ExitCode::io,
        "cannot write to standard output");
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
