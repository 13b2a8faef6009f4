// The fault seam: linked with the program's own objects into `saaz_faults` (tests only), it defines the system calls
// that touch files, and malloc, in front of the C library's. So every call is seen, those of libstdc++ included, and
// the product has no trace of it. Told by the environment:
//   SAAZ_FAULT=CLASS:N:EFFECT[+]   the Nth call of a class (counted from 1) fares as EFFECT; with + all later ones too
//   SAAZ_FAULT_LOG=FILE            a line for each call of the class: number, name, path, mark of the struck one (of
//                                  memory: for the struck one only); at exit "total N"
// CLASS: file (may change the disk), read (of input files), calloc (the backend's memory), malloc (any memory), thread
// (the start of one).
// EFFECT: kill (SIGKILL before the call), torn (half of a write, or all of another call, then SIGKILL), short (half of
// a write, reported as such), stop (SIGTERM before the call, which is made), or the errno: EIO, ENOSPC, EDQUOT, EINTR,
// EROFS, ENOMEM, EAGAIN.
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

extern "C" {
void* __libc_malloc(size_t n);
void* __libc_calloc(size_t n, size_t size);
void* __libc_realloc(void* old, size_t n);
}

namespace {

enum class Class { none, file, read, thread, calloc, malloc };
enum class Effect { none, kill, torn, cut, stop, error };
struct Named {
  const char* name;
  int value;
};
constexpr Named kClasses[] = {{"file", int(Class::file)},
                              {"read", int(Class::read)},
                              {"thread", int(Class::thread)},
                              {"calloc", int(Class::calloc)},
                              {"malloc", int(Class::malloc)}};
constexpr Named kErrors[] = {{"EIO", EIO},     {"ENOSPC", ENOSPC}, {"EDQUOT", EDQUOT}, {"EINTR", EINTR},
                             {"EROFS", EROFS}, {"ENOMEM", ENOMEM}, {"EAGAIN", EAGAIN}};
constexpr int kMaxFiles = 4096;

Class g_class = Class::none;
Effect g_effect = Effect::none;
int g_error = 0, g_log = -1;
long g_at = 0;
bool g_persists = false;
std::atomic<long> g_count{0};
std::atomic<bool> g_is_written[kMaxFiles];  // file descriptors open for writing

[[noreturn]] void refuse(const char* text) {
  fprintf(stderr, "fault seam: cannot read SAAZ_FAULT=%s\n", text);
  _exit(125);
}

[[noreturn]] void die() {
  for (;;) syscall(SYS_kill, getpid(), SIGKILL);
}

__attribute__((constructor)) void arm() {
  const char* text = getenv("SAAZ_FAULT");
  if (text == nullptr) return;
  char kind[16], effect[16];
  if (sscanf(text, "%15[^:]:%ld:%15s", kind, &g_at, effect) != 3) refuse(text);
  if (char* plus = strchr(effect, '+')) {
    g_persists = true;
    *plus = '\0';
  }
  if (strcmp(effect, "kill") == 0) g_effect = Effect::kill;
  if (strcmp(effect, "torn") == 0) g_effect = Effect::torn;
  if (strcmp(effect, "short") == 0) g_effect = Effect::cut;
  if (strcmp(effect, "stop") == 0) g_effect = Effect::stop;
  for (const Named& error : kErrors) {
    if (strcmp(effect, error.name) != 0) continue;
    g_effect = Effect::error;
    g_error = error.value;
  }
  if (const char* path = getenv("SAAZ_FAULT_LOG"))
    g_log = static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  Class found = Class::none;
  for (const Named& c : kClasses)
    if (strcmp(kind, c.name) == 0) found = Class(c.value);
  if (found == Class::none || g_effect == Effect::none) refuse(text);
  g_class = found;
}

__attribute__((destructor)) void tell_total() {
  char line[32];
  const int length = snprintf(line, sizeof line, "total %ld\n", g_count.load());
  if (g_log >= 0) syscall(SYS_write, g_log, line, size_t(length));
}

/// Counts a call and says what becomes of it. Its place is `path`, or the file behind `fd`.
Effect next(Class kind, const char* call, const char* path, int fd = -1) {
  if (kind != g_class) return Effect::none;
  const long n = ++g_count;
  const bool is_struck = g_at > 0 && (n == g_at || (g_persists && n > g_at));
  if (g_log >= 0 && kind < Class::calloc) {
    char link[32], target[512] = "", line[640];
    if (path == nullptr) {
      snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
      const long length = syscall(SYS_readlink, link, target, sizeof target - 1);
      target[length > 0 ? length : 0] = '\0';
      path = target;
    }
    const int length = snprintf(line, sizeof line, "%ld %s %s%s\n", n, call, path, is_struck ? " <- struck" : "");
    syscall(SYS_write, g_log, line, size_t(length));
  } else if (g_log >= 0 && is_struck) {
    char line[64];
    const int length = snprintf(line, sizeof line, "%ld memory - <- struck\n", n);
    syscall(SYS_write, g_log, line, size_t(length));
  }
  if (!is_struck) return Effect::none;
  if (g_effect == Effect::kill) die();
  if (g_effect != Effect::stop) return g_effect;
  // To this thread, so that it is handled before the call.
  syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGTERM);
  return Effect::none;
}

/// A call of one piece: it fails, or is done, or is done before the end.
template <class Call>
long whole(Effect effect, Call call) {
  if (effect == Effect::error) {
    errno = g_error;
    return -1;
  }
  const long result = call();
  if (effect == Effect::torn) die();
  return result;
}

/// A call that moves bytes: it may move half of them.
template <class Call>
long in_pieces(Effect effect, size_t n, Call call) {
  return whole(effect, [&] { return call(effect == Effect::none || n < 2 ? n : n / 2); });
}

int open_file(const char* path, int flags, mode_t mode) {
  const bool writes = (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) != 0;
  const int fd = int(whole(next(writes ? Class::file : Class::read, "open", path),
                           [&] { return syscall(SYS_openat, AT_FDCWD, path, flags, mode); }));
  if (fd >= 0 && fd < kMaxFiles) g_is_written[fd] = writes;
  return fd;
}

bool is_stream(int fd) { return fd <= STDERR_FILENO; }

ssize_t write_file(int fd, const void* data, size_t n, off_t at) {
  const Effect effect = is_stream(fd) ? Effect::none : next(Class::file, "write", nullptr, fd);
  return in_pieces(effect, n, [&](size_t part) {
    return at < 0 ? syscall(SYS_write, fd, data, part) : syscall(SYS_pwrite64, fd, data, part, at);
  });
}

void* map_file(void* where, size_t n, int protection, int flags, int fd, off_t at) {
  const Effect effect = fd < 0 ? Effect::none : next(Class::read, "mmap", nullptr, fd);
  return reinterpret_cast<void*>(whole(effect, [&] { return syscall(SYS_mmap, where, n, protection, flags, fd, at); }));
}

bool has_memory(Class kind) {
  const bool fails = next(g_class == Class::malloc ? Class::malloc : kind, "memory", "") != Effect::none;
  if (fails) errno = ENOMEM;
  return !fails;
}

mode_t mode_of(int flags, va_list rest) { return (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0; }

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = mode_of(flags, rest);
  va_end(rest);
  return open_file(path, flags, mode);
}
int open64(const char* path, int flags, ...) __attribute__((alias("open")));

ssize_t write(int fd, const void* data, size_t n) { return write_file(fd, data, n, -1); }
ssize_t pwrite(int fd, const void* data, size_t n, off_t at) { return write_file(fd, data, n, at); }
ssize_t pwrite64(int fd, const void* data, size_t n, off_t at) __attribute__((alias("pwrite")));
ssize_t read(int fd, void* data, size_t n) {
  const Effect effect = is_stream(fd) ? Effect::none : next(Class::read, "read", nullptr, fd);
  return in_pieces(effect, n, [&](size_t part) { return syscall(SYS_read, fd, data, part); });
}
void* mmap(void* where, size_t n, int protection, int flags, int fd, off_t at) noexcept {
  return map_file(where, n, protection, flags, fd, at);
}
void* mmap64(void* where, size_t n, int protection, int flags, int fd, off_t at) noexcept
    __attribute__((alias("mmap")));

int fsync(int fd) {
  return int(whole(next(Class::file, "fsync", nullptr, fd), [&] { return syscall(SYS_fsync, fd); }));
}
int ftruncate(int fd, off_t n) noexcept {
  return int(whole(next(Class::file, "ftruncate", nullptr, fd), [&] { return syscall(SYS_ftruncate, fd, n); }));
}
int ftruncate64(int fd, off_t n) noexcept __attribute__((alias("ftruncate")));
int close(int fd) {
  const bool counts = fd >= 0 && fd < kMaxFiles && g_is_written[fd].exchange(false);
  const Effect effect = counts ? next(Class::file, "close", nullptr, fd) : Effect::none;
  // close gives the descriptor back even when it reports an error.
  const long result = syscall(SYS_close, fd);
  return int(whole(effect, [&] { return result; }));
}
int rename(const char* from, const char* to) noexcept {
  return int(whole(next(Class::file, "rename", to), [&] { return syscall(SYS_rename, from, to); }));
}
int mkdir(const char* path, mode_t mode) noexcept {
  return int(whole(next(Class::file, "mkdir", path), [&] { return syscall(SYS_mkdir, path, mode); }));
}
int unlink(const char* path) noexcept {
  return int(whole(next(Class::file, "unlink", path), [&] { return syscall(SYS_unlink, path); }));
}
int rmdir(const char* path) noexcept {
  return int(whole(next(Class::file, "rmdir", path), [&] { return syscall(SYS_rmdir, path); }));
}
int unlinkat(int directory, const char* path, int flags) noexcept {
  return int(whole(next(Class::file, "unlinkat", path), [&] { return syscall(SYS_unlinkat, directory, path, flags); }));
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*body)(void*), void* given) noexcept {
  static const auto kCreate = reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"));
  // Its error is its result.
  return next(Class::thread, "pthread_create", "") == Effect::error ? g_error
                                                                    : kCreate(thread, attributes, body, given);
}

void* malloc(size_t n) { return has_memory(Class::malloc) ? __libc_malloc(n) : nullptr; }
void* calloc(size_t n, size_t size) { return has_memory(Class::calloc) ? __libc_calloc(n, size) : nullptr; }
void* realloc(void* old, size_t n) { return has_memory(Class::malloc) ? __libc_realloc(old, n) : nullptr; }

}  // extern "C"
