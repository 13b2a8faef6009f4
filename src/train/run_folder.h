// A run's folder before the run begins: what in it is the run's own. Nothing of others is ever removed.
#pragma once

#include <optional>
#include <vector>

#include "base/system.h"

namespace saaz {

inline constexpr const char *kStateFile = "trainer_state.json", *kRecipeFile = "recipe.yaml",
                            *kAdapterFile = "adapter_model.safetensors", *kEventsFile = "events.jsonl",
                            *kRowLossesFile = "row_losses.jsonl";

/// What a killed run left half-written in its folder: `*.partial` of the names that runs write there, and no others.
std::vector<fs::path> unfinished_files(const fs::path& run);

/// A run that had saved nothing yet.
struct UnsavedRun {
  std::optional<double> start;  // when it began, unix time; nothing: it had not
};
/// The folder's, when it holds one: its events begin with a start, or there is no more in it than a run makes before
/// that.
std::optional<UnsavedRun> find_unsaved_run(const fs::path& run);

}  // namespace saaz
