// The split must be transformers' own, since other tools compare shard by shard: an oversized tensor's shard is
// numbered where it occurs, before the shard that is still open.
#include "checkpoint/shard_writer.h"

#include <algorithm>
#include <set>

#include "base/check.h"
#include "base/value.h"
#include "checkpoint/safetensors.h"

namespace saaz {

namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

std::string index_text(const std::vector<Shard>& plan) {
  std::vector<Value::Member> weight_map;
  uint64_t total = 0;
  for (const Shard& shard : plan) {
    for (const TensorSpec& tensor : shard.tensors) {
      weight_map.emplace_back(tensor.name, shard.file);
      total += tensor.bytes();
    }
  }
  std::sort(weight_map.begin(), weight_map.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  Value index = Value::object(), notes = Value::object();
  notes.set("total_size", total);
  index.set("metadata", std::move(notes));
  index.set("weight_map", Value::object(std::move(weight_map)));
  return to_json(index, 2) + "\n";
}

/// "model.safetensors" or "model-00001-of-00003.safetensors", any digits.
bool is_weight_file(std::string name) {
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; }, '0');
  return name == kSingleFile || name == "model-00000-of-00000.safetensors";
}

void remove_stale_files(const fs::path& folder, const std::vector<Shard>& plan) {
  std::set<std::string> current;
  for (const Shard& shard : plan) current.insert(shard.file);
  std::vector<fs::path> stale;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const bool is_weights = is_weight_file(name) && !current.contains(name);
    if (is_weights || (plan.size() == 1 && name == kIndexFile)) stale.push_back(entry.path());
  }
  for (const fs::path& path : stale) {
    std::error_code error;
    fs::remove(path, error);
    check(!error, ExitCode::io, "cannot remove {} of an earlier save: {}", printable(path.string()), error.message());
  }
  if (!stale.empty()) sync_directory(folder);
}

}  // namespace

std::vector<Shard> plan_shards(const std::vector<TensorSpec>& tensors, uint64_t max_shard_bytes) {
  std::vector<Shard> plan;
  Shard open;
  uint64_t open_bytes = 0;
  for (const TensorSpec& tensor : tensors) {
    const uint64_t bytes = tensor.bytes();
    if (bytes > max_shard_bytes) {
      plan.push_back({.file = {}, .tensors = {tensor}});
      continue;
    }
    if (open_bytes + bytes > max_shard_bytes) {
      plan.push_back(std::move(open));
      open = {};
      open_bytes = 0;
    }
    open.tensors.push_back(tensor);
    open_bytes += bytes;
  }
  if (!open.tensors.empty() || plan.empty()) plan.push_back(std::move(open));
  for (size_t i = 0; i < plan.size(); ++i) {
    plan[i].file = plan.size() == 1 ? kSingleFile : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, plan.size());
  }
  return plan;
}

void write_shards(const fs::path& folder, const std::vector<Shard>& plan, const Metadata& metadata,
                  const TensorSource& source) {
  for (const Shard& shard : plan) write_safetensors(folder / shard.file, shard.tensors, metadata, source);
  if (plan.size() > 1) write_file_atomically(folder / kIndexFile, index_text(plan));
  remove_stale_files(folder, plan);
}

}  // namespace saaz
