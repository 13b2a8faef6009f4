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
#include <atomic>
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

/// A regular file, open for reading.
class InputFile {
 public:
  explicit InputFile(const fs::path& path) : path_(path), fd_(open_regular(path, &size_)) {}
  ~InputFile() { close(fd_); }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
  /// When it was opened.
  uint64_t size() const { return size_; }
  /// At most `n` of the next bytes; 0 at the end.
  size_t read_some(void* data, size_t n) const {
    for (;;) {
      const ssize_t got = read(fd_, data, n);
      if (got >= 0) return static_cast<size_t>(got);
      if (errno != EINTR) fail_io("cannot read", path_, errno);
    }
  }

 private:
  const fs::path& path_;
  uint64_t size_ = 0;
  int fd_;
};

/// The files that are mapped now, for the handler of SIGBUS: a table without a lock, since it reads it at any moment.
struct Mapping {
  std::atomic<bool> is_taken{false};
  std::atomic<const std::byte*> data{nullptr};  // set last
  std::atomic<size_t> size{0};
  std::atomic<int> fd{-1};
};
constexpr size_t kMostMappings = 256;  // of more, the handler cannot tell what happened to them
Mapping g_mappings[kMostMappings];

/// Keeps `fd` as long as the file is mapped, or closes it when the table is full.
void remember_mapping(const std::byte* data, size_t size, int fd) {
  for (Mapping& mapping : g_mappings) {
    if (mapping.is_taken.exchange(true)) continue;
    mapping.size = size;
    mapping.fd = fd;
    mapping.data = data;
    return;
  }
  close(fd);
}

void forget_mapping(const std::byte* data) {
  for (Mapping& mapping : g_mappings) {
    if (mapping.data != data) continue;
    mapping.data = nullptr;
    close(mapping.fd);
    mapping.is_taken = false;
    return;
  }
}

/// Whether the page of `address` is of a mapped file and lies behind the end that the file has now.
bool is_behind_end(const void* address) {
  const auto* at = static_cast<const std::byte*>(address);
  for (const Mapping& mapping : g_mappings) {
    const std::byte* data = mapping.data;
    if (data == nullptr || at < data || at >= data + mapping.size) continue;
    struct stat info {};
    const auto page = static_cast<off_t>(sysconf(_SC_PAGESIZE));
    return fstat(mapping.fd, &info) == 0 && (at - data) / page * page >= info.st_size;
  }
  return false;
}

}  // namespace

MappedFile::MappedFile(const fs::path& path) : path_(path.string()) {
  uint64_t size = 0;
  const int fd = open_regular(path, &size);
  size_ = size;
  if (size_ == 0) {
    close(fd);
    return;
  }
  void* memory = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
  if (memory == MAP_FAILED) {
    const int error = errno;
    close(fd);
    fail_io("cannot map", path, error);
  }
  data_ = static_cast<const std::byte*>(memory);
  remember_mapping(data_, size_, fd);
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
  if (data_ == nullptr) return;
  forget_mapping(data_);
  munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release_pages() const {
  // A refusal costs memory only.
  if (data_) madvise(const_cast<std::byte*>(data_), size_, MADV_DONTNEED);
}

std::string read_file(const fs::path& path, uint64_t max_bytes) {
  const InputFile file(path);
  check(file.size() <= max_bytes, ExitCode::bad_input, "{} has {} bytes, more than the limit of {}",
        printable(path.string()), file.size(), max_bytes);
  std::string out(file.size(), '\0');
  for (size_t done = 0; done < out.size();) {
    const size_t n = file.read_some(out.data() + done, out.size() - done);
    if (n == 0) fail_io("cannot read", path, EIO);
    done += n;
  }
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
  // Read, not mapped: a page that cannot be read is an error that a caller may catch, not a signal.
  constexpr size_t kPiece = size_t{1} << 20;
  const InputFile file(path);
  std::vector<std::byte> piece(std::min<size_t>(kPiece, std::max<size_t>(file.size(), 1)));
  Digest digest("SHA256");
  while (const size_t n = file.read_some(piece.data(), piece.size())) digest.add(Bytes(piece).first(n));
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

[[noreturn]] void end_with(std::string_view text, ExitCode code) {
  [[maybe_unused]] const ssize_t n = write(STDERR_FILENO, text.data(), text.size());
  _exit(static_cast<int>(code));
}

void on_bus_error(int, siginfo_t* info, void*) {
  if (info->si_code == BUS_ADRERR && is_behind_end(info->si_addr))
    end_with("error: a mapped input file was truncated while it was in use; restore it and run again\n",
             ExitCode::bad_input);
  end_with("error: a mapped input file cannot be read: its disk or its memory fails, or is full\n", ExitCode::io);
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
  struct sigaction bus_error {};
  bus_error.sa_sigaction = on_bus_error;
  bus_error.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &bus_error, nullptr);
}

int stop_signal() { return g_stop_signal; }

}  // namespace saaz
