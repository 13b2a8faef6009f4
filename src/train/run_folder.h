// A run's folder before the run begins: what in it is the run's own. Nothing of others is ever removed.
#pragma once

#include <vector>

#include "base/system.h"

namespace saaz {

inline constexpr const char *kStateFile = "trainer_state.json", *kRecipeFile = "recipe.yaml",
                            *kAdapterFile = "adapter_model.safetensors", *kEventsFile = "events.jsonl",
                            *kRowLossesFile = "row_losses.jsonl";

/// What a killed run left half-written in its folder: `*.partial` of the names that runs write there, and no others.
std::vector<fs::path> unfinished_files(const fs::path& run);

/// Whether the folder is that of a run which had saved nothing yet: its events begin with a start, or there is no more
/// in it than such a run makes before that.
bool is_unsaved_run(const fs::path& run);

}  // namespace saaz
