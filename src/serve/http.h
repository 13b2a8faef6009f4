// HTTP for everything that is reached through a browser or a client: the OpenAI server, the web chat, the dashboard.
// Enters: a table of routes. Leaves: replies, and streams of server-sent events. HTTP/1.1 without TLS; a proxy in front
// adds TLS and HTTP/2. Boost is wrapped in http.cc (sockets) and http_parser.cc (messages) and known nowhere else.
// Invariants: whatever a client sends or leaves out, it costs bounded memory and time; nothing is answered that the
// rules of http_rules.h do not let through. Limits and where they come from: docs/serving.md.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/value.h"

namespace saaz {

using WebFields = std::vector<std::pair<std::string, std::string>>;

struct WebRequest {
  std::string method;  // "GET"
  std::string path;    // without the query, percent-decoded
  std::string tail;    // what the '*' at the end of the route stood for
  WebFields query;     // decoded
  WebFields headers;   // names in lower case
  std::string body;
  std::string peer;  // the client's address, without the port
  std::string id;    // "req-6f0c...": in every reply and every line of the log

  /// Empty when there is none.
  std::string_view header(std::string_view name) const;
  std::optional<std::string> parameter(std::string_view name) const;
};

struct WebReply {
  int status = 200;
  std::string content_type = "application/json; charset=utf-8";
  std::string body;
  WebFields headers;
};

/// What a handler throws when the request is at fault or cannot be served now: the reply is OpenAI's error object.
class WebFault : public Error {
 public:
  /// `param`: the field at fault, or empty. `code`: a word for programs, or empty.
  WebFault(int status, std::string message, std::string param = "", std::string code = "")
      : Error(ExitCode::usage, std::move(message)), status(status), param(std::move(param)), code(std::move(code)) {}

  int status;
  std::string param, code;
  WebFields headers;
};
/// 429 or 503, with Retry-After.
WebFault retry_later(int status, std::string message, std::string code, int seconds);

WebReply json_reply(const Value& value);
/// {"error": {"message", "type", "param", "code"}}; the type follows from the status.
WebReply error_reply(const WebFault& fault);

struct ServerEvent {
  std::string data;           // may have several lines
  std::string name = {};      // the "event:" field
  std::string event_id = {};  // the "id:" field
};

/// One request on its way to an answer. Every method may be called from any thread, and returns at once. Exactly one of
/// `reply` and `start_events` is called. A call that is dropped unanswered answers 500; a stream that is dropped
/// unfinished breaks off, so that the client sees that something is missing.
class WebCall {
 public:
  struct State;  // of http.cc
  explicit WebCall(std::shared_ptr<State> state);
  ~WebCall();
  WebCall(const WebCall&) = delete;
  WebCall& operator=(const WebCall&) = delete;

  const WebRequest& request() const;
  void reply(WebReply reply);
  /// The head of a stream of server-sent events. A comment line follows after every silence of `ping_seconds`.
  void start_events();
  /// False when the client is gone, or so slow that `max_pending_bytes` wait for it: it is cut off.
  bool send(const ServerEvent& event);
  /// Ends the stream.
  void finish();

  bool is_gone() const;
  /// Bytes that wait for the client: a source that can wait holds back while this is large.
  size_t pending_bytes() const;
  /// `then` runs once, on the network thread, when the client goes away before the answer is complete (at once if it
  /// has gone already): it must not block.
  void on_gone(std::function<void()> then);

 private:
  std::shared_ptr<State> state_;
};

/// Runs on one of a few worker threads. It may compute for a while, never wait: it keeps the call and lets another
/// thread answer.
using WebHandler = std::function<void(std::shared_ptr<WebCall> call)>;

struct WebRoute {
  enum class Access : uint8_t { keyed, open };  // open: answered without a key, too
  std::string method;                           // "GET" (answers HEAD too), "POST", "DELETE"
  std::string path;                             // "/v1/models", or "/v1/models/*": any non-empty rest
  Access access = Access::keyed;
  WebHandler handler;
};

/// A handler that answers as soon as it is asked.
WebHandler answer_at_once(std::function<WebReply(const WebRequest&)> answer);
/// A file of the program, with an ETag; `bytes` must outlive the server. Open.
WebRoute asset_route(std::string path, std::string content_type, std::string_view bytes);

struct WebLimits {
  size_t head_bytes = 32 << 10, n_headers = 100, body_bytes = 8 << 20;
  double head_seconds = 10, body_seconds = 30, stall_seconds = 30, idle_seconds = 60, ping_seconds = 15;
  size_t max_pending_bytes = 256 << 10;
  int64_t n_connections = 2048, n_connections_per_peer = 256;  // loopback counts in the total only
};

struct WebOptions {
  std::string host = "127.0.0.1";  // an IP address, or localhost
  int port = 0;                    // 0: any
  std::vector<std::string> keys;   // empty: no key is asked for, which only loopback may do
  enum class Anonymous : uint8_t { on_loopback, anywhere } anonymous = Anonymous::on_loopback;
  std::vector<std::string> host_names;  // that may be in Host, besides this machine's loopback names
  std::vector<std::string> origins;     // other pages that may use the server ("https://chat.example"), through CORS
  WebLimits limits;
  /// One event of the log, as an object; called from any thread. Holds no text of any request.
  std::function<void(const Value&)> log;
};

struct WebCounts {
  int64_t connections = 0, calls = 0;  // now
  int64_t accepted = 0, requests = 0, gone = 0, refused_connections = 0;
  std::vector<std::pair<int, int64_t>> replies;  // by status
};

class WebServer {
 public:
  /// Listens and serves. usage: the port is in use, or the address is no loopback one and there are no keys. resource:
  /// too few descriptors.
  WebServer(const WebOptions& options, std::vector<WebRoute> routes);
  /// Breaks off what is still running.
  ~WebServer();
  WebServer(const WebServer&) = delete;
  WebServer& operator=(const WebServer&) = delete;

  int port() const;
  /// "http://127.0.0.1:8080"
  std::string address() const;
  /// From now on new requests are answered with 503; those that run go on.
  void drain();
  WebCounts counts() const;

  struct Impl;  // of http.cc

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace saaz
