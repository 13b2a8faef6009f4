#include "base/tail_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/system.h"

namespace saaz {
namespace {

class OpenFile {
 public:
  explicit OpenFile(const fs::path& path) : fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0 && errno != ENOENT && errno != ENOTDIR) fail_io("cannot open", path, errno);
  }
  ~OpenFile() {
    if (fd_ >= 0) close(fd_);
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

TailFile::Lines TailFile::read() {
  Lines out;
  const OpenFile file(path_);
  if (file.fd() < 0) return out;
  struct stat status = {};
  if (fstat(file.fd(), &status) != 0) fail_io("cannot look at", path_, errno);
  if (!S_ISREG(status.st_mode)) return out;
  const bool is_other = status.st_dev != device_ || status.st_ino != inode_;
  if (is_other || static_cast<uint64_t>(status.st_size) < offset_) {
    out.is_anew = inode_ != 0;
    device_ = status.st_dev;
    inode_ = status.st_ino;
    offset_ = 0;
    rest_.clear();
  }
  char buffer[1 << 16];
  for (size_t n_read = 0; n_read < kMaxBytes;) {
    const ssize_t n = pread(file.fd(), buffer, sizeof buffer, static_cast<off_t>(offset_));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_io("cannot read", path_, errno);
    if (n == 0) break;
    offset_ += static_cast<uint64_t>(n);
    n_read += static_cast<size_t>(n);
    rest_.append(buffer, static_cast<size_t>(n));
    size_t begin = 0;
    for (size_t end; (end = rest_.find('\n', begin)) != std::string::npos; begin = end + 1)
      if (end - begin <= kMaxLine) out.lines.push_back(rest_.substr(begin, end - begin));
    rest_.erase(0, begin);
    // The rest of an endless line is thrown away; its remains are no event and are left out by whoever parses.
    if (rest_.size() > kMaxLine) rest_.assign(1, '?');
  }
  return out;
}

}  // namespace saaz
