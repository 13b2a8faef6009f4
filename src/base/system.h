// The operating system, wrapped once: files (mapped, read whole, written atomically), directories, locks, memory
// figures, monotonic time, SHA-256, stop signals. Errors: bad_input for a missing or irregular input, io for failed
// reads and writes, resource for a full disk, in_use for a lock that somebody holds.
// Everything that must survive a crash is written here (system_write.cc) and nowhere else; what is promised and how it
// is tried: docs/reliability.md.
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
  /// Gives the memory of what was read back; the bytes stay valid and are read from the file again when they are used.
  void release_pages() const;

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::string path_;
};

/// The whole text of a regular file of at most `max_bytes`.
std::string read_file(const fs::path& path, uint64_t max_bytes = 1ull << 30);

/// What an errno means: resource for a full disk or table, and for what memory or threads are missing; io for the rest.
ExitCode exit_code_of(int error);
/// Throws what a failed system call means.
[[noreturn]] void fail_io(std::string_view action, const fs::path& path, int error);

/// A file that appears whole or not at all: bytes go to `<path>.partial`, `commit` fsyncs it, renames it and fsyncs the
/// directory. Without commit the destructor removes the partial file. Two may write the same path at once, in one
/// process or in several (the second begins `<path>.1.partial`): what stands there in the end is the last one's, whole.
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
  void empty();
  void flush();
  fs::path path_, partial_;
  int fd_ = -1;
  bool is_renamed_ = false;
  uint64_t written_ = 0;
  std::string buffer_;
};

void write_file_atomically(const fs::path& path, std::string_view text);
/// Copies a regular file atomically.
void copy_file_atomically(const fs::path& from, const fs::path& to);

/// Text added to the end of a file, at once; a crash may cut the last piece short. `sync` makes all of it durable.
class AppendFile {
 public:
  /// Writer::only takes the file for this process, as long as it is open: in_use when another has it so.
  enum class Writer : uint8_t { any, only };
  explicit AppendFile(fs::path path, Writer writer = Writer::any);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;
  void append(std::string_view text);
  void sync();

 private:
  fs::path path_;
  int fd_ = -1;
};

/// A folder that appears whole or not at all: the caller writes files into `partial()`, which is `<path>.partial`;
/// `commit` fsyncs it, renames it and fsyncs the directory. Without commit the destructor removes it. `path` must be
/// absent or an empty folder at commit. in_use while another process writes the same folder.
class AtomicFolder {
 public:
  explicit AtomicFolder(const fs::path& path);
  ~AtomicFolder();
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;
  const fs::path& partial() const { return partial_; }
  void commit();

 private:
  fs::path path_, partial_;
  int lock_ = -1;
  bool is_renamed_ = false;
};

/// The entries of a directory, sorted.
std::vector<fs::path> list_directory(const fs::path& directory);
/// Creates what is missing of a path, durably.
void make_directories(const fs::path& path);
/// Removes a folder and all in it, if it is there. It loses its name first: nothing half removed is ever seen under it.
void remove_folder(const fs::path& path);
/// Renames within a directory, durably; io.
void rename_durably(const fs::path& from, const fs::path& to);
/// Removes a file, or a folder with all that is in it; io.
void remove_tree(const fs::path& path);
/// Removes the unfinished file or folder (`*.partial`) of a killed writer; that of a living one stays. io.
void remove_unfinished(const fs::path& partial);
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
/// The name git gives a file's content: SHA-1 of "blob <size>\0" and the bytes, in hex.
std::string git_blob_id(Bytes bytes);

/// Resident memory of this process: the most it ever was, and now.
uint64_t peak_rss_bytes();
uint64_t rss_bytes();
/// What this process may still take: the machine's free memory (with the page cache that can be dropped), or what is
/// left of the limit of its control group.
uint64_t available_memory_bytes();
/// Lets this process open `wanted` files if it may; returns how many it may open.
int64_t raise_descriptor_limit(int64_t wanted);
double monotonic_seconds();
/// "2026-11-24T15:04:05Z"
std::string utc_timestamp();

/// After this call SIGINT, SIGTERM and (unless ignored, as under nohup) SIGHUP only set the flag read by `stop_signal`
/// (a second one ends the process at once with 128 + signal); SIGPIPE and SIGXFSZ are ignored, so that the write fails
/// with its reason; SIGBUS prints one line and exits: 3 when a mapped file was truncated, 5 when it cannot be read.
void install_signal_handlers();
/// 0, or the signal that asked us to stop.
int stop_signal();

}  // namespace saaz
