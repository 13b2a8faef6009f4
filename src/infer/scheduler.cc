#include "infer/scheduler.h"

#include <algorithm>
#include <limits>
#include <map>

#include "backend/plan.h"
#include "base/check.h"
#include "infer/grammar.h"

namespace saaz {

struct Scheduler::Asked {
  explicit Asked(Order order) : order(std::move(order)), request(this->order.request) {
    outcome.usage.prompt_tokens = static_cast<int64_t>(request.prompt.size());
  }

  Order order;
  const Request& request;
  Outcome outcome;
  int n_admitted = 0, n_ended = 0;
  bool cancelled = false;

  uint64_t adapter_uid() const { return order.adapter ? order.adapter->uid : 0; }
};

struct Scheduler::Sequence {
  Sequence(Asked& asked, int choice, int64_t slot, int64_t limit, const Tokenizer* tokenizer)
      : asked(asked),
        choice(choice),
        slot(slot),
        limit(limit),
        ids(asked.request.prompt),
        sampler(asked.request.sampling, static_cast<uint64_t>(choice), asked.request.prompt),
        text(tokenizer, asked.request.stop) {
    if (asked.request.grammar) grammar.emplace(asked.request.grammar);
  }

  Asked& asked;
  int choice;
  int64_t slot, limit;       // ids it may have, prompt included
  std::vector<int32_t> ids;  // prompt and answer
  int64_t computed = 0;      // of ids: their keys and values are in the cache
  bool started = false, ended = false;
  Sampler sampler;
  TextStream text;
  GuardState guard;
  std::optional<GrammarState> grammar;
  PrefixCache::Hold hold;

  int64_t left() const { return static_cast<int64_t>(ids.size()) - computed; }
  bool answers() const { return started && ids.size() > asked.request.prompt.size(); }
};

PassBytes inference_bytes(const Model& model, int64_t n_tokens, int64_t n_rows) {
  PlanBackend plan;
  PassMemory memory;
  KvCache cache(plan, model.config(), {.n_sequences = 1, .max_length = n_tokens, .max_chunk = n_tokens});
  cache.open(0, n_tokens);
  const std::vector<int32_t> ids(static_cast<size_t>(n_tokens), 0);
  std::vector<int32_t> rows(static_cast<size_t>(n_rows), 0);
  const KvCache::Append item{0, ids};
  Batch batch;
  cache.append({&item, 1}, batch);
  logits_pass(plan, memory, model, batch, &cache, rows);
  return {memory.work().peak(), memory.store().peak()};
}

namespace {

KvLayout layout_of(const EngineOptions& options) {
  return {.n_sequences = options.max_running,
          .max_length = options.context,
          .max_chunk = options.prefill_chunk,
          .kept = PrefixCache::kBlock};
}

/// The options as far as the model and the memory go, and the cache they ask for.
KvLayout fit(const Backend& backend, const Model& model, EngineOptions& options) {
  const ModelConfig& config = model.config();
  options.context = std::min(options.context, model.max_positions());
  options.prefill_chunk = std::min(options.prefill_chunk, options.context);
  KvLayout layout = layout_of(options);
  layout.full_rows = options.max_running * options.context;
  if (options.kv_bytes == 0) return layout;
  const int64_t ring_bytes =
                    KvCache::ring_rows(config, layout) * KvCache::row_bytes(backend, config, LayerType::sliding),
                full_bytes = std::max<int64_t>(1, KvCache::row_bytes(backend, config, LayerType::full));
  // Rings for all, as long as half of the memory is left to full layers.
  while (layout.n_sequences > 1 && layout.n_sequences * ring_bytes > options.kv_bytes / 2) --layout.n_sequences;
  const int64_t rows = (options.kv_bytes - layout.n_sequences * ring_bytes) / full_bytes;
  constexpr int64_t kFewestRows = 16;
  check(rows >= std::min(kFewestRows, options.context), ExitCode::resource,
        "{} bytes for keys and values hold no sequence of {} tokens: the ring of one takes {} bytes and each token {} "
        "more; give more memory or a smaller prefill chunk",
        options.kv_bytes, std::min(kFewestRows, options.context), ring_bytes, full_bytes);
  options.max_running = layout.n_sequences;
  layout.full_rows = std::min(rows, layout.n_sequences * options.context);
  options.context = std::min(options.context, layout.full_rows);
  layout.max_length = options.context;
  return layout;
}

}  // namespace

Scheduler::Scheduler(Backend& backend, const Model& model, const Tokenizer* tokenizer, const EngineOptions& options)
    : backend_(backend), model_(model), tokenizer_(tokenizer), options_(options) {
  const KvLayout layout = fit(backend, model, options_);
  cache_ = std::make_unique<KvCache>(backend, model.config(), layout);
  prefixes_ = std::make_unique<PrefixCache>(backend, model.config(), options_.prefix_bytes);
  const int64_t n_tokens = options_.max_running + options_.prefill_chunk;
  const PassBytes bytes = inference_bytes(model, n_tokens, options_.max_running);
  const int64_t lora_bytes = n_tokens * kMaxLoraRank * size_of(backend.activation_dtype()) + Arena::kAlignment;
  // A step by a backend's own kernels holds its logits from the start.
  const int64_t step_bytes =
      backend.step_kernels() == nullptr ? 0 : options_.max_running * model.config().vocab_size * 4 + Arena::kAlignment;
  memory_ = std::make_unique<PassMemory>(backend, bytes.work + lora_bytes + step_bytes, bytes.store);
  for (int64_t slot = options_.max_running; slot-- > 0;) free_slots_.push_back(slot);
}

Scheduler::~Scheduler() = default;

void Scheduler::add(Order order) {
  asked_.push_back(std::make_unique<Asked>(std::move(order)));
  ++counts_.requests;
}

// ---------------------------------------------------------------------------------------------------- admission
namespace {
constexpr double kSoon = 0.1;  // seconds
}  // namespace

/// Of the clients with the fewest running sequences, the request that came first. A client that had its last answer a
/// moment ago mostly asks again: as long as its place may be wanted, nobody gets it beyond an even share.
Scheduler::Asked* Scheduler::next_to_admit() {
  std::map<std::string_view, int64_t> n_running;
  for (const auto& asked : asked_) n_running[asked->request.client];
  for (const auto& sequence : running_) ++n_running[sequence->asked.request.client];
  Asked* best = nullptr;
  int64_t fewest = 0;
  for (const auto& asked : asked_) {
    if (asked->n_admitted == asked->request.n) continue;
    const int64_t n = n_running.at(asked->request.client);
    if (best == nullptr || n < fewest) best = asked.get(), fewest = n;
  }
  std::erase_if(answered_, [now = monotonic_seconds()](const auto& one) { return now - one.second > kSoon; });
  int64_t n_expected = 0;
  for (const auto& [client, time] : answered_) n_expected += n_running.contains(client) ? 0 : 1;
  const int64_t n_clients = static_cast<int64_t>(n_running.size()) + n_expected;
  const int64_t share = std::max<int64_t>(1, options_.max_running / std::max<int64_t>(1, n_clients));
  const bool is_taken = fewest >= share && static_cast<int64_t>(free_slots_.size()) <= n_expected * share;
  return is_taken ? nullptr : best;
}

/// Whoever is next waits until all rows it may need are free; nobody passes it.
void Scheduler::admit() {
  while (!free_slots_.empty()) {
    Asked* asked = next_to_admit();
    if (asked == nullptr) return;
    const auto n_prompt = static_cast<int64_t>(asked->request.prompt.size());
    const int64_t room = options_.context - n_prompt;
    const int64_t limit =
        n_prompt + (asked->request.max_tokens == 0 ? room : std::min(room, asked->request.max_tokens));
    const int64_t slot = free_slots_.back();
    if (!cache_->open(slot, limit)) return;
    free_slots_.pop_back();
    if (asked->n_admitted == 0) asked->outcome.queue_seconds = monotonic_seconds() - asked->order.submitted;
    running_.push_back(std::make_unique<Sequence>(*asked, asked->n_admitted++, slot, limit, tokenizer_));
  }
}

// ------------------------------------------------------------------------------------------------------ a step

int64_t Scheduler::left_to_read(const Sequence& sequence) const {
  if (sequence.started) return sequence.left();
  return sequence.left() -
         prefixes_->kept_tokens(sequence.asked.adapter_uid(), std::span(sequence.ids).first(sequence.ids.size() - 1));
}

/// Looks for a kept prefix only now, when the sequence is about to be computed: what was computed while it waited
/// counts. The last token is always computed, for its logits.
void Scheduler::start(Sequence& sequence) {
  sequence.started = true;
  sequence.hold = prefixes_->restore(sequence.asked.adapter_uid(),
                                     std::span(sequence.ids).first(sequence.ids.size() - 1), *cache_, sequence.slot);
  sequence.computed = sequence.hold.n_tokens;
  counts_.prompt_tokens += static_cast<int64_t>(sequence.ids.size());
  counts_.cached_tokens += sequence.computed;
  ++counts_.prefix_lookups;
  counts_.prefix_hits += sequence.computed > 0 ? 1 : 0;
  if (sequence.choice == 0) sequence.asked.outcome.usage.cached_tokens = sequence.computed;
}

void Scheduler::give(Sequence& sequence, int64_t& budget, int64_t most) {
  if (!sequence.started) start(sequence);
  const int64_t n = std::min({sequence.left(), budget, most});
  budget -= n;
  shares_.push_back({&sequence, n});
}

/// Every answer gets its token. Of the prompts, short ones pass the long one that is being read, with half of the
/// step's budget at most; the oldest gets the rest. While answers are being made a step reads fewer prompt tokens, so
/// that they do not stand still.
void Scheduler::plan_shares() {
  shares_.clear();
  int64_t n_answers = 0;
  for (const auto& sequence : running_)
    if (sequence->answers()) shares_.push_back({sequence.get(), 1}), ++n_answers;
  constexpr int64_t kSlower = 4, kLeast = 16;
  int64_t budget = n_answers > 0 ? std::max(std::min(kLeast, options_.prefill_chunk), options_.prefill_chunk / kSlower)
                                 : options_.prefill_chunk;
  int64_t for_short = budget / 2;
  Sequence* oldest = nullptr;
  std::vector<Sequence*> others;
  for (const auto& sequence : running_) {
    if (sequence->answers()) continue;
    if (oldest == nullptr) {
      oldest = sequence.get();
    } else if (const int64_t left = left_to_read(*sequence); left <= for_short) {
      for_short -= left;
      give(*sequence, budget, left);
    } else {
      others.push_back(sequence.get());
    }
  }
  if (oldest != nullptr) give(*oldest, budget, budget);
  for (size_t i = 0; i < others.size() && budget > 0; ++i) give(*others[i], budget, budget);
}

/// The shares as a batch, those of one adapter side by side.
void Scheduler::fill_batch() {
  std::stable_sort(shares_.begin(), shares_.end(), [](const Share& a, const Share& b) {
    return a.sequence->asked.adapter_uid() < b.sequence->asked.adapter_uid();
  });
  items_.clear(), sampled_.clear(), rows_.clear();
  int64_t n_tokens = 0;
  for (const Share& share : shares_) {
    Sequence& s = *share.sequence;
    items_.push_back({s.slot, std::span(s.ids).subspan(static_cast<size_t>(s.computed), static_cast<size_t>(share.n))});
    n_tokens += share.n;
    s.computed += share.n;
    if (s.left() > 0) continue;
    sampled_.push_back(&s);
    rows_.push_back(static_cast<int32_t>(n_tokens - 1));
  }
  cache_->append(items_, batch_);
  int64_t at = 0;
  for (const Share& share : shares_) {
    if (const LoadedAdapter* adapter = share.sequence->asked.order.adapter.get(); adapter != nullptr) {
      auto& groups = batch_.adapter_rows;
      if (groups.empty() || groups.back().pairs.data() != adapter->pairs.data())
        groups.push_back({at, 0, adapter->pairs});
      groups.back().n += share.n;
    }
    at += share.n;
  }
}

bool Scheduler::step() {
  admit();
  if (running_.empty()) return false;
  const double start = monotonic_seconds();
  plan_shares();
  fill_batch();
  const LogitsWanted wanted = ask_samplers();
  logits_pass(backend_, *memory_, model_, batch_, cache_.get(), rows_, wanted, staging_, [this](Logits& logits) {
    find_candidates(logits);
    take_logits(logits);
  });
  for (const Share& share : shares_) {
    Sequence& s = *share.sequence;
    prefixes_->store(s.hold, std::span(s.ids).first(static_cast<size_t>(s.computed)), *cache_, s.slot);
  }
  retire();
  const double seconds = monotonic_seconds() - start;
  ++counts_.steps;
  counts_.step_seconds += seconds;
  counts_.last_step_seconds = seconds;
  counts_.longest_step_seconds = std::max(counts_.longest_step_seconds, seconds);
  return true;
}

// --------------------------------------------------------------------------------------------------- the answers

/// What the samplers need of the step's logits, and which of them that takes.
LogitsWanted Scheduler::ask_samplers() {
  queries_.clear(), changes_.clear();
  if (backend_.step_kernels() == nullptr) return LogitsWanted::all;  // who has none looks at rows in host memory
  for (size_t i = 0; i < sampled_.size(); ++i) {
    const Sequence& s = *sampled_[i];
    const bool looks_at_all = s.asked.request.top_logprobs >= 0 || s.asked.order.guard || s.grammar;
    queries_.push_back(looks_at_all ? CandidateQuery{} : s.sampler.query(model_.config().vocab_size));
    if (queries_.back().within >= 0) s.sampler.append_changes(static_cast<int32_t>(i), changes_);
  }
  return logits_for(queries_, changes_);
}

/// Where logits are not in host memory, what the samplers need of them is found where they are.
void Scheduler::find_candidates(const Logits& logits) {
  candidates_.clear();
  const auto found = [](const CandidateQuery& q) { return q.within >= 0; };
  if (backend_.host_view(logits.values()) != nullptr || std::none_of(queries_.begin(), queries_.end(), found)) return;
  backend_.find_candidates(logits.values(), changes_, queries_, candidates_);
}

void Scheduler::take_logits(Logits& logits) {
  for (size_t i = 0; i < sampled_.size(); ++i) {
    Sequence& sequence = *sampled_[i];
    try {
      take(sequence, logits, static_cast<int64_t>(i));
    } catch (const Error& error) {
      sequence.asked.outcome.error = error.what();
      sequence.asked.outcome.code = error.code();
      Delta delta;
      end(sequence, Finish::failed, delta);
    }
  }
}

bool Scheduler::fits_grammar(const Sequence& sequence, int32_t id) const {
  const std::vector<int32_t>& stop_ids = sequence.asked.request.stop_ids;
  if (std::find(stop_ids.begin(), stop_ids.end(), id) != stop_ids.end()) return sequence.grammar->is_complete();
  return !tokenizer_->is_control(id) && sequence.grammar->accepts(token_bytes(*tokenizer_, id));
}

/// Draws until the grammar takes it, what it does not take being out; after some draws, all of that is out at once.
int32_t Scheduler::sample_by_grammar(Sequence& sequence, std::span<float> logits) {
  constexpr float kOut = -std::numeric_limits<float>::infinity();
  constexpr int kDraws = 16;
  const size_t n_tokens = std::min(tokenizer_->size(), logits.size());
  std::fill(logits.begin() + static_cast<std::ptrdiff_t>(n_tokens), logits.end(), kOut);
  for (int draw = 0; draw < kDraws; ++draw) {
    const int32_t id = sequence.sampler.sample(logits);
    if (fits_grammar(sequence, id)) return id;
    logits[static_cast<size_t>(id)] = kOut;
  }
  for (size_t id = 0; id < n_tokens; ++id)
    if (logits[id] != kOut && !fits_grammar(sequence, static_cast<int32_t>(id))) logits[id] = kOut;
  return sequence.sampler.sample(logits);
}

/// The next id, and the log probabilities that were asked for.
int32_t Scheduler::choose(Sequence& sequence, Logits& all, int64_t row, TokenLogprob& token) {
  const auto index = static_cast<size_t>(row);
  const bool is_adjusted = !candidates_.empty() && queries_[index].within >= 0;
  if (is_adjusted && candidates_[index].complete) return token.id = sequence.sampler.sample(candidates_[index]);
  const std::span<float> logits = all.row(row);
  const int top = sequence.asked.request.top_logprobs;
  double normaliser = 0;
  if (top >= 0) {
    raw_logits_.assign(logits.begin(), logits.end());
    normaliser = log_sum_exp(logits);
    if (top > 0) token.top = largest_logits(logits, top);
    for (auto& [id, logit] : token.top) logit = static_cast<float>(static_cast<double>(logit) - normaliser);
  }
  if (!is_adjusted) sequence.sampler.adjust(logits);
  if (sequence.asked.order.guard) sequence.asked.order.guard->apply(sequence.guard, logits);
  token.id = sequence.grammar ? sample_by_grammar(sequence, logits) : sequence.sampler.sample(logits);
  if (top >= 0) {
    const auto logit = static_cast<double>(raw_logits_[static_cast<size_t>(token.id)]);
    token.logprob = static_cast<float>(logit - normaliser);
  }
  return token.id;
}

void Scheduler::take(Sequence& sequence, Logits& logits, int64_t row) {
  Asked& asked = sequence.asked;
  TokenLogprob token;
  const int32_t id = choose(sequence, logits, row, token);
  ++counts_.completion_tokens;
  if (asked.outcome.usage.completion_tokens++ == 0)
    asked.outcome.first_token_seconds = monotonic_seconds() - asked.order.submitted;
  Delta delta;
  const std::vector<int32_t>& stop_ids = asked.request.stop_ids;
  if (std::find(stop_ids.begin(), stop_ids.end(), id) != stop_ids.end()) {
    sequence.text.finish(delta);
    return end(sequence, Finish::stop, delta);
  }
  sequence.sampler.accept(id);
  if (asked.order.guard) sequence.guard.push(token_bytes(*tokenizer_, id));
  sequence.ids.push_back(id);
  if (sequence.text.push(std::move(token), delta)) return end(sequence, Finish::stop, delta);
  if (sequence.grammar) {
    sequence.grammar->push(token_bytes(*tokenizer_, id));
    if (!sequence.grammar->can_go_on()) {
      sequence.text.finish(delta);
      return end(sequence, Finish::stop, delta);
    }
  }
  if (static_cast<int64_t>(sequence.ids.size()) >= sequence.limit) {
    const bool stopped = sequence.text.finish(delta);
    return end(sequence, stopped ? Finish::stop : Finish::length, delta);
  }
  if (!delta.ids.empty() || !delta.text.empty()) {
    delta.choice = sequence.choice;
    emit(asked, delta);
  }
}

void Scheduler::emit(Asked& asked, Delta& delta) {
  if (asked.request.top_logprobs < 0) delta.logprobs.clear();
  if (asked.order.callbacks.on_delta) asked.order.callbacks.on_delta(delta);
}

/// The choice's last piece; its memory is given back by `retire`.
void Scheduler::end(Sequence& sequence, Finish finish, Delta& delta) {
  sequence.ended = true;
  delta.choice = sequence.choice;
  delta.finish = finish;
  ++sequence.asked.n_ended;
  emit(sequence.asked, delta);
}

/// Gives back the memory of what ended, then tells the end of requests.
void Scheduler::retire() {
  std::erase_if(running_, [this](const std::unique_ptr<Sequence>& sequence) {
    if (!sequence->ended) return false;
    prefixes_->release(sequence->hold);
    cache_->close(sequence->slot);
    free_slots_.push_back(sequence->slot);
    return true;
  });
  std::erase_if(asked_, [this](const std::unique_ptr<Asked>& asked) {
    if (asked->n_ended < asked->request.n) return false;
    const bool failed = !asked->outcome.error.empty();
    ++(failed ? counts_.failed : asked->cancelled ? counts_.cancelled : counts_.finished);
    asked->outcome.total_seconds = monotonic_seconds() - asked->order.submitted;
    if (!asked->cancelled) answered_[asked->request.client] = monotonic_seconds();
    if (asked->order.callbacks.on_end) asked->order.callbacks.on_end(asked->outcome);
    return true;
  });
}

void Scheduler::cancel(RequestId id) {
  const auto found =
      std::find_if(asked_.begin(), asked_.end(), [id](const auto& asked) { return asked->order.id == id; });
  if (found == asked_.end()) return;
  Asked& asked = **found;
  asked.cancelled = true;
  const Finish finish = asked.outcome.error.empty() ? Finish::cancelled : Finish::failed;
  for (const auto& sequence : running_)
    if (&sequence->asked == &asked && !sequence->ended) {
      Delta delta;
      end(*sequence, finish, delta);
    }
  for (; asked.n_admitted < asked.request.n; ++asked.n_admitted, ++asked.n_ended) {
    Delta delta;
    delta.choice = asked.n_admitted;
    delta.finish = finish;
    emit(asked, delta);
  }
  retire();
}

void Scheduler::end_all(const std::string& error, ExitCode code) {
  while (!asked_.empty()) {
    Outcome& outcome = asked_.front()->outcome;
    if (!error.empty()) outcome.error = error, outcome.code = code;
    cancel(asked_.front()->order.id);
  }
}

EngineStats Scheduler::stats() const {
  EngineStats stats = counts_;
  stats.running = static_cast<int64_t>(running_.size());
  for (const auto& asked : asked_) stats.waiting += asked->n_admitted == 0 ? 1 : 0;
  stats.kv_rows_used = cache_->rows_used();
  stats.kv_rows_total = cache_->rows_total();
  stats.kv_slots_total = options_.max_running;
  stats.kv_slots_used = options_.max_running - static_cast<int64_t>(free_slots_.size());
  stats.prefix_blocks_used = prefixes_->blocks_used();
  stats.prefix_blocks_total = prefixes_->blocks_total();
  stats.prefix_block_tokens = PrefixCache::kBlock;
  stats.kv_bytes = cache_->bytes();
  stats.prefix_bytes = prefixes_->bytes();
  return stats;
}

}  // namespace saaz
