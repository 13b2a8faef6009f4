// What the server promises under load, tried against a running one: see docs/serving.md for the figures.
//   serve_stress PORT PID MODE [N]
// Modes: streams (each concurrent answer equals the solo one), disconnects (everything is given back), soak (memory
// stays flat), slow (others do not notice), bad (only documented codes), drain (SIGTERM in mid-load: every stream ends
// well). Exit status 0 when the promise holds. The seed is printed; SEED in the environment repeats it. The faults of
// serving have a program of their own: faults.cc.
#include <signal.h>

#include <atomic>
#include <mutex>
#include <random>
#include <set>

#include "serve/bad_requests.h"
#include "serve/load.h"

namespace saaz {
namespace {

using namespace testing_serve;

bool streams(const Target& target, size_t n) {
  std::vector<std::string> bodies, solo(n), together(n);
  for (size_t i = 0; i < n; ++i) bodies.push_back(chat_body(words_for(i), i, 24, R"(,"temperature":1,"stream":true)"));
  {
    Client client(target.port);
    for (size_t i = 0; i < n; ++i) solo[i] = streamed(client, bodies[i]);
  }
  const double start = monotonic_seconds();
  in_threads(n, [&](size_t i) {
    Client client(target.port);
    together[i] = streamed(client, bodies[i]);
  });
  const double seconds = monotonic_seconds() - start;
  size_t n_equal = 0, n_whole = 0;
  std::set<std::string> distinct;
  for (size_t i = 0; i < n; ++i) {
    n_equal += solo[i] == together[i];
    n_whole += solo[i].ends_with("|stop") || solo[i].ends_with("|length");
    distinct.insert(solo[i]);
    if (solo[i] != together[i]) fmt::print("stream {}: alone '{}', together '{}'\n", i, solo[i], together[i]);
  }
  fmt::print("{} streams at once in {:.1f} s: {} equal to the solo answer, {} whole, {} distinct\n", n, seconds,
             n_equal, n_whole, distinct.size());
  return n_equal == n && n_whole == n;
}

bool disconnects(const Target& target, size_t n, uint64_t seed) {
  const Gauges before = gauges_at_rest(target);
  std::atomic<size_t> next = 0;
  const double start = monotonic_seconds();
  in_threads(24, [&](size_t thread) {
    std::mt19937_64 random(seed + thread);
    for (size_t i; (i = next++) < n;) {
      Client client(target.port);
      const std::string text = request_text(
          "POST /v1/chat/completions",
          chat_body(words_for(i), i, 64, i % 3 == 0 ? R"(,"n":2)" : R"(,"stream":true,"ignore_eos":true)"));
      const bool is_cut = random() % 8 == 0;
      client.send(is_cut ? text.substr(0, random() % text.size()) : text);
      sleep_ms(static_cast<double>(random() % 60));
      if (random() % 2 == 0) client.receive(1);
      if (random() % 2 == 0) client.reset_on_close();
    }
  });
  const double seconds = monotonic_seconds() - start, cut = monotonic_seconds();
  const bool ok = is_back(target, before, 10);
  const Gauges after = gauges(target);
  fmt::print("{} disconnects in {:.0f} s, {:.0f} of them while an answer was made: {} {:.2f} s after the last one\n", n,
             seconds, after.metrics.at("saaz_http_gone_total") - before.metrics.at("saaz_http_gone_total"),
             ok ? "everything was back" : "NOT everything was back", monotonic_seconds() - cut);
  return ok;
}

std::string short_request(size_t i) {
  switch (i % 6) {
    case 0:
      return request_text("GET /v1/models");
    case 1:
      return request_text("POST /tokenize", R"({"prompt":")" + words_for(i) + "\"}");
    case 2:
      return request_text("POST /v1/completions", fmt::format(R"({{"prompt":"{}","max_tokens":1}})", words_for(i)));
    case 3:
      return request_text("POST /v1/chat/completions", chat_body(words_for(i), i, 3, R"(,"stop":["x"])"));
    case 4:
      return request_text("POST /v1/chat/completions", chat_body(words_for(i), i, 2, R"(,"logprobs":true)"));
    default:
      return request_text("GET /health");
  }
}

bool soak(const Target& target, size_t n) {
  std::atomic<size_t> next = 0, n_bad = 0;
  std::vector<float> latency_ms(n);
  std::vector<std::pair<size_t, int64_t>> rss;
  const Gauges before = gauges_at_rest(target);
  const double start = monotonic_seconds();
  in_threads(8, [&](size_t thread) {
    Client client(target.port);
    for (size_t i; (i = next++) < n;) {
      const double sent = monotonic_seconds();
      client.send(short_request(i));
      n_bad += status_of(client.receive_reply().first) != 200;
      latency_ms[i] = static_cast<float>((monotonic_seconds() - sent) * 1e3);
      if (thread == 0 && (rss.empty() || i - rss.back().first >= n / 50)) rss.emplace_back(i, gauges(target).rss_kib);
    }
  });
  const double seconds = monotonic_seconds() - start;
  // Least squares over the last four fifths: the first is warm-up.
  double sx = 0, sy = 0, sxx = 0, sxy = 0, m = 0;
  for (const auto& [i, kib] : rss) {
    if (i < n / 5) continue;
    const auto x = static_cast<double>(i) / 1e4, y = static_cast<double>(kib);
    sx += x, sy += y, sxx += x * x, sxy += x * y, ++m;
  }
  const double slope = (m * sxy - sx * sy) / (m * sxx - sx * sx);
  const std::vector<double> first(latency_ms.begin(), latency_ms.begin() + static_cast<long>(n / 10)),
      last(latency_ms.end() - static_cast<long>(n / 10), latency_ms.end());
  const bool back = is_back(target, before, 10);
  fmt::print(
      "{} requests in {:.0f} s ({:.0f} a second), {} not 200; memory {} to {} MiB, slope {:.1f} KiB per 10,000; "
      "p99 of the first tenth {:.1f} ms, of the last {:.1f} ms; {}\n",
      n, seconds, static_cast<double>(n) / seconds, n_bad.load(), rss.front().second / 1024, rss.back().second / 1024,
      slope, percentile(first, 0.99), percentile(last, 0.99), back ? "everything was back" : "NOT everything was back");
  return n_bad == 0 && slope <= 1024 && back;
}

/// Latencies in ms of short chats and of /health, each on a connection of its own, for some seconds.
std::pair<std::vector<double>, std::vector<double>> probe(const Target& target, double seconds) {
  std::pair<std::vector<double>, std::vector<double>> out;
  const double end = monotonic_seconds() + seconds;
  for (size_t i = 0; monotonic_seconds() < end; ++i) {
    for (auto* list : {&out.first, &out.second}) {
      const double start = monotonic_seconds();
      Client client(target.port);
      client.send(list == &out.first ? request_text("POST /v1/chat/completions", chat_body("سلام", i, 2, ""))
                                     : request_text("GET /health"));
      const bool ok = status_of(client.receive_reply().first) == 200;
      list->push_back(ok ? (monotonic_seconds() - start) * 1e3 : 1e6);
      sleep_ms(5);
    }
  }
  return out;
}

bool slow(const Target& target, size_t n) {
  const auto [chat_idle, health_idle] = probe(target, 10);
  std::vector<std::unique_ptr<Client>> clients;
  const std::string unread = request_text("GET /openapi.json");
  for (size_t i = 0; i < n; ++i) {
    clients.push_back(std::make_unique<Client>(target.port));
    Client& client = *clients.back();
    if (i % 3 == 0) client.send("GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n");
    if (i % 3 == 1)
      client.send(
          "POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
          "4000\r\n\r\n");
    if (i % 3 == 2)
      for (int k = 0; k < 40; ++k) client.send(unread);  // and never reads
  }
  sleep_ms(3000);
  std::atomic<bool> done = false;
  std::thread drip([&] {
    while (!done) {
      for (size_t i = 0; i < n; ++i)
        if (i % 3 != 2) clients[i]->send("x");
      sleep_ms(1000);
    }
  });
  const double open = gauges(target).metrics.at("saaz_http_connections");
  const auto [chat, health] = probe(target, 8);
  done = true;
  drip.join();
  const double chat_ratio = percentile(chat, 0.99) / percentile(chat_idle, 0.99),
               health_ratio = percentile(health, 0.99) / percentile(health_idle, 0.99);
  const auto line = [](const char* name, const std::vector<double>& idle, const std::vector<double>& now) {
    fmt::print("{}: idle p50 {:.2f}, p99 {:.2f} ms; beside slow clients p50 {:.2f}, p99 {:.2f} ms ({} probes)\n", name,
               percentile(idle, 0.5), percentile(idle, 0.99), percentile(now, 0.5), percentile(now, 0.99), now.size());
  };
  fmt::print("{} slow clients, {:.0f} connections open\n", n, open);
  line("short chat", chat_idle, chat);
  line("/health", health_idle, health);
  return open > static_cast<double>(n) * 0.9 && chat_ratio < 2 && health_ratio < 2;
}

bool bad(const Target& target, size_t n, uint64_t seed) {
  static const std::set<int> kDocumented = {200, 400, 401, 403, 404, 405, 408, 413,
                                            414, 415, 417, 429, 431, 501, 503, 505};
  const Gauges before = gauges_at_rest(target);
  std::atomic<size_t> next = 0, n_wrong = 0;
  std::mutex mutex;
  std::map<int, size_t> by_status;
  const double start = monotonic_seconds();
  in_threads(8, [&](size_t thread) {
    std::mt19937_64 random(seed + thread);
    for (size_t i; (i = next++) < n;) {
      const auto client = std::make_unique<Client>(target.port);
      bool is_broken = false;
      const std::string text = random_request(random, is_broken);
      client->send(text);
      const std::string reply = client->receive_all(is_broken ? 100 : 10000);  // what is cut short waits for its rest
      const int status = status_of(reply);
      const bool has_object = reply.find("{\"error\": {\"message\"") != reply.npos;
      const bool ok = (status == 0 && is_broken) || (kDocumented.contains(status) && (status == 200 || has_object));
      if (!ok && ++n_wrong < 20) fmt::print("wrong: {}\n -> {}\n", printable(text, 600), printable(reply, 600));
      const std::lock_guard lock(mutex);
      ++by_status[status];
    }
  });
  std::string counts;
  for (const auto& [status, count] : by_status) counts += fmt::format(" {}:{}", status, count);
  const bool back = is_back(target, before, 40);
  fmt::print("{} bad requests in {:.0f} s, {} with an undocumented answer; by status:{}; {}\n", n,
             monotonic_seconds() - start, n_wrong.load(), counts,
             back ? "everything was back" : "NOT everything was back");
  return n_wrong == 0 && back;
}

/// SIGTERM while streams run: each ends with [DONE] or an error event, or was refused.
bool drain(const Target& target, size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::string> ends(n);
  std::thread killer([&] {
    sleep_ms(static_cast<double>(random() % 150));
    kill(std::atoi(target.pid.c_str()), SIGTERM);
  });
  in_threads(n, [&](size_t i) {
    sleep_ms(static_cast<double>(i % 16) * 10);
    Client client(target.port);
    if (!client.is_open()) return;  // it has ended already
    ends[i] = streamed(client, chat_body(words_for(i), i, 100, R"(,"stream":true,"ignore_eos":true)"));
  });
  killer.join();
  size_t n_whole = 0, n_told = 0, n_refused = 0, n_broken = 0;
  for (const std::string& end : ends) {
    if (end.ends_with("|length") || end.ends_with("|stop"))
      ++n_whole;
    else if (end.find("shutting_down") == end.npos)
      n_broken += !end.empty();
    else
      ++(end.starts_with("HTTP/1.1 503") ? n_refused : n_told);
  }
  fmt::print("{} streams: {} whole, {} ended with an error event, {} refused, {} broken\n", n, n_whole, n_told,
             n_refused, n_broken);
  return n_broken == 0;
}

int run(int argc, char** argv) {
  check(argc >= 4, ExitCode::usage, "usage: serve_stress PORT PID MODE [N]");
  raise_descriptor_limit(4096);
  const Target target{std::atoi(argv[1]), argv[2]};
  const std::string mode = argv[3];
  const auto count = [&](size_t otherwise) { return argc > 4 ? std::strtoul(argv[4], nullptr, 10) : otherwise; };
  const char* text = std::getenv("SEED");
  const uint64_t seed = text != nullptr ? std::strtoull(text, nullptr, 10) : std::random_device()();
  fmt::print("{}, seed {}\n", mode, seed);
  if (mode == "streams") return streams(target, count(256)) ? 0 : 1;
  if (mode == "disconnects") return disconnects(target, count(10000), seed) ? 0 : 1;
  if (mode == "soak") return soak(target, count(86400)) ? 0 : 1;
  if (mode == "slow") return slow(target, count(1000)) ? 0 : 1;
  if (mode == "bad") return bad(target, count(100000), seed) ? 0 : 1;
  if (mode == "drain") return drain(target, count(32), seed) ? 0 : 1;
  fail(ExitCode::usage, "unknown mode '{}'", mode);
}

}  // namespace
}  // namespace saaz

int main(int argc, char** argv) { return saaz::testing_serve::run_guarded(saaz::run, argc, argv); }
