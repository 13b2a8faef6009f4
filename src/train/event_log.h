// events.jsonl: one JSON object a line, appended and flushed as things happen. Everything that watches a run reads
// this.
#pragma once

#include <cstdio>
#include <functional>

#include "base/system.h"
#include "base/value.h"

namespace saaz {

class EventLog {
 public:
  /// Appends to `path`. On a resume, lines of steps after `from_step` (work that was lost) are dropped first, so a
  /// resumed run's log reads like an uninterrupted one.
  EventLog(const fs::path& path, int64_t from_step, std::function<void(const Value&)> on_event);
  ~EventLog();
  EventLog(const EventLog&) = delete;
  EventLog& operator=(const EventLog&) = delete;
  void emit(const Value& event);

 private:
  std::FILE* file_ = nullptr;
  fs::path path_;
  std::function<void(const Value&)> on_event_;
};

}  // namespace saaz
