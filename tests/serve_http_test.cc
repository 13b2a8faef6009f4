// HTTP as a client meets it: a real server on a loopback port, and bytes written by hand.
#include "serve/http.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <mutex>
#include <thread>

#include "base/system.h"
#include "serve/client.h"

namespace saaz {
namespace {

using testing_serve::Client;
using testing_serve::request_text;
using testing_serve::status_of;

const std::string kPage = "<!doctype html><title>ساز</title>";

/// Calls that a test answers itself.
struct Held {
  std::mutex mutex;
  std::vector<std::shared_ptr<WebCall>> calls;
  std::atomic<int> gone = 0;

  void add(const std::shared_ptr<WebCall>& call) {
    call->on_gone([this] { ++gone; });
    const std::lock_guard lock(mutex);
    calls.push_back(call);
  }
  std::shared_ptr<WebCall> wait() {
    for (int i = 0; i < 5000; ++i) {
      {
        const std::lock_guard lock(mutex);
        if (!calls.empty()) {
          const auto call = calls.back();
          calls.pop_back();
          return call;
        }
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return nullptr;
  }
};

template <class Condition>
bool comes_true(const Condition& condition) {
  for (int i = 0; i < 5000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  return condition();
}

class ServeHttp : public ::testing::Test {
 protected:
  std::vector<WebRoute> routes() {
    const auto echo = [](const WebRequest& r) {
      return json_reply(Value::object({{"body", r.body}, {"tail", r.tail}, {"q", r.parameter("q").value_or("-")}}));
    };
    const auto fault = [](const WebRequest&) -> WebReply { throw WebFault(429, "later", "n", "busy"); };
    const auto bug = [](const WebRequest&) -> WebReply { fail(ExitCode::io, "/secret/path is broken"); };
    return {{"GET", "/health", WebRoute::Access::open, answer_at_once(echo)},
            {"POST", "/echo", WebRoute::Access::keyed, answer_at_once(echo)},
            {"GET", "/models/*", WebRoute::Access::keyed, answer_at_once(echo)},
            {"POST", "/fault", WebRoute::Access::keyed, answer_at_once(fault)},
            {"POST", "/bug", WebRoute::Access::keyed, answer_at_once(bug)},
            {"POST", "/drop", WebRoute::Access::keyed, [](const std::shared_ptr<WebCall>&) {}},
            {"POST", "/held", WebRoute::Access::keyed, [this](const auto& call) { held.add(call); }},
            asset_route("/", "text/html; charset=utf-8", kPage)};
  }
  WebServer& start() {
    options.log = [this](const Value& event) {
      const std::lock_guard lock(log_mutex);
      log.push_back(to_json(event));
    };
    return *(server = std::make_unique<WebServer>(options, routes()));
  }
  /// The reply to one request, on a connection of its own.
  std::string ask(const std::string& text) {
    Client client(server->port());
    client.send(text);
    auto [head, body] = client.receive_reply();
    return head + body;
  }
  int status(const std::string& text) { return status_of(ask(text)); }

  Held held;
  std::mutex log_mutex;
  std::vector<std::string> log;
  WebOptions options;
  std::unique_ptr<WebServer> server;
};

TEST_F(ServeHttp, AnswersAndKeepsTheConnection) {
  Client client(start().port());
  for (int i = 0; i < 3; ++i) {
    client.send(request_text("POST /echo", R"({"a":"سلام"})"));
    const auto [head, body] = client.receive_reply();
    EXPECT_EQ(status_of(head), 200);
    EXPECT_NE(head.find("Content-Type: application/json; charset=utf-8\r\n"), std::string::npos) << head;
    EXPECT_NE(head.find("X-Request-Id: req-"), std::string::npos) << head;
    EXPECT_NE(head.find("frame-ancestors 'none'"), std::string::npos) << head;
    EXPECT_NE(head.find("X-Content-Type-Options: nosniff\r\n"), std::string::npos) << head;
    EXPECT_EQ(head.find("Access-Control"), std::string::npos) << head;
    EXPECT_NE(body.find("سلام"), std::string::npos) << body;
  }
  EXPECT_EQ(server->counts().accepted, 1);
  client.send(request_text("GET /health?q=a%20b+c") + request_text("GET /models/org%2Fname"));  // pipelined
  EXPECT_NE(client.receive_reply().second.find(R"("q": "a b c")"), std::string::npos);
  EXPECT_NE(client.receive_reply().second.find(R"("tail": "org/name")"), std::string::npos);
}

TEST_F(ServeHttp, TakesBodiesInAnyPieces) {
  start();
  const std::string chunked =
      "\r\nPOST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n02\r\nde\r\n0\r\n\r\n";
  Client client(server->port());
  for (const char c : chunked) client.send({&c, 1});
  EXPECT_NE(client.receive_reply().second.find("abcde"), std::string::npos);

  Client waiting(server->port());
  waiting.send(
      "POST /echo HTTP/1.1\r\nHost: [::1]:80\r\nContent-Type: application/json; charset=UTF-8\r\n"
      "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  EXPECT_EQ(waiting.receive_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  waiting.send("{}");
  EXPECT_EQ(status_of(waiting.receive_reply().first), 200);

  Client old(server->port());
  old.send("GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n");
  EXPECT_NE(old.receive_all().find("Connection: close"), std::string::npos);
}

TEST_F(ServeHttp, RefusesWhatCouldBeReadTwoWays) {
  start();
  const std::string post = "POST /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n";
  const std::string get = "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n";
  const std::vector<std::pair<std::string, int>> cases = {
      {post + "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400},
      {post + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400},
      {post + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {post + "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n", 400},
      {post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
      {post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501},
      {post + "Content-Length: +2\r\n\r\n{}", 400},
      {post + "Content-Length: 2, 2\r\n\r\n{}", 400},
      {post + "Content-Length: -1\r\n\r\n", 400},
      {post + "Content-Length: 99999999999999999999\r\n\r\n", 400},
      {post + "Content-Length : 2\r\n\r\n{}", 400},
      {post + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
      {post + "Transfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n", 400},
      {post + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400},
      {post + "Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400},
      {post + "Transfer-Encoding: chunked\r\n\r\n2;x=\"\r\n{}\r\n0\r\n\r\n", 400},
      {post + "Transfer-Encoding: chunked\r\n\r\n2 \r\n{}\r\n0\r\n\r\n", 400},
      {post + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nT: v\r\n\r\n", 400},
      {post + "Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n", 400},
      {get + "X: a\r\n folded\r\n\r\n", 400},
      {get + "Host: other\r\n\r\n", 400},
      {get + "No colon\r\n\r\n", 400},
      {get + ": no name\r\n\r\n", 400},
      {get + std::string("X: a\0b\r\n\r\n", 10), 400},
      {"GET /health HTTP/1.1\nHost: 127.0.0.1\n\n", 400},
      {"GET /health HTTP/1.1\r\nHost: 127.0.0.1\n\r\n\r\n", 400},
      {"GET  /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400},
      {"GET http://127.0.0.1/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400},
      {"GET /health%00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400},
      {"GET /health%4 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400},
      {"GET /health HTTP/2.0\r\nHost: 127.0.0.1\r\n\r\n", 505},
      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
      {"GET /health HTTP/1.1\r\n\r\n", 400},
      {"\x16\x03\x01 hello\r\n\r\n", 400},
  };
  for (const auto& [text, expected] : cases) {
    Client client(server->port());
    client.send(text);
    const std::string reply = client.receive_all();  // and the connection ends
    EXPECT_EQ(status_of(reply), expected) << text << "\n" << reply;
    EXPECT_NE(reply.find("{\"error\": {\"message\": \""), std::string::npos) << text;
  }
}

TEST_F(ServeHttp, HoldsItsLimits) {
  start();
  EXPECT_EQ(status("GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + std::string(40000, 'a') + "\r\n\r\n"), 431);
  EXPECT_EQ(status("GET /health HTTP/1.1\r\nX: " + std::string(40000, 'a')), 431);  // before its end is seen
  std::string many = "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n";
  for (int i = 0; i < 99; ++i) many += "A: b\r\n";
  EXPECT_EQ(status(many + "\r\n"), 200);
  EXPECT_EQ(status(many + "A: b\r\n\r\n"), 431);
  EXPECT_EQ(status("GET /" + std::string(9000, 'a') + " HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"), 414);
  const std::string post = "POST /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n";
  EXPECT_EQ(status(post + "Content-Length: 8388609\r\n\r\n"), 413);  // before a byte of it is sent
  EXPECT_EQ(status(request_text("POST /echo", std::string(8 << 20, ' '))), 200);
  EXPECT_EQ(status(post + "Transfer-Encoding: chunked\r\n\r\n800001\r\n" + std::string((8 << 20) + 1, ' ')), 413);
  EXPECT_EQ(status(post + "Transfer-Encoding: chunked\r\n\r\n1;" + std::string(40000, 'x')), 400);
}

TEST_F(ServeHttp, EndsWhatIsSlow) {
  options.limits.head_seconds = options.limits.body_seconds = options.limits.idle_seconds = 1;
  start();
  Client silent(server->port()), head(server->port()), body(server->port()), idle(server->port());
  head.send("GET /health HTTP/1.1\r\nHost: 127.0.");
  body.send("POST /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n{");
  const double start = monotonic_seconds();
  idle.send(request_text("GET /health"));
  EXPECT_EQ(status_of(idle.receive_reply().first), 200);
  EXPECT_EQ(silent.receive_all(), "");
  EXPECT_EQ(status_of(head.receive_all()), 408);
  EXPECT_EQ(status_of(body.receive_all()), 408);
  EXPECT_EQ(idle.receive_all(), "");
  EXPECT_GE(monotonic_seconds() - start, 1);
  EXPECT_TRUE(comes_true([&] { return server->counts().connections == 0; }));
}

TEST_F(ServeHttp, ChecksHostOriginAndContentType) {
  options.host_names = {"saaz.example"};
  options.origins = {"https://chat.example"};
  start();
  const auto post = [&](const std::string& host, const std::string& fields) {
    return status("POST /echo HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 2\r\n" + fields + "\r\n{}");
  };
  const std::string json = "Content-Type: application/json\r\n";
  EXPECT_EQ(post("localhost:8080", json), 200);
  EXPECT_EQ(post("127.1.2.3", json), 200);
  EXPECT_EQ(post("SAAZ.example", json), 200);
  for (const char* host : {"evil.example", "127.0.0.1.evil.example", "10.0.0.1", "localhost.evil.example", "127.0.0.1x",
                           "0x7f.0.0.1", "[::2]"})
    EXPECT_EQ(post(host, json), 403) << host;
  for (const char* host : {"", "[::1", "localhost:99999999", "localhost:8a"}) EXPECT_EQ(post(host, json), 400) << host;
  EXPECT_EQ(status("GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n"), 403);

  EXPECT_EQ(post("localhost:80", json + "Origin: http://localhost:80\r\n"), 200);
  EXPECT_EQ(post("localhost", json + "Origin: https://chat.example\r\nSec-Fetch-Site: cross-site\r\n"), 200);
  for (const char* origin : {"null", "https://evil.example", "http://localhost:81", "http://localhost.evil.example",
                             "https://chat.example.evil.example", "file://"})
    EXPECT_EQ(post("localhost:80", json + "Origin: " + origin + "\r\n"), 403) << origin;
  EXPECT_EQ(post("localhost", json + "Sec-Fetch-Site: cross-site\r\n"), 403);
  for (const char* type : {"text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "",
                           "application/json; charset=utf-16", "text/plain; application/json"})
    EXPECT_EQ(post("localhost", std::string("Content-Type: ") + type + "\r\n"), 415) << type;
  EXPECT_EQ(post("localhost", ""), 415);

  const std::string preflight = "OPTIONS /echo HTTP/1.1\r\nHost: localhost\r\nAccess-Control-Request-Method: POST\r\n";
  const std::string allowed = ask(preflight + "Origin: https://chat.example\r\n\r\n");
  EXPECT_EQ(status_of(allowed), 204);
  EXPECT_NE(allowed.find("Access-Control-Allow-Origin: https://chat.example\r\n"), std::string::npos) << allowed;
  EXPECT_EQ(ask(preflight + "Origin: https://evil.example\r\n\r\n").find("Access-Control-Allow"), std::string::npos);
}

TEST_F(ServeHttp, AsksForTheKeyEverywhereButWhereItIsOpen) {
  options.keys = {"first-key", "second-key"};
  start();
  for (const char* line :
       {"POST /echo", "GET /models/x", "GET /nowhere", "DELETE /echo", "POST /health", "GET /echo"}) {
    EXPECT_EQ(status(request_text(line, "{}")), 401) << line;
    EXPECT_EQ(status(request_text(line, "{}", "Authorization: Bearer first-ke\r\n")), 401) << line;
    EXPECT_EQ(status(request_text(line, "{}", "Authorization: Basic first-key\r\n")), 401) << line;
  }
  EXPECT_EQ(status(request_text("POST /echo", "{}", "Authorization: Bearer first-key\r\n")), 200);
  EXPECT_EQ(status(request_text("POST /echo", "{}", "Authorization: bearer second-key\r\n")), 200);
  EXPECT_EQ(status(request_text("GET /nowhere", "", "Authorization: Bearer second-key\r\n")), 404);
  EXPECT_EQ(status(request_text("DELETE /echo", "", "Authorization: Bearer second-key\r\n")), 405);
  EXPECT_EQ(status(request_text("GET /health")), 200);
  EXPECT_EQ(status(request_text("GET /")), 200);
}

TEST_F(ServeHttp, OtherAddressesNeedAKey) {
  options.host = "0.0.0.0";
  EXPECT_THROW(start(), Error);
  options.keys = {"k"};
  EXPECT_EQ(status_of((start(), ask("GET /health HTTP/1.1\r\nHost: 10.0.0.7:80\r\n\r\n"))), 200);
  EXPECT_EQ(status("GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n"), 403);
  options.port = server->port();
  try {
    WebServer second(options, {});
    FAIL() << "two servers on one port";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_NE(std::string(error.what()).find("is in use"), std::string::npos) << error.what();
  }
}

TEST_F(ServeHttp, FaultsAreErrorObjects) {
  start();
  const std::string fault = ask(request_text("POST /fault", "{}"));
  EXPECT_EQ(status_of(fault), 429);
  EXPECT_NE(fault.find(R"({"error": {"message": "later", "type": "rate_limit_error", "param": "n", "code": "busy"}})"),
            std::string::npos)
      << fault;
  const std::string bug = ask(request_text("POST /bug", "{}"));
  EXPECT_EQ(status_of(bug), 500);
  EXPECT_EQ(bug.find("secret"), std::string::npos) << "an answer must not name paths";
  EXPECT_NE(bug.find("req-"), std::string::npos);
  EXPECT_EQ(status(request_text("POST /drop", "{}")), 500);
  EXPECT_EQ(status(request_text("GET /nothing")), 404);
  EXPECT_EQ(status(request_text("PUT /echo", "{}")), 405);
  const std::lock_guard lock(log_mutex);
  EXPECT_TRUE(std::any_of(log.begin(), log.end(), [](auto& l) { return l.find("/secret/path") != l.npos; }));
}

TEST_F(ServeHttp, AssetsHaveTags) {
  start();
  const std::string page = ask(request_text("GET /"));
  EXPECT_NE(page.find(kPage), std::string::npos);
  const size_t at = page.find("ETag: ");
  ASSERT_NE(at, std::string::npos);
  const std::string tag = page.substr(at + 6, page.find("\r\n", at) - at - 6);
  const std::string again = ask(request_text("GET /", "", "If-None-Match: " + tag + "\r\n"));
  EXPECT_EQ(status_of(again), 304);
  Client client(server->port());
  client.send(request_text("HEAD /"));
  const std::string head = client.receive_until("\r\n\r\n");
  EXPECT_NE(head.find("Content-Length: " + std::to_string(kPage.size())), std::string::npos) << head;
  client.send(request_text("GET /health"));
  EXPECT_TRUE(client.receive_until("\r\n").starts_with("HTTP/1.1 200")) << "a HEAD reply has no body";
}

TEST_F(ServeHttp, StreamsEvents) {
  options.limits.ping_seconds = 0.3;
  Client client(start().port());
  client.send(request_text("POST /held", "{}"));
  {
    const auto call = held.wait();
    ASSERT_NE(call, nullptr);
    call->start_events();
    EXPECT_TRUE(call->send({"one\ntwo"}));
    EXPECT_TRUE(call->send({.data = "{}", .name = "step", .event_id = "7"}));
    const std::string text = client.receive_until("id: 7\nevent: step\ndata: {}\n\n\r\n");
    EXPECT_NE(text.find("Content-Type: text/event-stream; charset=utf-8\r\n"), std::string::npos) << text;
    EXPECT_NE(text.find("data: one\ndata: two\n\n"), std::string::npos) << text;
    EXPECT_NE(client.receive_until(": ping\n\n").find(": ping"), std::string::npos);
    call->finish();
    EXPECT_FALSE(call->send({"late"}));
  }
  EXPECT_NE(client.receive_until("0\r\n\r\n").find("0\r\n\r\n"), std::string::npos);
  client.send(request_text("GET /health"));  // the connection goes on
  EXPECT_EQ(status_of(client.receive_reply().first), 200);
  EXPECT_EQ(held.gone, 0);

  client.send(request_text("POST /held", "{}"));
  held.wait()->start_events();  // dropped unfinished: cut, without the last chunk
  EXPECT_EQ(client.receive_all().find("0\r\n\r\n"), std::string::npos);
}

TEST_F(ServeHttp, NoticesThatTheClientIsGone) {
  start();
  std::shared_ptr<WebCall> waiting, streaming;
  {
    Client first(server->port()), second(server->port());
    first.send(request_text("POST /held", "{}"));
    waiting = held.wait();
    second.send(request_text("POST /held", "{}"));
    streaming = held.wait();
    ASSERT_TRUE(waiting && streaming);
    streaming->start_events();
    streaming->send({"x"});
    second.receive_until("x");
  }
  EXPECT_TRUE(comes_true([&] { return held.gone == 2; }));
  EXPECT_TRUE(waiting->is_gone() && streaming->is_gone());
  EXPECT_FALSE(streaming->send({"y"}));
  waiting->reply({});
  EXPECT_TRUE(comes_true([&] { return server->counts().connections == 0; }));
  EXPECT_EQ(server->counts().gone, 2);
  EXPECT_EQ(server->counts().calls, 0);
}

TEST_F(ServeHttp, CutsOffAReaderThatDoesNotRead) {
  start();
  Client client(server->port());
  client.send(request_text("POST /held", "{}"));
  const auto call = held.wait();
  call->start_events();
  const std::string piece(10000, 'x');
  size_t sent = 0;
  while (call->send({piece}) && sent < (64 << 20)) {
    sent += piece.size();
    EXPECT_LE(call->pending_bytes(), options.limits.max_pending_bytes);
    if (sent % 1000000 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_LT(sent, 64u << 20) << "what a reader does not take must not pile up";
  EXPECT_TRUE(comes_true([&] { return held.gone == 1; }));

  options.limits.stall_seconds = 0.5;
  start();
  Client stalled(server->port());
  stalled.send(request_text("POST /held", "{}"));
  const auto second = held.wait();
  second->start_events();
  while (second->pending_bytes() < 100000 && second->send({piece})) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_TRUE(comes_true([&] { return held.gone == 2; }));
}

TEST_F(ServeHttp, CountsConnections) {
  options.limits.n_connections = 4;
  start();
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 4; ++i) clients.push_back(std::make_unique<Client>(server->port()));
  EXPECT_TRUE(comes_true([&] { return server->counts().connections == 4; }));
  Client fifth(server->port());
  EXPECT_EQ(status_of(fifth.receive_all()), 503);
  clients.clear();
  EXPECT_TRUE(comes_true([&] { return server->counts().connections == 0; }));
  EXPECT_EQ(status(request_text("GET /health")), 200);
  EXPECT_EQ(server->counts().refused_connections, 1);
}

TEST_F(ServeHttp, DrainsAndEnds) {
  start();
  Client client(server->port());
  client.send(request_text("POST /held", "{}"));
  auto call = held.wait();
  server->drain();
  const std::string refused = ask(request_text("GET /health"));
  EXPECT_EQ(status_of(refused), 503);
  EXPECT_NE(refused.find("Retry-After: "), std::string::npos);
  call->reply(json_reply(Value::object({{"ok", true}})));
  EXPECT_EQ(client.receive_reply().second, R"({"ok": true})");
  EXPECT_TRUE(comes_true([&] { return server->counts().calls == 0; }));

  Client other(server->port());
  server.reset();  // a server that goes while clients hold on to it, and calls to their client
  EXPECT_EQ(other.receive_all(), "");
  call->reply({});
  call.reset();
}

}  // namespace
}  // namespace saaz
