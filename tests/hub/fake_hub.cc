#include "hub/fake_hub.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>

#include "base/check.h"
#include "base/system.h"

namespace saaz::testing_hub {
namespace {

Bytes bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

bool send_all(int socket, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = send(socket, text.data(), text.size(), MSG_NOSIGNAL);
    if (n <= 0) return false;
    text.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

int listen_on_loopback(int* port) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  const bool ok = listener >= 0 && bind(listener, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
                  listen(listener, 64) == 0 && getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) == 0;
  check(ok, ExitCode::io, "the fake hub cannot listen");
  *port = ntohs(address.sin_port);
  return listener;
}

std::string percent_decoded(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size())
      out += static_cast<char>(std::stoi(text.substr(i + 1, 2), nullptr, 16)), i += 2;
    else
      out += text[i];
  }
  return out;
}

std::string base64_decoded(const std::string& text) {
  static const std::string kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  uint32_t group = 0;
  int n_bits = 0;
  for (const char c : text) {
    const size_t digit = kDigits.find(c);
    if (digit == std::string::npos) break;
    group = group << 6 | static_cast<uint32_t>(digit), n_bits += 6;
    if (n_bits >= 8) out += static_cast<char>(group >> (n_bits -= 8) & 255);
  }
  return out;
}

Reply error_reply(int status, const std::string& code, const std::string& words) {
  Reply reply{status, to_json(Value::object({{"error", words}}))};
  reply.headers = {"Content-Type: application/json"};
  if (!code.empty()) reply.headers.push_back("X-Error-Code: " + code);
  if (!words.empty()) reply.headers.push_back("X-Error-Message: " + words);
  return reply;
}

Reply json_reply(const Value& value) { return {200, to_json(value), {"Content-Type: application/json"}}; }

/// "org/name" at the start of a path, and what follows.
std::pair<std::string, std::string> split_name(const std::string& path) {
  const size_t first = path.find('/'), second = first == std::string::npos ? first : path.find('/', first + 1);
  if (second == std::string::npos) return {path, ""};
  return {path.substr(0, second), path.substr(second)};
}

}  // namespace

bool is_large(const std::string& path, size_t size) { return path.ends_with(".safetensors") || size > (1 << 20); }

FakeHub::FakeHub() {
  for (const int i : {0, 1}) {
    listeners_[i] = listen_on_loopback(&ports_[i]);
    threads_.emplace_back([this, i] { serve(listeners_[i], i == 1); });
  }
}

FakeHub::~FakeHub() {
  stopping_ = true;
  for (const int listener : listeners_) shutdown(listener, SHUT_RDWR);
  threads_[0].join();
  threads_[1].join();
  {
    const std::lock_guard lock(mutex_);
    for (const int socket : sockets_) shutdown(socket, SHUT_RDWR);
  }
  for (size_t i = 2; i < threads_.size(); ++i) threads_[i].join();
  for (const int socket : sockets_) close(socket);
  for (const int listener : listeners_) close(listener);
}

std::string FakeHub::add_commit(const std::string& name, const std::string& branch, Files files) {
  const std::lock_guard lock(mutex_);
  std::string listing = name;
  for (const auto& [path, content] : files) {
    listing += "\n" + path + " " + sha256_hex(content);
    if (is_large(path, content.size())) objects_[sha256_hex(content)] = content;
  }
  const std::string commit = git_blob_id(bytes_of(listing));
  Repository& repository = repositories_[name];
  repository.refs[branch] = commit;
  repository.commits[commit] = std::move(files);
  return commit;
}

Repository& FakeHub::repository(const std::string& name) { return repositories_[name]; }

Repository FakeHub::copy_of(const std::string& name) {
  const std::lock_guard lock(mutex_);
  return repositories_[name];
}

void FakeHub::misbehave(Fault fault) {
  const std::lock_guard lock(mutex_);
  faults_.push_back(std::move(fault));
}

std::vector<Request> FakeHub::requests() {
  const std::lock_guard lock(mutex_);
  return requests_;
}

void FakeHub::forget_requests() {
  const std::lock_guard lock(mutex_);
  requests_.clear();
}

void FakeHub::forget_uploads() {
  const std::lock_guard lock(mutex_);
  uploads_.clear();
}

size_t FakeHub::count(const std::string& match) {
  const std::lock_guard lock(mutex_);
  return static_cast<size_t>(std::count_if(requests_.begin(), requests_.end(), [&](const Request& request) {
    return (request.method + " " + request.target).find(match) != std::string::npos;
  }));
}

void FakeHub::serve(int listener, bool on_store) {
  while (!stopping_) {
    const int socket = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (socket < 0) return;
    const std::lock_guard lock(mutex_);
    sockets_.push_back(socket);
    threads_.emplace_back([this, socket, on_store] {
      converse(socket, on_store);
      shutdown(socket, SHUT_RDWR);
    });
  }
}

bool FakeHub::find_fault(const Request& request, Fault* out) {
  const std::lock_guard lock(mutex_);
  for (Fault& fault : faults_) {
    if (fault.times <= 0 || (request.method + " " + request.target).find(fault.match) == std::string::npos) continue;
    --fault.times;
    *out = fault;
    return true;
  }
  return false;
}

/// Requests of one connection, until it ends.
void FakeHub::converse(int socket, bool on_store) {
  std::string buffer;
  std::array<char, 1 << 16> piece;
  const auto read_more = [&] {
    const ssize_t n = recv(socket, piece.data(), piece.size(), 0);
    if (n > 0) buffer.append(piece.data(), static_cast<size_t>(n));
    return n > 0;
  };
  for (;;) {
    size_t end = 0;
    while ((end = buffer.find("\r\n\r\n")) == std::string::npos) {
      if (!read_more()) return;
      if (buffer[0] == '\x16')
        return static_cast<void>(send_all(socket, "HTTP/1.1 400 TLS is not spoken here\r\n\r\n"));
    }
    Request request{on_store};
    const std::string head = buffer.substr(0, end + 2);
    buffer.erase(0, end + 4);
    const size_t space = head.find(' ');
    request.method = head.substr(0, space);
    request.target = head.substr(space + 1, head.find(' ', space + 1) - space - 1);
    request.path = percent_decoded(request.target.substr(0, request.target.find('?')));
    for (size_t at = head.find("\r\n") + 2; at < head.size();) {
      const size_t line_end = head.find("\r\n", at), colon = head.find(':', at);
      std::string name = head.substr(at, colon - at);
      std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
      const size_t value = head.find_first_not_of(' ', colon + 1);
      request.headers[name] = head.substr(value, line_end - value);
      at = line_end + 2;
    }
    const std::string length = request.header("content-length");
    const size_t size = length.empty() ? 0 : std::stoull(length);
    Fault fault;
    const bool misbehaves = find_fault(request, &fault);
    while (buffer.size() < size) {
      if (misbehaves && request.method == "PUT" && fault.cut_after >= 0 &&
          buffer.size() >= static_cast<size_t>(fault.cut_after))
        return;
      if (!read_more()) return;
    }
    request.body = buffer.substr(0, size);
    buffer.erase(0, size);
    {
      const std::lock_guard lock(mutex_);
      requests_.push_back(request);
    }
    if (misbehaves && fault.stall_ms > 0)
      for (int i = 0; i < fault.stall_ms && !stopping_; i += 10)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    Reply reply = misbehaves && fault.status != 0 ? Reply{fault.status, fault.body, fault.headers} : reply_to(request);
    if (misbehaves && fault.flip >= 0 && static_cast<size_t>(fault.flip) < reply.body.size())
      reply.body[static_cast<size_t>(fault.flip)] ^= 1;
    std::string text = fmt::format("HTTP/1.1 {} Reply\r\nContent-Length: {}\r\n", reply.status, reply.body.size());
    for (const std::string& line : reply.headers) text += line + "\r\n";
    text += "\r\n";
    if (request.method != "HEAD")
      text +=
          misbehaves && fault.cut_after >= 0 ? reply.body.substr(0, static_cast<size_t>(fault.cut_after)) : reply.body;
    if (!send_all(socket, text) || (misbehaves && fault.cut_after >= 0)) return;
  }
}

Reply FakeHub::reply_to(const Request& request) {
  const std::lock_guard lock(mutex_);
  if (request.on_store) return reply_of_store(request);
  const std::string authorization = request.header("authorization");
  if (!authorization.empty() && authorization != std::string("Bearer ") + kToken)
    return error_reply(401, "", "Invalid credentials: " + authorization);  // a hub that says too much
  if (request.path == "/api/repos/create") {
    if (authorization.empty()) return error_reply(401, "", "Invalid username or password.");
    const Value body = parse_json(request.body, "create");
    const Value* type = body.find("type");  // a model unless it says otherwise
    const std::string name = (type == nullptr ? "model" : type->as_string()) + "s/" +
                             body.find("organization")->as_string() + "/" + body.find("name")->as_string();
    if (repositories_.count(name) != 0) return error_reply(409, "", "You already created this repo");
    const Value* visibility = body.find("visibility");
    repositories_[name].is_private =
        !ignores_visibility && visibility != nullptr && visibility->as_string() == "private";
    add_commit(name, "main", {{".gitattributes", "*.safetensors filter=lfs\n"}});
    return json_reply(Value::object({{"url", endpoint() + "/" + name}}));
  }
  if (request.path == "/complete") return complete(request);
  if (request.path == "/verify") {
    if (authorization.empty()) return error_reply(401, "", "no token");
    const Value body = parse_json(request.body, "verify");
    return objects_.count(body.find("oid")->as_string()) != 0 ? json_reply(Value::object())
                                                              : error_reply(404, "", "gone");
  }
  const bool is_api = request.path.starts_with("/api/");
  std::string rest = request.path.substr(is_api ? 5 : 1), kind = "models/";
  for (const char* prefix : {"models/", "datasets/"})
    if (rest.starts_with(prefix)) kind = prefix, rest = rest.substr(kind.size());
  auto [id, tail] = split_name(rest);
  const bool is_batch = !is_api && id.ends_with(".git");
  if (is_batch) id.resize(id.size() - 4);
  const auto found = repositories_.find(kind + id);
  const bool is_hidden = found == repositories_.end() || (found->second.is_private && authorization.empty());
  if (is_hidden && authorization.empty()) return error_reply(401, "RepoNotFound", "Invalid username or password.");
  if (is_hidden) return error_reply(404, "RepoNotFound", "Repository not found");
  if (is_batch) return reply_to_batch(request);
  return is_api ? reply_of_api(request, kind + id, tail) : reply_with_file(request, kind + id, tail);
}

Reply FakeHub::with_range(const Request& request, const std::string& content, std::vector<std::string> headers) {
  const std::string range = request.header("range");
  headers.push_back("Accept-Ranges: bytes");
  if (range.empty() || !serves_ranges) return {200, content, headers};
  const size_t begin = std::stoull(range.substr(range.find('=') + 1));
  if (begin >= content.size()) return {416, "", headers};
  headers.push_back(fmt::format("Content-Range: bytes {}-{}/{}", begin, content.size() - 1, content.size()));
  return {206, content.substr(begin), headers};
}

Reply FakeHub::reply_of_store(const Request& request) {
  if (!request.header("authorization").empty()) return error_reply(400, "", "Only one auth mechanism allowed");
  if (request.target.find("?Signature=") == std::string::npos) return error_reply(403, "", "not signed");
  if (request.path.starts_with("/blob/")) return with_range(request, objects_[request.path.substr(6)], {});
  if (request.method == "PUT" && request.path.starts_with("/put/")) {
    const std::string oid = request.path.substr(5);
    if (sha256_hex(request.body) != oid) return error_reply(400, "", "wrong content");
    objects_[oid] = request.body;
    return {200, "", {"ETag: \"" + oid + "\""}};
  }
  const size_t slash = request.path.rfind('/');
  const std::string upload = request.path.substr(6, slash - 6);  // "/part/<upload>/<i>"
  if (uploads_.count(upload) == 0) return error_reply(403, "", "Request has expired");
  uploads_[upload][std::stoi(request.path.substr(slash + 1))] = request.body;
  return {200, "", {"ETag: \"" + sha256_hex(request.body).substr(0, 32) + "\""}};
}

Reply FakeHub::complete(const Request& request) {
  const std::string upload = request.target.substr(request.target.find("upload=") + 7);
  const Value body = parse_json(request.body, "complete");
  const auto& parts = uploads_[upload];
  std::string content;
  for (const Value& part : body.find("parts")->items()) {
    const auto found = parts.find(static_cast<int>(part.find("partNumber")->as_integer()));
    if (found == parts.end() || part.find("etag")->as_string() != "\"" + sha256_hex(found->second).substr(0, 32) + "\"")
      return error_reply(400, "", "InvalidPart");
    content += found->second;
  }
  const std::string& oid = body.find("oid")->as_string();
  if (sha256_hex(content) != oid) return error_reply(400, "", "the parts do not make the object");
  objects_[oid] = content;
  uploads_.erase(upload);
  return json_reply(Value::object());
}

Reply FakeHub::reply_of_api(const Request& request, const std::string& name, const std::string& rest) {
  Repository& repository = repositories_[name];
  const std::string id = name.substr(name.find('/') + 1);
  const size_t slash = rest.find('/', 1);
  const std::string action = rest.substr(0, slash), argument = slash == std::string::npos ? "" : rest.substr(slash + 1);
  const bool writes = request.method == "POST";
  if (writes && request.header("authorization").empty()) return error_reply(401, "", "Invalid username or password.");
  if (writes && action == "/branch") {
    if (repository.refs.count(argument) != 0) return error_reply(409, "", "Reference already exists");
    repository.refs[argument] = repository.refs["main"];
    return json_reply(Value::object());
  }
  const std::string revision = argument.empty() ? "main" : argument;
  const std::string commit = repository.refs.count(revision) != 0 ? repository.refs[revision] : revision;
  if (repository.commits.count(commit) == 0) return error_reply(404, "RevisionNotFound", "Invalid rev id: " + revision);
  const Files& files = repository.commits[commit];
  if (action == "/commit") return reply_to_commit(request, repository, revision);
  if (action == "/preupload") {
    Value answers = Value::array();
    const Value body = parse_json(request.body, "preupload");
    for (const Value& file : body.find("files")->items()) {
      const std::string& path = file.find("path")->as_string();
      const bool large = is_large(path, static_cast<size_t>(file.find("size")->as_integer()));
      Value answer = Value::object(
          {{"path", path}, {"uploadMode", large ? "lfs" : "regular"}, {"shouldIgnore", false}, {"oid", Value()}});
      if (const auto there = files.find(path); there != files.end())
        answer.set("oid",
                   large && !there->second.empty() ? sha256_hex(there->second) : git_blob_id(bytes_of(there->second)));
      answers.push_back(answer);
    }
    return json_reply(Value::object({{"files", answers}}));
  }
  if (action == "/tree") {
    Value page = Value::array();
    const size_t cursor = request.target.find("cursor=");
    const size_t begin = cursor == std::string::npos ? 0 : std::stoull(request.target.substr(cursor + 7));
    size_t i = 0;
    for (const auto& [path, content] : files) {
      if (i++ < begin || i > begin + page_size) continue;
      Value entry = Value::object(
          {{"type", "file"}, {"path", path}, {"size", content.size()}, {"oid", git_blob_id(bytes_of(content))}});
      if (is_large(path, content.size()))
        entry.set("lfs", Value::object({{"oid", sha256_hex(content)}, {"size", content.size()}, {"pointerSize", 134}}));
      page.push_back(entry);
    }
    Reply reply = json_reply(page);
    if (begin + page_size < files.size())
      reply.headers.push_back(fmt::format("Link: <{}{}?recursive=true&cursor={}>; rel=\"next\"", endpoint(),
                                          request.path, begin + page_size));
    return reply;
  }
  Value siblings = Value::array();
  for (const auto& [path, content] : files) siblings.push_back(Value::object({{"rfilename", path}}));
  return json_reply(
      Value::object({{"id", id}, {"sha", commit}, {"private", repository.is_private}, {"siblings", siblings}}));
}

Reply FakeHub::reply_with_file(const Request& request, const std::string& name, const std::string& rest) {
  Repository& repository = repositories_[name];
  const std::string prefix = "/resolve/";
  if (!rest.starts_with(prefix)) return error_reply(404, "", "no such page");
  const size_t slash = rest.find('/', prefix.size());
  const std::string revision = rest.substr(prefix.size(), slash - prefix.size()), path = rest.substr(slash + 1);
  if (repository.is_gated)
    return error_reply(request.header("authorization").empty() ? 401 : 403, "GatedRepo",
                       "Access to model " + name + " is restricted and you are not in the authorized list.");
  const std::string commit = repository.refs.count(revision) != 0 ? repository.refs[revision] : revision;
  if (repository.commits.count(commit) == 0) return error_reply(404, "RevisionNotFound", "Invalid rev id");
  const Files& files = repository.commits[commit];
  if (files.count(path) == 0) return error_reply(404, "EntryNotFound", "Entry not found");
  const std::string& content = files.at(path);
  if (!is_large(path, content.size()))
    return with_range(request, content,
                      {"X-Repo-Commit: " + commit, "ETag: \"" + git_blob_id(bytes_of(content)) + "\""});
  const std::string oid = sha256_hex(content);
  return {302,
          "",
          {"Location: " + store() + "/blob/" + oid + "?Signature=SIGNED", "X-Repo-Commit: " + commit,
           "X-Linked-Etag: \"" + oid + "\"", "X-Linked-Size: " + std::to_string(content.size())}};
}

Reply FakeHub::reply_to_batch(const Request& request) {
  if (request.header("authorization").empty()) return error_reply(401, "", "Invalid username or password.");
  const Value body = parse_json(request.body, "batch");
  Value objects = Value::array();
  for (const Value& asked : body.find("objects")->items()) {
    const std::string& oid = asked.find("oid")->as_string();
    const auto size = static_cast<size_t>(asked.find("size")->as_integer());
    Value object = Value::object({{"oid", oid}, {"size", size}});
    if (objects_.count(oid) == 0) {
      Value header = Value::object();
      std::string href = store() + "/put/" + oid + "?Signature=SIGNED";
      if (size > 4 * part_size) {
        const std::string upload = std::to_string(++n_uploads_);
        uploads_[upload];
        header.set("chunk_size", std::to_string(part_size));
        for (size_t i = 1; i <= (size + part_size - 1) / part_size; ++i)
          header.set(std::to_string(i), fmt::format("{}/part/{}/{}?Signature=SIGNED", store(), upload, i));
        href = endpoint() + "/complete?upload=" + upload;
      }
      object.set("actions", Value::object({{"upload", Value::object({{"href", href}, {"header", header}})},
                                           {"verify", Value::object({{"href", endpoint() + "/verify"}})}}));
    }
    objects.push_back(object);
  }
  return json_reply(Value::object({{"transfer", "multipart"}, {"objects", objects}}));
}

Reply FakeHub::reply_to_commit(const Request& request, Repository& repository, const std::string& branch) {
  if (repository.refs.count(branch) == 0) return error_reply(404, "RevisionNotFound", "no such branch");
  Files files = repository.commits[repository.refs[branch]];
  for (size_t at = 0; at < request.body.size();) {
    const size_t end = request.body.find('\n', at);
    const Value line = parse_json(request.body.substr(at, end - at), "commit");
    at = end + 1;
    const std::string& key = line.find("key")->as_string();
    const Value& value = *line.find("value");
    if (key == "header") repository.last_message = value.find("summary")->as_string();
    if (key == "file") files[value.find("path")->as_string()] = base64_decoded(value.find("content")->as_string());
    if (key != "lfsFile") continue;
    const std::string& oid = value.find("oid")->as_string();
    if (objects_.count(oid) == 0) return error_reply(400, "", "the object " + oid + " was not uploaded");
    files[value.find("path")->as_string()] = objects_[oid];
  }
  std::string name;
  for (const auto& [key, kept] : repositories_)
    if (&kept == &repository) name = key;
  const std::string commit = add_commit(name, branch, std::move(files));
  return json_reply(
      Value::object({{"commitOid", commit}, {"commitUrl", endpoint() + "/" + name + "/commit/" + commit}}));
}

}  // namespace saaz::testing_hub
