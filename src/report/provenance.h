// Where a run's base and data come from, as far as the files themselves tell: hub names from the layout of the Hub's
// cache, licence, languages and citation from a dataset's own README. Nothing is guessed; what is not known is absent.
#pragma once

#include <string>
#include <vector>

#include "base/system.h"
#include "base/value.h"

namespace saaz {

/// {"base": {"name", "hub_id", "revision", "sha256"}, "datasets": [{"name", "hub_id", "license", "languages",
/// "citation", "files": [{"name", "sha256"}]}], "hardware": {"processor", "memory_bytes"}}. `hashes`: SHA-256 by path.
Value provenance(const std::string& base, const std::vector<fs::path>& data_files, const Value& hashes);

}  // namespace saaz
