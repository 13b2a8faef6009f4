#include "train/event_log.h"

#include <cerrno>
#include <cstring>
#include <sstream>

#include "base/check.h"

namespace saaz {

namespace {

/// The lines of a log up to `step`; a line cut short by a crash ends it.
std::string lines_up_to(const fs::path& path, int64_t step) {
  std::string kept;
  std::istringstream lines(read_file(path));
  for (std::string line; std::getline(lines, line);) {
    try {
      const Value event = parse_json(line, path.string());
      const Value* at = event.find("step");
      if (at != nullptr && at->is_integer() && at->as_integer() > step) continue;
    } catch (const Error&) {
      break;
    }
    kept += line + "\n";
  }
  return kept;
}

}  // namespace

EventLog::EventLog(const fs::path& path, int64_t from_step, std::function<void(const Value&)> on_event)
    : path_(path), on_event_(std::move(on_event)) {
  if (fs::exists(path)) write_file_atomically(path, lines_up_to(path, from_step));
  file_ = std::fopen(path.c_str(), "ae");
  check(file_ != nullptr, ExitCode::io, "cannot write {}: {}", path.string(), std::strerror(errno));
}

EventLog::~EventLog() {
  if (file_ != nullptr) std::fclose(file_);
}

void EventLog::emit(const Value& event) {
  const std::string line = to_json(event) + "\n";
  const bool written = std::fwrite(line.data(), 1, line.size(), file_) == line.size() && std::fflush(file_) == 0;
  check(written, errno == ENOSPC ? ExitCode::resource : ExitCode::io, "cannot write {}: {}", path_.string(),
        std::strerror(errno));
  if (on_event_) on_event_(event);
}

}  // namespace saaz
