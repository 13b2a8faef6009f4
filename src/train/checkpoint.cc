#include "train/checkpoint.h"

#include <algorithm>
#include <charconv>

#include "base/check.h"

namespace saaz {

namespace {

constexpr const char* kManifest = "manifest.json";
constexpr std::string_view kPrefix = "checkpoint-";

std::optional<int64_t> step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto [at, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  return error == std::errc() && at == end && step >= 0 ? std::optional(step) : std::nullopt;
}

std::vector<CheckpointRef> list_checkpoints(const fs::path& run) {
  std::vector<CheckpointRef> out;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(run, error))
    if (const auto step = step_of(entry.path()); step && entry.is_directory()) out.push_back({entry.path(), *step});
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.step > b.step; });
  return out;
}

void write_manifest(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  std::vector<Value::Member> members;
  for (const fs::path& file : files)
    members.emplace_back(file.filename().string(),
                         Value::object({{"bytes", Value(static_cast<int64_t>(fs::file_size(file)))},
                                        {"sha256", Value(sha256_of_file(file))}}));
  write_file_atomically(
      folder / kManifest,
      to_json(Value::object({{"schema_version", Value(1)}, {"files", Value::object(std::move(members))}}), 2) + "\n");
}

}  // namespace

fs::path save_checkpoint(const fs::path& run, int64_t step, int64_t keep,
                         const std::function<void(const fs::path&)>& write_files) {
  const fs::path final = run / (std::string(kPrefix) + std::to_string(step));
  fs::path partial = final;
  partial += ".partial";
  fs::remove_all(partial);
  make_directories(partial);
  write_files(partial);
  write_manifest(partial);
  sync_directory(partial);
  fs::remove_all(final);
  std::error_code error;
  fs::rename(partial, final, error);
  check(!error, ExitCode::io, "cannot rename {} to {}: {}", partial.string(), final.string(), error.message());
  sync_directory(run);
  if (keep > 0) {
    const std::vector<CheckpointRef> all = list_checkpoints(run);
    for (size_t i = static_cast<size_t>(std::max<int64_t>(keep, 2)); i < all.size(); ++i) fs::remove_all(all[i].folder);
  }
  return final;
}

CheckpointRef verify_checkpoint(const fs::path& folder) {
  const auto step = step_of(folder.has_filename() ? folder : folder.parent_path());
  check(step.has_value(), ExitCode::usage, "{} is not a checkpoint-N folder", printable(folder.string()));
  const fs::path path = folder / kManifest;
  check(fs::exists(path), ExitCode::verification, "{} has no {}: the checkpoint is incomplete", folder.string(),
        kManifest);
  const Value manifest = parse_json(read_file(path, 16 << 20), path.string());
  const Value* files = manifest.find("files");
  check(files != nullptr && files->is_object() && !files->members().empty(), ExitCode::verification,
        "{}: no list of files", path.string());
  for (const auto& [name, entry] : files->members()) {
    check(name.find('/') == std::string::npos, ExitCode::verification, "{}: file name '{}' has a path", path.string(),
          printable(name));
    const Value* hash = entry.find("sha256");
    const fs::path file = folder / name;
    check(fs::is_regular_file(file), ExitCode::verification, "checkpoint file {} is missing", file.string());
    check(hash != nullptr && hash->is_string() && sha256_of_file(file) == hash->as_string(), ExitCode::verification,
          "checkpoint file {} is damaged: its SHA-256 is not the manifest's", file.string());
  }
  return {folder, *step};
}

std::optional<CheckpointRef> newest_checkpoint(const fs::path& run, std::vector<std::string>* skipped) {
  const std::vector<CheckpointRef> all = list_checkpoints(run);
  for (const CheckpointRef& ref : all) {
    try {
      return verify_checkpoint(ref.folder);
    } catch (const Error& error) {
      skipped->push_back(error.what());
    }
  }
  check(all.empty(), ExitCode::verification, "none of the {} checkpoints in {} is whole (newest: {})", all.size(),
        run.string(), skipped->empty() ? "" : skipped->front());
  return std::nullopt;
}

Value fingerprint_files(const std::vector<fs::path>& files) {
  std::vector<Value::Member> members;
  for (const fs::path& file : files) members.emplace_back(file.string(), Value(sha256_of_file(file)));
  return Value::object(std::move(members));
}

std::vector<std::string> differences(const Value& before, const Value& now) {
  std::vector<std::string> out;
  for (const auto& [name, value] : before.members()) {
    const Value* other = now.find(name);
    if (other == nullptr || to_json(*other) != to_json(value)) out.push_back(name);
  }
  for (const auto& [name, value] : now.members())
    if (before.find(name) == nullptr) out.push_back(name);
  return out;
}

}  // namespace saaz
