// A few threads that run jobs in the order they came: tokenising and parsing, which would hold up the network thread.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

namespace saaz {

class Workers {
 public:
  /// std::system_error when one cannot start. The end waits for the jobs that run; those that wait are dropped.
  explicit Workers(int n_threads);
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  /// `job` must not throw.
  void add(std::function<void()> job);

 private:
  void run(const std::stop_token& stop);

  std::mutex mutex_;
  std::condition_variable_any ready_;
  std::deque<std::function<void()>> jobs_;
  std::vector<std::jthread> threads_;  // last: they end before what they use
};

}  // namespace saaz
