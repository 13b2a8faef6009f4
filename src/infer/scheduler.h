// Scheduler: which tokens the next forward pass computes, and what becomes of its logits. Continuous batching: each
// step takes one token of every sequence that is answering and a share of the prompts that are still being read.
// Single-threaded: engine.h is the front for many threads. Invariants: a sequence runs only when all rows that it may
// ever need are its own, so that nothing is ever taken back; what ended has given its memory back before `step`
// returns.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "infer/engine.h"
#include "infer/prefix_cache.h"
#include "infer/text_stream.h"
#include "lora/lora.h"
#include "model/pass.h"

namespace saaz {

/// Work and store bytes of the largest pass of up to `n_tokens` tokens and `n_rows` rows of logits with a cache.
PassBytes inference_bytes(const Model& model, int64_t n_tokens, int64_t n_rows);

struct LoadedAdapter {
  uint64_t uid;  // from 1; never given twice
  std::unique_ptr<Adapter> adapter;
  std::vector<const LoraPair*> pairs;  // by Linear::index
};
/// A checked request and what it needs.
struct Order {
  RequestId id = 0;
  Request request;
  std::shared_ptr<const LoadedAdapter> adapter;  // null: the base
  std::shared_ptr<const GuardTable> guard;       // null: none
  Callbacks callbacks;
  double submitted = 0;
};

/// The highest rank that activation memory is kept for.
inline constexpr int64_t kMaxLoraRank = 512;

class Scheduler {
 public:
  /// Fits `options` to the model and the memory: see options(). resource when kv_bytes do not hold one sequence.
  Scheduler(Backend& backend, const Model& model, const Tokenizer* tokenizer, const EngineOptions& options);
  ~Scheduler();

  const EngineOptions& options() const { return options_; }
  void add(Order order);
  /// Ends a request and frees what it holds.
  void cancel(RequestId id);
  /// Ends all requests, as failed when there is an error to tell.
  void end_all(const std::string& error, ExitCode code);
  /// One forward pass. False when there was nothing to do.
  bool step();
  bool idle() const { return asked_.empty(); }
  EngineStats stats() const;

 private:
  struct Asked;     // a request
  struct Sequence;  // a choice that runs
  struct Share {    // of a step
    Sequence* sequence;
    int64_t n;
  };
  void admit();
  Asked* next_to_admit();
  void plan_shares();
  void start(Sequence& sequence);
  void give(Sequence& sequence, int64_t& budget, int64_t most);
  int64_t left_to_read(const Sequence& sequence) const;
  void fill_batch();
  LogitsWanted ask_samplers();
  void find_candidates(const Logits& logits);
  void take_logits(Logits& logits);
  void take(Sequence& sequence, Logits& logits, int64_t row);
  int32_t choose(Sequence& sequence, Logits& logits, int64_t row, TokenLogprob& token);
  bool fits_grammar(const Sequence& sequence, int32_t id) const;
  int32_t sample_by_grammar(Sequence& sequence, std::span<float> logits);
  void end(Sequence& sequence, Finish finish, Delta& delta);
  void emit(Asked& asked, Delta& delta);
  void retire();

  Backend& backend_;
  const Model& model_;
  const Tokenizer* tokenizer_;
  EngineOptions options_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<PrefixCache> prefixes_;
  std::unique_ptr<PassMemory> memory_;

  std::vector<std::unique_ptr<Asked>> asked_;       // in order of arrival
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of admission
  std::vector<int64_t> free_slots_;
  std::map<std::string, double, std::less<>> answered_;  // clients, and when they had their last answer

  // Of the step; kept for their memory.
  std::vector<Share> shares_;
  std::vector<KvCache::Append> items_;
  std::vector<Sequence*> sampled_;
  std::vector<int32_t> rows_;
  Batch batch_;
  std::vector<float> staging_, raw_logits_;
  std::vector<LogitChange> changes_;
  std::vector<CandidateQuery> queries_;  // by sampled row; none of a row: all of its logits are looked at
  std::vector<Candidates> candidates_;   // empty where all rows are looked at, or the logits are in host memory
  EngineStats counts_;
};

}  // namespace saaz
