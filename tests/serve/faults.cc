// The faults of serving, tried against a running server over HTTP: see docs/serving.md for the figures.
//   serve_faults PORT PID MODE [ADAPTERS]     ADAPTERS: the server's folder of adapters, which holds a and b
// Modes: overload (a short line, 429 at once, goodput stays), fair (a long prompt beside streams), greedy (a client
// with 64 connections beside 8 with one), swap (an adapter is exchanged under load), poison (an adapter whose logits
// are not finite), first (one answer, written to or compared with the file ADAPTERS; START, in nanoseconds, is when the
// server was started). Exit status 0 when the promise holds. The server's flags for each: faults.sh.
#include <unistd.h>

#include <atomic>
#include <latch>
#include <mutex>
#include <set>

#include "serve/load.h"

namespace saaz {
namespace {

using namespace testing_serve;

const char* const kStream = R"(,"temperature":1,"stream":true)";

// ----------------------------------------------------------------------------------------------------- overload

struct Offered {
  double rate = 0, goodput = 0, p99_refused_ms = 0;
  size_t n_sent = 0, n_answered = 0, n_refused = 0, n_other = 0;
};

std::string overload_body(size_t i) { return chat_body(words_for(i), i, 24, R"(,"ignore_eos":true)"); }

/// Requests at a fixed rate, whatever becomes of those before.
Offered offer(const Target& target, double rate, double seconds) {
  constexpr size_t kThreads = 64;
  Offered out{.rate = rate};
  std::mutex mutex;
  std::vector<double> refused_ms;
  std::atomic<size_t> next = 0;
  const auto n = static_cast<size_t>(rate * seconds);
  const double start = monotonic_seconds();
  in_threads(kThreads, [&](size_t) {
    for (size_t i; (i = next++) < n;) {
      sleep_ms(std::max(0.0, 1e3 * (start + static_cast<double>(i) / rate - monotonic_seconds())));
      Client client(target.port);
      const double sent = monotonic_seconds();
      client.send(request_text("POST /v1/chat/completions", overload_body(i)));
      const std::string head = client.receive_reply().first;
      const double ms = (monotonic_seconds() - sent) * 1e3;
      const int status = status_of(head);
      const std::lock_guard lock(mutex);
      out.n_answered += status == 200;
      if (status == 429 && head.find("\r\nRetry-After: 1\r\n") != head.npos) {
        ++out.n_refused;
        refused_ms.push_back(ms);
      } else if (status != 200) {
        ++out.n_other;
      }
    }
  });
  out.n_sent = n;
  out.goodput = static_cast<double>(out.n_answered) / (monotonic_seconds() - start);
  out.p99_refused_ms = percentile(refused_ms, 0.99);
  return out;
}

/// Answers a second when there is always one waiting.
double peak(const Target& target, double seconds) {
  constexpr size_t kClients = 10;  // fewer than run and wait
  std::atomic<size_t> n_answered = 0;
  const double end = monotonic_seconds() + seconds;
  in_threads(kClients, [&](size_t thread) {
    Client client(target.port);
    for (size_t i = thread; monotonic_seconds() < end; i += kClients) {
      client.send(request_text("POST /v1/chat/completions", overload_body(i)));
      n_answered += status_of(client.receive_reply().first) == 200;
    }
  });
  return static_cast<double>(n_answered) / seconds;
}

bool overload(const Target& target) {
  constexpr double kSeconds = 6;
  const Gauges before = gauges_at_rest(target);
  const double most = peak(target, kSeconds);
  fmt::print("peak: {:.0f} answers a second\n", most);
  bool ok = true;
  for (const double load : {0.5, 1.0, 2.0, 4.0}) {
    const Offered o = offer(target, load * most, kSeconds);
    fmt::print(
        "load {:.1f}: {} sent, {} answered ({:.0f} a second, {:.0f} % of the peak), {} told 429 with "
        "Retry-After (p99 after {:.1f} ms), {} other\n",
        load, o.n_sent, o.n_answered, o.goodput, 100 * o.goodput / most, o.n_refused, o.p99_refused_ms, o.n_other);
    ok &= o.n_other == 0 && o.p99_refused_ms < 50 && (load < 4 || o.goodput >= 0.9 * most);
  }
  return is_back(target, before, 10) && ok;
}

// ------------------------------------------------------------------------------------------------------- fairness

/// The longest time between two events of a stream, in ms.
double worst_gap(const Target& target, size_t i) {
  Client client(target.port);
  client.send(request_text("POST /v1/chat/completions",
                           chat_body(words_for(i), i, 100, R"(,"stream":true,"ignore_eos":true)")));
  client.receive_until("\r\n\r\n");
  double worst = 0, last = 0;
  while (true) {
    const std::string event = client.receive_until("\n\n");
    if (event.find("data: {") == event.npos) return worst;
    const double now = monotonic_seconds();
    if (last > 0) worst = std::max(worst, (now - last) * 1e3);
    last = now;
  }
}

/// The median of the worst gap of 15 streams, of some rounds; `beside` runs beside each.
template <class Beside>
double gap_of_many(const Target& target, const Beside& beside) {
  constexpr size_t kStreams = 15, kRounds = 9;
  std::vector<double> worst;
  for (size_t round = 0; round < kRounds; ++round) {
    std::vector<double> gaps(kStreams);
    std::thread other([&] { beside(round); });
    in_threads(kStreams, [&](size_t i) { gaps[i] = worst_gap(target, round * kStreams + i); });
    other.join();
    worst.push_back(*std::max_element(gaps.begin(), gaps.end()));
  }
  return percentile(worst, 0.5);
}

/// Answered tokens of each of 8 clients with one connection, and of one with 64, each with a key of its own.
std::vector<double> shared_out(const Target& target, double seconds) {
  constexpr size_t kClients = 9, kGreedy = 64;
  std::vector<std::atomic<size_t>> n_answers(kClients);
  const double end = monotonic_seconds() + seconds;
  in_threads(kClients - 1 + kGreedy, [&](size_t thread) {
    const size_t who = std::min(thread, kClients - 1);
    Client client(target.port);
    for (size_t i = thread; monotonic_seconds() < end; i += 100) {
      client.send(request_text("POST /v1/chat/completions", chat_body(words_for(i), i, 24, R"(,"ignore_eos":true)"),
                               fmt::format("Authorization: Bearer key-{}\r\n", who)));
      n_answers[who] += status_of(client.receive_reply().first) == 200 && monotonic_seconds() < end;
    }
  });
  std::vector<double> out(n_answers.begin(), n_answers.end());
  return out;
}

bool fair_to_streams(const Target& target) {
  const double alone = gap_of_many(target, [](size_t) {});
  std::atomic<int64_t> n_tokens = 0;
  const double beside = gap_of_many(target, [&](size_t round) {
    std::string text;
    for (size_t i = 0; i < 120; ++i) text += words_for(1000 * round + i) + " ";
    sleep_ms(50);
    Client client(target.port);
    client.send(request_text("POST /v1/chat/completions", chat_body(text, round, 1, "")));
    const auto [head, body] = client.receive_reply();
    if (status_of(head) == 200) n_tokens = parse_json(body, "reply").find("usage")->find("prompt_tokens")->as_integer();
  });
  fmt::print(
      "worst gap between two events of 15 streams, median of 9 rounds: {:.1f} ms alone, {:.1f} ms beside a prompt of {} "
      "tokens\n",
      alone, beside, n_tokens.load());
  return n_tokens > 1000 && beside <= 3 * alone;
}

bool fair_to_clients(const Target& target) {
  const std::vector<double> answers = shared_out(target, 10);
  const auto [least, most] = std::minmax_element(answers.begin(), answers.end());
  fmt::print("8 clients with a connection each: {:.0f} to {:.0f} answers; one with 64: {:.0f}; most to least {:.2f}\n",
             *least, *std::max_element(answers.begin(), answers.end() - 1), answers.back(), *most / *least);
  return *most <= 2 * *least;
}

// ------------------------------------------------------------------------------------------------------- adapters

std::string load_body(const std::string& name, const std::string& path) {
  return fmt::format(R"({{"lora_name":"{}","lora_path":"{}","load_inplace":true}})", name, path);
}

bool load(const Target& target, const std::string& name, const std::string& path) {
  Client client(target.port);
  client.send(request_text("POST /v1/load_lora_adapter", load_body(name, path)));
  return status_of(client.receive_reply().first) == 200;
}

std::string stream_of(const Target& target, const std::string& model, size_t i) {
  Client client(target.port);
  return streamed(client, chat_body(words_for(i), i, 40, fmt::format(R"(,"model":"{}"{})", model, kStream)));
}

/// Each round half the streams begin, one after the other, while x is exchanged five times: each must be by a or by b
/// as a whole. The other half is sent once the last exchange is answered: each must be by what was loaded then.
bool swap(const Target& target) {
  constexpr size_t kStreams = 64, kRounds = 6, kExchanges = 5;
  std::vector<std::string> with_a(kStreams), with_b(kStreams);
  for (size_t i = 0; i < kStreams; ++i) with_a[i] = stream_of(target, "a", i), with_b[i] = stream_of(target, "b", i);
  if (!load(target, "x", "a")) return false;
  std::atomic<size_t> n_failed = 0, n_a = 0, n_b = 0, n_same = 0, n_mixed = 0, n_stale = 0;
  const Gauges before = gauges_at_rest(target);
  bool is_b_loaded = false;
  for (size_t round = 0; round < kRounds; ++round) {
    std::latch exchanged(1);
    in_threads(kStreams + 1, [&](size_t i) {
      if (i == kStreams) {
        for (size_t k = 0; k < kExchanges; ++k, sleep_ms(20)) {
          is_b_loaded = !is_b_loaded;
          n_failed += !load(target, "x", is_b_loaded ? "b" : "a");
        }
        return exchanged.count_down();
      }
      const bool is_late = i % 2 == 1;
      if (is_late)
        exchanged.wait();
      else
        sleep_ms(1.5 * static_cast<double>(i));
      const std::string answer = stream_of(target, "x", i);
      const bool is_a = answer == with_a[i], is_b = answer == with_b[i];
      ++(is_a && is_b ? n_same : is_a ? n_a : is_b ? n_b : n_mixed);
      n_stale += is_late && !(is_b_loaded ? is_b : is_a);
    });
  }
  const bool back = is_back(target, before, 10);
  const Gauges after = gauges(target);
  fmt::print(
      "{} streams while their adapter was exchanged {} times: {} by one, {} by the other, {} the same by both, {} by neither, {} by one "
      "that was gone, {} failed loads; memory {} to {} KiB; {}\n",
      kRounds * kStreams, kRounds * kExchanges, n_a.load(), n_b.load(), n_same.load(), n_mixed.load(), n_stale.load(),
      n_failed.load(), before.rss_kib, after.rss_kib, back ? "everything was back" : "NOT everything was back");
  return n_mixed == 0 && n_stale == 0 && n_failed == 0 && n_a > 0 && n_b > 0 && back;
}

/// A copy of adapter a whose numbers are finite and far too large.
void write_poison(const fs::path& adapters) {
  const fs::path folder = adapters / "poison";
  fs::create_directories(folder);
  fs::copy_file(adapters / "a/adapter_config.json", folder / "adapter_config.json",
                fs::copy_options::overwrite_existing);
  std::string text = read_file(adapters / "a/adapter_model.safetensors");
  uint64_t header = 0;
  text.copy(reinterpret_cast<char*>(&header), sizeof header);
  constexpr float kHuge = 1e30f;
  for (size_t at = sizeof header + header; at + sizeof kHuge <= text.size(); at += sizeof kHuge)
    text.replace(at, sizeof kHuge, reinterpret_cast<const char*>(&kHuge), sizeof kHuge);
  std::ofstream(folder / "adapter_model.safetensors", std::ios::binary) << text;
}

bool poison(const Target& target, const fs::path& adapters) {
  constexpr size_t kStreams = 48;
  write_poison(adapters);
  if (!load(target, "poison", "poison")) return false;
  std::vector<std::string> solo(kStreams);
  for (size_t i = 0; i < kStreams; ++i) solo[i] = stream_of(target, i % 2 == 0 ? "model" : "a", i);
  const Gauges before = gauges_at_rest(target);
  std::atomic<size_t> n_equal = 0, n_500 = 0, n_events = 0, n_wrong = 0;
  in_threads(2 * kStreams, [&](size_t k) {
    const size_t i = k / 2;
    if (k % 2 == 0) {
      const bool same = stream_of(target, i % 2 == 0 ? "model" : "a", i) == solo[i];
      ++(same ? n_equal : n_wrong);
    } else if (i % 2 == 0) {
      const std::string end = stream_of(target, "poison", i);
      ++(end.find("generation failed") != end.npos ? n_events : n_wrong);
    } else {
      Client client(target.port);
      client.send(request_text("POST /v1/chat/completions", chat_body("سلام", i, 4, R"(,"model":"poison")")));
      const auto [head, body] = client.receive_reply();
      ++(status_of(head) == 500 && body.starts_with("{\"error\": {\"message\"") ? n_500 : n_wrong);
    }
  });
  const bool healthy = get(target, "/health").find("\"ok\"") != std::string::npos;
  const bool back = is_back(target, before, 10);
  fmt::print(
      "{} sound streams beside {} whose logits are not finite: {} as alone; of the others {} ended with an error "
      "event, {} got 500, {} anything else; /health {}; {}\n",
      kStreams, kStreams, n_equal.load(), n_events.load(), n_500.load(), n_wrong.load(), healthy ? "ok" : "NOT ok",
      back ? "everything was back" : "NOT everything was back");
  return n_equal == kStreams && n_wrong == 0 && healthy && back;
}

// -------------------------------------------------------------------------------------------------------- restart

/// Of the server, since it began.
double processor_seconds(const Target& target) {
  std::ifstream file("/proc/" + target.pid + "/stat");
  std::string stat;
  std::getline(file, stat);
  std::istringstream fields(stat.substr(stat.rfind(')') + 2));  // field 3 and on: a name may hold spaces
  std::string field;
  double ticks = 0;
  for (int i = 3; i <= 15 && fields >> field; ++i) ticks += i >= 14 ? std::strtod(field.c_str(), nullptr) : 0;
  return ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
}

bool first(const Target& target, const fs::path& expected) {
  Client client(target.port);
  const std::string answer = streamed(client, chat_body("سلام", 7, 12, kStream));
  const double busy = processor_seconds(target);  // whatever else the machine does meanwhile
  const char* text = std::getenv("START");
  const auto now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  const double seconds = text == nullptr ? 0 : now - std::strtod(text, nullptr) * 1e-9;
  if (!fs::exists(expected)) std::ofstream(expected) << answer;
  const bool same = answer == read_file(expected);
  fmt::print("{:.3f} s from the start to a whole answer{}, {:.2f} s of the processor\n", seconds,
             same ? "" : ", ANOTHER one", busy);
  return same && busy < 2;
}

int run(int argc, char** argv) {
  check(argc >= 4, ExitCode::usage, "usage: serve_faults PORT PID MODE [ADAPTERS]");
  raise_descriptor_limit(4096);
  const Target target{std::atoi(argv[1]), argv[2]};
  const std::string mode = argv[3], folder = argc > 4 ? argv[4] : "";
  if (mode == "overload") return overload(target) ? 0 : 1;
  if (mode == "fair") return fair_to_streams(target) ? 0 : 1;
  if (mode == "greedy") return fair_to_clients(target) ? 0 : 1;
  if (mode == "swap") return swap(target) ? 0 : 1;
  if (mode == "poison") return poison(target, folder) ? 0 : 1;
  if (mode == "first") return first(target, folder) ? 0 : 1;
  fail(ExitCode::usage, "unknown mode '{}'", mode);
}

}  // namespace
}  // namespace saaz

int main(int argc, char** argv) { return saaz::testing_serve::run_guarded(saaz::run, argc, argv); }
