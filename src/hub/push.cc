#include "hub/push.h"

#include <algorithm>

#include "base/check.h"
#include "hub/lfs.h"

namespace saaz {
namespace {

constexpr size_t kSample = 512;              // bytes of each file the hub looks at to choose
constexpr size_t kPreuploadFiles = 256;      // in one request
constexpr uint64_t kInlineLimit = 10 << 20;  // larger files go by LFS whatever their name

/// The endings that the hub's .gitattributes of a new repository gives to LFS and that our folders hold.
constexpr std::string_view kLargeEndings[] = {".safetensors", ".gguf", ".bin", ".model", ".pt",  ".npz", ".onnx",
                                              ".parquet",     ".zip",  ".gz",  ".arrow", ".tar", ".h5",  ".pkl"};

Bytes sample_of(Bytes content) { return content.first(std::min(kSample, content.size())); }

bool is_large_by_rule(const std::string& path, Bytes content) {
  const Bytes sample = sample_of(content);
  return content.size() > kInlineLimit ||
         (!content.empty() && (path.find("tfevents") != std::string::npos ||
                               std::any_of(std::begin(kLargeEndings), std::end(kLargeEndings),
                                           [&](std::string_view ending) { return path.ends_with(ending); }) ||
                               std::find(sample.begin(), sample.end(), std::byte{0}) != sample.end()));
}

/// Training states and unfinished files stay here; so do hidden ones, except the hub's own.
bool is_left_out(const fs::path& name) {
  const std::string text = name.string();
  return (text.starts_with('.') && text != ".gitattributes") || text.ends_with(".partial") ||
         text.starts_with("checkpoint-") || text.starts_with("abandoned-checkpoint-");
}

/// What a run folder holds that shows training rows or paths of the machine; its adapter, card and charts do not.
bool is_log_of_run(const fs::path& path) {
  static constexpr std::string_view kLogs[] = {
      "events.jsonl", "row_losses.jsonl", "recipe.yaml", "trainer_state.json", "runs", "wandb"};
  const std::string name = path.filename().string();
  return std::find(std::begin(kLogs), std::end(kLogs), name) != std::end(kLogs) &&
         fs::exists(path.parent_path() / "events.jsonl");
}

std::string base64(Bytes bytes) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const auto at = [&](size_t k) { return i + k < bytes.size() ? std::to_integer<uint32_t>(bytes[i + k]) : 0u; };
    const uint32_t group = at(0) << 16 | at(1) << 8 | at(2);
    out += kDigits[group >> 18];
    out += kDigits[group >> 12 & 63];
    out += i + 1 < bytes.size() ? kDigits[group >> 6 & 63] : '=';
    out += i + 2 < bytes.size() ? kDigits[group & 63] : '=';
  }
  return out;
}

class Push {
 public:
  Push(HubClient& hub, const fs::path& folder, const RepoRevision& to, const PushOptions& options,
       const fs::path& state)
      : hub_(hub), folder_(folder), to_(to), options_(options), state_(state) {}

  PushResult run(PushPlan plan) {
    create_repository();
    create_branch();
    std::vector<PushFile> changed = ask_changed(plan.files);
    PushResult result;
    result.n_sent = changed.size();
    result.n_unchanged = plan.files.size() - changed.size();
    if (changed.empty()) return result;
    const std::vector<LargeFile> large = large_files(changed);
    result.bytes_sent = upload_large_files(hub_, to_, large, state_).bytes_sent;
    result.commit_url = commit(changed, large);
    return result;
  }

 private:
  void create_repository() {
    const size_t slash = to_.repo.id.find('/');
    Value body = Value::object({{"name", to_.repo.id.substr(slash + 1)},
                                {"organization", to_.repo.id.substr(0, slash)},
                                {"type", to_.repo.kind_name()}});
    if (options_.make_private) body.set("visibility", "private");
    const HttpReply reply = post("/api/repos/create", body);
    // "exists" is fine; who may write but not create gets a refusal here, and the repository may exist all the same.
    if (!reply.ok() && reply.status != 409 && (reply.status < 401 || reply.status > 403)) hub_.refuse(reply, to_);
    const HttpReply found = hub_.send({.url = to_.repo.api_path()});
    if (!found.ok()) hub_.refuse(reply.ok() || reply.status == 409 ? found : reply, to_);
    const Value info = reply_json(found, to_.repo.api_path());
    const Value* is_private = info.find("private");
    check(!options_.make_private || (is_private != nullptr && is_private->is_bool() && is_private->as_bool()),
          ExitCode::bad_input,
          "{} is public, and --private was asked: nothing was sent; make it private at {}/settings", to_.repo.id,
          hub_.web_address(to_.repo));
  }

  void create_branch() {
    if (to_.revision == "main") return;
    const HttpReply reply = post(to_.repo.api_path() + "/branch/" + url_segment(to_.revision), Value::object());
    if (!reply.ok() && reply.status != 409) hub_.refuse(reply, to_);
  }

  HttpReply post(const std::string& target, const Value& body) {
    const std::string text = to_json(body);
    return hub_.send({.method = "POST",
                      .url = target,
                      .headers = {"Content-Type: application/json"},
                      .body = std::as_bytes(std::span(text))});
  }

  /// The files whose content the hub does not have under their name; sets how each goes.
  std::vector<PushFile> ask_changed(const std::vector<PushFile>& files) {
    const std::string target = to_.repo.api_path() + "/preupload/" + url_segment(to_.revision);
    std::vector<PushFile> changed;
    for (size_t begin = 0; begin < files.size(); begin += kPreuploadFiles) {
      const std::span<const PushFile> batch(files.data() + begin, std::min(kPreuploadFiles, files.size() - begin));
      Value list = Value::array();
      for (const PushFile& file : batch) {
        const MappedFile content(folder_ / file.path);
        list.push_back(
            Value::object({{"path", file.path}, {"sample", base64(sample_of(content.bytes()))}, {"size", file.size}}));
      }
      const Value reply = hub_.post_json(target, Value::object({{"files", std::move(list)}}), to_);
      const Value* answers = reply.find("files");
      check(answers != nullptr && answers->is_array(), ExitCode::io, "{}: the reply has no list of files", target);
      for (PushFile file : batch)
        if (is_changed(file, *answers, target)) changed.push_back(file);
    }
    return changed;
  }

  bool is_changed(PushFile& file, const Value& answers, const std::string& where) const {
    for (const Value& answer : answers.items()) {
      if (text_of(answer, "path", where) != file.path) continue;
      const std::string& mode = text_of(answer, "uploadMode", where);
      check(mode == "lfs" || mode == "regular", ExitCode::io, "{}: '{}' is no way to send a file", where,
            printable(mode));
      file.is_large = mode == "lfs" && file.size > 0;  // the store takes no empty object
      const Value* there = answer.find("oid");
      if (there == nullptr || !there->is_string()) return true;
      const MappedFile content(folder_ / file.path);
      return there->as_string() != (file.is_large ? sha256_hex(content.bytes()) : git_blob_id(content.bytes()));
    }
    fail(ExitCode::io, "{}: the reply leaves out {}", where, printable(file.path));
  }

  std::vector<LargeFile> large_files(const std::vector<PushFile>& files) const {
    std::vector<LargeFile> out;
    for (const PushFile& file : files)
      if (file.is_large)
        out.push_back({file.path, folder_ / file.path, file.size, sha256_of_file(folder_ / file.path)});
    return out;
  }

  /// One commit: a line of JSON for its message, then one for each file.
  std::string commit(const std::vector<PushFile>& files, const std::vector<LargeFile>& large) {
    std::string lines;
    const auto add = [&lines](const char* key, Value value) {
      lines += to_json(Value::object({{"key", key}, {"value", std::move(value)}})) + "\n";
    };
    add("header", Value::object({{"summary", options_.message}, {"description", ""}}));
    for (const PushFile& file : files) {
      if (file.is_large) continue;
      const MappedFile content(folder_ / file.path);
      add("file", Value::object({{"content", base64(content.bytes())}, {"path", file.path}, {"encoding", "base64"}}));
    }
    for (const LargeFile& file : large)
      add("lfsFile",
          Value::object({{"path", file.path}, {"algo", "sha256"}, {"oid", file.sha256}, {"size", file.size}}));
    const std::string target = to_.repo.api_path() + "/commit/" + url_segment(to_.revision);
    const HttpReply reply = hub_.expect({.method = "POST",
                                         .url = target,
                                         .headers = {"Content-Type: application/x-ndjson"},
                                         .body = std::as_bytes(std::span(lines))},
                                        to_);
    return text_of(reply_json(reply, target), "commitUrl", target);
  }

  HubClient& hub_;
  const fs::path& folder_;
  const RepoRevision& to_;
  const PushOptions& options_;
  const fs::path& state_;
};

}  // namespace

PushPlan plan_push(const fs::path& folder, const Token& token, RunLogs logs) {
  std::error_code error;
  check(fs::is_directory(folder, error), ExitCode::bad_input, "there is no folder '{}'", printable(folder.string()));
  PushPlan plan;
  for (fs::recursive_directory_iterator at(folder), end; at != end; ++at) {
    const std::string path = at->path().lexically_relative(folder).generic_string();
    check(!at->is_symlink(), ExitCode::bad_input, "{} is a link: it is not followed; put the file itself there",
          printable(at->path().string()));
    const bool is_log = logs == RunLogs::stay && is_log_of_run(at->path());
    if (is_log || is_left_out(at->path().filename())) {
      if (at->is_directory()) at.disable_recursion_pending();
      (is_log ? plan.logs : plan.left_out).push_back(path);
      continue;
    }
    if (at->is_directory()) continue;
    check_relative_path(path, ExitCode::bad_input, folder.string());
    const MappedFile content(at->path());
    const Bytes bytes = content.bytes();
    check(!token.is_in({reinterpret_cast<const char*>(bytes.data()), bytes.size()}), ExitCode::bad_input,
          "{} holds the access token of {}: nothing is sent; remove it from the file, and revoke it if others saw it",
          printable(at->path().string()), token.source());
    plan.files.push_back({path, bytes.size(), is_large_by_rule(path, bytes)});
  }
  check(!plan.files.empty(), ExitCode::bad_input, "{} holds no file to send", printable(folder.string()));
  std::sort(plan.files.begin(), plan.files.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
  std::sort(plan.left_out.begin(), plan.left_out.end());
  std::sort(plan.logs.begin(), plan.logs.end());
  return plan;
}

PushResult push_folder(HubClient& hub, const fs::path& folder, PushPlan plan, const RepoRevision& to,
                       const PushOptions& options, const fs::path& state) {
  return Push(hub, folder, to, options, state).run(std::move(plan));
}

}  // namespace saaz
