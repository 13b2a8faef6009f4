// safetensors files, read strictly and written canonically. Enters: untrusted bytes. Leaves: tensors as views of the
// mapping. A file is accepted only when its tensors tile the data exactly, from its first byte to the end of the file.
// Sources: docs/formats.md 9; limits of docs/formats.md 11.1. Any fault is bad_input, naming the file and tensor or
// byte.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/system.h"
#include "checkpoint/stored_tensor.h"

namespace saaz {

class SafetensorsFile {
 public:
  /// Maps and checks `path`.
  explicit SafetensorsFile(const fs::path& path);
  /// Checks `bytes`, which must outlive the object; `name` is used in messages.
  SafetensorsFile(Bytes bytes, const std::string& name);

  /// In the order of their data. A tensor that lies unaligned in the file is an aligned copy here.
  const std::vector<TensorEntry>& tensors() const { return tensors_; }
  const Metadata& metadata() const { return metadata_; }
  void release_pages() const { mapping_.release_pages(); }

 private:
  void parse(Bytes bytes, const std::string& name);

  MappedFile mapping_;
  std::vector<TensorEntry> tensors_;
  Metadata metadata_;
  std::vector<std::unique_ptr<uint64_t[]>> aligned_copies_;
};

/// The header of a file that holds `specs`, length field included; sorts `specs` into the order their data must follow
/// in: dtype by decreasing alignment, then name. Names are unique. "format": "pt" is added where `metadata` has no such
/// key.
std::string safetensors_header(std::vector<TensorSpec>& specs, const Metadata& metadata);

/// Writes a file atomically, asking `source` for one tensor after the other; at most one piece is held in memory. A
/// source that gives another number of bytes than its spec says is our own bug.
void write_safetensors(const fs::path& path, std::vector<TensorSpec> specs, const Metadata& metadata,
                       const TensorSource& source);

}  // namespace saaz
