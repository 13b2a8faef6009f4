#include "train/event_log.h"

#include <chrono>
#include <sstream>

#include "base/check.h"

namespace saaz {

namespace {

/// The text of a note; nothing for other events.
std::optional<std::string> note_in(const Value& event) {
  const Value *kind = event.find("event"), *text = event.find("text");
  const bool is_note = kind != nullptr && kind->is_string() && kind->as_string() == "note";
  if (!is_note || text == nullptr || !text->is_string()) return std::nullopt;
  return text->as_string();
}

/// The lines of a log up to `step`; a line cut short by a crash ends it. The texts of their notes go to `notes`.
std::string lines_up_to(const fs::path& path, int64_t step, std::set<std::string>& notes) {
  std::string kept;
  std::istringstream lines(read_file(path));
  for (std::string line; std::getline(lines, line);) {
    try {
      const Value event = parse_json(line, path.string());
      const Value* at = event.find("step");
      if (at != nullptr && at->is_integer() && at->as_integer() > step) continue;
      // The run goes on, so it has not ended.
      const Value* kind = event.find("event");
      if (kind != nullptr && kind->is_string() && (kind->as_string() == "end" || kind->as_string() == "stopped"))
        continue;
      if (std::optional<std::string> note = note_in(event)) notes.insert(std::move(*note));
    } catch (const Error&) {
      break;
    }
    kept += line + "\n";
  }
  return kept;
}

}  // namespace

EventLog::EventLog(const fs::path& path, int64_t from_step, std::function<void(const Value&)> on_event)
    : on_event_(std::move(on_event)) {
  if (fs::exists(path)) write_file_atomically(path, lines_up_to(path, from_step, notes_));
  file_.emplace(path);
}

void EventLog::emit(const Value& event) {
  using namespace std::chrono;
  if (const std::optional<std::string> note = note_in(event); note && !notes_.insert(*note).second) return;
  Value stamped = event;
  stamped.set("unix_time", duration<double>(system_clock::now().time_since_epoch()).count());
  file_->append(to_json(stamped) + "\n");
  if (on_event_) on_event_(stamped);
}

}  // namespace saaz
