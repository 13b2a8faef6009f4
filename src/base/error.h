// Errors: one exception type that carries the exit code of the program, a one-line message and the context lines
// added while unwinding. Free of fmt, so that CUDA sources may include it; `check.h` has the formatting helpers.
// Rule: `fail`/`check` for the world's faults (files, recipes, limits), `assert` for ours.
#pragma once

#include <exception>
#include <source_location>
#include <string>
#include <utility>

namespace saaz {

/// Exit codes of the program (table in README.md). Signals add 130 and 143.
enum class ExitCode : int {
  ok = 0,
  bug = 1,           // our fault
  usage = 2,         // command line or recipe
  bad_input = 3,     // bad or missing input file
  resource = 4,      // disk, memory, limit
  io = 5,            // I/O or network error
  diverged = 6,      // non-finite loss or gradient
  in_use = 7,        // output directory in use
  verification = 8,  // checkpoint or verification failed, or inputs changed on resume
};

class Error : public std::exception {
 public:
  Error(ExitCode code, std::string message, std::source_location where = std::source_location::current())
      : code_(code), message_(std::move(message)), where_(where) {}

  ExitCode code() const { return code_; }
  const std::source_location& where() const { return where_; }
  /// One line: the message, then "; while ..." for each context, innermost first.
  const char* what() const noexcept override { return message_.c_str(); }
  /// Appends "; <context>". Call while unwinding, then rethrow.
  void add_context(const std::string& context) { message_ += "; " + context; }

 private:
  ExitCode code_;
  std::string message_;
  std::source_location where_;
};

/// Bytes from outside, made safe for one terminal line: control bytes and invalid UTF-8 become \xNN; cut at `limit`
/// bytes.
std::string printable(std::string_view text, size_t limit = 200);

}  // namespace saaz
