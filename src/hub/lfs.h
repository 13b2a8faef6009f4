// Large files to the hub: the Git LFS batch API, in one piece or in parts. Parts that arrived are remembered in a file
// below `state`, so that a second run sends only the rest.
#pragma once

#include <string>
#include <vector>

#include "hub/client.h"

namespace saaz {

struct LargeFile {
  std::string path;  // in the repository, for messages
  fs::path local;
  uint64_t size = 0;
  std::string sha256;
};

struct LargeUpload {
  uint64_t bytes_sent = 0;
  size_t n_already_there = 0;
};

/// `state`: a folder of ours; it holds signed addresses, so it is closed to others.
LargeUpload upload_large_files(HubClient& hub, const RepoRevision& to, const std::vector<LargeFile>& files,
                               const fs::path& state);

}  // namespace saaz
