// Fetching a repository into the cache: files that are missing, one after another, resumed where they were cut, each
// checked before it gets its name. The revision's ref is written last: it never names a snapshot that lacks files.
#pragma once

#include <string>
#include <vector>

#include "hub/client.h"

namespace saaz {

struct FetchResult {
  fs::path snapshot;
  std::string commit;
  size_t n_files = 0;          // selected
  size_t n_fetched = 0;        // of these, not in the cache before
  uint64_t bytes_fetched = 0;  // over the network
};

/// `include`: patterns of paths; empty = all files. Offline, the cache must hold what is asked for.
FetchResult fetch_repository(HubClient& hub, const RepoRevision& wanted, const std::vector<std::string>& include);

}  // namespace saaz
