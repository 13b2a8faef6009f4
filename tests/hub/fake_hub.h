// A hub for tests, over real HTTP on two loopback ports: the hub itself and the store it redirects to, as the real one
// redirects to a CDN. It keeps repositories in memory, checks what it is told, records every request, and misbehaves
// when asked. The store refuses a request that carries an Authorization header.
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/value.h"

namespace saaz::testing_hub {

struct Request {
  bool on_store = false;
  std::string method, target, path;  // target: with the query
  std::map<std::string, std::string> headers;
  std::string body;

  std::string header(const std::string& name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? "" : found->second;
  }
};

struct Reply {
  int status = 200;
  std::string body;
  std::vector<std::string> headers;
};

/// What goes wrong with requests whose method and target hold `match`.
struct Fault {
  std::string match;
  int times = 1;
  int status = 0;  // a reply with this status and these headers
  std::vector<std::string> headers;
  std::string body;
  int64_t cut_after = -1;  // the connection ends after so many bytes of the body (of the request's, when it is a PUT)
  int64_t flip = -1;       // this byte of the reply's body is wrong
  int stall_ms = 0;        // nothing is sent for so long
};

using Files = std::map<std::string, std::string>;

struct Repository {
  bool is_private = false, is_gated = false;
  std::map<std::string, std::string> refs;  // branch or tag -> commit
  std::map<std::string, Files> commits;
  std::string last_message;
};

class FakeHub {
 public:
  static constexpr const char* kToken = "hf_CANARY0123456789abcdefghijklmnopq";

  FakeHub();
  ~FakeHub();
  std::string endpoint() const { return "http://127.0.0.1:" + std::to_string(ports_[0]); }
  std::string store() const { return "http://127.0.0.1:" + std::to_string(ports_[1]); }

  /// A commit on a branch; `name` is "models/org/name" or "datasets/org/name". Returns its id.
  std::string add_commit(const std::string& name, const std::string& branch, Files files);
  Repository& repository(const std::string& name);
  Repository copy_of(const std::string& name);
  void misbehave(Fault fault);
  std::vector<Request> requests();
  void forget_requests();
  void forget_uploads();                   // as if their signed addresses had expired
  size_t count(const std::string& match);  // requests whose "METHOD target" holds it

  size_t page_size = 1000;       // of listings
  size_t part_size = 256 << 10;  // files above 4 parts go in parts
  bool serves_ranges = true;
  bool ignores_visibility = false;  // as an old hub would

 private:
  void serve(int listener, bool on_store);
  void converse(int socket, bool on_store);
  Reply reply_to(const Request& request);
  Reply reply_of_store(const Request& request);
  Reply reply_of_api(const Request& request, const std::string& name, const std::string& rest);
  Reply reply_with_file(const Request& request, const std::string& name, const std::string& rest);
  Reply reply_to_batch(const Request& request);
  Reply reply_to_commit(const Request& request, Repository& repository, const std::string& branch);
  Reply complete(const Request& request);
  Reply with_range(const Request& request, const std::string& content, std::vector<std::string> headers);
  bool find_fault(const Request& request, Fault* out);

  std::recursive_mutex mutex_;
  std::map<std::string, Repository> repositories_;
  std::map<std::string, std::string> objects_;                 // SHA-256 -> content
  std::map<std::string, std::map<int, std::string>> uploads_;  // upload id -> parts
  std::vector<Fault> faults_;
  std::vector<Request> requests_;
  int listeners_[2] = {-1, -1}, ports_[2] = {0, 0}, n_uploads_ = 0;
  std::atomic<bool> stopping_ = false;
  std::vector<std::thread> threads_;
  std::vector<int> sockets_;
};

/// Whether the fake hub keeps a file as a large one.
bool is_large(const std::string& path, size_t size);

}  // namespace saaz::testing_hub
