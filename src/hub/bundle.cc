#include "hub/bundle.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "base/check.h"
#include "base/stop.h"
#include "base/value.h"
#include "hub/cache.h"
#include "hub/tar.h"

namespace saaz {
namespace {

constexpr const char* kManifest = "saaz-bundle.json";
constexpr int64_t kFormat = 1;

struct BundledFile {
  std::string path, blob, sha256;
  uint64_t size = 0;
};

struct Manifest {
  RepoRevision what;
  std::string commit;
  std::vector<BundledFile> files;

  std::string link_name(const BundledFile& file) const { return "snapshots/" + commit + "/" + file.path; }
};

/// The files of a snapshot, by its links.
std::vector<BundledFile> list_snapshot(const RepoCache& cache, const fs::path& snapshot) {
  std::vector<BundledFile> files;
  for (const auto& entry : fs::recursive_directory_iterator(snapshot)) {
    if (entry.is_directory() && !entry.is_symlink()) continue;
    check_stop();
    const std::string path = entry.path().lexically_relative(snapshot).generic_string();
    std::error_code error;
    const std::string blob = fs::read_symlink(entry.path(), error).filename().string();
    check(!error && (is_git_id(blob) || is_sha256(blob)), ExitCode::bad_input,
          "{} is no link to a blob: this snapshot was changed; fetch it again", printable(entry.path().string()));
    verify_content(cache.blob(blob), blob, path);
    const MappedFile content(cache.blob(blob));
    files.push_back({path, blob, is_sha256(blob) ? blob : sha256_hex(content.bytes()), content.bytes().size()});
  }
  std::sort(files.begin(), files.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
  return files;
}

Value to_value(const Manifest& manifest) {
  Value files = Value::array();
  for (const BundledFile& file : manifest.files)
    files.push_back(
        Value::object({{"path", file.path}, {"size", file.size}, {"blob", file.blob}, {"sha256", file.sha256}}));
  return Value::object({{"format", kFormat},
                        {"kind", manifest.what.repo.kind_name()},
                        {"repo", manifest.what.repo.id},
                        {"revision", manifest.what.revision},
                        {"commit", manifest.commit},
                        {"files", std::move(files)}});
}

const std::string& text_in(const Value& object, std::string_view key, const std::string& where) {
  const Value* value = object.find(key);
  check(value != nullptr && value->is_string(), ExitCode::bad_input, "{}: the manifest has no text '{}'", where, key);
  return value->as_string();
}

Manifest parse_manifest(std::string_view text, const std::string& where) {
  const Value document = parse_json(text, where + ": manifest");
  const Value *format = document.find("format"), *files = document.find("files");
  check(format != nullptr && format->is_integer() && format->as_integer() == kFormat && files != nullptr &&
            files->is_array(),
        ExitCode::bad_input, "{}: no bundle of format {}", where, kFormat);
  const std::string& kind = text_in(document, "kind", where);
  check(kind == "model" || kind == "dataset", ExitCode::bad_input, "{}: a bundle of a '{}'", where, printable(kind));
  const std::string& id = text_in(document, "repo", where);
  const std::string& revision = text_in(document, "revision", where);
  check(looks_like_repo(id + "@" + revision), ExitCode::bad_input, "{}: '{}' at '{}' is refused as a repository", where,
        printable(id), printable(revision));
  Manifest manifest{{{kind == "model" ? RepoKind::model : RepoKind::dataset, id}, revision},
                    text_in(document, "commit", where)};
  check(is_git_id(manifest.commit), ExitCode::bad_input, "{}: the manifest names no commit", where);
  for (const Value& entry : files->items()) {
    BundledFile file{text_in(entry, "path", where), text_in(entry, "blob", where), text_in(entry, "sha256", where)};
    const Value* size = entry.find("size");
    check_relative_path(file.path, ExitCode::bad_input, where);
    check((is_git_id(file.blob) || is_sha256(file.blob)) && is_sha256(file.sha256) && size != nullptr &&
              size->is_integer() && size->as_integer() >= 0,
          ExitCode::bad_input, "{}: the manifest's entry of {} is malformed", where, printable(file.path));
    file.size = static_cast<uint64_t>(size->as_integer());
    manifest.files.push_back(std::move(file));
  }
  check(!manifest.files.empty(), ExitCode::bad_input, "{}: the manifest names no file", where);
  return manifest;
}

/// One import: all entries are verified before the first is written.
class Import {
 public:
  Import(const fs::path& cache, const fs::path& tar)
      : file_(tar), where_(printable(tar.string())), reader_(file_.bytes(), tar.string()) {
    manifest_ = read_manifest();
    cache_ = std::make_unique<RepoCache>(cache, manifest_.what.repo);
    for (const BundledFile& file : manifest_.files) {
      missing_.emplace("blobs/" + file.blob, &file);
      links_.insert(manifest_.link_name(file));
    }
    links_.insert("refs/" + manifest_.what.revision);
  }

  BundleResult run() {
    while (const std::optional<TarEntry> entry = reader_.next()) take(*entry);
    check(missing_.empty(), ExitCode::bad_input, "{}: {} is missing: the bundle is cut", where_,
          missing_.empty() ? "" : missing_.begin()->first);
    cache_->prepare();
    for (const auto& [blob, content] : verified_) write_blob(blob, content);
    BundleResult result{manifest_.what, manifest_.commit, cache_->snapshot(manifest_.commit), manifest_.files.size()};
    for (const BundledFile& file : manifest_.files) {
      cache_->link(manifest_.commit, file.path, file.blob);
      result.bytes += file.size;
    }
    cache_->write_ref(manifest_.what.revision, manifest_.commit);
    return result;
  }

 private:
  /// The manifest and its checksum come first; their folder must be the one of the repository they name.
  Manifest read_manifest() {
    const std::optional<TarEntry> first = reader_.next(), second = reader_.next();
    check(first && second && first->name.ends_with(std::string("/") + kManifest) &&
              second->name == first->name + ".sha256",
          ExitCode::bad_input, "{}: does not begin as a bundle of saaz", where_);
    const std::string_view text(reinterpret_cast<const char*>(first->content.data()), first->content.size());
    const std::string_view sum(reinterpret_cast<const char*>(second->content.data()), second->content.size());
    check(sum.starts_with(sha256_hex(text) + "  "), ExitCode::verification, "{}: the manifest's checksum is wrong",
          where_);
    Manifest manifest = parse_manifest(text, where_);
    folder_ = manifest.what.repo.folder_name() + "/";
    check(first->name == folder_ + kManifest, ExitCode::bad_input, "{}: the manifest is of another repository", where_);
    return manifest;
  }

  void take(const TarEntry& entry) {
    check_stop();
    const std::string name = entry.name.starts_with(folder_) ? entry.name.substr(folder_.size()) : "";
    if (links_.count(name) != 0) return;  // made anew from the manifest
    const auto found = missing_.find(name);
    check(found != missing_.end() && !entry.is_link, ExitCode::bad_input,
          "{}: the entry '{}' is not in the manifest: refused", where_, printable(entry.name));
    const BundledFile& file = *found->second;
    const std::string sum = sha256_hex(entry.content);
    const bool is_right = entry.content.size() == file.size && sum == file.sha256 &&
                          (is_sha256(file.blob) ? sum : git_blob_id(entry.content)) == file.blob;
    check(is_right, ExitCode::verification, "{}: {}: wrong checksum: expected {}, found {}", where_,
          printable(file.path), file.sha256, sum);
    verified_.emplace_back(file.blob, entry.content);
    missing_.erase(found);
  }

  void write_blob(const std::string& name, Bytes content) const {
    AtomicFile blob(cache_->blob(name));
    constexpr size_t kChunk = 1 << 20;
    for (; !content.empty(); content = content.subspan(std::min(kChunk, content.size()))) {
      check_stop();
      blob.write(content.data(), std::min(kChunk, content.size()));
    }
    blob.commit();
  }

  MappedFile file_;
  std::string where_;
  TarReader reader_;
  Manifest manifest_;
  std::unique_ptr<RepoCache> cache_;
  std::string folder_;
  std::map<std::string, const BundledFile*> missing_;  // by name in the folder
  std::set<std::string> links_;
  std::vector<std::pair<std::string, Bytes>> verified_;  // blobs, in the mapped file
};

}  // namespace

BundleResult export_bundle(const fs::path& cache, const RepoRevision& what, const fs::path& tar) {
  const RepoCache files(cache, what.repo);
  const std::optional<fs::path> snapshot = find_snapshot(cache, what);
  check(snapshot.has_value(), ExitCode::bad_input, "{} at '{}' is not in the cache: 'saaz fetch {}' first",
        what.repo.id, what.revision, what.repo.id);
  Manifest manifest{what, snapshot->filename().string(), list_snapshot(files, *snapshot)};
  BundleResult result{what, manifest.commit, *snapshot, manifest.files.size()};
  const std::string folder = what.repo.folder_name() + "/", text = to_json(to_value(manifest), 1) + "\n";
  const std::string sum = sha256_hex(text) + "  " + kManifest + "\n";
  TarWriter out(tar);
  out.add_file(folder + kManifest, std::as_bytes(std::span(text)));
  out.add_file(folder + kManifest + ".sha256", std::as_bytes(std::span(sum)));
  std::set<std::string> written;
  for (const BundledFile& file : manifest.files) {
    result.bytes += file.size;
    if (written.insert(file.blob).second)
      out.add_file(folder + "blobs/" + file.blob, MappedFile(files.blob(file.blob)).bytes());
  }
  for (const BundledFile& file : manifest.files) {
    const fs::path name = manifest.link_name(file);
    out.add_link(folder + name.string(),
                 (fs::path("blobs") / file.blob).lexically_relative(name.parent_path()).string());
  }
  if (what.revision != manifest.commit)
    out.add_file(folder + "refs/" + what.revision, std::as_bytes(std::span(manifest.commit)));
  out.commit();
  return result;
}

BundleResult import_bundle(const fs::path& cache, const fs::path& tar) { return Import(cache, tar).run(); }

}  // namespace saaz
