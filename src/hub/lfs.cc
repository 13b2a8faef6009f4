#include "hub/lfs.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/check.h"

namespace saaz {
namespace {

constexpr const char* kLfsType = "application/vnd.git-lfs+json";
constexpr size_t kBatch = 100;  // objects in one request

/// An upload in parts, as the hub set it up, with the parts that have arrived.
struct Parts {
  std::string complete_url, verify_url;  // no verify_url: the hub does not ask
  uint64_t chunk_size = 0;
  std::vector<std::string> urls;   // signed, one a part
  std::vector<std::string> etags;  // of the parts that arrived; empty = not yet
};

class PartsFile {
 public:
  PartsFile(const HubClient& hub, const RepoRevision& to, const LargeFile& file, const fs::path& folder)
      : key_(fmt::format("{}{}@{}:{}", hub.settings().endpoint, to.repo.web_path(), to.revision, file.sha256)),
        size_(file.size),
        path_(folder / (sha256_hex(key_) + ".json")) {
    make_directories(folder);
    std::error_code error;
    fs::permissions(folder, fs::perms::owner_all, error);
    if (error) fail_io("cannot close to others", folder, error.value());
  }

  /// What an earlier run left; nothing when it is not usable.
  std::optional<Parts> read() const {
    std::error_code error;
    if (!fs::exists(path_, error)) return std::nullopt;
    try {
      const std::string where = path_.string();
      const Value document = parse_json(read_file(path_), where);
      if (text_of(document, "key", where) != key_) return std::nullopt;
      Parts parts{text_of(document, "complete_url", where), text_of(document, "verify_url", where),
                  size_of_member(document, "chunk_size", where)};
      const Value *urls = document.find("urls"), *etags = document.find("etags");
      if (urls == nullptr || etags == nullptr || !urls->is_array() || !etags->is_array()) return std::nullopt;
      for (const Value& url : urls->items()) parts.urls.push_back(url.is_string() ? url.as_string() : "");
      for (const Value& etag : etags->items()) parts.etags.push_back(etag.is_string() ? etag.as_string() : "");
      if (parts.chunk_size == 0 || parts.etags.size() != parts.urls.size()) return std::nullopt;
      if (parts.urls.size() != (size_ + parts.chunk_size - 1) / parts.chunk_size) return std::nullopt;
      return parts;
    } catch (const Error&) {
      return std::nullopt;  // damaged: the upload starts anew
    }
  }

  void write(const Parts& parts) const {
    Value urls = Value::array(), etags = Value::array();
    for (const std::string& url : parts.urls) urls.push_back(url);
    for (const std::string& etag : parts.etags) etags.push_back(etag);
    write_file_atomically(path_, to_json(Value::object({{"key", key_},
                                                        {"complete_url", parts.complete_url},
                                                        {"verify_url", parts.verify_url},
                                                        {"chunk_size", parts.chunk_size},
                                                        {"urls", std::move(urls)},
                                                        {"etags", std::move(etags)}})));
  }

  void remove() const {
    std::error_code ignored;
    fs::remove(path_, ignored);
  }

 private:
  std::string key_;
  uint64_t size_;
  fs::path path_;
};

/// The part addresses in the header of an upload action: {"chunk_size": "5", "1": url, "2": url, ...}.
Parts parse_parts(const Value& header, const LargeFile& file, const std::string& where) {
  Parts parts;
  const Value* chunk = header.find("chunk_size");
  if (chunk->is_integer() && chunk->as_integer() > 0) parts.chunk_size = static_cast<uint64_t>(chunk->as_integer());
  if (chunk->is_string()) {
    const std::string& text = chunk->as_string();
    std::from_chars(text.data(), text.data() + text.size(), parts.chunk_size);
  }
  check(parts.chunk_size > 0, ExitCode::io, "{}: the reply has an impossible chunk_size", where);
  const uint64_t n_parts = (file.size + parts.chunk_size - 1) / parts.chunk_size;
  check(n_parts <= header.members().size(), ExitCode::io, "{}: the reply has too few parts for {}", where,
        printable(file.path));
  for (uint64_t i = 1; i <= n_parts; ++i) {
    const Value* url = header.find(std::to_string(i));
    const Value* padded = header.find(fmt::format("{:05}", i));
    if (url == nullptr) url = padded;
    check(url != nullptr && url->is_string(), ExitCode::io, "{}: the reply has no part {} of {}", where, i,
          printable(file.path));
    parts.urls.push_back(url->as_string());
  }
  parts.etags.resize(parts.urls.size());
  return parts;
}

class LargeFileUpload {
 public:
  LargeFileUpload(HubClient& hub, const RepoRevision& to, const LargeFile& file, const fs::path& state)
      : hub_(hub), to_(to), file_(file), state_(hub, to, file, state), content_(file.local) {}

  /// Goes on with what an earlier run began: true when the object is now complete.
  bool resume() {
    std::optional<Parts> parts = state_.read();
    if (!parts) return false;
    if (!send_parts(*parts).ok()) {
      state_.remove();  // the addresses have expired, or the upload is complete: the hub will say
      return false;
    }
    verify(parts->verify_url);
    return true;
  }

  /// By the hub's instructions for this object.
  void start(const Value& actions, const std::string& where) {
    const Value* upload = actions.find("upload");
    check(upload != nullptr, ExitCode::io, "{}: the reply does not say where to send {}", where, printable(file_.path));
    const std::string& url = text_of(*upload, "href", where);
    const Value *header = upload->find("header"), *verification = actions.find("verify");
    const std::string verify_url = verification == nullptr ? "" : text_of(*verification, "href", where);
    HttpReply reply;
    if (header != nullptr && header->find("chunk_size") != nullptr) {
      Parts parts = parse_parts(*header, file_, where);
      parts.complete_url = url;
      parts.verify_url = verify_url;
      state_.write(parts);
      reply = send_parts(parts);
    } else {
      reply = send_piece(url, 0, content_.bytes());
    }
    if (!reply.ok()) hub_.refuse(reply, to_);
    verify(verify_url);
  }

  uint64_t bytes_sent() const { return bytes_sent_; }

 private:
  HttpRequest json_request(const std::string& url, const Value& body, const std::string& type) {
    text_ = to_json(body);
    return {.method = "POST",
            .url = url,
            .headers = {"Content-Type: " + type, "Accept: " + type},
            .body = std::as_bytes(std::span(text_))};
  }

  /// Lets the hub look at what arrived.
  void verify(const std::string& url) {
    if (url.empty()) return;
    const Value body = Value::object({{"oid", file_.sha256}, {"size", file_.size}});
    hub_.expect(json_request(url, body, "application/json"), to_);
  }

  HttpReply send_piece(const std::string& url, uint64_t begin, Bytes piece) {
    HttpRequest request{.method = "PUT", .url = url, .body = piece};
    request.on_sent = [&](uint64_t n) { hub_.settings().progress(file_.path, begin + n, file_.size); };
    HttpReply reply = hub_.send(request);
    if (reply.ok()) bytes_sent_ += piece.size();
    return reply;
  }

  /// Sends the parts that have not arrived, then tells the hub. The last reply: ok, or a refusal.
  HttpReply send_parts(Parts& parts) {
    for (size_t i = 0; i < parts.urls.size(); ++i) {
      if (!parts.etags[i].empty()) continue;
      const uint64_t begin = i * parts.chunk_size;
      HttpReply reply = send_piece(parts.urls[i], begin,
                                   content_.bytes().subspan(begin, std::min(parts.chunk_size, file_.size - begin)));
      if (!reply.ok()) return reply;
      parts.etags[i] = reply.header("etag");
      check(!parts.etags[i].empty(), ExitCode::io, "{}: the store gives no ETag for part {}", printable(file_.path),
            i + 1);
      state_.write(parts);
    }
    Value list = Value::array();
    for (size_t i = 0; i < parts.etags.size(); ++i)
      list.push_back(Value::object({{"partNumber", static_cast<int64_t>(i + 1)}, {"etag", parts.etags[i]}}));
    const Value body = Value::object({{"oid", file_.sha256}, {"parts", std::move(list)}});
    HttpReply reply = hub_.send(json_request(parts.complete_url, body, kLfsType));
    if (reply.ok()) state_.remove();
    return reply;
  }

  HubClient& hub_;
  const RepoRevision& to_;
  const LargeFile& file_;
  PartsFile state_;
  MappedFile content_;
  std::string text_;
  uint64_t bytes_sent_ = 0;
};

/// What the hub says about each object: its actions, or null when it has it.
Value ask_batch(HubClient& hub, const RepoRevision& to, std::span<const LargeFile> files, const std::string& target) {
  Value objects = Value::array();
  for (const LargeFile& file : files) objects.push_back(Value::object({{"oid", file.sha256}, {"size", file.size}}));
  const Value reply = hub.post_json(target,
                                    Value::object({{"operation", "upload"},
                                                   {"transfers", Value::array({"basic", "multipart"})},
                                                   {"objects", std::move(objects)},
                                                   {"hash_algo", "sha256"},
                                                   {"ref", Value::object({{"name", to.revision}})}}),
                                    to, kLfsType);
  const Value* found = reply.find("objects");
  check(found != nullptr && found->is_array(), ExitCode::io, "{}: the reply has no list of objects", target);
  return *found;
}

const Value& object_of(const Value& objects, const LargeFile& file, const std::string& where) {
  for (const Value& object : objects.items()) {
    if (text_of(object, "oid", where) != file.sha256) continue;
    if (const Value* error = object.find("error"); error != nullptr && error->is_object())
      fail(ExitCode::io, "the hub does not take {}: {}", printable(file.path),
           printable(text_of(*error, "message", where)));
    return object;
  }
  fail(ExitCode::io, "{}: the reply leaves out {}", where, printable(file.path));
}

}  // namespace

LargeUpload upload_large_files(HubClient& hub, const RepoRevision& to, const std::vector<LargeFile>& files,
                               const fs::path& state) {
  LargeUpload result;
  const std::string target = to.repo.web_path() + ".git/info/lfs/objects/batch";
  std::vector<LargeFile> fresh;
  for (const LargeFile& file : files) {
    const bool is_twin =
        std::any_of(fresh.begin(), fresh.end(), [&](const LargeFile& f) { return f.sha256 == file.sha256; });
    if (is_twin) continue;
    LargeFileUpload upload(hub, to, file, state);
    if (!upload.resume()) fresh.push_back(file);
    result.bytes_sent += upload.bytes_sent();
  }
  for (size_t begin = 0; begin < fresh.size(); begin += kBatch) {
    const std::span<const LargeFile> batch(fresh.data() + begin, std::min(kBatch, fresh.size() - begin));
    const Value objects = ask_batch(hub, to, batch, target);
    for (const LargeFile& file : batch) {
      const Value* actions = object_of(objects, file, target).find("actions");
      if (actions == nullptr || actions->is_null()) {
        ++result.n_already_there;
        continue;
      }
      LargeFileUpload upload(hub, to, file, state);
      upload.start(*actions, target);
      result.bytes_sent += upload.bytes_sent();
    }
  }
  return result;
}

}  // namespace saaz
