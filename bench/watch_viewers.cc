// What viewers cost a training run: the tiny model trains with the dashboard on, and viewers in another process follow
// it. Prints the CPU time of the server's threads as a share of the run's, by the kernel's clock of each thread.
//   bench_watch_viewers SOURCE_DIR [VIEWERS] [UPDATES] [MILLISECONDS] [PERCENT]
// With MILLISECONDS a viewer is cut off each time the run has computed so long, and another comes: by the run's clock,
// so that they come no faster beside a run that others slow down. Fails over PERCENT (1), which `./run test-web` makes
// 2: a busy machine's caches are others', too.
#include <arpa/inet.h>
#include <dirent.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <random>
#include <set>
#include <utility>

#include "base/check.h"
#include "serve/dashboard.h"
#include "train/trainer.h"

namespace saaz {
namespace {

std::set<int> threads() {
  std::set<int> out;
  DIR* folder = opendir("/proc/self/task");
  while (const dirent* entry = readdir(folder))
    if (entry->d_name[0] != '.') out.insert(std::atoi(entry->d_name));
  closedir(folder);
  return out;
}

double seconds_of(const std::set<int>& ids) {
  double sum = 0;
  for (const int id : ids) {
    double nanoseconds = 0;
    std::ifstream(fmt::format("/proc/self/task/{}/schedstat", id)) >> nanoseconds;
    sum += nanoseconds * 1e-9;
  }
  return sum;
}

/// CPU time of a process.
double process_seconds(pid_t process) {
  clockid_t clock{};
  timespec time{};
  if (clock_getcpuclockid(process, &clock) == 0) clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

int connected_viewer(int port) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  constexpr std::string_view kAsk = "GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
  if (connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0 &&
      write(fd, kAsk.data(), kAsk.size()) == static_cast<ssize_t>(kAsk.size()))
    return fd;
  close(fd);
  return -1;
}

struct Viewer {
  int fd;
  std::string text = {};
};

/// Cuts a viewer off, and another comes in its place. False when none can.
bool replace(Viewer& viewer, int port) {
  const int fresh = viewer.fd < 0 ? -1 : connected_viewer(port);
  if (fresh < 0) return false;
  constexpr linger kReset{1, 0};
  setsockopt(viewer.fd, SOL_SOCKET, SO_LINGER, &kReset, sizeof kReset);
  close(viewer.fd);
  viewer = {fresh};
  return true;
}

/// What came; true when all saw the end.
bool tell(const std::vector<Viewer>& viewers, int n_kills) {
  size_t n_bytes = 0, least = SIZE_MAX;
  size_t n_whole = 0;
  for (const Viewer& viewer : viewers) {
    size_t n_news = 0;
    for (size_t at = 0; (at = viewer.text.find("event: news", at)) != std::string::npos; ++at) ++n_news;
    least = std::min(least, n_news);
    n_bytes += viewer.text.size();
    n_whole += viewer.text.find("event: bye") != std::string::npos ? 1 : 0;
  }
  fmt::print("{} viewers: {} cut off, {} saw the end, each had at least {} messages of news, {:.1f} MB in all\n",
             viewers.size(), n_kills, n_whole, least, static_cast<double>(n_bytes) * 1e-6);
  return n_whole == viewers.size();
}

/// Follows the stream `n` times until the server, the parent process, ends it. With `kill_ms`, one of the viewers is
/// cut off each time the parent has computed so long, until the parent says nothing more to `parent`, which is closed
/// when all viewers have an answer: who comes while a server ends is refused, and proves nothing.
bool view(int parent, int port, int n, int kill_ms) {
  std::vector<Viewer> viewers;
  for (int i = 0; i < n; ++i) viewers.push_back({connected_viewer(port)});
  std::vector<pollfd> waiting(viewers.size() + 1);
  std::mt19937 random(1);
  double last_kill = process_seconds(getppid());
  int n_kills = 0;
  char buffer[1 << 16];
  bool is_ending = false;
  for (int n_open = n; n_open > 0;) {
    if (kill_ms > 0 && !is_ending && process_seconds(getppid()) - last_kill > 1e-3 * kill_ms) {
      last_kill = process_seconds(getppid());
      n_kills += replace(viewers[random() % viewers.size()], port) ? 1 : 0;
    }
    for (size_t i = 0; i < viewers.size(); ++i) waiting[i] = {viewers[i].fd, POLLIN, 0};
    waiting.back() = {parent, POLLIN, 0};
    ::poll(waiting.data(), waiting.size(), kill_ms > 0 ? 1 + kill_ms / 4 : -1);
    is_ending = is_ending || waiting.back().revents != 0;
    const auto has_answer = [](const Viewer& viewer) { return !viewer.text.empty(); };
    if (is_ending && std::all_of(viewers.begin(), viewers.end(), has_answer)) close(std::exchange(parent, -1));
    for (size_t i = 0; i < viewers.size(); ++i) {
      if ((waiting[i].revents & (POLLIN | POLLHUP | POLLERR)) == 0) continue;
      const ssize_t got = read(viewers[i].fd, buffer, sizeof buffer);
      if (got > 0) viewers[i].text.append(buffer, static_cast<size_t>(got));
      if (got > 0) continue;
      close(std::exchange(viewers[i].fd, -1));
      --n_open;
    }
  }
  return tell(viewers, n_kills);
}

int run(const fs::path& source, int n_viewers, int n_updates, int kill_ms, double percent) {
  int ends[2];
  check(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, ExitCode::io, "no socket");
  const pid_t child = fork();
  if (child == 0) {
    close(ends[1]);
    int port = 0;
    if (read(ends[0], &port, sizeof port) != sizeof port) _exit(1);
    const bool is_well = view(ends[0], port, n_viewers, kill_ms);
    std::fflush(stdout);
    _exit(is_well ? 0 : 1);
  }
  close(ends[0]);
  const fs::path work = fs::temp_directory_path() / fmt::format("saaz-viewers-{}", getpid()),
                 samples = source / "data/try";
  const std::vector<std::string> settings = {
      "model.base=" + (samples / "model").string(), "data.train=" + (samples / "train.jsonl").string(),
      "data.validation.file=" + (samples / "valid.jsonl").string(), "output.dir=" + work.string(),
      fmt::format("train.max_steps={}", n_updates)};
  const Recipe recipe = load_recipe(samples / "recipe.yaml", settings);
  const auto backend = make_cpu_backend({});
  const std::set<int> before = threads();
  auto dashboard =
      std::make_unique<Dashboard>(std::vector<fs::path>{work}, listen_at("127.0.0.1:0"), std::span<const PageFile>());
  std::set<int> of_server = threads();
  for (const int id : before) of_server.erase(id);
  const std::string address = dashboard->address();
  const int port = std::atoi(address.c_str() + address.rfind(':') + 1);
  check(write(ends[1], &port, sizeof port) == sizeof port, ExitCode::io, "no socket");
  const double run_before = process_seconds(getpid()), server_before = seconds_of(of_server);
  train(*backend, recipe, {});
  const double server_seconds = seconds_of(of_server) - server_before, all = process_seconds(getpid()) - run_before;
  constexpr timeval kLongest{10, 0};
  setsockopt(ends[1], SOL_SOCKET, SO_RCVTIMEO, &kLongest, sizeof kLongest);
  shutdown(ends[1], SHUT_WR);
  char nothing;
  check(read(ends[1], &nothing, 1) == 0, ExitCode::io, "a viewer without an answer after {} s", kLongest.tv_sec);
  dashboard.reset();
  int status = 0;
  waitpid(child, &status, 0);
  fs::remove_all(work);
  fmt::print("{} updates, {:.2f} s of CPU; {} server threads used {:.1f} ms of it: {:.3f} %\n", n_updates, all,
             of_server.size(), 1e3 * server_seconds, 100 * server_seconds / all);
  return status == 0 && server_seconds <= 0.01 * percent * all ? 0 : 1;
}

}  // namespace
}  // namespace saaz

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  return saaz::run(argv[1], argc > 2 ? std::atoi(argv[2]) : 100, argc > 3 ? std::atoi(argv[3]) : 400,
                   argc > 4 ? std::atoi(argv[4]) : 0, argc > 5 ? std::atof(argv[5]) : 1);
}
