// A deterministic thread pool: work is cut into tasks by the caller, by shape alone, never by the number of threads;
// which thread runs a task is free, what a task computes is not. So results are the same bytes for any number of
// threads.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>

namespace saaz {

/// Cores that this process may run on.
int available_cores();
/// The threads of a pool that is not told how many: `--threads`, or one per available core. Set before any pool is
/// made.
void set_default_threads(int n);
int default_threads();

class ThreadPool {
 public:
  /// n_threads >= 1, the caller's thread included. 0 = default_threads(). std::system_error when one cannot start.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  int size() const;
  /// Runs body(task, thread) for task in [0, n_tasks), thread in [0, size()), on at most max_threads threads; returns
  /// when all are done. Not re-entrant. The first exception thrown by a task is rethrown here.
  void run(int64_t n_tasks, const std::function<void(int64_t task, int thread)>& body,
           int64_t max_threads = std::numeric_limits<int64_t>::max());

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace saaz
