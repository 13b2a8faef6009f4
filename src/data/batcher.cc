// Encoding, order and packing. The only randomness is the Mersenne twister of `shuffled`, seeded anew for every epoch.
#include "data/batcher.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <random>

#include "base/check.h"

namespace saaz {
namespace {

/// Clears the flags of the messages that were given as the prompt. Their ids are a prefix of the whole: every turn
/// begins with a control token, across which nothing merges.
void mask_prompt(const Tokenizer& tokenizer, const Row& row, EncodedChat& chat) {
  if (row.n_prompt_messages == 0) return;
  const std::span<const ChatMessage> prompt(row.messages.data(), row.n_prompt_messages);
  const size_t n = encode_chat(tokenizer, prompt, AddGenerationPrompt::no).ids.size();
  std::fill_n(chat.trained.begin(), std::min(n, chat.trained.size()), uint8_t{0});
}

}  // namespace

int64_t Sample::n_scored() const { return std::count(scored.begin(), scored.end(), uint8_t{1}); }

Sample encode_whole(const Tokenizer& tokenizer, const Row& row, LossOn loss_on) {
  Sample sample;
  if (row.is_text()) {
    sample.ids = tokenizer.encode(row.text, ControlTokens::as_text, AddBos::yes);
    sample.scored.assign(sample.ids.size(), 1);
  } else {
    EncodedChat chat = encode_chat(tokenizer, row.messages, AddGenerationPrompt::no);
    mask_prompt(tokenizer, row, chat);
    sample.ids = std::move(chat.ids);
    sample.scored = std::move(chat.trained);
    if (loss_on == LossOn::all) sample.scored.assign(sample.ids.size(), 1);
  }
  if (!sample.scored.empty()) sample.scored[0] = 0;  // nothing comes before it to predict it from
  return sample;
}

Sample encode_row(const Tokenizer& tokenizer, const Row& row, const EncodeOptions& options) {
  Sample sample = encode_whole(tokenizer, row, options.loss_on);
  const auto n_tokens = static_cast<int64_t>(sample.ids.size());
  sample.n_cut = std::max<int64_t>(0, n_tokens - options.max_seq_length);
  sample.ids.resize(n_tokens - sample.n_cut);
  sample.scored.resize(n_tokens - sample.n_cut);
  check(sample.n_scored() > 0, ExitCode::bad_input,
        "{}: nothing to learn from: none of its {} tokens{} is scored (max_seq_length {}, loss on {})", row.place(),
        sample.ids.size(), sample.n_cut > 0 ? fmt::format(" (after cutting {})", sample.n_cut) : "",
        options.max_seq_length, options.loss_on == LossOn::all ? "all tokens" : "assistant turns");
  return sample;
}

EncodedRows encode_rows(const Tokenizer& tokenizer, std::vector<Row> rows, const EncodeOptions& options, BadRows& bad) {
  EncodedRows out;
  for (Row& row : rows) {
    const bool is_good = bad.attempt([&] { out.samples.push_back(encode_row(tokenizer, row, options)); });
    if (is_good) out.rows.push_back(std::move(row));
  }
  return out;
}

std::vector<int64_t> shuffled(int64_t n, uint64_t seed) {
  // Above this torch draws 64 bits for each swap.
  check(n < (int64_t{1} << 32) / 20, ExitCode::resource, "{} samples are too many to shuffle; at most {} are supported",
        n, (int64_t{1} << 32) / 20 - 1);
  std::mt19937 generator(static_cast<uint32_t>(seed));
  std::vector<int64_t> order(n);
  for (int64_t i = 0; i < n; ++i) order[i] = i;
  for (int64_t i = 0; i + 1 < n; ++i) std::swap(order[i], order[i + static_cast<int64_t>(generator() % (n - i))]);
  return order;
}

RowSplit split_rows(std::vector<Row> rows, double fraction, uint64_t seed) {
  RowSplit out;
  if (fraction <= 0) {
    out.train = std::move(rows);
    return out;
  }
  const auto n = static_cast<int64_t>(rows.size());
  check(n >= 2, ExitCode::bad_input, "data.validation.fraction is {:g}, but there is only {} row to split", fraction,
        n);
  const int64_t n_validation = std::clamp<int64_t>(std::llround(static_cast<double>(n) * fraction), 1, n - 1);
  std::vector<uint8_t> is_validation(n, 0);
  const std::vector<int64_t> order = shuffled(n, seed);
  for (int64_t i = 0; i < n_validation; ++i) is_validation[order[i]] = 1;
  for (int64_t i = 0; i < n; ++i) (is_validation[i] ? out.validation : out.train).push_back(std::move(rows[i]));
  return out;
}

int64_t EpochPlan::n_updates() const {
  return (static_cast<int64_t>(micro_batches.size()) + accumulation - 1) / accumulation;
}

std::span<const std::vector<int64_t>> EpochPlan::update(int64_t u) const {
  assert(u >= 0 && u < n_updates());
  const auto begin = static_cast<size_t>(u * accumulation);
  return std::span(micro_batches).subspan(begin, std::min<size_t>(accumulation, micro_batches.size() - begin));
}

EpochPlan plan_epoch(std::span<const Sample> samples, const BatchOptions& options, int64_t epoch) {
  EpochPlan plan;
  plan.accumulation = options.accumulation;
  const int64_t budget = options.batch_size * options.max_seq_length;
  int64_t n_tokens = 0;
  for (const int64_t index :
       shuffled(static_cast<int64_t>(samples.size()), options.seed + static_cast<uint64_t>(epoch))) {
    const auto length = static_cast<int64_t>(samples[index].ids.size());
    const bool is_full =
        plan.micro_batches.empty() ||
        (options.packing == Packing::on ? n_tokens + length > budget
                                        : static_cast<int64_t>(plan.micro_batches.back().size()) == options.batch_size);
    if (is_full) plan.micro_batches.emplace_back(), n_tokens = 0;
    plan.micro_batches.back().push_back(index);
    n_tokens += length;
  }
  return plan;
}

PackedBatch pack(std::span<const Sample> samples, std::span<const int64_t> indices) {
  PackedBatch batch;
  batch.seq_starts.push_back(0);
  for (const int64_t index : indices) {
    const Sample& sample = samples[index];
    const size_t n = sample.ids.size();
    batch.ids.insert(batch.ids.end(), sample.ids.begin(), sample.ids.end());
    for (size_t i = 0; i < n; ++i) {
      const bool is_scored = i + 1 < n && sample.scored[i + 1] != 0;
      batch.positions.push_back(static_cast<int32_t>(i));
      batch.targets.push_back(is_scored ? sample.ids[i + 1] : -1);
      batch.n_scored += is_scored ? 1 : 0;
    }
    batch.seq_starts.push_back(static_cast<int64_t>(batch.ids.size()));
  }
  return batch;
}

}  // namespace saaz
