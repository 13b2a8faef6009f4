// A repository in one file, for machines without a network: a tar of its part of the cache. It can be imported here, or
// unpacked into a Hugging Face cache by any tar: the names inside are the cache's own.
//   models--org--name/saaz-bundle.json         what is inside, with a SHA-256 for each file
//   models--org--name/saaz-bundle.json.sha256  of the manifest, as sha256sum writes it
//   models--org--name/blobs/<id>, refs/<revision>, snapshots/<commit>/<path> (links)
#pragma once

#include "base/system.h"
#include "hub/names.h"

namespace saaz {

struct BundleResult {
  RepoRevision what;
  std::string commit;
  fs::path snapshot;  // in the cache
  size_t n_files = 0;
  uint64_t bytes = 0;  // of content
};

/// Checks every file on its way out.
BundleResult export_bundle(const fs::path& cache, const RepoRevision& what, const fs::path& tar);
/// Takes nothing but what the manifest names; the snapshot appears when all of it has been verified.
BundleResult import_bundle(const fs::path& cache, const fs::path& tar);

}  // namespace saaz
