#include "train/run_data.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>

#include "base/check.h"

namespace saaz {

RunData load_run_data(const Recipe& recipe, const Tokenizer& tokenizer) {
  RunData out;
  BadRows bad(recipe.data.skip_bad_rows);
  std::vector<Row> rows, validation_rows;
  const auto load = [&](const std::string& path, Split split, std::vector<Row>& into) {
    for (const fs::path& file : find_data_files(path, split)) {
      out.files.push_back(file);
      std::vector<Row> more = load_rows(file, recipe.data.format, bad);
      into.insert(into.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
    }
  };
  const ValidationRecipe& validation = recipe.data.validation;
  for (const std::string& path : recipe.data.train) {
    load(path, Split::train, rows);
    if (validation.file.empty() && fs::is_directory(path)) load(path, Split::validation, validation_rows);
  }
  if (!validation.file.empty()) load(validation.file, Split::validation, validation_rows);
  if (validation.fraction > 0) {
    RowSplit split = split_rows(std::move(rows), validation.fraction, static_cast<uint64_t>(validation.seed));
    rows = std::move(split.train);
    validation_rows = std::move(split.validation);
  }
  if (recipe.data.normalize != NormalizeProfile::none)
    for (std::vector<Row>* split : {&rows, &validation_rows})
      normalize_rows(*split, options_of(recipe.data.normalize), bad, out.normalized);
  const EncodeOptions encode{.max_seq_length = recipe.model.max_seq_length, .loss_on = recipe.data.loss_on};
  out.samples = encode_rows(tokenizer, std::move(rows), encode, bad).samples;
  if (!validation_rows.empty())
    out.validation = encode_rows(tokenizer, std::move(validation_rows), encode, bad).samples;
  out.skipped = bad.reasons();
  check(!out.samples.empty(), ExitCode::bad_input, "no training rows are left");
  return out;
}

UpdateOrder::UpdateOrder(std::span<const Sample> samples, const Recipe& recipe)
    : samples_(samples),
      options_{.batch_size = recipe.train.per_device_train_batch_size,
               .accumulation = recipe.train.gradient_accumulation_steps,
               .max_seq_length = recipe.model.max_seq_length,
               .packing = recipe.data.packing ? Packing::on : Packing::off,
               .seed = static_cast<uint64_t>(recipe.train.data_seed.value_or(recipe.train.seed))},
      plan_(plan_epoch(samples, options_, 0)),
      n_first_(plan_.n_updates()) {
  const double whole = std::ceil(recipe.train.num_train_epochs * static_cast<double>(n_first_));
  n_updates_ = recipe.train.max_steps.value_or(static_cast<int64_t>(whole));
}

void UpdateOrder::seek(int64_t step) {
  if (step < begin_) {
    epoch_ = begin_ = 0;
    plan_ = plan_epoch(samples_, options_, 0);
  }
  while (step - begin_ >= plan_.n_updates()) {
    begin_ += plan_.n_updates();
    plan_ = plan_epoch(samples_, options_, ++epoch_);
  }
}

std::span<const std::vector<int64_t>> UpdateOrder::update(int64_t step) {
  seek(step);
  return plan_.update(step - begin_);
}

double UpdateOrder::epochs_after(int64_t n_steps) {
  if (n_steps == 0) return 0;
  seek(n_steps - 1);
  return static_cast<double>(epoch_) + static_cast<double>(n_steps - begin_) / static_cast<double>(plan_.n_updates());
}

std::vector<int64_t> UpdateOrder::longest_samples() const {
  const auto length = [&](int64_t i) { return samples_[static_cast<size_t>(i)].ids.size(); };
  std::vector<int64_t> longest(samples_.size());
  std::iota(longest.begin(), longest.end(), int64_t{0});
  std::stable_sort(longest.begin(), longest.end(), [&](int64_t a, int64_t b) { return length(a) > length(b); });
  int64_t n = 0, tokens = 0;
  const int64_t most = options_.batch_size * options_.max_seq_length;
  for (const int64_t i : longest) {
    if (options_.packing == Packing::off ? n == options_.batch_size : tokens >= most) break;
    tokens += static_cast<int64_t>(length(i));
    ++n;
  }
  longest.resize(static_cast<size_t>(n));
  return longest;
}

PackedBatch UpdateOrder::largest_micro_batch() {
  constexpr int64_t kMaxVisits = 20'000'000;  // samples; a second or two
  const double n_epochs = static_cast<double>(n_updates_) / static_cast<double>(n_first_);
  const bool is_walked = n_epochs * static_cast<double>(samples_.size()) <= kMaxVisits;
  std::vector<int64_t> largest = is_walked ? std::vector<int64_t>() : longest_samples();
  size_t most = 0;
  for (int64_t step = 0; is_walked && step < n_updates_; ++step)
    for (const std::vector<int64_t>& indices : update(step)) {
      size_t n = 0;
      for (const int64_t i : indices) n += samples_[static_cast<size_t>(i)].ids.size();
      if (n > most) most = n, largest = indices;
    }
  PackedBatch batch = pack(samples_, largest);
  std::fill(batch.targets.begin(), batch.targets.end(), 0);
  return batch;
}

}  // namespace saaz
