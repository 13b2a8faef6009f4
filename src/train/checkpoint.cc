#include "train/checkpoint.h"

#include <algorithm>
#include <charconv>

#include "base/check.h"

namespace saaz {

namespace {

constexpr const char* kManifest = "manifest.json";
constexpr std::string_view kPrefix = "checkpoint-";
constexpr int64_t kMinWhole = 2;  // checkpoints that verify and are never pruned

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
  for (const fs::path& entry : list_directory(run))
    if (const auto step = step_of(entry); step && fs::is_directory(entry)) out.push_back({entry, *step});
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.step > b.step; });
  return out;
}

Value parse_manifest(const std::string& text, const fs::path& path) {
  Value manifest;
  try {
    manifest = parse_json(text, path.string());
  } catch (const Error& error) {
    fail(ExitCode::verification, "checkpoint file {} is damaged: {}", path.string(), error.what());
  }
  const Value* files = manifest.find("files");
  check(files != nullptr && files->is_object() && !files->members().empty(), ExitCode::verification,
        "{}: no list of files", path.string());
  return manifest;
}

/// Sizes and hashes of the named files as they are now.
Value manifest_of(const fs::path& folder, const std::vector<std::string>& names) {
  std::vector<Value::Member> members;
  for (const std::string& name : names)
    members.emplace_back(name, Value::object({{"bytes", Value(static_cast<int64_t>(fs::file_size(folder / name)))},
                                              {"sha256", Value(sha256_of_file(folder / name))}}));
  return Value::object({{"schema_version", Value(1)}, {"files", Value::object(std::move(members))}});
}

std::string manifest_text(const Value& manifest) { return to_json(manifest, 2) + "\n"; }

void write_manifest(const fs::path& folder) {
  std::vector<std::string> names;
  for (const fs::path& file : list_directory(folder)) names.push_back(file.filename().string());
  write_file_atomically(folder / kManifest, manifest_text(manifest_of(folder, names)));
}

bool is_whole(const fs::path& folder) {
  try {
    verify_checkpoint(folder);
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// Leaves the `keep` newest, and so many more that two of those left verify.
void prune(const fs::path& run, int64_t keep) {
  int64_t n_seen = 0, n_whole = 0;
  for (const CheckpointRef& ref : list_checkpoints(run)) {
    const bool is_kept = n_seen < keep || n_whole < kMinWhole;
    ++n_seen;
    if (!is_kept) {
      remove_folder(ref.folder);
    } else if (n_whole < kMinWhole) {
      n_whole += is_whole(ref.folder);
    }
  }
}

}  // namespace

fs::path save_checkpoint(const fs::path& run, int64_t step, int64_t keep,
                         const std::function<void(const fs::path&)>& write_files) {
  const fs::path path = run / (std::string(kPrefix) + std::to_string(step));
  // One of this step can only be left from before the checkpoint that the run was resumed from: damaged, or abandoned.
  remove_folder(path);
  AtomicFolder folder(path);
  write_files(folder.partial());
  write_manifest(folder.partial());
  folder.commit();
  if (keep > 0) prune(run, keep);
  return path;
}

CheckpointRef verify_checkpoint(const fs::path& folder) {
  const auto step = step_of(folder.has_filename() ? folder : folder.parent_path());
  check(step.has_value(), ExitCode::usage, "{} is not a checkpoint-N folder", printable(folder.string()));
  const fs::path path = folder / kManifest;
  check(fs::exists(path), ExitCode::verification, "{} has no {}: the checkpoint is incomplete", folder.string(),
        kManifest);
  const std::string text = read_file(path, 16 << 20);
  const Value recorded = parse_manifest(text, path), *files = recorded.find("files");
  std::vector<std::string> names;
  for (const auto& [name, entry] : files->members()) {
    check(name.find('/') == std::string::npos, ExitCode::verification, "{}: file name '{}' has a path", path.string(),
          printable(name));
    check(fs::is_regular_file(folder / name), ExitCode::verification, "checkpoint file {} is missing",
          printable((folder / name).string()));
    names.push_back(name);
  }
  const Value found = manifest_of(folder, names);
  for (const auto& [name, entry] : files->members())
    check(to_json(entry) == to_json(*found.find("files")->find(name)), ExitCode::verification,
          "checkpoint file {} is damaged: its size or SHA-256 is not the manifest's",
          printable((folder / name).string()));
  // The text is a function of the files' bytes, so one changed byte of the manifest itself shows as well.
  check(manifest_text(found) == text, ExitCode::verification, "checkpoint file {} is damaged: it is not as written",
        path.string());
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

std::vector<std::string> set_checkpoints_aside(const fs::path& run, int64_t step) {
  std::vector<std::string> names;
  for (const CheckpointRef& ref : list_checkpoints(run)) {
    if (ref.step <= step) continue;
    names.push_back("abandoned-" + ref.folder.filename().string());
    remove_folder(run / names.back());
    rename_durably(ref.folder, run / names.back());
  }
  return names;
}

Value fingerprint_files(const std::vector<fs::path>& files) {
  std::vector<Value::Member> members;
  for (const fs::path& file : files) members.emplace_back(file.string(), Value(sha256_of_file(file)));
  return Value::object(std::move(members));
}

std::vector<std::string> differences(const Value& before, const Value& now) {
  std::vector<std::string> out;
  // A hash tells people nothing; a recipe's value does.
  const auto difference = [](const std::string& name, const Value* was, const Value* is) {
    const auto text = [](const Value* value) { return value == nullptr ? "absent" : to_json(*value); };
    if (name.starts_with(kRecipePrefix)) return fmt::format("{}: {}, now {}", name, text(was), text(is));
    return name + (was == nullptr ? ": new" : is == nullptr ? ": gone" : ": other content");
  };
  for (const auto& [name, value] : before.members()) {
    const Value* other = now.find(name);
    if (other == nullptr || to_json(*other) != to_json(value)) out.push_back(difference(name, &value, other));
  }
  for (const auto& [name, value] : now.members())
    if (before.find(name) == nullptr) out.push_back(difference(name, nullptr, &value));
  return out;
}

}  // namespace saaz
