#include "serve/http.h"

#include <array>
#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <limits>
#include <map>
#include <random>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "base/system.h"
#include "serve/http_call.h"
#include "serve/http_parser.h"
#include "serve/http_rules.h"
#include "serve/workers.h"

namespace saaz {
namespace {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;
using CallState = WebCall::State;

constexpr double kTickSeconds = 0.25, kLingerSeconds = 2, kNever = std::numeric_limits<double>::infinity();
constexpr size_t kReadAhead = 64 << 10;          // unread input that is kept while a request is being answered
constexpr uint64_t kBodiesInFlight = 256 << 20;  // of all requests that are still arriving
constexpr int kSpareDescriptors = 32;            // models, adapters, logs

/// How many of `wanted` connections this process may have.
int64_t connections_that_fit(int64_t wanted) {
  const int64_t limit = raise_descriptor_limit(wanted + kSpareDescriptors);
  check(limit >= kSpareDescriptors + 8, ExitCode::resource,
        "this process may open {} files, too few for connections: raise 'ulimit -n' to {} or more", limit,
        kSpareDescriptors + 8);
  return std::min(wanted, limit - kSpareDescriptors);
}

Tcp::endpoint endpoint_of(const WebOptions& options) {
  ErrorCode error;
  const std::string host = options.host == "localhost" ? "127.0.0.1" : options.host;
  const auto address = asio::ip::make_address(host, error);
  check(!error, ExitCode::usage, "'{}' is no IP address to listen on: expected one of this machine's, or localhost",
        printable(options.host));
  check(options.port >= 0 && options.port <= 65535, ExitCode::usage, "port {}: expected 0 to 65535", options.port);
  return {address, static_cast<unsigned short>(options.port)};
}

}  // namespace

class WebConnection;

struct WebServer::Impl {
  Impl(const WebOptions& given, std::vector<WebRoute> given_routes);
  ~Impl();
  void run();
  void accept();
  void on_accept(Tcp::socket socket);
  void tick();
  void dispatch(const WebRoute& route, const std::shared_ptr<CallState>& state);
  void count_reply(const CallState& state, double seconds);
  void log(const char* event, std::vector<Value::Member> members);
  std::string next_id();

  // `loop` outlives this: a call that is kept too long may still post to it.
  std::shared_ptr<asio::io_context> loop = std::make_shared<asio::io_context>(1);
  WebOptions options;
  std::vector<WebRoute> routes;
  Tcp::endpoint endpoint;
  WebRules rules;
  Tcp::acceptor acceptor{*loop};
  asio::steady_timer timer{*loop};
  bool is_accepting = false, is_closing = false;
  std::atomic<bool> is_draining = false;
  std::unordered_set<WebConnection*> connections;
  std::unordered_map<std::string, int64_t> per_peer;
  uint64_t body_bytes = 0;  // of requests that are still arriving
  uint64_t id_base = std::random_device()() | static_cast<uint64_t>(std::random_device()()) << 32, n_ids = 0;
  std::mutex counts_mutex;
  WebCounts counts;
  std::map<int, int64_t> replies;
  Workers workers{2};
  std::thread thread;
};

/// One socket. Lives on the network thread, held by the operations that wait for it.
class WebConnection : public std::enable_shared_from_this<WebConnection> {
 public:
  WebConnection(WebServer::Impl& server, Tcp::socket socket, std::string peer)
      : server_(server), socket_(std::move(socket)), peer_(std::move(peer)) {
    server_.connections.insert(this);
    ++server_.per_peer[peer_];
  }
  ~WebConnection() {
    server_.connections.erase(this);
    if (--server_.per_peer[peer_] == 0) server_.per_peer.erase(peer_);
    const std::lock_guard lock(server_.counts_mutex);
    server_.counts.connections = static_cast<int64_t>(server_.connections.size());
  }

  void start() {
    begin_message();
    deadline_ = now() + server_.options.limits.head_seconds;
    read();
  }
  void close();
  void tick(double now);

 private:
  enum class Stage : uint8_t { idle, head, body, answer, linger, closed };

  static double now() { return monotonic_seconds(); }
  const WebLimits& limits() const { return server_.options.limits; }
  void begin_message();
  void read();
  void on_read(ErrorCode error, size_t n);
  void take_input();
  bool take_some();
  void on_head();
  void hold_body(uint64_t bytes);
  void check_body_room() const;
  void make_call(CallState::After after);
  void refuse(const WebFault& fault);
  void flush();
  void write();
  void on_written(ErrorCode error, size_t n);
  void on_answered();
  void start_linger();

  WebServer::Impl& server_;
  Tcp::socket socket_;
  std::string peer_;
  Stage stage_ = Stage::idle;
  double deadline_ = kNever, started_ = 0, last_write_ = 0;
  std::unique_ptr<HttpParser> parser_;
  const WebRoute* route_ = nullptr;
  bool has_admitted_ = false;
  uint64_t body_bytes_ = 0;
  std::array<char, 8192> chunk_;
  std::string input_, output_;
  size_t n_written_ = 0;  // of output_
  bool is_reading_ = false, is_writing_ = false;
  std::shared_ptr<CallState> call_;
};

void WebConnection::begin_message() {
  stage_ = Stage::idle;
  parser_ = std::make_unique<HttpParser>(limits());
  route_ = nullptr;
  has_admitted_ = false;
  deadline_ = now() + limits().idle_seconds;
}

void WebConnection::close() {
  if (stage_ == Stage::closed) return;
  const bool was_answering = stage_ == Stage::answer;
  stage_ = Stage::closed;
  hold_body(0);
  ErrorCode ignored;
  socket_.close(ignored);
  if (!was_answering || !call_) return;
  {
    const std::lock_guard lock(server_.counts_mutex);
    ++server_.counts.gone, --server_.counts.calls;
  }
  server_.log("gone", {{"id", call_->request.id}, {"route", call_->route}, {"seconds", now() - started_}});
  call_->mark_gone();
  call_.reset();
}

void WebConnection::tick(double now) {
  if (now >= deadline_) {
    const bool is_late = (stage_ == Stage::head || stage_ == Stage::body) && !is_writing_;
    return is_late ? refuse({408, "the request did not arrive in time"}) : close();
  }
  if (stage_ == Stage::answer && call_ && !is_writing_ && now - last_write_ >= limits().ping_seconds) {
    call_->ping();
    flush();
  }
}

void WebConnection::read() {
  const bool is_full = stage_ == Stage::answer && input_.size() >= kReadAhead;
  if (is_reading_ || is_full || stage_ == Stage::closed) return;
  is_reading_ = true;
  socket_.async_read_some(asio::buffer(chunk_), [self = shared_from_this()](ErrorCode error, size_t n) {
    self->is_reading_ = false;
    self->on_read(error, n);
  });
}

void WebConnection::on_read(ErrorCode error, size_t n) {
  if (stage_ == Stage::closed) return;
  if (error) return close();
  if (stage_ != Stage::linger) input_.append(chunk_.data(), n);
  take_input();
  read();
}

/// Takes what came as far as it goes.
void WebConnection::take_input() {
  try {
    while (!input_.empty() && stage_ < Stage::answer && take_some()) continue;
  } catch (const WebFault& fault) {
    refuse(fault);
  }
}

/// False when more input is needed.
bool WebConnection::take_some() {
  if (stage_ == Stage::idle) {
    stage_ = Stage::head;
    started_ = now();
    deadline_ = started_ + limits().head_seconds;
  }
  const size_t before = input_.size();
  parser_->take(input_);
  if (!parser_->has_head()) return false;
  if (!has_admitted_) on_head();
  if (stage_ == Stage::answer) return false;
  hold_body(parser_->is_done() ? 0 : body_bytes_ + before - input_.size());
  check_body_room();
  if (!parser_->is_done()) return input_.size() < before;
  const bool keeps = parser_->keep_alive() && !parser_->is_http_1_0() && !server_.is_draining;
  make_call(keeps ? CallState::After::keep : CallState::After::close);
  server_.dispatch(*route_, call_);
  return false;
}

void WebConnection::on_head() {
  WebRequest& request = parser_->request();
  has_admitted_ = true;
  if (server_.is_draining) throw retry_later(503, "the server is shutting down", "shutting_down", 5);
  if (const std::optional<WebReply> reply = server_.rules.preflight(request)) {
    make_call(CallState::After::close);
    return call_->reply(*reply);
  }
  route_ = &server_.rules.admit(request, server_.routes);
  stage_ = Stage::body;
  deadline_ = now() + limits().body_seconds;
  if (!parser_->expects_continue() || parser_->is_done() || !input_.empty()) return;
  output_ += "HTTP/1.1 100 Continue\r\n\r\n";
  write();
}

/// Sets how many bytes of an unfinished body this connection holds.
void WebConnection::hold_body(uint64_t bytes) {
  server_.body_bytes += bytes - body_bytes_;
  body_bytes_ = bytes;
}

void WebConnection::check_body_room() const {
  if (server_.body_bytes > kBodiesInFlight)
    throw retry_later(503, "too many large requests are arriving at once", "overloaded", 1);
}

void WebConnection::make_call(CallState::After after) {
  stage_ = Stage::answer;
  deadline_ = kNever;
  last_write_ = now();
  call_ = std::make_shared<CallState>();
  call_->request = std::move(parser_->request());
  call_->request.peer = peer_;
  call_->request.id = server_.next_id();
  call_->route = route_ != nullptr ? route_->path : "-";
  call_->version = parser_->is_http_1_0() ? CallState::Version::http_1_0 : CallState::Version::http_1_1;
  call_->after = after;
  call_->max_pending_bytes = limits().max_pending_bytes;
  call_->extra_fields = server_.rules.cors_fields(call_->request);
  call_->wake = [loop = server_.loop, weak = weak_from_this()] {
    asio::post(*loop, [weak] {
      if (const auto self = weak.lock()) self->flush();
    });
  };
  const std::lock_guard lock(server_.counts_mutex);
  ++server_.counts.calls, ++server_.counts.requests;
}

void WebConnection::refuse(const WebFault& fault) {
  hold_body(0);
  // A message that was read to its end and understood leaves the connection in order.
  const bool in_order = fault.status != 400 && parser_->keep_alive() && parser_->is_done() && !parser_->is_http_1_0() &&
                        !server_.is_draining;
  make_call(in_order ? CallState::After::keep : CallState::After::close);
  call_->reply(error_reply(fault));
}

void WebConnection::flush() {
  if (stage_ != Stage::answer) return;
  if (call_->is_gone()) return close();  // also while a write waits for a reader that takes nothing
  if (is_writing_) return;
  CallState::Output output = call_->take_output();
  if (output.phase == CallState::Phase::broken) return close();
  output_ += output.bytes;
  if (!output_.empty()) return write();
  if (output.phase == CallState::Phase::complete) on_answered();
}

void WebConnection::write() {
  if (is_writing_ || stage_ == Stage::closed) return;
  is_writing_ = true;
  if (stage_ == Stage::answer) deadline_ = now() + limits().stall_seconds;
  socket_.async_write_some(asio::buffer(output_) + n_written_,
                           [self = shared_from_this()](ErrorCode error, size_t n) { self->on_written(error, n); });
}

void WebConnection::on_written(ErrorCode error, size_t n) {
  is_writing_ = false;
  if (stage_ == Stage::closed) return;
  if (error) return close();
  n_written_ += n;
  last_write_ = now();
  if (n_written_ < output_.size()) return write();
  output_.clear();
  n_written_ = 0;
  if (stage_ != Stage::answer) return;
  deadline_ = kNever;
  call_->written();
  flush();
}

void WebConnection::on_answered() {
  const bool keeps = call_->after == CallState::After::keep;
  server_.count_reply(*call_, now() - started_);
  call_.reset();
  if (!keeps) return start_linger();
  begin_message();
  take_input();
  read();
}

/// Closing with unread input would reset the connection and could cost the client the reply.
void WebConnection::start_linger() {
  stage_ = Stage::linger;
  deadline_ = now() + kLingerSeconds;
  input_.clear();
  ErrorCode ignored;
  socket_.shutdown(Tcp::socket::shutdown_send, ignored);
  read();
}

WebServer::Impl::Impl(const WebOptions& given, std::vector<WebRoute> given_routes)
    : options(given),
      routes(std::move(given_routes)),
      endpoint(endpoint_of(options)),
      rules(options, endpoint.address().is_loopback() ? BindKind::loopback : BindKind::other) {
  options.limits.n_connections = connections_that_fit(options.limits.n_connections);
  ErrorCode error;
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(Tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(1024, error);
  check(error != asio::error::address_in_use, ExitCode::usage, "port {} of {} is in use: choose another with --port",
        options.port, options.host);
  check(!error, ExitCode::usage, "cannot listen on port {} of {}: {}", options.port, options.host, error.message());
  endpoint = acceptor.local_endpoint();
  accept();
  tick();
  thread = std::thread([this] { run(); });
}

WebServer::Impl::~Impl() {
  asio::post(*loop, [this] {
    is_closing = true;
    ErrorCode ignored;
    acceptor.close(ignored);
    timer.cancel();
    const std::vector<WebConnection*> all(connections.begin(), connections.end());
    for (WebConnection* connection : all) connection->close();
  });
  thread.join();
}

/// What a handler throws (there is no memory) costs its connection, not the server.
void WebServer::Impl::run() {
  while (true) {
    try {
      loop->run();
      return;
    } catch (const std::exception& error) {
      log("failed", {{"error", error.what()}});
    }
  }
}

void WebServer::Impl::accept() {
  is_accepting = true;
  acceptor.async_accept([this](ErrorCode error, Tcp::socket socket) {
    is_accepting = false;
    if (is_closing) return;
    if (!error) on_accept(std::move(socket));
    // Without descriptors an immediate retry would spin: the next tick tries again.
    if (!error || error == asio::error::connection_aborted) accept();
  });
}

void WebServer::Impl::on_accept(Tcp::socket socket) {
  ErrorCode error;
  auto address = socket.remote_endpoint(error).address();
  if (error) return;
  if (address.is_v6() && address.to_v6().is_v4_mapped())
    address = asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6());
  socket.set_option(Tcp::no_delay(true), error);
  const std::string peer = address.to_string();
  const auto found = per_peer.find(peer);
  const int64_t n_of_peer = found == per_peer.end() ? 0 : found->second;
  const bool is_full = static_cast<int64_t>(connections.size()) >= options.limits.n_connections ||
                       (!address.is_loopback() && n_of_peer >= options.limits.n_connections_per_peer);
  {
    const std::lock_guard lock(counts_mutex);
    ++(is_full ? counts.refused_connections : counts.accepted);
  }
  if (is_full) {
    static constexpr std::string_view kFull =
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 5\r\nConnection: close\r\n\r\n";
    socket.non_blocking(true, error);
    socket.write_some(asio::buffer(kFull), error);
    return;
  }
  std::make_shared<WebConnection>(*this, std::move(socket), peer)->start();
  const std::lock_guard lock(counts_mutex);
  counts.connections = static_cast<int64_t>(connections.size());
}

/// One timer for all: each connection looks at its own deadline. Set again first: what follows may throw.
void WebServer::Impl::tick() {
  if (is_closing) return;
  timer.expires_after(std::chrono::microseconds(static_cast<int64_t>(kTickSeconds * 1e6)));
  timer.async_wait([this](ErrorCode error) {
    if (!error) tick();
  });
  const double now = monotonic_seconds();
  std::vector<std::shared_ptr<WebConnection>> all;
  for (WebConnection* connection : connections) all.push_back(connection->shared_from_this());
  for (const auto& connection : all) connection->tick(now);
  if (!is_accepting) accept();
}

void WebServer::Impl::dispatch(const WebRoute& route, const std::shared_ptr<CallState>& state) {
  workers.add([this, &route, call = std::make_shared<WebCall>(state)] {
    try {
      route.handler(call);
    } catch (const WebFault& fault) {
      call->reply(error_reply(fault));
    } catch (const std::exception& error) {
      const std::string& id = call->request().id;
      log("failed", {{"id", id}, {"route", route.path}, {"error", error.what()}});
      call->reply(error_reply({500, "the server failed on this request; its log has the cause under " + id}));
    }
  });
}

void WebServer::Impl::count_reply(const CallState& state, double seconds) {
  {
    const std::lock_guard lock(counts_mutex);
    --counts.calls;
    ++replies[state.status()];
  }
  log("request", {{"id", state.request.id},
                  {"peer", state.request.peer},
                  {"route", state.route},
                  {"status", state.status()},
                  {"seconds", seconds}});
}

void WebServer::Impl::log(const char* event, std::vector<Value::Member> members) {
  if (!options.log) return;
  members.insert(members.begin(), {{"time", utc_timestamp()}, {"event", event}});
  options.log(Value::object(std::move(members)));
}

std::string WebServer::Impl::next_id() { return fmt::format("req-{:016x}", id_base + 0x9e3779b97f4a7c15ull * ++n_ids); }

WebServer::WebServer(const WebOptions& options, std::vector<WebRoute> routes)
    : impl_(std::make_unique<Impl>(options, std::move(routes))) {}
WebServer::~WebServer() = default;

int WebServer::port() const { return impl_->endpoint.port(); }

std::string WebServer::address() const {
  const auto address = impl_->endpoint.address();
  const std::string text = address.to_string();
  return fmt::format("http://{}:{}", address.is_v6() ? "[" + text + "]" : text, port());
}

void WebServer::drain() { impl_->is_draining = true; }

WebCounts WebServer::counts() const {
  const std::lock_guard lock(impl_->counts_mutex);
  WebCounts counts = impl_->counts;
  counts.replies.assign(impl_->replies.begin(), impl_->replies.end());
  return counts;
}

}  // namespace saaz
