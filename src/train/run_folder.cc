#include "train/run_folder.h"

#include <algorithm>
#include <array>
#include <fstream>

#include "base/value.h"
#include "report/run_record.h"

namespace saaz {

namespace {

constexpr std::array kOwnFiles = {kRecipeFile,  kEventsFile, kRowLossesFile, kStateFile,
                                  kAdapterFile, "README.md", "NOTICE",       "adapter_config.json"};

bool is_number(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return '0' <= c && c <= '9'; });
}

/// "NAME.partial", or "NAME.NUMBER.partial".
bool is_unfinished(const fs::path& path) {
  constexpr std::string_view kCheckpoint = "checkpoint-";
  if (path.extension() != ".partial") return false;
  fs::path name = path.stem();
  if (name.has_extension() && is_number(name.extension().string().substr(1))) name = name.stem();
  const std::string text = name.string();
  return std::find(kOwnFiles.begin(), kOwnFiles.end(), text) != kOwnFiles.end() ||
         (text.starts_with(kCheckpoint) && is_number(std::string_view(text).substr(kCheckpoint.size())));
}

/// What the events say of the run's beginning, notes of attempts before it aside; nothing when they are not a run's. A
/// killed run may have left no whole line.
std::optional<UnsavedRun> read_beginning(const fs::path& events) {
  constexpr std::string_view kOpening = R"({"event": ")";
  std::ifstream file(events);
  for (std::string line; std::getline(file, line);) {
    if (!kOpening.starts_with(line) && !line.starts_with(kOpening)) return std::nullopt;
    if (file.eof()) break;  // cut short
    try {
      const Value event = parse_json(line, events.string());
      const std::string kind = text_or_empty(event, "event");
      if (kind == "start" && event.find("max_steps") != nullptr) return UnsavedRun{number_or(event, "unix_time", 0)};
      if (kind != "note") return std::nullopt;
    } catch (const Error&) {
      return std::nullopt;
    }
  }
  return UnsavedRun{};
}

}  // namespace

std::vector<fs::path> unfinished_files(const fs::path& run) {
  std::vector<fs::path> out = list_directory(run);
  std::erase_if(out, [](const fs::path& path) { return !is_unfinished(path); });
  return out;
}

std::optional<UnsavedRun> find_unsaved_run(const fs::path& run) {
  if (!fs::exists(run / kRecipeFile) || fs::exists(run / kAdapterFile)) return std::nullopt;
  // A run that begins again empties its events before it starts them; before they are there at all, it has no more.
  if (fs::exists(run / kEventsFile)) return read_beginning(run / kEventsFile);
  for (const fs::path& entry : list_directory(run))
    if (entry.filename() != ".lock" && entry.filename() != kRecipeFile && !is_unfinished(entry)) return std::nullopt;
  return UnsavedRun{};
}

}  // namespace saaz
