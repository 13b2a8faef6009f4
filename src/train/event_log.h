// events.jsonl: one JSON object a line, appended as things happen, with the time as "unix_time" (seconds). Everything
// that watches a run reads this.
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <string>

#include "base/system.h"
#include "base/value.h"

namespace saaz {

class EventLog {
 public:
  /// Appends to `path`. On a resume, lines of steps after `from_step` (work that was lost) and those of its end
  /// are dropped first, so a resumed run's log reads like an uninterrupted one.
  EventLog(const fs::path& path, int64_t from_step, std::function<void(const Value&)> on_event);
  /// A note that the log holds already is not told again: each resume finds the same things in the data.
  void emit(const Value& event);
  /// Makes what was emitted durable.
  void sync() { file_->sync(); }

 private:
  std::optional<AppendFile> file_;
  std::set<std::string> notes_;  // texts
  std::function<void(const Value&)> on_event_;
};

}  // namespace saaz
