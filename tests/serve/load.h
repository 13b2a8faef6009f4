// What the load programs share: a running server as they see it, its gauges, and streamed answers.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/system.h"
#include "base/value.h"
#include "serve/client.h"

namespace saaz::testing_serve {

struct Target {
  int port = 0;
  std::string pid;
};

struct Gauges {
  std::map<std::string, double> metrics;
  int64_t n_files = 0, n_threads = 0, rss_kib = 0;
};

inline std::string get(const Target& target, const std::string& path) {
  Client client(target.port);
  client.send(request_text("GET " + path));
  return client.receive_reply().second;
}

inline Gauges gauges(const Target& target) {
  Gauges out;
  std::istringstream lines(get(target, "/metrics"));
  for (std::string line; std::getline(lines, line);) {
    const size_t space = line.rfind(' ');
    if (!line.starts_with('#') && space != line.npos) out.metrics[line.substr(0, space)] = std::atof(&line[space + 1]);
  }
  for ([[maybe_unused]] const auto& file : fs::directory_iterator("/proc/" + target.pid + "/fd")) ++out.n_files;
  std::ifstream status("/proc/" + target.pid + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("Threads:")) out.n_threads = std::atoll(&line[8]);
    if (line.starts_with("VmRSS:")) out.rss_kib = std::atoll(&line[6]);
  }
  return out;
}

inline void sleep_ms(double ms) {
  std::this_thread::sleep_for(std::chrono::microseconds(static_cast<int64_t>(ms * 1000)));
}

/// Gauges when the connections of earlier clients are gone: the one that asks is alone.
inline Gauges gauges_at_rest(const Target& target) {
  Gauges now = gauges(target), last;
  for (int i = 0; i < 100 && (now.metrics.at("saaz_http_connections") > 1 || now.n_files != last.n_files); ++i) {
    sleep_ms(100);  // a descriptor may outlast its connection for a moment
    last = std::exchange(now, gauges(target));
  }
  return now;
}

/// The data of all events in a chunked reply's body.
inline std::vector<std::string> events_of(std::string_view body) {
  std::string text;
  while (!body.empty()) {
    const size_t end = body.find("\r\n");
    const size_t size = std::strtoul(std::string(body.substr(0, end)).c_str(), nullptr, 16);
    if (size == 0 || end == body.npos || body.size() < end + 2 + size) break;
    text += body.substr(end + 2, size);
    body.remove_prefix(std::min(body.size(), end + size + 4));
  }
  std::vector<std::string> events;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with("data: ")) events.push_back(line.substr(6));
  return events;
}

/// A streamed chat answer: its text, and "|" with the reason it ended; its last event when that is an error;
/// "incomplete" when it broke off.
inline std::string streamed(Client& client, const std::string& body, const std::string& fields = "") {
  client.send(request_text("POST /v1/chat/completions", body, fields));
  const std::string head = client.receive_until("\r\n\r\n");
  if (status_of(head) != 200) return head.substr(0, 12) + client.receive_all();
  const std::vector<std::string> events = events_of(client.receive_until("\r\n0\r\n\r\n"));
  if (!events.empty() && events.back().starts_with("{\"error\"")) return events.back();
  if (events.empty() || events.back() != "[DONE]") return "incomplete";
  std::string text, finish;
  for (const std::string& event : events) {
    if (event == "[DONE]") break;
    const Value chunk = parse_json(event, "event");
    for (const Value& choice : chunk.find("choices")->items()) {
      if (const Value* piece = choice.find("delta")->find("content")) text += piece->as_string();
      if (choice.find("finish_reason")->is_string()) finish = choice.find("finish_reason")->as_string();
    }
  }
  return text + "|" + finish;
}

inline std::string chat_body(const std::string& words, uint64_t seed, int max_tokens, const std::string& more) {
  return fmt::format(R"({{"messages":[{{"role":"user","content":"{}"}}],"seed":{},"max_tokens":{}{}}})", words, seed,
                     max_tokens, more);
}

inline constexpr const char* kWords[] = {"سلام",  "بادگیر چیست؟", "یک شعر بگو",          "قیمت نان",
                                         "hello", "۱۲۳ و 456",    "نیم‌فاصله", "شهر یزد"};

inline std::string words_for(size_t i) { return fmt::format("{} {}", kWords[i % std::size(kWords)], i); }

template <class Body>
inline void in_threads(size_t n, const Body& body) {
  std::vector<std::thread> threads;
  for (size_t i = 0; i < n; ++i) threads.emplace_back([&body, i] { body(i); });
  for (std::thread& thread : threads) thread.join();
}

/// Whether everything a client takes is back at its start value; waits for it.
inline bool is_back(const Target& target, const Gauges& before, double seconds) {
  const double end = monotonic_seconds() + seconds;
  while (true) {
    const Gauges now = gauges(target);
    bool same = now.n_files == before.n_files && now.n_threads == before.n_threads;
    for (const char* name : {"saaz_sequences_running", "saaz_requests_waiting", "saaz_kv_rows_used",
                             "saaz_kv_slots_used", "saaz_http_calls", "saaz_http_connections"})
      same &= now.metrics.at(name) == before.metrics.at(name);
    if (same) return true;
    if (monotonic_seconds() > end) {
      for (const auto& [name, value] : now.metrics)
        if (before.metrics.contains(name) && before.metrics.at(name) != value) fmt::print("{} {}\n", name, value);
      fmt::print("files {} -> {}, threads {} -> {}\n", before.n_files, now.n_files, before.n_threads, now.n_threads);
      return false;
    }
    sleep_ms(20);
  }
}

inline double percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[std::min(values.size() - 1, static_cast<size_t>(share * values.size()))];
}

/// A program's `run`: its exit status, or 1 and a line for what was thrown.
inline int run_guarded(int (*run)(int argc, char** argv), int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print("error: {}\n", error.what());
    return 1;
  }
}

}  // namespace saaz::testing_serve
