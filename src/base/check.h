// Formatting helpers over Error. Include from .cc files (and headers no .cu sees).
#pragma once

#include <fmt/core.h>
#include <fmt/format.h>

#include <source_location>
#include <string>
#include <utility>

#include "base/error.h"

namespace saaz {

/// A format string that remembers where it was written, so `fail` and `check` can report the caller's line.
template <class... Args>
struct Message {
  template <class S>
  consteval Message(const S& text, std::source_location here = std::source_location::current())
      : format(text), where(here) {}
  fmt::format_string<Args...> format;
  std::source_location where;
};

/// Throws Error with the formatted message. The message says what, where, expected, found, and what to do.
template <class... Args>
[[noreturn]] void fail(ExitCode code, Message<std::type_identity_t<Args>...> message, Args&&... args) {
  throw Error(code, fmt::format(message.format, std::forward<Args>(args)...), message.where);
}

/// `fail` unless `condition` holds.
template <class... Args>
void check(bool condition, ExitCode code, Message<std::type_identity_t<Args>...> message, Args&&... args) {
  if (!condition) [[unlikely]]
    throw Error(code, fmt::format(message.format, std::forward<Args>(args)...), message.where);
}

/// Runs `body`; an Error that leaves it gets `context` appended ("while loading adapter 'x'").
template <class Body>
auto with_context(const std::string& context, Body&& body) {
  try {
    return body();
  } catch (Error& error) {
    error.add_context(context);
    throw;
  }
}

}  // namespace saaz
