// Engine: generation for many at once, behind a thread-safe front. Enters: requests from any thread. Leaves: pieces of
// text by callback from the engine's own thread. One forward pass a step serves every sequence, whatever its adapter
// and wherever in its prompt or answer it stands. Invariants: on the CPU an answer's bytes depend on its request alone,
// not on neighbours, chunk sizes, cache hits or threads; memory is fixed at the start.
// Errors: a request is refused with a reason (request.h); a fault inside one request ends that request alone.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/system.h"
#include "infer/request.h"
#include "model/model.h"
#include "tokenizer/tokenizer.h"

namespace saaz {

struct EngineOptions {
  int64_t max_running = 16;                   // sequences of a step
  int64_t context = 4096;                     // tokens of a sequence, prompt and answer; at most the model's positions
  int64_t prefill_chunk = 256;                // prompt tokens of a step
  int64_t max_waiting = 256;                  // requests in line; one more is refused
  int64_t kv_bytes = 0;                       // keys and values of running sequences; 0: room for max_running * context
  int64_t prefix_bytes = int64_t{256} << 20;  // keys and values kept of what was computed; 0: none
};

/// Figures at one moment; counts are since the start.
struct EngineStats {
  int64_t running = 0, waiting = 0;               // sequences that run; requests of which none runs yet
  int64_t kv_rows_used = 0, kv_rows_total = 0;    // token rows of full layers
  int64_t kv_slots_used = 0, kv_slots_total = 0;  // rings of sliding layers: one a running sequence
  int64_t prefix_blocks_used = 0, prefix_blocks_total = 0, prefix_block_tokens = 0;
  int64_t kv_bytes = 0, prefix_bytes = 0;  // allocated
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  int64_t prefix_lookups = 0, prefix_hits = 0;  // prompts; those of which something was kept
  int64_t requests = 0, finished = 0, cancelled = 0, failed = 0, refused = 0;
  int64_t steps = 0;
  double step_seconds = 0, last_step_seconds = 0, longest_step_seconds = 0;
  bool draining = false;
  std::string failure;                   // not empty: the backend failed and nothing is generated any more
  ExitCode failure_code = ExitCode::ok;  // then what that means to the shell
};

class Engine {
 public:
  /// Starts the thread. Backend and model (without an attached adapter) outlive the engine and are used by it alone.
  /// `tokenizer` may be null: then there are ids and no text. resource when kv_bytes do not hold one sequence.
  Engine(Backend& backend, Model& model, const Tokenizer* tokenizer, const EngineOptions& options);
  /// Cancels what runs and joins the thread.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Checks the request and puts it in line. Never blocks for longer than a look at it takes.
  Submitted submit(Request request, Callbacks callbacks);
  /// Ends a request before the next step; its memory is free then. Its on_end still comes. Unknown ids are ignored.
  void cancel(RequestId id);

  /// Loads a PEFT folder on the calling thread while generation goes on, and makes it known under `name` (replacing an
  /// older one: requests that use that one keep it to their end). Returns the adapter's notes. Error as Adapter::load;
  /// usage for a bad name.
  std::vector<std::string> load_adapter(const std::string& name, const fs::path& folder);
  /// False when there is none of this name. Requests that use it keep it to their end.
  bool unload_adapter(const std::string& name);
  /// Names, sorted.
  std::vector<std::string> adapters() const;

  EngineStats stats() const;
  const EngineOptions& options() const;
  /// Refuses new requests from now on.
  void drain();
  /// Waits until nothing runs or waits; false after `seconds`.
  bool wait_idle(double seconds);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A whole answer of one choice.
struct Answer {
  std::vector<int32_t> ids;
  std::string text;
  std::vector<TokenLogprob> logprobs;
  Finish finish = Finish::length;
  std::string stop;
};
struct Completion {
  std::vector<Answer> choices;  // by index
  Outcome outcome;
};

/// What a caller who waits wants to hear meanwhile, on its own thread. Either may be absent.
struct Watch {
  std::function<void(size_t request, const Delta& delta)> on_delta;
  std::function<bool()> wants_stop;  // asked several times a second; true cancels all
};
/// Submits all requests, waits for their ends, and returns the answers in the order of the requests. Throws usage,
/// resource for a prompt that is too long, or the engine's failure when one is refused; the others are cancelled then.
std::vector<Completion> complete_all(Engine& engine, std::vector<Request> requests, const Watch& watch);
/// One request.
Completion complete(Engine& engine, Request request);
/// Throws what a failed answer means.
void check_answered(const Completion& completion);

}  // namespace saaz
