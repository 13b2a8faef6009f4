// A text file that another thread or process appends to, read as it grows. Enters: its path. Leaves: whole lines, each
// once. Invariant: a line is given when its newline is there, never half; when the file was replaced or cut short (a
// resumed run does that), reading begins again and says so.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace saaz {

class TailFile {
 public:
  static constexpr size_t kMaxBytes = 32 << 20;  // read by one call
  static constexpr size_t kMaxLine = 16 << 20;   // a longer line is left out

  explicit TailFile(std::filesystem::path path) : path_(std::move(path)) {}

  struct Lines {
    bool is_anew = false;  // what earlier calls gave is void
    std::vector<std::string> lines;
  };
  /// What was added since the last call; nothing while the file is absent. io when it cannot be read.
  Lines read();

 private:
  std::filesystem::path path_;
  uint64_t device_ = 0, inode_ = 0;  // 0: not seen yet
  uint64_t offset_ = 0;
  std::string rest_;  // an unfinished line
};

}  // namespace saaz
