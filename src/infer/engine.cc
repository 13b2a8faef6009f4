#include "infer/engine.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <new>
#include <thread>

#include "base/check.h"
#include "base/out_of_memory.h"
#include "infer/scheduler.h"

namespace saaz {

struct Engine::Impl {
  Impl(Backend& backend, Model& model, const Tokenizer* tokenizer, const EngineOptions& options)
      : backend(backend),
        model(model),
        tokenizer(tokenizer),
        scheduler(backend, model, tokenizer, options),
        figures(scheduler.stats()) {}

  void loop();
  bool take_orders();
  void publish();
  std::shared_ptr<const GuardTable> guard_table(const GuardOptions& options);

  Backend& backend;
  Model& model;
  const Tokenizer* tokenizer;
  Scheduler scheduler;  // the thread's alone, its options aside

  mutable std::mutex mutex;
  std::condition_variable wake, rest;
  std::vector<Order> arrivals;
  std::vector<RequestId> cancelled;
  std::map<std::string, std::shared_ptr<const LoadedAdapter>> adapters;
  EngineStats figures;  // after the last step; waiting counts arrivals as well
  int64_t n_refused = 0;
  RequestId last_id = 0;
  uint64_t last_adapter = 0;
  bool is_draining = false, is_stopping = false, is_idle = true;
  std::string failure;
  ExitCode failure_code = ExitCode::ok;

  std::mutex guards_mutex;
  std::map<Digits, std::shared_ptr<const GuardTable>> guards;

  std::thread thread;
};

/// Made when it is first asked for, which takes a moment.
std::shared_ptr<const GuardTable> Engine::Impl::guard_table(const GuardOptions& options) {
  std::lock_guard lock(guards_mutex);
  std::shared_ptr<const GuardTable>& table = guards[options.digits];
  if (!table) table = std::make_shared<GuardTable>(*tokenizer, options);
  return table;
}

/// Waits for something to do and hands it to the scheduler. False when the engine is to stop.
bool Engine::Impl::take_orders() {
  std::vector<Order> new_arrivals;
  std::vector<RequestId> new_cancelled;
  {
    std::unique_lock lock(mutex);
    wake.wait(lock, [&] { return is_stopping || !arrivals.empty() || !cancelled.empty() || !scheduler.idle(); });
    if (is_stopping) return false;
    new_arrivals.swap(arrivals);
    new_cancelled.swap(cancelled);
    is_idle = false;
  }
  for (Order& order : new_arrivals) scheduler.add(std::move(order));
  for (const RequestId id : new_cancelled) scheduler.cancel(id);
  return true;
}

void Engine::Impl::publish() {
  std::lock_guard lock(mutex);
  figures = scheduler.stats();
  figures.waiting += static_cast<int64_t>(arrivals.size());
  is_idle = scheduler.idle() && arrivals.empty();
  if (is_idle) rest.notify_all();
}

void Engine::Impl::loop() {
  while (true) {
    std::string error;
    ExitCode code = ExitCode::io;
    try {
      if (!take_orders()) break;
      scheduler.step();
    } catch (const Error& fault) {
      error = fault.what();
      if (fault.code() == ExitCode::resource || fault.code() == ExitCode::diverged) code = fault.code();
    } catch (const std::bad_alloc&) {
      error = kOutOfMemory;
      code = ExitCode::resource;
    } catch (const std::exception& fault) {
      error = fault.what();
    }
    if (!error.empty()) {
      {
        std::lock_guard lock(mutex);
        failure = error;
        failure_code = code;
      }
      scheduler.end_all(error, code);
    }
    publish();
  }
  std::vector<Order> unseen;
  {
    std::lock_guard lock(mutex);
    unseen.swap(arrivals);
  }
  for (Order& order : unseen) scheduler.add(std::move(order));
  scheduler.end_all("", ExitCode::ok);
  publish();
}

Engine::Engine(Backend& backend, Model& model, const Tokenizer* tokenizer, const EngineOptions& options)
    : impl_(std::make_unique<Impl>(backend, model, tokenizer, options)) {
  impl_->thread = std::thread([this] { impl_->loop(); });
}

Engine::~Engine() {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->is_stopping = impl_->is_draining = true;
  }
  impl_->wake.notify_all();
  impl_->thread.join();
}

Submitted Engine::submit(Request request, Callbacks callbacks) {
  Submitted out = check_request(request, {.vocab_size = impl_->model.config().vocab_size,
                                          .context = options().context,
                                          .has_tokenizer = impl_->tokenizer != nullptr});
  std::shared_ptr<const GuardTable> guard;
  if (out.refusal == Refusal::none && request.guard) guard = impl_->guard_table(*request.guard);
  std::lock_guard lock(impl_->mutex);
  const auto refuse = [&](Refusal refusal, std::string message) {
    ++impl_->n_refused;
    return Submitted{0, refusal, std::move(message)};
  };
  if (out.refusal != Refusal::none) return refuse(out.refusal, out.message);
  if (!impl_->failure.empty()) return refuse(Refusal::broken, "generation has stopped: " + impl_->failure);
  if (impl_->is_draining) return refuse(Refusal::draining, "the server is stopping and takes no new requests");
  std::shared_ptr<const LoadedAdapter> adapter;
  if (!request.adapter.empty()) {
    const auto it = impl_->adapters.find(request.adapter);
    if (it == impl_->adapters.end())
      return refuse(Refusal::unknown_adapter, fmt::format("no adapter '{}' is loaded", printable(request.adapter)));
    adapter = it->second;
  }
  if (impl_->figures.waiting >= options().max_waiting)
    return refuse(Refusal::queue_full,
                  fmt::format("{} requests are waiting already; try again later", impl_->figures.waiting));
  out.id = ++impl_->last_id;
  ++impl_->figures.waiting;
  impl_->is_idle = false;
  impl_->arrivals.push_back(
      {out.id, std::move(request), std::move(adapter), std::move(guard), std::move(callbacks), monotonic_seconds()});
  impl_->wake.notify_all();
  return out;
}

void Engine::cancel(RequestId id) {
  std::lock_guard lock(impl_->mutex);
  impl_->cancelled.push_back(id);
  impl_->wake.notify_all();
}

std::vector<std::string> Engine::load_adapter(const std::string& name, const fs::path& folder) {
  constexpr size_t kLongestName = 128;
  const bool named = !name.empty() && name.size() <= kLongestName &&
                     name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:/@") ==
                         std::string::npos;
  check(named, ExitCode::usage, "'{}' is no adapter name: 1 to {} letters, digits and ._-:/@ are", printable(name),
        kLongestName);
  auto loaded = std::make_shared<LoadedAdapter>();
  loaded->adapter = Adapter::load(impl_->backend, impl_->model, folder, ForTraining::no);
  check(loaded->adapter->spec().r <= kMaxLoraRank, ExitCode::bad_input, "{}: rank {}; at most {} can be served",
        folder.string(), loaded->adapter->spec().r, kMaxLoraRank);
  loaded->pairs = loaded->adapter->pairs_by_linear(impl_->model);
  const std::vector<std::string> notes = loaded->adapter->notes();
  std::shared_ptr<const LoadedAdapter> old;  // goes after the lock
  std::lock_guard lock(impl_->mutex);
  loaded->uid = ++impl_->last_adapter;
  old = std::exchange(impl_->adapters[name], std::move(loaded));
  return notes;
}

bool Engine::unload_adapter(const std::string& name) {
  std::shared_ptr<const LoadedAdapter> old;
  std::lock_guard lock(impl_->mutex);
  const auto it = impl_->adapters.find(name);
  if (it == impl_->adapters.end()) return false;
  old = std::move(it->second);
  impl_->adapters.erase(it);
  return true;
}

std::vector<std::string> Engine::adapters() const {
  std::lock_guard lock(impl_->mutex);
  std::vector<std::string> names;
  for (const auto& [name, adapter] : impl_->adapters) names.push_back(name);
  return names;
}

EngineStats Engine::stats() const {
  std::lock_guard lock(impl_->mutex);
  EngineStats stats = impl_->figures;
  stats.refused = impl_->n_refused;
  stats.draining = impl_->is_draining;
  stats.failure = impl_->failure;
  stats.failure_code = impl_->failure_code;
  return stats;
}

const EngineOptions& Engine::options() const { return impl_->scheduler.options(); }

void Engine::drain() {
  std::lock_guard lock(impl_->mutex);
  impl_->is_draining = true;
}

bool Engine::wait_idle(double seconds) {
  std::unique_lock lock(impl_->mutex);
  return impl_->rest.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return impl_->is_idle; });
}

}  // namespace saaz
