#include "hub/fetch.h"

#include <set>

#include "base/check.h"
#include "hub/cache.h"

namespace saaz {
namespace {

std::string resolve_commit(HubClient& hub, const RepoRevision& wanted) {
  if (is_git_id(wanted.revision)) return wanted.revision;
  const std::string target = wanted.repo.api_path() + "/revision/" + url_segment(wanted.revision);
  const std::string commit = text_of(hub.get_json(target, wanted), "sha", target);
  check(is_git_id(commit), ExitCode::io, "{}: '{}' is no commit", target, printable(commit));
  return commit;
}

/// The next page's address in a Link header: `<https://...>; rel="next"`.
std::string next_page(const HttpReply& reply) {
  const std::string_view link = reply.header("link");
  const size_t begin = link.find('<'), end = link.find('>');
  const bool is_next = link.find("rel=\"next\"") != std::string_view::npos;
  if (!is_next || begin == std::string_view::npos || end == std::string_view::npos || end < begin) return {};
  return std::string(link.substr(begin + 1, end - begin - 1));
}

std::vector<RemoteFile> list_files(HubClient& hub, const RepoRevision& wanted, const std::string& commit) {
  const std::string first = wanted.repo.api_path() + "/tree/" + commit + "?recursive=true&expand=false";
  std::vector<RemoteFile> files;
  std::set<std::string> seen;
  for (std::string target = first; !target.empty();) {
    check(seen.insert(target).second, ExitCode::io, "{}: the pages go in a circle", url_without_query(target));
    const HttpReply reply = hub.expect({.url = target}, wanted);
    const std::string where = url_without_query(target);
    const Value page = reply_json(reply, where);
    check(page.is_array(), ExitCode::io, "{}: expected a list of files, found {}", where, page.kind_name());
    for (const Value& entry : page.items())
      if (text_of(entry, "type", where) == "file") files.push_back(parse_tree_entry(entry, where));
    target = next_page(reply);
  }
  return files;
}

std::vector<RemoteFile> selected(const std::vector<RemoteFile>& files, const std::vector<std::string>& include,
                                 const RepoRevision& wanted) {
  std::vector<RemoteFile> out;
  for (const RemoteFile& file : files)
    if (matches_any(file.path, include)) out.push_back(file);
  check(!out.empty(), ExitCode::bad_input, "{} has {} files, none matches --include '{}'", wanted.repo.id, files.size(),
        printable(fmt::format("{}", fmt::join(include, "', '"))));
  return out;
}

/// One file on its way into the cache.
class Download {
 public:
  Download(HubClient& hub, const RepoCache& cache, const RepoRevision& wanted, const std::string& commit,
           const RemoteFile& file)
      : hub_(hub), wanted_(wanted), file_(file), blob_(cache.blob(file.blob_name())), partial_(blob_) {
    partial_ += ".incomplete";
    url_ = wanted.repo.web_path() + "/resolve/" + commit + "/" + url_path(file.path);
  }

  /// Returns the bytes that came over the network.
  uint64_t run() {
    if (have() > file_.size) fs::resize_file(partial_, 0);
    if (have() == 0) AppendFile{partial_};  // an empty file is a file too
    for (Retries retries(hub_.settings()); have() < file_.size;) {
      const uint64_t before = have();
      const HttpReply reply = request_rest(before);
      if (reply.status == 416) fs::resize_file(partial_, 0);
      if (have() > before) retries.reset();
      if (have() == file_.size) break;
      const bool again = retries.wait_for_another(reply.ok() ? cut_short() : reply);
      if (!again && (reply.status != 416 || before == 0)) hub_.refuse(reply, wanted_);
    }
    finish();
    return n_received_;
  }

 private:
  uint64_t have() const {
    std::error_code error;
    const uint64_t size = fs::file_size(partial_, error);
    return error ? 0 : size;
  }

  static HttpReply cut_short() { return {.fault = "the file ended before its end"}; }

  HttpReply request_rest(uint64_t begin) {
    AppendFile file(partial_);
    HttpRequest request{.url = url_};
    if (begin > 0) request.headers.push_back(fmt::format("Range: bytes={}-", begin));
    uint64_t at = begin;
    bool is_first = true;
    request.sink = [&](const HttpReply& head, Bytes piece) {
      if (std::exchange(is_first, false) && begin > 0 && !continues_at(head, begin)) {
        fs::resize_file(partial_, 0);  // the whole file comes, not its rest
        at = 0;
      }
      check(piece.size() <= file_.size - at, ExitCode::verification,
            "{}: the hub sends more than the {} bytes it named", printable(file_.path), file_.size);
      file.append({reinterpret_cast<const char*>(piece.data()), piece.size()});
      at += piece.size();
      n_received_ += piece.size();
      hub_.settings().progress(file_.path, at, file_.size);
    };
    HttpReply reply = hub_.try_once(std::move(request));
    if (at == file_.size) file.sync();
    return reply;
  }

  static bool continues_at(const HttpReply& head, uint64_t begin) {
    return head.status == 206 && head.header("content-range").starts_with(fmt::format("bytes {}-", begin));
  }

  /// Bytes with a wrong checksum must not be continued by the next try.
  void finish() {
    try {
      verify_content(partial_, file_.blob_name(), wanted_.repo.id + "/" + file_.path);
    } catch (Error& error) {
      std::error_code ignored;
      fs::remove(partial_, ignored);
      error.add_context("the download was removed, run this again");
      throw;
    }
    std::error_code error;
    fs::rename(partial_, blob_, error);
    if (error) fail_io("cannot rename to", blob_, error.value());
    sync_directory(blob_.parent_path());
  }

  HubClient& hub_;
  const RepoRevision& wanted_;
  const RemoteFile& file_;
  fs::path blob_, partial_;
  std::string url_;
  uint64_t n_received_ = 0;
};

void check_space(const RepoCache& cache, const std::vector<RemoteFile>& files) {
  uint64_t needed = 0;
  for (const RemoteFile& file : files) {
    std::error_code error;
    const uint64_t there = fs::file_size(cache.blob(file.blob_name() + ".incomplete"), error);
    if (!cache.has_blob(file)) needed += file.size - std::min(file.size, error ? 0 : there);
  }
  std::error_code error;
  const fs::space_info space = fs::space(cache.folder(), error);
  check(error || needed <= space.available, ExitCode::resource,
        "{}: {} bytes are to be fetched and {} are free: make room, or set HF_HOME to a larger disk",
        printable(cache.folder().string()), needed, space.available);
}

FetchResult fetch_offline(const RepoCache& cache, const RepoRevision& wanted, const std::vector<std::string>& include) {
  const std::string commit = cache.commit_of(wanted.revision);
  std::error_code error;
  check(!commit.empty() && fs::is_directory(cache.snapshot(commit), error), ExitCode::bad_input,
        "{} at '{}' is not in the cache {}: fetch it with a network, or 'saaz bundle import' a copy", wanted.repo.id,
        wanted.revision, printable(cache.folder().string()));
  FetchResult result{cache.snapshot(commit), commit};
  const auto tree = cache.tree(commit);
  if (!tree) return result;  // brought by a bundle or an older tool: it is what it is
  const std::vector<RemoteFile> files = selected(*tree, include, wanted);
  for (const RemoteFile& file : files)
    check(cache.has(commit, file), ExitCode::bad_input,
          "{} at '{}' is not whole in the cache: {} is missing; fetch it "
          "with a network",
          wanted.repo.id, wanted.revision, printable(file.path));
  result.n_files = files.size();
  return result;
}

}  // namespace

FetchResult fetch_repository(HubClient& hub, const RepoRevision& wanted, const std::vector<std::string>& include) {
  const RepoCache cache(hub.settings().cache, wanted.repo);
  if (hub.settings().offline) return fetch_offline(cache, wanted, include);
  const std::string commit = resolve_commit(hub, wanted);
  auto tree = cache.tree(commit);
  const bool is_new_tree = !tree;
  if (is_new_tree) tree = list_files(hub, wanted, commit);
  const std::vector<RemoteFile> files = selected(*tree, include, wanted);
  FetchResult result{cache.snapshot(commit), commit, files.size()};
  cache.prepare();
  check_space(cache, files);
  if (is_new_tree) cache.write_tree(commit, *tree);
  for (const RemoteFile& file : files) {
    if (cache.has(commit, file)) continue;
    const FileLock lock(cache.lock(file.blob_name()));
    if (!cache.has_blob(file)) {
      result.bytes_fetched += Download(hub, cache, wanted, commit, file).run();
      ++result.n_fetched;
    }
    cache.link(commit, file.path, file.blob_name());
  }
  cache.write_ref(wanted.revision, commit);
  return result;
}

}  // namespace saaz
