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
/// What the first whole line of a run's events is; a killed run may have left less than one.
Begin begin_of(const fs::path& events) {
  std::ifstream file(events);
  std::string line;
  if (!std::getline(file, line) || file.eof()) return Begin::nothing;
  try {
    const Value event = parse_json(line, events.string());
    const Value* kind = event.find("event");
    const bool is_start = kind != nullptr && kind->is_string() && kind->as_string() == "start";
    return is_start && event.find("max_steps") != nullptr ? Begin::start : Begin::other;
  } catch (const Error&) {
    return Begin::other;
  }
}

}  // namespace

std::vector<fs::path> unfinished_files(const fs::path& run) {
  std::vector<fs::path> out = list_directory(run);
  std::erase_if(out, [](const fs::path& path) { return !is_unfinished(path); });
  return out;
}

bool is_unsaved_run(const fs::path& run) {
  if (!fs::exists(run / kRecipeFile) || fs::exists(run / kAdapterFile)) return false;
  const Begin begin = begin_of(run / kEventsFile);
  if (begin != Begin::nothing) return begin == Begin::start;
  for (const fs::path& entry : list_directory(run)) {
    const std::string name = entry.filename().string();
    const bool is_empty = name == kRowLossesFile && fs::is_regular_file(entry) && fs::file_size(entry) == 0;
    if (name != ".lock" && name != kRecipeFile && name != kEventsFile && !is_empty && !is_unfinished(entry))
      return false;
  }
  return true;
}

}  // namespace saaz
