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
#include <optional>
#include <utility>

namespace saaz {

ExitCode exit_code_of(int error) {
  const bool is_limit = error == ENOSPC || error == EDQUOT || error == EFBIG || error == ENOMEM || error == EMFILE ||
                        error == ENFILE || error == ENOLCK || error == EAGAIN;
  return is_limit ? ExitCode::resource : ExitCode::io;
}

void fail_io(std::string_view action, const fs::path& path, int error) {
  fail(exit_code_of(error), "{} {}: {}", action, printable(path.string()), strerror(error));
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

void MappedFile::release_pages() const {
  // A refusal costs memory only.
  if (data_) madvise(const_cast<std::byte*>(data_), size_, MADV_DONTNEED);
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

class Digest {
 public:
  /// "SHA256" or "SHA1".
  explicit Digest(const char* algorithm)
      : algorithm_(EVP_MD_fetch(library(), algorithm, nullptr), EVP_MD_free),
        context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    need(algorithm_ != nullptr && context_ != nullptr &&
         EVP_DigestInit_ex(context_.get(), algorithm_.get(), nullptr) == 1);
  }
  void add(Bytes piece) { need(EVP_DigestUpdate(context_.get(), piece.data(), piece.size()) == 1); }
  std::string hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int length = 0;
    need(EVP_DigestFinal_ex(context_.get(), digest, &length) == 1);
    static constexpr char kHex[] = "0123456789abcdef";
    std::string out;
    for (unsigned int i = 0; i < length; ++i) out += {kHex[digest[i] >> 4], kHex[digest[i] & 15]};
    return out;
  }

 private:
  static void need(bool ok) { check(ok, ExitCode::resource, "hashing failed: no memory"); }
  /// OpenSSL's default context, made half when memory fails, crashes at its next use; one of our own is whole or
  /// absent.
  static OSSL_LIB_CTX* library() {
    static OSSL_LIB_CTX* const own = [] {
      OSSL_LIB_CTX* made = OSSL_LIB_CTX_new();
      need(made != nullptr);
      return made;
    }();
    return own;
  }
  std::unique_ptr<EVP_MD, decltype(&EVP_MD_free)> algorithm_;
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

std::string digest_hex(const char* algorithm, std::initializer_list<Bytes> pieces) {
  Digest digest(algorithm);
  for (const Bytes piece : pieces) digest.add(piece);
  return digest.hex();
}

}  // namespace

std::string sha256_hex(Bytes bytes) { return digest_hex("SHA256", {bytes}); }

std::string git_blob_id(Bytes bytes) {
  std::string header = fmt::format("blob {}", bytes.size());
  header += '\0';
  return digest_hex("SHA1", {std::as_bytes(std::span(header)), bytes});
}

std::string sha256_hex(std::string_view text) { return sha256_hex(std::as_bytes(std::span(text))); }

std::string sha256_of_file(const fs::path& path) {
  // In pieces whose pages are given back: a model of gigabytes is hashed before it is loaded.
  constexpr size_t kPiece = size_t{1} << 20;
  const MappedFile file(path);
  Digest digest("SHA256");
  for (Bytes rest = file.bytes(); !rest.empty(); rest = rest.subspan(std::min(kPiece, rest.size()))) {
    digest.add(rest.first(std::min(kPiece, rest.size())));
    if (file.bytes().size() > kPiece) file.release_pages();
  }
  return digest.hex();
}

namespace {

/// The number behind `key` at the start of a line; nothing when there is no such file, line or number.
std::optional<uint64_t> kernel_figure(const char* path, std::string_view key) {
  std::optional<uint64_t> out;
  if (std::FILE* file = std::fopen(path, "re")) {
    char line[128];
    unsigned long long number = 0;
    while (!out && std::fgets(line, sizeof line, file) != nullptr)
      if (std::string_view(line).starts_with(key) && std::sscanf(line + key.size(), " %llu", &number) == 1)
        out = number;
    std::fclose(file);
  }
  return out;
}

}  // namespace

uint64_t peak_rss_bytes() {
  // Of this program alone: ru_maxrss also remembers the process that started it.
  if (const auto kib = kernel_figure("/proc/self/status", "VmHWM:")) return *kib * 1024;
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

uint64_t rss_bytes() { return kernel_figure("/proc/self/status", "VmRSS:").value_or(0) * 1024; }

namespace {

uint64_t free_memory_of_machine() {
  // MemAvailable counts the page cache that can be dropped; sysinfo's free memory does not.
  if (const auto kib = kernel_figure("/proc/meminfo", "MemAvailable:")) return *kib * 1024;
  struct sysinfo info {};
  sysinfo(&info);
  return static_cast<uint64_t>(info.freeram + info.bufferram) * info.mem_unit;
}

/// What is left of the limit of the control group, page cache counted as free; inside a container the root of the
/// hierarchy is the container's own group.
uint64_t free_memory_of_group() {
  const auto limit = kernel_figure("/sys/fs/cgroup/memory.max", ""),
             used = kernel_figure("/sys/fs/cgroup/memory.current", "");
  if (!limit || !used) return UINT64_MAX;  // "max"
  constexpr const char* kStatistics = "/sys/fs/cgroup/memory.stat";
  const uint64_t cache =
      kernel_figure(kStatistics, "inactive_file").value_or(0) + kernel_figure(kStatistics, "active_file").value_or(0);
  return *limit - std::min(*limit, *used - std::min(*used, cache));
}

}  // namespace

uint64_t available_memory_bytes() { return std::min(free_memory_of_machine(), free_memory_of_group()); }

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
