// tar files (POSIX ustar, sizes above 8 GiB in base 256 as GNU writes them): regular files and links, no other kind.
#pragma once

#include <optional>
#include <string>

#include "base/bytes.h"
#include "base/system.h"

namespace saaz {

class TarWriter {
 public:
  explicit TarWriter(const fs::path& path) : file_(path) {}
  void add_file(const std::string& name, Bytes content);
  void add_link(const std::string& name, const std::string& target);
  /// The file appears under its name.
  void commit();

 private:
  void add_header(const std::string& name, uint64_t size, char type, const std::string& target);
  AtomicFile file_;
};

struct TarEntry {
  std::string name;
  bool is_link = false;
  std::string link_target;
  Bytes content;
};

class TarReader {
 public:
  TarReader(Bytes bytes, const std::string& name) : reader_(bytes, name) {}
  /// The next entry; nothing after the last one. bad_input for damage and for other kinds of entries.
  std::optional<TarEntry> next();

 private:
  ByteReader reader_;
};

}  // namespace saaz
