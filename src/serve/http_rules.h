// Who may ask what. Enters: the head of a request, the options and the routes. Leaves: the route, or the WebFault that
// refuses it. Pure functions: nothing here knows of sockets.
#pragma once

#include "serve/http.h"

namespace saaz {

/// Keys are kept and compared as digests, in a time that does not depend on where they differ.
class KeyRing {
 public:
  explicit KeyRing(const std::vector<std::string>& keys);
  bool is_empty() const { return digests_.empty(); }
  /// Whether `authorization` is "Bearer " and one of the keys.
  bool admits(std::string_view authorization) const;

 private:
  std::vector<std::string> digests_;
};

enum class BindKind : uint8_t { loopback, other };

class WebRules {
 public:
  /// usage when an option cannot be (an empty key, an origin that is none, no key where one must be).
  WebRules(const WebOptions& options, BindKind bind);

  /// The route of a request; `request.tail` is set. Throws WebFault: 400, 401, 403, 404, 405, 415.
  const WebRoute& admit(WebRequest& request, const std::vector<WebRoute>& routes) const;
  /// The reply to a preflight request; nothing when it is none that may be answered.
  std::optional<WebReply> preflight(const WebRequest& request) const;
  /// What a reply to this request must carry so that the page of an allowed origin may read it.
  WebFields cors_fields(const WebRequest& request) const;

 private:
  void check_host(const WebRequest& request) const;
  void check_origin(const WebRequest& request) const;
  bool is_allowed_origin(std::string_view origin) const;

  KeyRing keys_;
  BindKind bind_;
  std::vector<std::string> host_names_, origins_;
};

/// The fields every reply carries: what a browser may do with it (nothing but show it).
const WebFields& security_fields();
/// "Not Found"
std::string_view reason_of(int status);

}  // namespace saaz
