// What happens to requests, carried from the engine's thread to the one that waits for it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "infer/request.h"

namespace saaz {

class EventQueue {
 public:
  struct Event {
    size_t tag = 0;  // the caller's word for the request
    Delta delta;
    std::optional<Outcome> end;  // then there is no delta
  };

  /// For Engine::submit. They keep the queue alive.
  static Callbacks callbacks(const std::shared_ptr<EventQueue>& queue, size_t tag) {
    return {.on_delta =
                [queue, tag](const Delta& delta) {
                  queue->put({tag, delta, {}});
                },
            .on_end =
                [queue, tag](const Outcome& outcome) {
                  queue->put({tag, {}, outcome});
                }};
  }
  /// What came since the last call; waits a moment for it when nothing did.
  std::vector<Event> take() {
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, std::chrono::milliseconds(50), [&] { return !events_.empty(); });
    return std::exchange(events_, {});
  }

 private:
  void put(Event event) {
    std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
    wake_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Event> events_;
};

}  // namespace saaz
