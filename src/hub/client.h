// Talking with a hub: where the token may go, redirects, retries, and what each refusal means to a person. Requests
// name a path below the endpoint, or a whole URL. Errors: bad_input when trying again is of no use (the name, the
// token, the terms), io when it may be (network, server, limits).
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "base/system.h"
#include "base/value.h"
#include "hub/http.h"
#include "hub/names.h"
#include "hub/token.h"

namespace saaz {

inline constexpr const char* kOfficialEndpoint = "https://huggingface.co";

struct HubSettings {
  std::string endpoint = kOfficialEndpoint;
  fs::path cache;  // HF_HUB_CACHE
  Token token;
  bool send_token = false;  // also to an endpoint that is not the official one
  bool offline = false;     // no request at all
  int stall_seconds = 60;
  double backoff_seconds = 1;  // before the first retry; doubles
  std::string ca_file;
  std::function<void(const std::string&)> log = [](const std::string&) {};
  /// Bytes of `file` that are there, of all it has.
  std::function<void(const std::string& file, uint64_t done, uint64_t total)> progress = [](const std::string&,
                                                                                            uint64_t, uint64_t) {};
};

class HubClient {
 public:
  explicit HubClient(HubSettings settings);
  const HubSettings& settings() const { return settings_; }
  /// "https://huggingface.co/org/name"
  std::string web_address(const Repo& repo) const { return settings_.endpoint + repo.web_path(); }

  /// One try, redirects followed. The token goes to the endpoint's own host only.
  HttpReply try_once(HttpRequest request);
  /// Tries again while it may help; an Error when no reply comes. The reply may be a refusal.
  HttpReply send(const HttpRequest& request);
  /// The same, and a refusal is an Error about `about`.
  HttpReply expect(const HttpRequest& request, const RepoRevision& about);
  Value get_json(const std::string& target, const RepoRevision& about);
  Value post_json(const std::string& target, const Value& body, const RepoRevision& about,
                  const std::string& content_type = "application/json");
  /// Throws what the refusal means.
  [[noreturn]] void refuse(const HttpReply& reply, const RepoRevision& about) const;

 private:
  bool may_see_token(const std::string& url) const;
  std::string token_advice() const;
  [[noreturn]] void refuse_unauthorized(const HttpReply& reply, const RepoRevision& about) const;
  [[noreturn]] void refuse_forbidden(const HttpReply& reply, const RepoRevision& about) const;
  std::string words_of(const HttpReply& reply) const;

  HubSettings settings_;
  Http http_;
};

/// Counts tries of one thing. Faults of the way, limits (429) and a server's troubles (5xx) may pass.
class Retries {
 public:
  explicit Retries(const HubSettings& settings) : settings_(settings) {}
  /// Waits and returns true when another try is due; false: the reply is the answer. Error after the last fault.
  bool wait_for_another(const HttpReply& reply);
  /// There was progress since: all tries are left again.
  void reset() { n_tries_ = 0; }

 private:
  const HubSettings& settings_;
  int n_tries_ = 0;
};

/// The checked JSON of a reply; `where` is for messages. What is no JSON is the network's fault (a login page).
Value reply_json(const HttpReply& reply, const std::string& where);
/// A member of a reply that must be there.
const std::string& text_of(const Value& object, std::string_view key, const std::string& where);
uint64_t size_of_member(const Value& object, std::string_view key, const std::string& where);

}  // namespace saaz
