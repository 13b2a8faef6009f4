// Writing that survives crashes: the order of write, fsync, rename and fsync of the directory is the whole point, see
// docs/reliability.md. A failed fsync may have dropped the pages: what it was for is abandoned, never synced again.
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "base/check.h"
#include "base/system.h"

namespace saaz {

namespace {

void write_all(int fd, std::string_view text, const fs::path& path) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail_io("cannot write", path, n < 0 ? errno : EIO);
    text.remove_prefix(static_cast<size_t>(n));
  }
}

/// The `i`th name under which a path may be begun: "loss.svg.partial", "loss.svg.1.partial", ...
fs::path partial_of(fs::path path, int i = 0) {
  if (i > 0) path += "." + std::to_string(i);
  return path += ".partial";
}

enum class Claim : uint8_t { ours, of_another, gone };

/// Locks what was just opened as `path`, until it is closed or its owner dies; another may have renamed or removed it
/// in between. File systems that cannot lock leave two writers of one file or folder to the user's care.
Claim claim(int fd, const fs::path& path) {
  if (flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return Claim::of_another;
  struct stat opened {
  }, named{};
  const bool is_there = fstat(fd, &opened) == 0 && stat(path.c_str(), &named) == 0 && opened.st_ino == named.st_ino &&
                        opened.st_dev == named.st_dev;
  return is_there ? Claim::ours : Claim::gone;
}

/// "runs/x/" names the same folder as "runs/x", but has no file name to append to.
fs::path without_trailing_slash(const fs::path& path) { return path.has_filename() ? path : path.parent_path(); }

}  // namespace

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)) {
  // What a killed writer left is taken over; beside a living one, another name is.
  constexpr int kMostWriters = 1000;
  for (int i = 0; fd_ < 0;) {
    check(i < kMostWriters, ExitCode::in_use, "{} is being written by {} others", printable(path_.string()), i);
    partial_ = partial_of(path_, i);
    const int fd = open(partial_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) fail_io("cannot write", partial_, errno);
    const Claim claimed = claim(fd, partial_);
    if (claimed == Claim::ours) fd_ = fd;
    if (claimed != Claim::ours) close(fd);
    if (claimed == Claim::of_another) ++i;
  }
  try {
    empty();
    // A second writer's that was killed; a living one's stays.
    std::error_code error;
    for (int i = 1; fs::exists(partial_of(path_, i), error); ++i) remove_unfinished(partial_of(path_, i));
  } catch (...) {
    unlink(partial_.c_str());  // while it is locked, as below
    close(fd_);
    throw;
  }
}

AtomicFile::~AtomicFile() {
  // Its name goes while it is locked: afterwards it may be another's.
  if (!is_renamed_) unlink(partial_.c_str());
  if (fd_ >= 0) close(fd_);
}

void AtomicFile::empty() {
  struct stat info {};
  const bool is_left = fstat(fd_, &info) != 0 || info.st_size > 0;
  if (is_left && ftruncate(fd_, 0) != 0) fail_io("cannot write", partial_, errno);
}

void AtomicFile::write(const void* data, size_t n) {
  constexpr size_t kBuffer = 1 << 20;
  buffer_.append(static_cast<const char*>(data), n);
  written_ += n;
  if (buffer_.size() >= kBuffer) flush();
}

void AtomicFile::flush() {
  write_all(fd_, buffer_, partial_);
  buffer_.clear();
}

void AtomicFile::commit() {
  flush();
  if (fsync(fd_) != 0) fail_io("cannot sync", partial_, errno);
  // Closed, it would be unlocked: under the old name another writer could take it.
  if (rename(partial_.c_str(), path_.c_str()) != 0) fail_io("cannot rename to", path_, errno);
  is_renamed_ = true;
  if (close(std::exchange(fd_, -1)) != 0) fail_io("cannot close", path_, errno);
  sync_directory(path_.parent_path());
}

void write_file_atomically(const fs::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

void copy_file_atomically(const fs::path& from, const fs::path& to) {
  const MappedFile source(from);
  AtomicFile file(to);
  constexpr size_t kChunk = 1 << 20;
  for (Bytes rest = source.bytes(); !rest.empty(); rest = rest.subspan(std::min(kChunk, rest.size())))
    file.write(rest.data(), std::min(kChunk, rest.size()));
  file.commit();
}

AppendFile::AppendFile(fs::path path, Writer writer) : path_(std::move(path)) {
  const int fd = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) fail_io("cannot write", path_, errno);
  // File systems that cannot lock leave two writers to the user's care.
  if (writer == Writer::only && flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    close(fd);
    fail(ExitCode::in_use, "{} is being written by another process: wait for it or choose another file",
         printable(path_.string()));
  }
  fd_ = fd;
}

AppendFile::~AppendFile() { close(fd_); }

void AppendFile::append(std::string_view text) { write_all(fd_, text, path_); }

void AppendFile::sync() {
  if (fsync(fd_) != 0) fail_io("cannot sync", path_, errno);
}

AtomicFolder::AtomicFolder(const fs::path& path) : path_(without_trailing_slash(path)), partial_(partial_of(path_)) {
  make_directories(partial_);
  const int fd = open(partial_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail_io("cannot open directory", partial_, errno);
  const bool is_ours = claim(fd, partial_) == Claim::ours;
  try {
    check(is_ours, ExitCode::in_use, "{} is being written by another process: wait for it or choose another folder",
          printable(partial_.string()));
    for (const fs::path& leftover : list_directory(partial_)) remove_tree(leftover);
  } catch (...) {
    close(fd);
    throw;
  }
  lock_ = fd;
}

AtomicFolder::~AtomicFolder() {
  std::error_code ignored;
  if (!is_renamed_) fs::remove_all(partial_, ignored);
  close(lock_);
}

void AtomicFolder::commit() {
  sync_directory(partial_);
  if (rename(partial_.c_str(), path_.c_str()) != 0) fail_io("cannot rename to", path_, errno);
  is_renamed_ = true;
  sync_directory(path_.parent_path());
}

void make_directories(const fs::path& path) {
  const fs::path folder = without_trailing_slash(path);
  std::error_code error;
  if (fs::is_directory(folder, error)) return;
  if (folder.has_parent_path()) make_directories(folder.parent_path());
  if (mkdir(folder.c_str(), 0755) == 0) return sync_directory(folder.parent_path());
  if (errno != EEXIST) fail_io("cannot create directory", folder, errno);
  // Looked at only now: another process may have created it since.
  check(fs::is_directory(folder, error), ExitCode::usage, "{} exists and is not a directory",
        printable(folder.string()));
}

std::vector<fs::path> list_directory(const fs::path& directory) {
  // Not by directory_iterator: libstdc++'s ends the process when it gets no memory.
  const auto close_directory = [](DIR* open) { closedir(open); };
  const std::unique_ptr<DIR, decltype(close_directory)> open(opendir(directory.c_str()));
  if (open == nullptr) fail_io("cannot list", directory, errno);
  std::vector<fs::path> out;
  errno = 0;
  for (const dirent* entry = readdir(open.get()); entry != nullptr; entry = readdir(open.get())) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") out.push_back(directory / name);
    errno = 0;
  }
  if (errno != 0) fail_io("cannot list", directory, errno);
  std::sort(out.begin(), out.end());
  return out;
}

void rename_durably(const fs::path& from, const fs::path& to) {
  if (rename(from.c_str(), to.c_str()) != 0) fail_io("cannot rename to", to, errno);
  sync_directory(to.parent_path());
}

void remove_tree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) fail_io("cannot remove", path, error.value());
}

void remove_folder(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) return;
  const fs::path nameless = partial_of(path);
  remove_tree(nameless);
  rename_durably(path, nameless);
  remove_tree(nameless);
}

void remove_unfinished(const fs::path& partial) {
  const int fd = open(partial.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
  // Of what cannot be opened nobody knows whether it is being written; a link is no writer's.
  if (fd < 0 && errno == ENOENT) return;
  if (fd < 0 && errno != ELOOP) fail_io("cannot open", partial, errno);
  const bool is_left = fd < 0 || claim(fd, partial) == Claim::ours;
  try {
    if (is_left) remove_tree(partial);
  } catch (...) {
    if (fd >= 0) close(fd);
    throw;
  }
  if (fd >= 0) close(fd);
}

void sync_directory(const fs::path& path) {
  const fs::path target = path.empty() ? fs::path(".") : path;
  const int fd = open(target.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail_io("cannot open directory", target, errno);
  const int result = fsync(fd), error = errno;
  close(fd);
  // Some file systems have no fsync of directories and say so with EINVAL.
  if (result != 0 && error != EINVAL) fail_io("cannot sync directory", target, error);
}

DirectoryLock::DirectoryLock(const fs::path& directory) {
  const fs::path path = directory / ".lock";
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) fail_io("cannot open lock", path, errno);
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    char holder[32] = {};
    const ssize_t n = pread(fd, holder, sizeof holder - 1, 0);
    close(fd);
    if (error != EWOULDBLOCK) fail_io("cannot lock", path, error);
    fail(ExitCode::in_use, "{} is in use by process {}: wait for it or choose another output directory",
         printable(directory.string()), n > 0 ? printable(std::string_view(holder, static_cast<size_t>(n))) : "?");
  }
  fd_ = fd;
  try {
    if (ftruncate(fd, 0) != 0) fail_io("cannot write lock", path, errno);
    write_all(fd, std::to_string(getpid()), path);
  } catch (...) {
    close(fd);
    throw;
  }
}

DirectoryLock::~DirectoryLock() { close(fd_); }

}  // namespace saaz
