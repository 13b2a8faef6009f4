// Where a run's base and data come from, as far as the files themselves tell: hub names from the layout of the Hub's
// cache, licence, languages and citation from a dataset's own README. Nothing is guessed; what is not known is absent.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/system.h"
#include "base/value.h"

namespace saaz {

struct HubName {
  std::string id, revision;  // "google/gemma-3n-E4B-it"; a commit, empty when the path does not tell
};

/// Whose copy a path in the Hub's cache is: ".../models--google--gemma-3n-E4B-it/snapshots/<revision>/...". `kind`:
/// "models" or "datasets".
std::optional<HubName> hub_name_of(const fs::path& path, std::string_view kind);

/// {"base": {"name", "hub_id", "revision", "sha256"}, "datasets": [{"name", "hub_id", "license", "languages",
/// "citation", "files": [{"name", "sha256"}]}], "hardware": {"processor", "memory_bytes"}}. `hashes`: SHA-256 by path.
Value provenance(const std::string& base, const std::vector<fs::path>& data_files, const Value& hashes);

}  // namespace saaz
