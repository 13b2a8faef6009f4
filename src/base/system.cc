#include "base/system.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

namespace saaz {

namespace {

[[noreturn]] void fail_io(const char* action, const fs::path& path, int error) {
  const bool full = error == ENOSPC || error == EDQUOT || error == ENOMEM || error == EMFILE;
  fail(full ? ExitCode::resource : ExitCode::io, "{} {}: {}", action, printable(path.string()), strerror(error));
}

/// Opens a regular file for reading; a missing file, a device, a pipe or a directory is bad_input.
int open_regular(const fs::path& path, uint64_t* size) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail(ExitCode::bad_input, "cannot open {}: {}", printable(path.string()), strerror(errno));
  struct stat info {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    fail(ExitCode::bad_input, "{} is not a regular file", printable(path.string()));
  }
  *size = static_cast<uint64_t>(info.st_size);
  return fd;
}

}  // namespace

MappedFile::MappedFile(const fs::path& path) : path_(path.string()) {
  uint64_t size = 0;
  const int fd = open_regular(path, &size);
  size_ = size;
  if (size_ > 0) {
    void* memory = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    const int error = errno;
    close(fd);
    if (memory == MAP_FAILED) fail_io("cannot map", path, error);
    data_ = static_cast<const std::byte*>(memory);
  } else {
    close(fd);
  }
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<std::byte*>(data_), size_);
}

std::string read_file(const fs::path& path, uint64_t max_bytes) {
  uint64_t size = 0;
  const int fd = open_regular(path, &size);
  std::string out;
  if (size > max_bytes) {
    close(fd);
    fail(ExitCode::bad_input, "{} has {} bytes, more than the limit of {}", printable(path.string()), size, max_bytes);
  }
  out.resize(size);
  size_t done = 0;
  while (done < size) {
    const ssize_t n = read(fd, out.data() + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int error = n < 0 ? errno : EIO;
      close(fd);
      fail_io("cannot read", path, error);
    }
    done += static_cast<size_t>(n);
  }
  close(fd);
  return out;
}

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)), partial_(path_) {
  partial_ += ".partial";
  fd_ = open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_io("cannot write", partial_, errno);
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(partial_.c_str());
}

void AtomicFile::write(const void* data, size_t n) {
  constexpr size_t kBuffer = 1 << 20;
  buffer_.append(static_cast<const char*>(data), n);
  written_ += n;
  if (buffer_.size() >= kBuffer) flush();
}

void AtomicFile::flush() {
  size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t n = ::write(fd_, buffer_.data() + done, buffer_.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_io("cannot write", partial_, errno);
    done += static_cast<size_t>(n);
  }
  buffer_.clear();
}

void AtomicFile::commit() {
  flush();
  // A failed fsync may have dropped the pages: the file is abandoned, never retried.
  if (fsync(fd_) != 0) fail_io("cannot sync", partial_, errno);
  if (close(std::exchange(fd_, -1)) != 0) fail_io("cannot close", partial_, errno);
  if (rename(partial_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    unlink(partial_.c_str());
    fail_io("cannot rename to", path_, error);
  }
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

void make_directories(const fs::path& path) {
  std::error_code error;
  if (fs::exists(path, error) && !fs::is_directory(path, error))
    fail(ExitCode::usage, "{} exists and is not a directory", printable(path.string()));
  fs::create_directories(path, error);
  if (error) fail_io("cannot create directory", path, error.value());
}

void sync_directory(const fs::path& path) {
  const fs::path target = path.empty() ? fs::path(".") : path;
  const int fd = open(target.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail_io("cannot open directory", target, errno);
  const int result = fsync(fd), error = errno;
  close(fd);
  if (result != 0 && error != EINVAL) fail_io("cannot sync directory", target, error);
}

DirectoryLock::DirectoryLock(const fs::path& directory) {
  const fs::path path = directory / ".lock";
  fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_io("cannot open lock", path, errno);
  if (flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    char holder[32] = {};
    const ssize_t n = pread(fd_, holder, sizeof holder - 1, 0);
    close(std::exchange(fd_, -1));
    fail(ExitCode::in_use, "{} is in use by process {}: wait for it or choose another output directory",
         printable(directory.string()), n > 0 ? printable(std::string_view(holder, static_cast<size_t>(n))) : "?");
  }
  const std::string pid = std::to_string(getpid());
  if (ftruncate(fd_, 0) != 0 || pwrite(fd_, pid.data(), pid.size(), 0) < 0) fail_io("cannot write lock", path, errno);
}

DirectoryLock::~DirectoryLock() {
  if (fd_ >= 0) close(fd_);
}

std::string sha256_hex(Bytes bytes) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), digest, &length, EVP_sha256(), nullptr) != 1)
    fail(ExitCode::bug, "SHA-256 failed");
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (unsigned int i = 0; i < length; ++i) out += {kHex[digest[i] >> 4], kHex[digest[i] & 15]};
  return out;
}

std::string sha256_hex(std::string_view text) { return sha256_hex(std::as_bytes(std::span(text))); }

std::string sha256_of_file(const fs::path& path) { return sha256_hex(MappedFile(path).bytes()); }

uint64_t peak_rss_bytes() {
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

uint64_t available_memory_bytes() {
  // MemAvailable counts the page cache that can be dropped; sysinfo's free memory does not.
  if (std::FILE* file = std::fopen("/proc/meminfo", "re")) {
    char line[128];
    unsigned long long kib = 0;
    bool found = false;
    while (!found && std::fgets(line, sizeof line, file) != nullptr)
      found = std::sscanf(line, "MemAvailable: %llu kB", &kib) == 1;
    std::fclose(file);
    if (found) return kib * 1024;
  }
  struct sysinfo info {};
  sysinfo(&info);
  return static_cast<uint64_t>(info.freeram + info.bufferram) * info.mem_unit;
}

double monotonic_seconds() {
  struct timespec now {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

std::string utc_timestamp() {
  const time_t now = time(nullptr);
  struct tm parts {};
  gmtime_r(&now, &parts);
  char text[32];
  strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

namespace {

volatile sig_atomic_t g_stop_signal = 0;

void on_stop(int signal) {
  if (g_stop_signal != 0) _exit(128 + signal);
  g_stop_signal = signal;
}

void on_bus_error(int) {
  static constexpr char kText[] =
      "error: a mapped input file was truncated while it was in use; restore it and run again\n";
  [[maybe_unused]] const ssize_t n = write(STDERR_FILENO, kText, sizeof kText - 1);
  _exit(static_cast<int>(ExitCode::bad_input));
}

}  // namespace

void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = on_stop;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
  action.sa_handler = on_bus_error;
  sigaction(SIGBUS, &action, nullptr);
}

int stop_signal() { return g_stop_signal; }

}  // namespace saaz
