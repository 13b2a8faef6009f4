// HTTP: one request, one reply. libcurl is wrapped here and known nowhere else. No redirects, no retries, no idea of
// hubs or tokens: that is client.h. A stop signal ends a transfer with 128 + signal.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/bytes.h"

namespace saaz {

struct HttpReply {
  int status = 0;                                            // 0: no reply, see `fault`
  std::vector<std::pair<std::string, std::string>> headers;  // names in lower case
  std::string body;                                          // unless it went to the request's sink
  std::string fault;                                         // what went wrong on the way; the transfer is not complete
  bool fault_may_pass = true;                                // false: trying again cannot help

  bool ok() const { return fault.empty() && status >= 200 && status < 300; }
  /// Empty when there is none.
  std::string_view header(std::string_view name) const;
};

struct HttpRequest {
  std::string method = "GET";
  std::string url;
  std::vector<std::string> headers;  // "Name: value"
  Bytes body;                        // sent with POST and PUT
  /// Takes the body of a 2xx reply piece by piece.
  std::function<void(const HttpReply& head, Bytes piece)> sink;
  /// Told how much of the body has been sent.
  std::function<void(uint64_t n_sent)> on_sent;
};

class Http {
 public:
  /// `stall_seconds`: the longest silence that is waited for. `ca_file`: trusted certificates; empty = the system's.
  Http(int stall_seconds, std::string ca_file);
  ~Http();
  Http(const Http&) = delete;
  Http& operator=(const Http&) = delete;

  /// Network faults are told in the reply; what the sink throws leaves.
  HttpReply send(const HttpRequest& request);

 private:
  void* handle_;  // keeps connections open
  int stall_seconds_;
  std::string ca_file_;
};

/// "https://host:443": what two URLs must share for a token to go along.
std::string url_origin(const std::string& url);
bool is_loopback(const std::string& url);
/// A redirect's Location, seen from the URL it came from.
std::string resolve_url(const std::string& base, const std::string& location);
/// Without query, which may hold a signature: fit for messages.
std::string url_without_query(const std::string& url);

}  // namespace saaz
