#include "train/run_folder.h"

#include <algorithm>
#include <array>
#include <fstream>

#include "base/value.h"

namespace saaz {

namespace {

constexpr std::array kOwnFiles = {kRecipeFile,  kEventsFile, kRowLossesFile,       kStateFile,
                                  kAdapterFile, "README.md", "adapter_config.json"};

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

enum class Begin : uint8_t { nothing, start, other };
/// What a run's events begin with, notes of attempts before it aside; a killed run may have left no whole line.
Begin begin_of(const fs::path& events) {
  constexpr std::string_view kOpening = R"({"event": ")";
  std::ifstream file(events);
  for (std::string line; std::getline(file, line);) {
    if (!kOpening.starts_with(line) && !line.starts_with(kOpening)) return Begin::other;
    if (file.eof()) break;  // cut short
    try {
      const Value event = parse_json(line, events.string());
      const Value* kind = event.find("event");
      if (!kind->is_string()) return Begin::other;
      if (kind->as_string() == "start") return event.find("max_steps") != nullptr ? Begin::start : Begin::other;
      if (kind->as_string() != "note") return Begin::other;
    } catch (const Error&) {
      return Begin::other;
    }
  }
  return Begin::nothing;
}

}  // namespace

std::vector<fs::path> unfinished_files(const fs::path& run) {
  std::vector<fs::path> out = list_directory(run);
  std::erase_if(out, [](const fs::path& path) { return !is_unfinished(path); });
  return out;
}

bool is_unsaved_run(const fs::path& run) {
  if (!fs::exists(run / kRecipeFile) || fs::exists(run / kAdapterFile)) return false;
  // A run that begins again empties its events before it starts them; before they are there at all, it has no more.
  if (fs::exists(run / kEventsFile)) return begin_of(run / kEventsFile) != Begin::other;
  for (const fs::path& entry : list_directory(run))
    if (entry.filename() != ".lock" && entry.filename() != kRecipeFile && !is_unfinished(entry)) return false;
  return true;
}

}  // namespace saaz
