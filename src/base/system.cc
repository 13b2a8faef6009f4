#include "base/system.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <limits>
#include <memory>
#include <utility>

namespace saaz {

void fail_io(std::string_view action, const fs::path& path, int error) {
  const bool is_limit = error == ENOSPC || error == EDQUOT || error == EFBIG || error == ENOMEM || error == EMFILE ||
                        error == ENFILE || error == ENOLCK;
  fail(is_limit ? ExitCode::resource : ExitCode::io, "{} {}: {}", action, printable(path.string()), strerror(error));
}

namespace {

/// Opens a regular file for reading; a missing file, a device, a pipe or a directory is bad_input.
int open_regular(const fs::path& path, uint64_t* size) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const int error = errno;
    const bool is_machines_fault = error == EIO || error == ENOMEM || error == EMFILE || error == ENFILE;
    if (is_machines_fault) fail_io("cannot open", path, error);
    fail(ExitCode::bad_input, "cannot open {}: {}", printable(path.string()), strerror(error));
  }
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

namespace {

std::string digest_hex(const EVP_MD* algorithm, std::initializer_list<Bytes> pieces) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  bool ok = context != nullptr && EVP_DigestInit_ex(context.get(), algorithm, nullptr) == 1;
  for (const Bytes piece : pieces) ok = ok && EVP_DigestUpdate(context.get(), piece.data(), piece.size()) == 1;
  check(ok && EVP_DigestFinal_ex(context.get(), digest, &length) == 1, ExitCode::resource, "hashing failed: no memory");
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (unsigned int i = 0; i < length; ++i) out += {kHex[digest[i] >> 4], kHex[digest[i] & 15]};
  return out;
}

}  // namespace

std::string sha256_hex(Bytes bytes) { return digest_hex(EVP_sha256(), {bytes}); }

std::string git_blob_id(Bytes bytes) {
  std::string header = fmt::format("blob {}", bytes.size());
  header += '\0';
  return digest_hex(EVP_sha1(), {std::as_bytes(std::span(header)), bytes});
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

int64_t raise_descriptor_limit(int64_t wanted) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < static_cast<rlim_t>(wanted)) {
    limit.rlim_cur = std::min(static_cast<rlim_t>(wanted), limit.rlim_max);
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  return static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, std::numeric_limits<int32_t>::max()));
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
  struct sigaction hangup {};
  sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
  sigaction(SIGXFSZ, &action, nullptr);
  action.sa_handler = on_bus_error;
  sigaction(SIGBUS, &action, nullptr);
}

int stop_signal() { return g_stop_signal; }

}  // namespace saaz
