// A model's tensors by name, from one safetensors file or from a folder with a shard index. Enters: a path from the
// user. Leaves: every tensor exactly once. Invariant: index and shards agree both ways (no missing, extra or doubled
// tensor). Source: docs/formats.md 5.4; docs/formats.md 11.1 for hostile indexes. Any fault is bad_input.
#pragma once

#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint/safetensors.h"

namespace saaz {

class TensorSet {
 public:
  /// `path`: a safetensors file, an index (*.index.json), or a folder that holds model.safetensors or
  /// model.safetensors.index.json (the single file wins, as in transformers). Movable; entries stay where they are.
  static TensorSet open(const fs::path& path);

  /// Shards in name order, each in the order of its data.
  const std::vector<const TensorEntry*>& tensors() const { return tensors_; }
  /// nullptr when absent.
  const TensorEntry* find(std::string_view name) const;
  /// bad_input naming the tensor and the path when absent.
  const TensorEntry& at(std::string_view name) const;
  /// `__metadata__` of the file, or of the first shard.
  const Metadata& metadata() const { return files_.front().metadata(); }
  /// The path that was opened, for messages.
  const std::string& path() const { return path_; }
  /// MappedFile::release_pages of every file.
  void release_pages() const {
    for (const SafetensorsFile& file : files_) file.release_pages();
  }

 private:
  void open_index(const fs::path& path);
  void add_file(const fs::path& path);

  std::string path_;
  std::vector<SafetensorsFile> files_;
  std::vector<const TensorEntry*> tensors_;
  std::unordered_map<std::string_view, const TensorEntry*> by_name_;
};

}  // namespace saaz
