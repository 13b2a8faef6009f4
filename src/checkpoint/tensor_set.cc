// Opens what a model folder holds and proves that index and shards describe the same set of tensors before anything is
// used. Shard names are plain file names: a path in an index cannot lead out of the folder. Links are followed, because
// download caches keep the files elsewhere and put links into the folder.
#include "checkpoint/tensor_set.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/check.h"
#include "base/value.h"

namespace saaz {

namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr uint64_t kMaxIndexBytes = 100'000'000;

std::string shown(const fs::path& path) { return printable(path.string()); }

/// The file to open in a folder, or an error that says what was found instead.
fs::path find_in_folder(const fs::path& folder) {
  for (const char* name : {kSingleFile, kIndexFile}) {
    if (fs::exists(fs::symlink_status(folder / name))) return folder / name;
  }
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string ending = entry.path().extension().string();
    check(ending != ".bin" && ending != ".pt" && ending != ".pth", ExitCode::bad_input,
          "{} has only pickle weights ({}), which can run code when loaded and are never read here: convert them to "
          "safetensors in Python with model.save_pretrained(FOLDER, safe_serialization=True)",
          shown(folder), shown(entry.path().filename()));
  }
  fail(ExitCode::bad_input, "{} holds neither {} nor {}: not a model folder, or not wholly downloaded", shown(folder),
       kSingleFile, kIndexFile);
}

void check_shard_name(const std::string& file, const std::string& index) {
  const bool is_plain =
      !file.empty() && file != "." && file != ".." && std::none_of(file.begin(), file.end(), [](char c) {
        return c == '/' || c == '\\' || static_cast<unsigned char>(c) < 0x20;
      });
  check(is_plain, ExitCode::bad_input, "{}: shard name '{}' is not a plain file name in the model's folder", index,
        printable(file));
}

/// Tensor names by shard file.
std::map<std::string, std::set<std::string>> read_weight_map(const fs::path& path) {
  const std::string name = shown(path);
  const Value index = parse_json(read_file(path, kMaxIndexBytes), name);
  const Value* weight_map = index.find("weight_map");
  check(weight_map != nullptr && weight_map->is_object(), ExitCode::bad_input, "{} has no 'weight_map' object", name);
  check(!weight_map->members().empty(), ExitCode::bad_input, "{}: 'weight_map' is empty", name);
  std::map<std::string, std::set<std::string>> out;
  for (const auto& [tensor, file] : weight_map->members()) {
    check(file.is_string(), ExitCode::bad_input, "{}: shard of tensor '{}' is {}, expected a file name", name,
          printable(tensor), file.kind_name());
    check_shard_name(file.as_string(), name);
    out[file.as_string()].insert(tensor);
  }
  return out;
}

}  // namespace

TensorSet TensorSet::open(const fs::path& path) {
  TensorSet set;
  set.path_ = shown(path);
  std::error_code ignored;
  const fs::path file = fs::is_directory(path, ignored) ? find_in_folder(path) : path;
  if (file.string().ends_with(".index.json")) {
    set.open_index(file);
  } else {
    set.add_file(file);
  }
  return set;
}

void TensorSet::open_index(const fs::path& path) {
  const auto weight_map = read_weight_map(path);
  files_.reserve(weight_map.size());
  for (const auto& [file, expected] : weight_map) {
    with_context(fmt::format("a shard named in {}", shown(path)),
                 [&, &file = file] { add_file(path.parent_path() / file); });
    for (const TensorEntry& tensor : files_.back().tensors()) {
      check(expected.contains(tensor.name), ExitCode::bad_input,
            "{} holds tensor '{}', but {} does not place it there: the shards are of another save than the index",
            tensor.file, printable(tensor.name), shown(path));
    }
    for (const std::string& tensor : expected) {
      check(find(tensor) != nullptr, ExitCode::bad_input,
            "{} places tensor '{}' in {}, which does not hold it: the shard is of another save or damaged", shown(path),
            printable(tensor), printable(file));
    }
  }
}

void TensorSet::add_file(const fs::path& path) {
  files_.emplace_back(path);
  for (const TensorEntry& tensor : files_.back().tensors()) {
    const auto [place, is_new] = by_name_.emplace(tensor.name, &tensor);
    check(is_new, ExitCode::bad_input, "tensor '{}' is both in {} and in {}", printable(tensor.name),
          place->second->file, tensor.file);
    tensors_.push_back(&tensor);
  }
}

const TensorEntry* TensorSet::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

const TensorEntry& TensorSet::at(std::string_view name) const {
  const TensorEntry* entry = find(name);
  check(entry != nullptr, ExitCode::bad_input, "{}: tensor '{}' is missing", path_, printable(name));
  return *entry;
}

}  // namespace saaz
