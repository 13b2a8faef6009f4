#include "infer/generate.h"

#include <algorithm>
#include <numeric>

#include "backend/plan.h"
#include "base/check.h"

namespace saaz {

PassBytes inference_bytes(const Model& model, int64_t n_tokens, int64_t n_rows) {
  PlanBackend plan;
  PassMemory memory;
  KvCache cache(plan, model.config(), 1, n_tokens, n_tokens);
  const std::vector<int32_t> ids(static_cast<size_t>(n_tokens), 0);
  std::vector<int32_t> rows(static_cast<size_t>(n_rows), 0);
  const KvCache::Append item{0, ids};
  const Batch batch = cache.append({&item, 1});
  logits_pass(plan, memory, model, batch, &cache, rows);
  return {memory.work().peak(), memory.store().peak()};
}

Generator::Generator(Backend& backend, const Model& model, int64_t n_sequences, int64_t max_length)
    : backend_(backend),
      model_(model),
      max_length_(std::min(max_length, model.max_positions())),
      cache_(backend, model.config(), n_sequences, max_length_, kMaxChunk) {
  const PassBytes prefill = inference_bytes(model, std::min(kMaxChunk, max_length_), 1),
                  decode = inference_bytes(model, n_sequences, n_sequences);
  memory_ =
      std::make_unique<PassMemory>(backend, std::max(prefill.work, decode.work), std::max(prefill.store, decode.store));
}

/// Feeds the prompt in chunks; the logits after its last token.
std::vector<float> Generator::prefill(size_t sequence, std::span<const int32_t> prompt) {
  cache_.clear(static_cast<int64_t>(sequence));
  std::vector<float> logits;
  for (size_t at = 0; at < prompt.size(); at += kMaxChunk) {
    const auto chunk = prompt.subspan(at, std::min<size_t>(kMaxChunk, prompt.size() - at));
    const KvCache::Append item{static_cast<int64_t>(sequence), chunk};
    const Batch batch = cache_.append({&item, 1});
    const int32_t last = static_cast<int32_t>(chunk.size()) - 1;
    const bool wanted = at + chunk.size() == prompt.size();
    logits = logits_pass(backend_, *memory_, model_, batch, &cache_, std::span(&last, wanted ? 1 : 0));
  }
  return logits;
}

std::vector<Answer> Generator::generate(std::span<const std::vector<int32_t>> prompts, const GenerateOptions& options,
                                        const OnToken& on_token) {
  struct Running {
    std::vector<int32_t> seen;  // prompt and answer
    Sampler sampler;
    bool done = false;
  };
  std::vector<Answer> answers(prompts.size());
  std::vector<Running> running;
  const auto take = [&](size_t s, std::span<const float> logits) {
    Running& r = running[s];
    const int32_t id = r.sampler.sample(logits, r.seen);
    if (std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end()) {
      answers[s].finish = Answer::Finish::stop;
      r.done = true;
      return;
    }
    r.seen.push_back(id);
    answers[s].ids.push_back(id);
    if (on_token && !on_token(s, id)) {
      answers[s].finish = Answer::Finish::interrupted;
      r.done = true;
    }
    const bool full = static_cast<int64_t>(answers[s].ids.size()) >= options.max_new_tokens ||
                      static_cast<int64_t>(r.seen.size()) >= max_length_;
    r.done |= full;
  };
  for (size_t s = 0; s < prompts.size(); ++s) {
    check(!prompts[s].empty() && static_cast<int64_t>(prompts[s].size()) < max_length_, ExitCode::resource,
          "prompt {} has {} tokens; at least 1 and fewer than the limit of {} fit: shorten it or raise the limit",
          s + 1, prompts[s].size(), max_length_);
    running.push_back({prompts[s], Sampler(options.sampling, s), options.max_new_tokens <= 0});
    const std::vector<float> logits = prefill(s, prompts[s]);
    if (!running[s].done) take(s, logits);
  }
  while (true) {
    std::vector<KvCache::Append> items;
    std::vector<size_t> sequences;
    for (size_t s = 0; s < running.size(); ++s)
      if (!running[s].done) {
        items.push_back({static_cast<int64_t>(s), std::span(running[s].seen).last(1)});
        sequences.push_back(s);
      }
    if (items.empty()) return answers;
    const Batch batch = cache_.append(items);
    std::vector<int32_t> rows(items.size());
    std::iota(rows.begin(), rows.end(), 0);
    const std::vector<float> logits = logits_pass(backend_, *memory_, model_, batch, &cache_, rows);
    const auto vocab = static_cast<size_t>(model_.config().vocab_size);
    for (size_t i = 0; i < sequences.size(); ++i) take(sequences[i], std::span(logits).subspan(i * vocab, vocab));
  }
}

}  // namespace saaz
