#include "base/threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace saaz {

namespace {

/// Gives `done` a short time to come true before the caller sleeps: one decoding step is a few hundred runs, a few
/// microseconds apart, and waking a sleeper costs as much as such a run.
template <class Done>
void spin_until(Done done) {
  constexpr int kPauses = 1000;  // 10 to 50 microseconds
  for (int i = 0; i < kPauses && !done(); ++i) __builtin_ia32_pause();
}

}  // namespace

struct ThreadPool::Impl {
  /// Also the end of a pool that could not start all its workers.
  ~Impl() {
    {
      std::lock_guard lock(mutex);
      stopping = true;
    }
    wake.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake, done;
  // Workers that this run still waits for to start, and to finish. Changed under the mutex; watched without it.
  std::atomic<int> wanted{0}, busy{0};
  std::atomic<bool> stopping{false};
  const std::function<void(int64_t, int)>* body = nullptr;
  int64_t n_tasks = 0;
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;

  void work(int thread) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < n_tasks;) {
      try {
        (*body)(task, thread);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
        next.store(n_tasks, std::memory_order_relaxed);
      }
    }
  }

  void loop(int thread) {
    while (true) {
      spin_until([&] { return stopping || wanted > 0; });
      std::unique_lock lock(mutex);
      wake.wait(lock, [&] { return stopping || wanted > 0; });
      if (stopping) return;
      --wanted;
      lock.unlock();
      work(thread);
      lock.lock();
      if (--busy == 0) done.notify_one();
    }
  }
};

int available_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

namespace {
int g_threads = 0;
}

void set_default_threads(int n) { g_threads = n; }
int default_threads() { return g_threads > 0 ? g_threads : available_cores(); }

ThreadPool::ThreadPool(int n_threads) : impl_(std::make_unique<Impl>()) {
  if (n_threads <= 0) n_threads = default_threads();
  for (int i = 1; i < n_threads; ++i) impl_->workers.emplace_back([impl = impl_.get(), i] { impl->loop(i); });
}

ThreadPool::~ThreadPool() = default;

int ThreadPool::size() const { return static_cast<int>(impl_->workers.size()) + 1; }

void ThreadPool::run(int64_t n_tasks, const std::function<void(int64_t, int)>& body, int64_t max_threads) {
  if (n_tasks <= 0) return;
  const int helpers = static_cast<int>(std::min<int64_t>({size(), n_tasks, max_threads})) - 1;
  if (helpers <= 0) {
    for (int64_t task = 0; task < n_tasks; ++task) body(task, 0);
    return;
  }
  {
    std::lock_guard lock(impl_->mutex);
    impl_->body = &body;
    impl_->n_tasks = n_tasks;
    impl_->next.store(0, std::memory_order_relaxed);
    impl_->failure = nullptr;
    impl_->busy = helpers;
    impl_->wanted = helpers;
  }
  for (int i = 0; i < helpers; ++i) impl_->wake.notify_one();
  impl_->work(0);
  {
    std::lock_guard lock(impl_->mutex);
    impl_->busy -= impl_->wanted.exchange(0);  // whoever has not started finds nothing left to do
  }
  spin_until([&] { return impl_->busy == 0; });
  std::unique_lock lock(impl_->mutex);
  impl_->done.wait(lock, [&] { return impl_->busy == 0; });
  if (impl_->failure) std::rethrow_exception(impl_->failure);
}

}  // namespace saaz
