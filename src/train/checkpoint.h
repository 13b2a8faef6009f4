// Checkpoints of a run: `checkpoint-N/` appears whole or not at all (written as checkpoint-N.partial, every file
// fsynced, a manifest with sizes and SHA-256 last, then renamed). Reading trusts nothing: the newest checkpoint is the
// highest N whose manifest and hashes hold. Source of the protocol: docs/reliability.md.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/system.h"
#include "base/value.h"

namespace saaz {

struct CheckpointRef {
  fs::path folder;
  int64_t step = 0;
};

/// Lets `write_files` fill the partial folder, seals it and renames it; then prunes to the `keep` newest (0 = all), but
/// never below two that verify.
fs::path save_checkpoint(const fs::path& run, int64_t step, int64_t keep,
                         const std::function<void(const fs::path& folder)>& write_files);

/// The newest checkpoint of a run that verifies; damaged ones are listed in `skipped` with the reason. verification
/// when there are checkpoints but none verifies.
std::optional<CheckpointRef> newest_checkpoint(const fs::path& run, std::vector<std::string>* skipped);
/// One named checkpoint folder; verification naming the file that is missing or changed.
CheckpointRef verify_checkpoint(const fs::path& folder);

/// Renames the checkpoints of later steps than `step` to abandoned-checkpoint-N, in the place of earlier ones of that
/// name: a run that goes on from an older checkpoint takes another course. Their new names.
std::vector<std::string> set_checkpoints_aside(const fs::path& run, int64_t step);

/// What a run's result depends on, by name: hashes of the input files under their paths, and recipe values under
/// kRecipePrefix and their path.
inline constexpr std::string_view kRecipePrefix = "recipe ";
Value fingerprint_files(const std::vector<fs::path>& files);
/// A line for each name whose values differ or that only one side has: "recipe lora.r: 8, now 16".
std::vector<std::string> differences(const Value& before, const Value& now);

}  // namespace saaz
