#include "train/planner.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "base/check.h"
#include "model/base_tokenizer.h"
#include "model/evaluate_loss.h"
#include "train/counted_run.h"
#include "train/optimizer.h"
#include "train/trainer.h"

namespace saaz {

namespace {

/// The samples as a shorter max_seq_length leaves them.
std::vector<Sample> cut_samples(std::vector<Sample> samples, int64_t max_seq_length) {
  for (Sample& sample : samples) {
    const auto n = std::min(sample.ids.size(), static_cast<size_t>(max_seq_length));
    sample.ids.resize(n);
    sample.scored.resize(n);
  }
  std::erase_if(samples, [](const Sample& sample) { return sample.n_scored() == 0; });
  return samples;
}

// Code that runs in training only and the heap of its bookkeeping: the same for models of all sizes.
constexpr int64_t kWorkingRoom = 7 << 20;

/// Of tables that are read by rows: the pages of the rows that the samples name, with those the system reads around
/// them.
int64_t resident_table_bytes(const Model& model, std::span<const Sample> samples) {
  constexpr int64_t kReadAround = 64 << 10;
  std::set<int32_t> ids;
  for (const Sample& sample : samples) ids.insert(sample.ids.begin(), sample.ids.end());
  const int64_t row_bytes = model.table_bytes() / model.config().vocab_size;
  return std::min(model.table_bytes(), static_cast<int64_t>(ids.size()) * (row_bytes + kReadAround));
}

// What a run writes beside its numbers, of the longest that was seen: text of a fixed length, and of each update,
// validation and row. tests/plan_test.cc compares with runs.
constexpr int64_t kBlock = 4 << 10;                        // of the file system: a file takes whole ones
constexpr int64_t kStateText = 6 << 10, kEntryText = 240;  // trainer_state.json and an entry of its log
constexpr int64_t kFilesOfCheckpoint = 5, kFilesBeside = 16;
constexpr int64_t kReports = 24 << 10;                  // card, recipe, empty charts, start and samples
constexpr int64_t kUpdateText = 400 + 160 + 360 + 100;  // of events, TensorBoard's, W&B's, charts
constexpr int64_t kRowText = 40;                        // row_losses.jsonl
constexpr int64_t kProbesText = 16 << 10;               // of a round

/// The headers of an adapter's file and of its optimizer's: both weights, and two states of each.
int64_t header_bytes(const Adapter& adapter) {
  constexpr int64_t kEntry = 120;
  int64_t out = 0;
  for (const Adapter::Module& module : adapter.modules())
    out += 6 * (kEntry + static_cast<int64_t>(module.linear->name.size()));
  return out;
}

int64_t count_every(int64_t n_steps, int64_t every) {
  return every > 0 ? n_steps / every + (n_steps % every != 0 ? 1 : 0) : 1;
}

}  // namespace

int64_t RunPlan::sum(const Parts& parts) {
  int64_t total = 0;
  for (const auto& [kind, bytes] : parts) total += bytes;
  return total;
}

bool fits(const RunPlan& plan, const MemoryLimits& limits) {
  return plan.host_bytes() <= limits.host && (!limits.device || plan.device_bytes() <= *limits.device);
}

Planner::Planner(const Recipe& recipe, const Backend& backend, std::optional<int64_t> device_limit, ProbeCosts probes)
    : recipe_(recipe),
      backend_(backend),
      device_limit_(device_limit),
      probes_(std::move(probes)),
      base_(open_base_model(recipe.model.base)) {
  data_ = load_run_data(recipe, load_base_tokenizer(base_));
  base_.weights->release_pages();
  resident_bytes_ = static_cast<int64_t>(rss_bytes());
  peak_bytes_ = static_cast<int64_t>(peak_rss_bytes());
}

RunPlan Planner::plan_memory(const Recipe& recipe) const {
  const int64_t length = recipe.model.max_seq_length;
  const std::vector<Sample> samples = cut_samples(data_.samples, length),
                            validation = cut_samples(data_.validation, length);
  check(!samples.empty(), ExitCode::bad_input, "no training rows are left");
  UpdateOrder order(samples, recipe);
  const CountedRun counted(backend_, base_, recipe);
  const Model& model = *counted.model;

  RunPlan plan;
  plan.host.emplace_back("program, tokenizer, data", resident_bytes_ + kWorkingRoom);
  if (model.table_bytes() > 0) plan.host.emplace_back("embedding rows", resident_table_bytes(model, samples));
  if (device_limit_) {
    const GpuPlan gpu = plan_gpu(backend_, base_, recipe, order, validation, *device_limit_, probes_.bytes);
    plan.device = gpu.parts;
    plan.residence = gpu.residence;
    plan.recompute = gpu.recompute;
    if (gpu.needs.parked > 0) plan.host.emplace_back("layer inputs", gpu.needs.parked);
  } else {
    plan.recompute = recompute_of(recipe);
    const PassBytes activations =
        pass_needs(counted.backend, model, recipe, plan.recompute, order, validation).activations;
    plan.host.emplace_back("frozen weights", model.weight_bytes() - model.table_bytes());
    for (const auto& [name, bytes] : counted.backend.report.allocated_bytes) plan.host.emplace_back(name, bytes);
    plan.host.emplace_back("activations of one layer", activations.work);
    plan.host.emplace_back("activations between layers", activations.store);
    if (probes_.bytes) plan.host.emplace_back("a round of probes", probes_.bytes(backend_, model));
  }
  // Reading tokenizer and data may have taken more than all of the training will.
  const int64_t over = peak_bytes_ - plan.host_bytes();
  if (over > 0) plan.host.emplace_back("reading tokenizer and data", over);

  plan.n_parameters = counted.adapter->n_parameters();
  plan.n_samples = static_cast<int64_t>(samples.size());
  plan.n_validation_samples = static_cast<int64_t>(validation.size());
  plan.n_updates = order.n_updates();
  plan.n_epochs = static_cast<double>(plan.n_updates) / static_cast<double>(order.n_updates_of_first_epoch());
  plan.largest_micro_batch = static_cast<int64_t>(order.largest_micro_batch().ids.size());
  plan.checkpoint_bytes = plan.n_parameters * size_of(DType::f32) + counted.optimizer_bytes +
                          header_bytes(*counted.adapter) + kFilesOfCheckpoint * kBlock;
  return plan;
}

RunPlan Planner::plan() const {
  RunPlan plan = plan_memory(recipe_);
  const OutputRecipe& output = recipe_.output;
  const int64_t n_looks = 1 + count_every(plan.n_updates, recipe_.eval.every_steps);
  plan.n_validations = data_.validation.empty() ? 0 : n_looks;
  plan.n_probe_rounds = probes_.seconds ? n_looks : 0;
  plan.n_checkpoints = count_every(plan.n_updates, output.save_steps);
  const int64_t n_entries = count_every(plan.n_updates, recipe_.train.logging_steps) + plan.n_validations + 2;
  plan.checkpoint_bytes += kStateText + n_entries * kEntryText;
  // The oldest checkpoint goes when the newest is whole: for a moment there is one more. The adapter comes last of all.
  const int64_t kept = output.save_total_limit > 0 ? std::max<int64_t>(2, output.save_total_limit) : plan.n_checkpoints,
                adapter = plan.n_parameters * size_of(DType::f32);
  plan.run_folder_bytes = std::max(std::min(plan.n_checkpoints, kept + 1) * plan.checkpoint_bytes,
                                   std::min(plan.n_checkpoints, kept) * plan.checkpoint_bytes + adapter) +
                          kReports + kFilesBeside * kBlock + plan.n_updates * kUpdateText +
                          plan.n_validations * plan.n_validation_samples * kRowText + plan.n_probe_rounds * kProbesText;
  for (const SourceTensor& tensor : base_.weights->tensors())
    plan.merged_bytes += static_cast<int64_t>(tensor.spec.bytes());
  count_work(plan);
  return plan;
}

namespace {

PassCost cost_of_training(const Backend& like, Recompute recompute, const Model& model, int64_t length) {
  return fit_pass_cost(length, [&](const Batch& batch, Targets targets) {
    PlanBackend counter(like);
    PassMemory memory;
    train_pass(counter, memory, model, batch, targets, recompute, 1);
    return counter.report.flops();
  });
}

PassCost cost_of_evaluation(const Backend& like, const Model& model, int64_t length) {
  return fit_pass_cost(length, [&](const Batch& batch, Targets targets) {
    PlanBackend counter(like);
    PassMemory memory;
    evaluate_pass(counter, memory, model, batch, targets);
    return counter.report.flops();
  });
}

int64_t longest(std::span<const Sample> samples) {
  size_t length = 2;
  for (const Sample& sample : samples) length = std::max(length, sample.ids.size());
  return static_cast<int64_t>(length);
}

}  // namespace

void Planner::count_work(RunPlan& plan) const {
  const CountedRun counted(backend_, base_, recipe_);
  const PassCost training = cost_of_training(backend_, plan.recompute, *counted.model, longest(data_.samples));
  double epoch_flops = 0;
  for (const Sample& sample : data_.samples) {
    plan.epoch_tokens += static_cast<int64_t>(sample.ids.size());
    plan.epoch_scored += sample.n_scored();
    epoch_flops += training.of(sample);
  }
  plan.run_tokens = static_cast<double>(plan.epoch_tokens) * plan.n_epochs;
  plan.run_flops = epoch_flops * plan.n_epochs;
  if (data_.validation.empty()) return;
  const PassCost evaluation = cost_of_evaluation(backend_, *counted.model, longest(data_.validation));
  for (const Sample& sample : data_.validation) plan.validation_flops += evaluation.of(sample);
}

namespace {

/// A recipe made smaller, and the overrides that make it so.
struct Variant {
  Recipe recipe;
  std::vector<std::string> changes;
};

Variant with_batch(const Recipe& recipe, int64_t batch) {
  Variant out{recipe, {}};
  TrainRecipe& train = out.recipe.train;
  if (batch == train.per_device_train_batch_size) return out;
  train.gradient_accumulation_steps = train.per_device_train_batch_size * train.gradient_accumulation_steps / batch;
  train.per_device_train_batch_size = batch;
  out.changes = {fmt::format("train.per_device_train_batch_size={}", batch),
                 fmt::format("train.gradient_accumulation_steps={}", train.gradient_accumulation_steps)};
  return out;
}

/// Smaller micro-batches whose updates see as many samples, largest first.
std::vector<int64_t> batch_sizes(const TrainRecipe& train) {
  const int64_t samples = train.per_device_train_batch_size * train.gradient_accumulation_steps;
  std::vector<int64_t> out;
  for (int64_t batch = train.per_device_train_batch_size; batch >= 1; --batch)
    if (samples % batch == 0) out.push_back(batch);
  return out;
}

std::vector<int64_t> sequence_lengths(int64_t longest_sample, int64_t max_seq_length) {
  std::vector<int64_t> out = {max_seq_length};
  for (int64_t length = 1 << 20; length >= 64; length /= 2)
    for (const int64_t candidate : {length, length * 3 / 4})
      if (candidate < std::min(max_seq_length, longest_sample)) out.push_back(candidate);
  return out;
}

}  // namespace

namespace {

/// As it is, and changed, unless that is the same.
template <class E>
std::vector<E> as_is_or(E now, E then) {
  return now == then ? std::vector<E>{now} : std::vector<E>{now, then};
}

/// Automatic recomputes as much as it must.
std::vector<RecomputePolicy> recompute_choices(RecomputePolicy now) {
  if (now == RecomputePolicy::none) return {RecomputePolicy::none, RecomputePolicy::layer};
  return {now};
}

/// All variants whose samples are cut to `length`, the harmless first.
std::vector<Variant> variants(const Recipe& recipe, int64_t length) {
  std::vector<Variant> out;
  for (const QuantScheme scheme : as_is_or(recipe.quant.scheme, QuantScheme::nf4))
    for (const Optimizer optim : as_is_or(recipe.train.optim, Optimizer::adamw_8bit))
      for (const int64_t batch : batch_sizes(recipe.train))
        for (const RecomputePolicy recompute : recompute_choices(recipe.train.recompute)) {
          Variant variant = with_batch(recipe, batch);
          const auto change = [&](auto& now, auto then, std::string text) {
            if (now == then) return;
            now = then;
            variant.changes.push_back(std::move(text));
          };
          change(variant.recipe.train.recompute, recompute, "train.recompute=layer");
          change(variant.recipe.train.optim, optim, "train.optim=adamw_8bit");
          change(variant.recipe.quant.scheme, scheme, "quant.scheme=nf4");
          change(variant.recipe.model.max_seq_length, length, fmt::format("model.max_seq_length={}", length));
          out.push_back(std::move(variant));
        }
  return out;
}

}  // namespace

std::optional<SmallerRun> Planner::smallest_change(const MemoryLimits& limits) const {
  for (const int64_t length : sequence_lengths(longest(data_.samples), recipe_.model.max_seq_length)) {
    const std::vector<Variant> all = variants(recipe_, length);
    // The last one is the smallest in everything.
    if (!fits(plan_memory(all.back().recipe), limits)) continue;
    for (const Variant& variant : all) {
      const RunPlan plan = plan_memory(variant.recipe);
      if (fits(plan, limits)) return SmallerRun{variant.changes, plan};
    }
  }
  return std::nullopt;
}

namespace {

/// The micro-batches of the first epoch, cheapest first.
std::vector<std::vector<int64_t>> micro_batches_by_cost(UpdateOrder& order, std::span<const Sample> samples,
                                                        const PassCost& cost) {
  std::vector<std::vector<int64_t>> out;
  for (int64_t step = 0; step < std::min(order.n_updates(), order.n_updates_of_first_epoch()); ++step)
    for (const std::vector<int64_t>& indices : order.update(step)) out.push_back(indices);
  std::stable_sort(out.begin(), out.end(),
                   [&](const auto& a, const auto& b) { return cost.of(samples, a) < cost.of(samples, b); });
  return out;
}

/// Figure of several measurements and how far they lie apart.
class Rate {
 public:
  void add(double seconds, double flops) {
    seconds_ += seconds;
    flops_ += flops;
    rates_.push_back(seconds / flops);
  }
  double seconds() const { return seconds_; }
  int64_t n() const { return static_cast<int64_t>(rates_.size()); }
  double seconds_per_flop() const { return flops_ > 0 ? seconds_ / flops_ : 0; }
  /// Two standard errors of the mean, relative to it.
  double relative_error() const {
    if (n() < 2) return 1;
    double squares = 0;
    for (const double rate : rates_) squares += std::pow(rate / seconds_per_flop() - 1, 2);
    return 2 * std::sqrt(squares / static_cast<double>(n() * (n() - 1)));
  }

 private:
  double seconds_ = 0, flops_ = 0;
  std::vector<double> rates_;
};

/// A half, a quarter, three quarters, an eighth, ...: places in [0, 1) that lie evenly, however many are taken.
double spread(int64_t i) {
  double place = 0, part = 0.5;
  for (int64_t n = i + 1; n > 0; n /= 2, part /= 2) place += static_cast<double>(n % 2) * part;
  return place;
}

template <class Body>
double seconds_of(Body&& body) {
  const double began = monotonic_seconds();
  body();
  return monotonic_seconds() - began;
}

}  // namespace

RunTime Planner::measure(Backend& backend, const RunPlan& plan, double seconds) const {
  // Between two trials the clock of the machine may change, and one trial says nothing about the spread.
  constexpr int64_t kFewest = 4, kMost = 16;
  constexpr double kLeastError = 0.05;
  RunTime out;
  std::unique_ptr<Model> model;
  std::unique_ptr<Adapter> adapter;
  UpdateOrder order(data_.samples, recipe_);
  backend.set_residence(plan.residence);
  out.load = seconds_of([&] {
    model = load_model(backend, base_, load_options_of(recipe_));
    const auto seed = static_cast<uint32_t>(recipe_.lora.seed.value_or(recipe_.train.seed));
    adapter = Adapter::create(backend, *model, lora_spec_of(recipe_), seed);
  });
  adapter->attach();
  AdamW optimizer(backend, *adapter, recipe_.train);
  const Recompute recompute = plan.recompute;
  PassMemory memory(backend,
                    pass_needs(PlanBackend(backend), *model, recipe_, recompute, order, data_.validation).activations);
  const PassCost cost = cost_of_training(backend, recompute, *model, longest(data_.samples));
  const std::vector<std::vector<int64_t>> micro = micro_batches_by_cost(order, data_.samples, cost);
  const auto train_on = [&](const std::vector<int64_t>& indices) {
    const PackedBatch batch = pack(data_.samples, indices);
    // The gradients are kept small: they are summed over all trials and never used.
    train_pass(backend, memory, *model, packed_batch(batch.ids, batch.seq_starts), batch.targets, recompute, 1e-6F);
  };
  const auto update = [&] {
    backend.fill(adapter->gradients_and_totals(), 0);
    optimizer.gradient_norm();
    optimizer.step(0, 1);
  };
  train_on(micro.back());  // the largest: all memory is touched
  update();
  Rate training, validation;
  for (int64_t i = 0; i < kMost && (i < kFewest || training.seconds() < seconds) && stop_signal() == 0; ++i) {
    const auto at = static_cast<size_t>(spread(i) * static_cast<double>(micro.size()));
    const std::vector<int64_t>& indices = micro[at];
    training.add(seconds_of([&] { train_on(indices); }), cost.of(data_.samples, indices));
  }
  if (!data_.validation.empty() && stop_signal() == 0) {
    const PassCost evaluation = cost_of_evaluation(backend, *model, longest(data_.validation));
    const size_t n = std::min<size_t>(data_.validation.size(), 4);
    double flops = 0;
    for (const Sample& sample : std::span(data_.validation).first(n)) flops += evaluation.of(sample);
    const auto evaluate = [&] {
      evaluate_loss(backend, memory, *model, std::span(data_.validation).first(n), recipe_.model.max_seq_length);
    };
    validation.add(seconds_of(evaluate), flops);
  }
  if (probes_.seconds && stop_signal() == 0) out.probe_round = probes_.seconds(backend, *model);
  const auto n_updates = static_cast<double>(plan.n_updates);
  out.update = plan.run_flops * training.seconds_per_flop() / n_updates + seconds_of(update);
  out.validation = plan.validation_flops * validation.seconds_per_flop();
  out.total = out.load + n_updates * out.update + static_cast<double>(plan.n_validations) * out.validation +
              static_cast<double>(plan.n_probe_rounds) * out.probe_round;
  out.tokens_per_s = plan.run_tokens / (n_updates * out.update);
  out.n_trials = training.n();
  out.relative_error = kLeastError + training.relative_error();
  out.peak_bytes = static_cast<int64_t>(peak_rss_bytes());
  return out;
}

}  // namespace saaz
