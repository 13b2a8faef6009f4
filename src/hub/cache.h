// The cache on disk, as huggingface_hub lays it out, so that each uses what the other fetched:
//   models--org--name/refs/main           the commit that main was when it was fetched
//   models--org--name/blobs/<id>          content: SHA-256 of large files, git's id of small ones
//   models--org--name/snapshots/<commit>/ links into blobs, under the files' names
//   models--org--name/trees/<commit>.json all files of the commit: tells whether a snapshot is whole
//   .locks/models--org--name/<id>.lock    held while a blob is fetched
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/system.h"
#include "base/value.h"
#include "hub/names.h"

namespace saaz {

struct RemoteFile {
  std::string path;  // checked
  uint64_t size = 0;
  std::string git_id;    // of the content, or of the pointer when it is large
  std::string sha256;    // of the content when it is large (LFS), else empty
  std::string xet_hash;  // kept for huggingface_hub

  /// The name of its blob.
  const std::string& blob_name() const { return sha256.empty() ? git_id : sha256; }
};

/// Waits for and holds a lock on a file, as huggingface_hub locks.
class FileLock {
 public:
  explicit FileLock(const fs::path& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int fd_ = -1;
};

class RepoCache {
 public:
  RepoCache(fs::path root, const Repo& repo) : root_(std::move(root)), folder_(root_ / repo.folder_name()) {}

  fs::path folder() const { return folder_; }
  fs::path blob(const std::string& name) const { return folder_ / "blobs" / name; }
  fs::path snapshot(const std::string& commit) const { return folder_ / "snapshots" / commit; }
  fs::path lock(const std::string& blob_name) const {
    return root_ / ".locks" / folder_.filename() / (blob_name + ".lock");
  }

  /// The commit a revision was when it was fetched; empty when it never was.
  std::string commit_of(const std::string& revision) const;
  void write_ref(const std::string& revision, const std::string& commit) const;
  /// The files of a commit, when a listing is kept.
  std::optional<std::vector<RemoteFile>> tree(const std::string& commit) const;
  void write_tree(const std::string& commit, const std::vector<RemoteFile>& files) const;
  /// Whether the snapshot holds the file, with its bytes behind it.
  bool has(const std::string& commit, const RemoteFile& file) const;
  bool has_blob(const RemoteFile& file) const;
  /// Puts the file's name into the snapshot.
  void link(const std::string& commit, const std::string& path, const std::string& blob_name) const;
  /// Makes the folders, and marks the cache as one for backup programs.
  void prepare() const;

 private:
  fs::path root_, folder_;
};

/// A file of a listing, as the hub's tree API gives it; io when it is malformed, bad_input for a refused path.
RemoteFile parse_tree_entry(const Value& entry, const std::string& where);

/// The folder of a fetched snapshot, if the cache has one.
std::optional<fs::path> find_snapshot(const fs::path& cache, const RepoRevision& wanted);

/// verification, unless the file's content has the name of its blob (SHA-256 or git's id).
void verify_content(const fs::path& file, const std::string& blob_name, const std::string& shown_as);

}  // namespace saaz
