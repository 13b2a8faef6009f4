#include "serve/dashboard.h"

#include <charconv>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "base/system.h"
#include "serve/run_view.h"

namespace saaz {
namespace {

constexpr auto kInterval = std::chrono::seconds(1);
/// A state of thousands of updates and many rounds of probes waits as a whole for a slow viewer.
constexpr size_t kPendingBytes = 32 << 20;
/// How long the last news may take to reach the viewers.
constexpr double kGoodbyeSeconds = 1;

double unix_now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

}  // namespace

struct Dashboard::Impl {
  explicit Impl(const std::vector<fs::path>& runs) {
    for (const fs::path& run : runs) views.emplace_back(run);
  }

  Value state() const {
    Value list = Value::array();
    for (const RunView& view : views) list.push_back(view.state());
    return Value::object({{"schema_version", 1}, {"now", unix_now()}, {"runs", list}});
  }

  void send_all(const ServerEvent& event) {
    std::erase_if(viewers, [&](const std::shared_ptr<WebCall>& viewer) { return !viewer->send(event); });
  }

  /// Reads what is new and tells every viewer. The lock is held.
  void advance() {
    Value list = Value::array();
    bool is_anew = false;
    for (size_t i = 0; i < views.size(); ++i) {
      const RunView::Change change = views[i].poll();
      is_anew |= change == RunView::Change::anew;
      if (change == RunView::Change::none) continue;
      is_stale = true;
      Value news = views[i].news();
      news.set("id", i);
      list.push_back(std::move(news));
    }
    if (viewers.empty() || list.items().empty()) return;
    if (is_anew) return send_all({to_json(state()), "state"});
    send_all({to_json(Value::object({{"now", unix_now()}, {"runs", list}})), "news"});
  }

  bool is_state_young() const { return monotonic_seconds() - state_time < kInterval.count(); }

  /// Everything as JSON. The lock is held.
  const std::string& newest_state() {
    advance();
    if (is_stale) state_text = to_json(state());
    is_stale = false;
    state_time = monotonic_seconds();
    return state_text;
  }

  /// Whoever comes within a second of another waits for the next round: many who come and go cost what one does.
  void add_viewer(std::shared_ptr<WebCall> call) {
    call->start_events();
    const std::lock_guard lock(mutex);
    arrivals.push_back(std::move(call));
    if (!is_state_young()) welcome();
  }

  /// The lock is held.
  void welcome() {
    if (arrivals.empty()) return;
    const ServerEvent event{newest_state(), "state"};
    for (std::shared_ptr<WebCall>& call : arrivals)
      if (call->send(event)) viewers.push_back(std::move(call));
    arrivals.clear();
  }

  void run() {
    std::unique_lock lock(mutex);
    while (!is_over) {
      wake.wait_for(lock, kInterval, [this] { return is_over; });
      const auto is_gone = [](const std::shared_ptr<WebCall>& viewer) { return viewer->is_gone(); };
      std::erase_if(viewers, is_gone);
      std::erase_if(arrivals, is_gone);
      try {
        if (!viewers.empty()) advance();
        welcome();
      } catch (const std::exception&) {
        viewers.clear();  // no memory for them: they come again, and the training goes on
        arrivals.clear();
      }
    }
  }

  /// The last news and the end, to all who are there. The lock is held.
  void end_streams() {
    welcome();
    if (!viewers.empty()) advance();
    send_all({"{}", "bye"});
    for (const auto& viewer : viewers) viewer->finish();
    viewers.clear();
  }

  /// Whoever asked before the server refused is told the end too, however late its request gets to a worker.
  void say_goodbye() {
    const double end = monotonic_seconds() + kGoodbyeSeconds;
    while (true) {
      try {
        const std::lock_guard lock(mutex);
        end_streams();
      } catch (const std::exception&) {
        return;  // no memory for the last news: the streams break off
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));  // a request let through just now is counted then
      if (server->counts().calls == 0 || monotonic_seconds() >= end) return;
    }
  }

  std::mutex mutex;
  std::condition_variable wake;
  std::vector<RunView> views;
  std::vector<std::shared_ptr<WebCall>> viewers, arrivals;  // arrivals: those who were not told the state yet
  std::string state_text;
  double state_time = -1e9;  // when it was made
  bool is_stale = true, is_over = false;
  std::unique_ptr<WebServer> server;
  std::thread thread;
};

Dashboard::Dashboard(const std::vector<fs::path>& runs, const WebOptions& options, std::span<const PageFile> files)
    : impl_(std::make_unique<Impl>(runs)) {
  Impl* impl = impl_.get();
  std::vector<WebRoute> routes = page_routes(files, "dashboard.html");
  routes.push_back({"GET", "/events", WebRoute::Access::open,
                    [impl](std::shared_ptr<WebCall> call) { impl->add_viewer(std::move(call)); }});
  routes.push_back({"GET", "/api/runs", WebRoute::Access::open, answer_at_once([impl](const WebRequest&) {
                      const std::lock_guard lock(impl->mutex);
                      WebReply reply;
                      reply.body = impl->is_state_young() ? impl->state_text : impl->newest_state();
                      return reply;
                    })});
  WebOptions own = options;
  own.limits.max_pending_bytes = kPendingBytes;
  impl->server = std::make_unique<WebServer>(own, std::move(routes));
  impl->thread = std::thread([impl] { impl->run(); });
}

Dashboard::~Dashboard() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->is_over = true;
  }
  impl_->wake.notify_all();
  impl_->thread.join();
  impl_->server->drain();
  impl_->say_goodbye();
  impl_->server.reset();
}

std::string Dashboard::address() const { return impl_->server->address(); }

WebOptions listen_at(const std::string& address) {
  WebOptions options;
  const size_t colon = address.rfind(':');
  std::string_view port = address;
  if (colon != std::string::npos) {
    options.host = address.substr(0, colon);
    port.remove_prefix(colon + 1);
  }
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), options.port);
  check(error == std::errc() && end == port.data() + port.size() && options.port >= 0 && options.port <= 65535 &&
            !options.host.empty(),
        ExitCode::usage, "{}: expected HOST:PORT with a port from 0 (any free one) to 65535", printable(address, 80));
  return options;
}

}  // namespace saaz
