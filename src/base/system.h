// The operating system, wrapped once: files (mapped, read whole, written atomically), directories, locks, memory
// figures, monotonic time, SHA-256, stop signals. Errors: bad_input for a missing or irregular input, io for failed
// reads and writes, resource for a full disk, in_use for a lock that somebody holds.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"

namespace saaz {

namespace fs = std::filesystem;

/// A whole regular file, mapped read-only (private). Devices, pipes and directories are refused. Movable.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const fs::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  Bytes bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::string path_;
};

/// The whole text of a regular file of at most `max_bytes`.
std::string read_file(const fs::path& path, uint64_t max_bytes = 1ull << 30);

/// A file that appears whole or not at all: bytes go to `<path>.partial`, `commit` fsyncs it, renames it and fsyncs the
/// directory. Without commit the destructor removes the partial file.
class AtomicFile {
 public:
  explicit AtomicFile(fs::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  void write(const void* data, size_t n);
  void write(std::string_view text) { write(text.data(), text.size()); }
  uint64_t size() const { return written_; }
  void commit();

 private:
  void flush();
  fs::path path_, partial_;
  int fd_ = -1;
  uint64_t written_ = 0;
  std::string buffer_;
};

void write_file_atomically(const fs::path& path, std::string_view text);
/// Copies a regular file atomically.
void copy_file_atomically(const fs::path& from, const fs::path& to);
void make_directories(const fs::path& path);
/// fsync of a directory: makes renames in it durable.
void sync_directory(const fs::path& path);

/// Exclusive use of a directory, by flock on `<dir>/.lock`; released by the destructor or by death. in_use when held.
class DirectoryLock {
 public:
  explicit DirectoryLock(const fs::path& directory);
  ~DirectoryLock();
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  int fd_ = -1;
};

/// Lower-case hex SHA-256.
std::string sha256_hex(Bytes bytes);
std::string sha256_hex(std::string_view text);
std::string sha256_of_file(const fs::path& path);

uint64_t peak_rss_bytes();
uint64_t available_memory_bytes();
double monotonic_seconds();
/// "2026-11-24T15:04:05Z"
std::string utc_timestamp();

/// After this call SIGINT and SIGTERM only set the flag read by `stop_signal` (a second one ends the process at once
/// with 128 + signal); SIGPIPE is ignored; SIGBUS (a mapped file shrank) prints one line and exits 3.
void install_signal_handlers();
/// 0, or the signal that asked us to stop.
int stop_signal();

}  // namespace saaz
