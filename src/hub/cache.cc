#include "hub/cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "base/check.h"
#include "hub/client.h"

namespace saaz {
namespace {

/// "trees/<commit>.json" of another format is left alone, as if it were not there.
constexpr int64_t kTreeFormat = 1;

void check_ids(const RemoteFile& file, const std::string& where) {
  check_relative_path(file.path, ExitCode::bad_input, where);
  check(is_git_id(file.git_id) && (file.sha256.empty() || is_sha256(file.sha256)), ExitCode::io,
        "{}: {} has no valid checksum", where, printable(file.path));
}

std::string optional_text(const Value& object, std::string_view key) {
  const Value* value = object.find(key);
  return value != nullptr && value->is_string() ? value->as_string() : "";
}

std::vector<RemoteFile> parse_tree_file(const Value& files, const std::string& where) {
  std::vector<RemoteFile> out;
  for (const auto& [path, entry] : files.members()) {
    RemoteFile file{path, size_of_member(entry, "size", where), text_of(entry, "blob_id", where),
                    optional_text(entry, "lfs_sha256"), optional_text(entry, "xet_hash")};
    if (!file.sha256.empty()) file.size = size_of_member(entry, "lfs_size", where);
    check_ids(file, where);
    out.push_back(std::move(file));
  }
  return out;
}

}  // namespace

RemoteFile parse_tree_entry(const Value& entry, const std::string& where) {
  RemoteFile file{text_of(entry, "path", where), size_of_member(entry, "size", where), text_of(entry, "oid", where)};
  if (const Value* lfs = entry.find("lfs"); lfs != nullptr && lfs->is_object()) {
    file.sha256 = text_of(*lfs, "oid", where);
    file.size = size_of_member(*lfs, "size", where);
    check(is_sha256(file.sha256), ExitCode::io, "{}: {} has no valid checksum", where, printable(file.path));
  }
  if (const std::string hash = optional_text(entry, "xetHash"); is_sha256(hash)) file.xet_hash = hash;
  check_ids(file, where);
  return file;
}

FileLock::FileLock(const fs::path& path) {
  make_directories(path.parent_path());
  fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_io("cannot open lock", path, errno);
  while (flock(fd_, LOCK_EX) != 0) {
    const int error = errno;
    if (error == EINTR && stop_signal() == 0) continue;
    close(std::exchange(fd_, -1));
    check(error != EINTR, static_cast<ExitCode>(128 + stop_signal()),
          "stopped by a signal while another process fetched");
    fail_io("cannot lock", path, error);
  }
}

FileLock::~FileLock() {
  if (fd_ >= 0) close(fd_);
}

std::string RepoCache::commit_of(const std::string& revision) const {
  if (is_git_id(revision)) return revision;
  const fs::path ref = folder_ / "refs" / revision;
  std::error_code error;
  if (!fs::is_regular_file(ref, error)) return {};
  std::string commit = read_file(ref, 1024);
  while (!commit.empty() && commit.back() == '\n') commit.pop_back();
  check(is_git_id(commit), ExitCode::bad_input, "{}: expected a commit, found '{}'; remove it and fetch again",
        printable(ref.string()), printable(commit));
  return commit;
}

void RepoCache::write_ref(const std::string& revision, const std::string& commit) const {
  if (revision == commit || commit_of(revision) == commit) return;
  const fs::path ref = folder_ / "refs" / revision;
  make_directories(ref.parent_path());
  write_file_atomically(ref, commit);
}

std::optional<std::vector<RemoteFile>> RepoCache::tree(const std::string& commit) const {
  const fs::path path = folder_ / "trees" / (commit + ".json");
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return std::nullopt;
  const Value document = parse_json(read_file(path), path.string());
  const Value *format = document.find("format_version"), *files = document.find("files");
  const bool is_known = format != nullptr && format->is_integer() && format->as_integer() == kTreeFormat;
  if (!is_known || files == nullptr || !files->is_object()) return std::nullopt;
  return parse_tree_file(*files, path.string());
}

void RepoCache::write_tree(const std::string& commit, const std::vector<RemoteFile>& files) const {
  Value entries = Value::object();
  for (const RemoteFile& file : files) {
    Value entry = Value::object({{"size", file.size}, {"blob_id", file.git_id}});
    if (!file.sha256.empty()) {
      entry.set("lfs_sha256", file.sha256);
      entry.set("lfs_size", file.size);
    }
    if (!file.xet_hash.empty()) entry.set("xet_hash", file.xet_hash);
    entries.members().emplace_back(file.path, std::move(entry));
  }
  make_directories(folder_ / "trees");
  write_file_atomically(folder_ / "trees" / (commit + ".json"),
                        to_json(Value::object({{"format_version", kTreeFormat}, {"files", std::move(entries)}}), 1));
}

bool RepoCache::has(const std::string& commit, const RemoteFile& file) const {
  std::error_code error;
  return fs::file_size(snapshot(commit) / file.path, error) == file.size && !error;
}

bool RepoCache::has_blob(const RemoteFile& file) const {
  std::error_code error;
  return fs::file_size(blob(file.blob_name()), error) == file.size && !error;
}

void RepoCache::link(const std::string& commit, const std::string& path, const std::string& blob_name) const {
  const fs::path name = snapshot(commit) / path;
  make_directories(name.parent_path());
  std::error_code error;
  fs::remove(name, error);
  fs::create_symlink(blob(blob_name).lexically_relative(name.parent_path()), name, error);
  if (error) fail_io("cannot link", name, error.value());
}

void RepoCache::prepare() const {
  make_directories(folder_ / "blobs");
  const fs::path tag = root_ / "CACHEDIR.TAG";
  std::error_code error;
  if (!fs::exists(tag, error)) write_file_atomically(tag, "Signature: 8a477f597d28d172789f06886806bc55\n");
}

std::optional<fs::path> find_snapshot(const fs::path& cache, const RepoRevision& wanted) {
  const RepoCache files(cache, wanted.repo);
  const std::string commit = files.commit_of(wanted.revision);
  std::error_code error;
  if (commit.empty() || !fs::is_directory(files.snapshot(commit), error)) return std::nullopt;
  return files.snapshot(commit);
}

void verify_content(const fs::path& file, const std::string& blob_name, const std::string& shown_as) {
  const MappedFile content(file);
  const std::string found = is_sha256(blob_name) ? sha256_hex(content.bytes()) : git_blob_id(content.bytes());
  check(found == blob_name, ExitCode::verification, "{}: wrong checksum: expected {}, found {}", printable(shown_as),
        blob_name, found);
}

}  // namespace saaz
