// Rows to batches. Enters: rows and a tokenizer. Leaves: samples (ids and which of them are scored), the order of an
// epoch, and packed micro-batches: whole samples one after another, no padding, nothing attends across a border.
// Everything is a pure function of samples, options and epoch, so a resumed run sees the same batches. Semantics:
// formats.md 6.1 to 6.3.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/conversation.h"

namespace saaz {

struct Sample {
  std::vector<int32_t> ids;
  std::vector<uint8_t> scored;  // [ids.size()]; 1: this token is a label. The first never is
  int64_t n_cut = 0;            // tokens dropped at the end
  int64_t n_scored() const;
};

struct EncodeOptions {
  int64_t max_seq_length;
  LossOn loss_on;
};

/// The template's ids with bos, and what is scored; nothing cut, nothing checked. A row of raw text is scored whole.
Sample encode_whole(const Tokenizer& tokenizer, const Row& row, LossOn loss_on);

/// encode_whole cut to the first max_seq_length tokens. bad_input, naming the row, when nothing is left to score.
Sample encode_row(const Tokenizer& tokenizer, const Row& row, const EncodeOptions& options);

/// The rows that could be encoded, and their samples, index by index.
struct EncodedRows {
  std::vector<Row> rows;
  std::vector<Sample> samples;
};
EncodedRows encode_rows(const Tokenizer& tokenizer, std::vector<Row> rows, const EncodeOptions& options, BadRows& bad);

/// torch.randperm(n) after manual_seed(seed), bit for bit: the order of an epoch is shuffled(n, seed + epoch). n < 2^32
/// / 20.
std::vector<int64_t> shuffled(int64_t n, uint64_t seed);

/// A share of the rows set aside, chosen by seed; both keep the file's order. At least one row stays on each side when
/// fraction > 0; bad_input for fewer than two rows then.
struct RowSplit {
  std::vector<Row> train, validation;
};
RowSplit split_rows(std::vector<Row> rows, double fraction, uint64_t seed);

/// off: exactly batch_size samples in a micro-batch. on: as many as fit into batch_size * max_seq_length tokens.
enum class Packing { off, on };

struct BatchOptions {
  int64_t batch_size;    // per_device_train_batch_size
  int64_t accumulation;  // gradient_accumulation_steps
  int64_t max_seq_length;
  Packing packing;
  uint64_t seed;
};

/// The sample indices of each micro-batch of an epoch. Update u uses the micro-batches of `update(u)`; the last update
/// may have fewer than the others, and the last micro-batch fewer samples.
struct EpochPlan {
  std::vector<std::vector<int64_t>> micro_batches;
  int64_t accumulation = 1;
  int64_t n_updates() const;
  std::span<const std::vector<int64_t>> update(int64_t u) const;
};
EpochPlan plan_epoch(std::span<const Sample> samples, const BatchOptions& options, int64_t epoch);

/// Samples in the given order as one micro-batch; all arrays but seq_starts are [n_tokens].
struct PackedBatch {
  std::vector<int32_t> ids;
  std::vector<int32_t> positions;   // from 0 in each sequence
  std::vector<int32_t> targets;     // the next token of the same sequence where that one is scored, else -1
  std::vector<int64_t> seq_starts;  // n_sequences + 1
  int64_t n_scored = 0;
};
PackedBatch pack(std::span<const Sample> samples, std::span<const int64_t> indices);

}  // namespace saaz
