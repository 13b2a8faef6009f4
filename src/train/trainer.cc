#include "train/trainer.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "backend/plan.h"
#include "base/check.h"
#include "data/preview.h"
#include "model/base_tokenizer.h"
#include "model/evaluate_loss.h"
#include "report/provenance.h"
#include "report/run_files.h"
#include "train/checkpoint.h"
#include "train/counted_run.h"
#include "train/event_log.h"
#include "train/optimizer.h"
#include "train/run_data.h"
#include "train/run_folder.h"
#include "train/trainer_state.h"

namespace saaz {

LoraSpec lora_spec_of(const Recipe& recipe) {
  LoraSpec spec{.targets = recipe.lora.target_modules,
                .r = recipe.lora.r,
                .alpha = recipe.lora.lora_alpha,
                .use_rslora = recipe.lora.use_rslora};
  if (recipe.lora.target_preset == TargetPreset::all_linear) spec.targets = AllLinear{};
  if (!recipe.lora.target_regex.empty()) spec.targets = recipe.lora.target_regex;
  return spec;
}

LoadOptions load_options_of(const Recipe& recipe) {
  return {.scheme = recipe.quant.scheme,
          .double_quant = recipe.quant.double_quant,
          .max_positions = recipe.model.max_seq_length,
          .ends_at_stop = true};
}

namespace {

/// Training rows that the events show as text.
constexpr size_t kShownSamples = 3;

class Run {
 public:
  Run(Backend& backend, const Recipe& recipe, const TrainOptions& options)
      : backend_(backend), recipe_(recipe), options_(options), folder_(recipe.output.dir) {}

  TrainOutcome execute() {
    prepare_folder();
    load_data();
    fingerprint_ = fingerprint();
    plan_gpu_memory();
    load_model_and_adapter();
    if (start_.has_value()) restore();
    plan_memory();
    announce();
    if (!start_.has_value() || sums_.owes_look) look();
    outcome_.signal = stop_signal();
    const auto is_due = [this](int64_t every) { return step_ == n_total_ || (every > 0 && step_ % every == 0); };
    while (step_ < n_total_ && outcome_.signal == 0) {
      update();
      if (is_due(recipe_.eval.every_steps)) look();
      outcome_.signal = stop_signal();
      if (outcome_.signal != 0 || is_due(recipe_.output.save_steps)) save();
    }
    finish();
    return outcome_;
  }

 private:
  void prepare_folder() {
    make_directories(folder_);
    lock_ = std::make_unique<DirectoryLock>(folder_);
    const std::vector<fs::path> leftovers = unfinished_files(folder_);
    if (options_.start == TrainOptions::Start::resume) {
      find_start();
    } else {
      for (const fs::path& entry : list_directory(folder_))
        check(entry.filename() == ".lock" || std::find(leftovers.begin(), leftovers.end(), entry) != leftovers.end(),
              ExitCode::in_use,
              "{} already holds '{}': resume the run in it with --resume, or choose another output.dir",
              folder_.string(), printable(entry.filename().string()));
    }
    for (const fs::path& leftover : leftovers) remove_unfinished(leftover);
  }

  void find_start() {
    std::vector<std::string> skipped;
    start_ = options_.checkpoint ? std::optional(verify_checkpoint(*options_.checkpoint))
                                 : newest_checkpoint(folder_, &skipped);
    for (const std::string& reason : skipped) notes_.push_back("skipped: " + reason);
    if (start_.has_value()) return;
    // A run that was killed before its first checkpoint has lost nothing by beginning again.
    const std::optional<UnsavedRun> unsaved = find_unsaved_run(folder_);
    check(unsaved.has_value(), ExitCode::bad_input,
          "{} holds no checkpoint to resume from, and no run that had begun: start the run without --resume",
          folder_.string());
    if (unsaved->start) RunFiles::forget(folder_, *unsaved->start);
    notes_.push_back("the run had saved no checkpoint: it begins again");
  }

  void load_data() {
    base_ = open_base_model(recipe_.model.base);
    const Tokenizer tokenizer = load_base_tokenizer(base_);
    data_ = load_run_data(recipe_, tokenizer);
    for (size_t i = 0; i < std::min(kShownSamples, data_.samples.size()); ++i) {
      Value event = Value::object({{"event", Value("sample")}, {"step", Value(0)}, {"index", Value(i)}});
      const Value turns = turns_of(tokenizer, data_.samples[i]);
      for (const auto& [key, value] : turns.members()) event.set(key, value);
      shown_samples_.push_back(std::move(event));
    }
    for (const std::string& reason : data_.skipped) notes_.push_back("skipped row: " + reason);
    if (data_.normalized.n_rows > 0)
      notes_.push_back(fmt::format("data.normalize changed {} of {} rows: {}", data_.normalized.n_changed,
                                   data_.normalized.n_rows, data_.normalized.counts.text()));
    if (const std::string note = chat_template_note(base_.path); !note.empty()) notes_.push_back(note);
    order_.emplace(data_.samples, recipe_);
    n_total_ = order_->n_updates();
  }

  /// Decides what lies on a GPU, before anything does.
  void plan_gpu_memory() {
    recompute_ = recompute_of(recipe_);
    if (!backend_.own_total_bytes()) return;
    int64_t limit = *backend_.own_total_bytes();
    if (options_.max_gpu_memory_bytes > 0) limit = std::min(limit, options_.max_gpu_memory_bytes);
    const GpuPlan plan = plan_gpu(backend_, base_, recipe_, *order_, data_.validation, limit, options_.probe_bytes);
    const auto largest = std::max_element(plan.parts.begin(), plan.parts.end(),
                                          [](const auto& a, const auto& b) { return a.second < b.second; });
    check(plan.total() <= limit, ExitCode::resource,
          "the run needs {} bytes of GPU memory, {} may be in use; most of them are {} ({} bytes): 'saaz plan' names "
          "the smallest change that fits",
          plan.total(), limit, largest->first, largest->second);
    backend_.limit_own_bytes(options_.max_gpu_memory_bytes);
    backend_.set_residence(plan.residence);
    recompute_ = plan.recompute;
  }

  void load_model_and_adapter() {
    model_ = load_model(backend_, base_, load_options_of(recipe_));
    if (start_.has_value()) {
      adapter_ = Adapter::load(backend_, *model_, start_->folder, ForTraining::yes);
    } else {
      adapter_ = Adapter::create(backend_, *model_, lora_spec_of(recipe_),
                                 static_cast<uint32_t>(recipe_.lora.seed.value_or(recipe_.train.seed)));
    }
    adapter_->attach();
    optimizer_ = std::make_unique<AdamW>(backend_, *adapter_, recipe_.train);
    warmup_ = warmup_steps_of(recipe_.train, n_total_);
  }

  /// What must not change between the start and a resume.
  Value fingerprint() const {
    std::vector<fs::path> files = data_.files;
    if (base_.is_gguf) {
      files.push_back(base_.path);
    } else {
      for (const fs::path& entry : list_directory(base_.path))
        if (fs::is_regular_file(entry)) files.push_back(entry);
    }
    std::sort(files.begin(), files.end());
    Value out = fingerprint_files(files);
    for (const RecipeField& field : recipe_fields()) {
      const std::string_view path = field.path;
      if (path.starts_with("output.") || path.starts_with("report.") || path == "train.logging_steps" ||
          path == "eval.every_steps" || path == "eval.probes")
        continue;
      if (field.get != nullptr) out.set(std::string(kRecipePrefix) + std::string(path), field.get(recipe_));
    }
    return out;
  }

  void restore() {
    const fs::path path = start_->folder / kStateFile;
    const Value state = parse_json(read_file(path, 256 << 20), path.string());
    const Value *own = find_own_state(state), *inputs = own == nullptr ? nullptr : own->find("inputs"),
                *step = state.find("global_step"), *log = state.find("log_history");
    check(inputs != nullptr && inputs->is_object() && step != nullptr && step->is_integer() && log != nullptr &&
              log->is_array(),
          ExitCode::verification, "{}: not a trainer state of this program", path.string());
    const std::vector<std::string> changed = differences(*inputs, fingerprint_);
    std::string list;
    for (const std::string& difference : changed) list += (list.empty() ? "" : "; ") + difference;
    check(changed.empty() || options_.accept_changes, ExitCode::verification,
          "inputs changed since {} was saved: {}; restore them, or pass --accept-changes", start_->folder.string(),
          printable(list, 2000));
    if (!changed.empty()) notes_.push_back("accepted changed inputs: " + list);
    step_ = step->as_integer();
    check(step_ == start_->step, ExitCode::verification, "{} holds step {}: the folder was renamed",
          start_->folder.string(), step_);
    log_history_ = log->items();
    sums_ = read_sums(*own);
    if (const Value* tokens = state.find("num_input_tokens_seen"); tokens != nullptr && tokens->is_integer())
      tokens_seen_ = tokens->as_integer();
    optimizer_->load(start_->folder / "optimizer.safetensors");
    check(optimizer_->n_steps() == step_, ExitCode::verification, "{}: the optimizer made {} steps, the state says {}",
          path.string(), optimizer_->n_steps(), step_);
  }

  /// Finds out what the largest micro-batch and validation batch need, whether that is there, and allocates it.
  void plan_memory() {
    const PassNeeds needs = pass_needs(PlanBackend(backend_), *model_, recipe_, recompute_, *order_, data_.validation);
    const PassBytes bytes = needs.activations;
    flops_per_token_ = needs.flops / static_cast<double>(order_->largest_micro_batch().ids.size());
    if (!backend_.own_free_bytes()) check_memory(bytes);
    memory_ = std::make_unique<PassMemory>(backend_, bytes);
  }

  void check_memory(const PassBytes& activations) const {
    const int64_t probes = options_.probe_bytes ? options_.probe_bytes(backend_, *model_) : 0;
    // Mapped weights are read from the first update on.
    const int64_t needed = activations.total() + probes + model_->mapped_bytes(),
                  now = static_cast<int64_t>(rss_bytes());
    check(
        static_cast<uint64_t>(needed) <= available_memory_bytes(), ExitCode::resource,
        "the run needs {} MiB more of memory ({} of them activations), {} MiB are free: 'saaz plan' names the smallest "
        "change that fits",
        needed >> 20, activations.total() >> 20, available_memory_bytes() >> 20);
    check(options_.max_memory_bytes == 0 || now + needed <= options_.max_memory_bytes, ExitCode::resource,
          "the run needs {} MiB of memory, --max-memory allows {}: 'saaz plan --max-memory' names the smallest change "
          "that fits",
          (now + needed) >> 20, options_.max_memory_bytes >> 20);
  }

  void open_logs() {
    const int64_t step = start_.has_value() ? start_->step : -1;
    events_ = std::make_unique<EventLog>(folder_ / kEventsFile, step, [this](const Value& event) {
      files_->add(event);
      if (options_.on_event) options_.on_event(event);
      for (const std::string& failure : files_->take_failures()) note(failure);
    });
    row_losses_ = std::make_unique<EventLog>(folder_ / kRowLossesFile, step, nullptr);
    files_ = std::make_unique<RunFiles>(
        folder_, Trackers{.tensorboard = recipe_.report.tensorboard, .wandb = recipe_.report.wandb});
  }

  void announce() {
    // Gone on from an older checkpoint: what came after it is of another course.
    if (options_.checkpoint)
      for (const std::string& name : set_checkpoints_aside(folder_, start_->step))
        notes_.push_back("a later checkpoint is set aside: " + name);
    // The recipe is the first file of a run: find_start goes by it.
    write_file_atomically(folder_ / kRecipeFile, to_yaml(resolved(recipe_)));
    open_logs();
    events_->emit(Value::object({{"event", Value("start")},
                                 {"time", Value(utc_timestamp())},
                                 {"backend", Value(backend_.describe())},
                                 {"base", Value(recipe_.model.base)},
                                 {"seed", Value(recipe_.train.seed)},
                                 {"step", Value(step_)},
                                 {"max_steps", Value(n_total_)},
                                 {"n_samples", Value(static_cast<int64_t>(data_.samples.size()))},
                                 {"n_validation_samples", Value(static_cast<int64_t>(data_.validation.size()))},
                                 {"n_modules", Value(static_cast<int64_t>(adapter_->modules().size()))},
                                 {"n_parameters", Value(adapter_->n_parameters())},
                                 {"activation_bytes", Value(memory_->work().capacity() + memory_->store().capacity())},
                                 {"provenance", provenance(recipe_.model.base, data_.files, fingerprint_)}}));
    if (!start_.has_value())
      for (const Value& sample : shown_samples_) events_->emit(sample);
    for (const std::string& text : notes_) note(text);
  }

  void note(const std::string& text) {
    events_->emit(Value::object({{"event", Value("note")}, {"text", Value(text)}}));
  }

  void update() {
    const double began = monotonic_seconds();
    std::vector<PackedBatch> micro;
    int64_t n_scored = 0, n_tokens = 0;
    for (const std::vector<int64_t>& indices : order_->update(step_)) {
      micro.push_back(pack(data_.samples, indices));
      sums_.n_samples += static_cast<int64_t>(indices.size());
      n_scored += micro.back().n_scored;
      n_tokens += static_cast<int64_t>(micro.back().ids.size());
    }
    backend_.fill(adapter_->gradients_and_totals(), 0);
    double loss = 0;
    for (const PackedBatch& batch : micro)
      for (const float l : train_pass(backend_, *memory_, *model_, packed_batch(batch.ids, batch.seq_starts),
                                      batch.targets, recompute_, 1.0f / static_cast<float>(n_scored)))
        loss += l;
    loss /= static_cast<double>(n_scored);
    const double norm = optimizer_->gradient_norm();
    check(std::isfinite(loss) && std::isfinite(norm), ExitCode::diverged,
          "step {}: loss {} and gradient norm {} are not both finite; nothing was updated; lower train.learning_rate "
          "and --resume from the last checkpoint",
          step_ + 1, loss, norm);
    const double lr = learning_rate_at(recipe_.train, step_, n_total_, warmup_), max_norm = recipe_.train.max_grad_norm;
    optimizer_->step(lr, max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0);
    ++step_;
    tokens_seen_ += n_tokens;
    outcome_.last_loss = loss;
    const double seconds = monotonic_seconds() - began;
    sums_.loss += loss;
    sums_.seconds += seconds;
    sums_.unlogged_loss += loss;
    ++sums_.n_unlogged;
    if (step_ % recipe_.train.logging_steps == 0 || step_ == 1) log_update(norm, lr);
    events_->emit(Value::object({{"event", Value("step")},
                                 {"step", Value(step_)},
                                 {"max_steps", Value(n_total_)},
                                 {"epoch", Value(order_->epochs_after(step_))},
                                 {"loss_nats", Value(loss)},
                                 {"grad_norm", Value(norm)},
                                 {"learning_rate", Value(lr)},
                                 {"n_tokens", Value(n_tokens)},
                                 {"n_scored_tokens", Value(n_scored)},
                                 {"seconds", Value(seconds)},
                                 {"tokens_per_s", Value(static_cast<double>(n_tokens) / seconds)},
                                 {"peak_rss_bytes", Value(peak_rss_bytes())}}));
  }

  /// As Hugging Face logs it: the loss is the mean over the updates since the entry before.
  void log_update(double norm, double lr) {
    const double mean = sums_.unlogged_loss / static_cast<double>(sums_.n_unlogged);
    sums_.unlogged_loss = 0;
    sums_.n_unlogged = 0;
    log_history_.push_back(Value::object({{"epoch", Value(order_->epochs_after(step_))},
                                          {"grad_norm", Value(norm)},
                                          {"learning_rate", Value(lr)},
                                          {"loss", Value(mean)},
                                          {"step", Value(step_)}}));
  }

  /// Validation and probes. A signal cuts them short: then none of it is told, and the resumed run looks again.
  void look() {
    sums_.owes_look = true;
    const double began = monotonic_seconds();
    const EvalResult validation = validate();
    const double validated = monotonic_seconds();
    Value answers;
    if (!recipe_.eval.probes.empty() && stop_signal() == 0) answers = options_.answer_probes(backend_, *model_);
    if (stop_signal() != 0) return;
    if (!data_.validation.empty()) tell(validation, validated - began);
    if (!recipe_.eval.probes.empty()) tell_probes(answers, monotonic_seconds() - validated);
    sums_.owes_look = false;
  }

  EvalResult validate() {
    if (data_.validation.empty()) return {};
    return evaluate_loss(backend_, *memory_, *model_, data_.validation, recipe_.model.max_seq_length,
                         [] { return stop_signal() != 0; });
  }

  void tell_probes(const Value& answers, double seconds) {
    Value event = Value::object({{"event", Value("probes")}, {"step", Value(step_)}});
    for (const auto& [key, value] : answers.members()) event.set(key, value);
    event.set("runtime_s", seconds);
    events_->emit(event);
  }

  void tell(const EvalResult& result, double seconds) {
    if (step_ == 0) outcome_.first_validation_loss = result.loss_nats;
    outcome_.last_validation_loss = result.loss_nats;
    const double per_s = static_cast<double>(result.n_rows) / seconds;
    log_history_.push_back(Value::object({{"epoch", Value(order_->epochs_after(step_))},
                                          {"eval_loss", Value(result.loss_nats)},
                                          {"eval_runtime", Value(seconds)},
                                          {"eval_samples_per_second", Value(per_s)},
                                          {"step", Value(step_)}}));
    row_losses_->emit(row_losses_entry(step_, data_.validation, result));
    events_->emit(Value::object({{"event", Value("eval")},
                                 {"step", Value(step_)},
                                 {"eval_loss_nats", Value(result.loss_nats)},
                                 {"eval_perplexity", Value(result.perplexity)},
                                 {"n_scored_tokens", Value(result.n_tokens)},
                                 {"runtime_s", Value(seconds)},
                                 {"samples_per_s", Value(per_s)}}));
  }

  /// Of forward and backward passes; those of the largest micro-batch, a token, stand for all.
  double total_flos() const { return flops_per_token_ * static_cast<double>(tokens_seen_); }

  std::string trainer_state() {
    const Value none;
    return to_json(Value::object({{"best_global_step", none},
                                  {"best_metric", none},
                                  {"best_model_checkpoint", none},
                                  {"epoch", Value(order_->epochs_after(step_))},
                                  {"eval_steps", Value(recipe_.eval.every_steps)},
                                  {"global_step", Value(step_)},
                                  {"is_hyper_param_search", Value(false)},
                                  {"is_local_process_zero", Value(true)},
                                  {"is_world_process_zero", Value(true)},
                                  {"log_history", Value::array(log_history_)},
                                  {"logging_steps", Value(recipe_.train.logging_steps)},
                                  {"max_steps", Value(n_total_)},
                                  {"num_input_tokens_seen", Value(tokens_seen_)},
                                  {"num_train_epochs", Value((n_total_ + order_->n_updates_of_first_epoch() - 1) /
                                                             order_->n_updates_of_first_epoch())},
                                  {"save_steps", Value(recipe_.output.save_steps)},
                                  {"stateful_callbacks", stateful_callbacks(fingerprint_, sums_)},
                                  {"total_flos", Value(total_flos())},
                                  {"train_batch_size", Value(recipe_.train.per_device_train_batch_size)},
                                  {"trial_name", none},
                                  {"trial_params", none}}),
                   2) +
           "\n";
  }

  void save() {
    check(optimizer_->is_finite(), ExitCode::diverged,
          "step {}: an adapter weight or optimizer state is not finite; nothing was saved; lower train.learning_rate "
          "and --resume from the last checkpoint",
          step_);
    sync_logs();
    const fs::path saved =
        save_checkpoint(folder_, step_, recipe_.output.save_total_limit, [&](const fs::path& folder) {
          save_adapter(folder);
          optimizer_->save(folder / "optimizer.safetensors");
          write_file_atomically(folder / kStateFile, trainer_state());
        });
    events_->emit(Value::object({{"event", Value("save")}, {"step", Value(step_)}, {"folder", Value(saved.string())}}));
  }

  /// PEFT finds a base elsewhere by its name on the hub, not by where it lay in this machine's cache.
  void save_adapter(const fs::path& folder) const {
    const std::optional<HubName> hub = hub_name_of(recipe_.model.base, "models");
    const bool is_known = hub && !hub->revision.empty();
    adapter_->save(folder, is_known ? hub->id : recipe_.model.base, is_known ? hub->revision : "");
  }

  void finish() {
    outcome_.n_steps = step_;
    outcome_.n_total_steps = n_total_;
    outcome_.run = folder_;
    if (outcome_.signal == 0) {
      log_history_.push_back(end_entry(sums_, step_, order_->epochs_after(step_), total_flos()));
      // The adapter last: where it is, the run is complete.
      write_file_atomically(folder_ / kStateFile, trainer_state());
      save_adapter(folder_);
    }
    Value event = Value::object({{"event", Value(outcome_.signal == 0 ? "end" : "stopped")},
                                 {"time", Value(utc_timestamp())},
                                 {"step", Value(step_)},
                                 {"signal", Value(outcome_.signal)},
                                 {"peak_rss_bytes", Value(peak_rss_bytes())}});
    if (outcome_.signal == 0)
      for (const auto& [key, value] : log_history_.back().members())
        if (key != "epoch" && key != "step") event.set(key, value);
    events_->emit(event);
    sync_logs();
  }

  void sync_logs() {
    row_losses_->sync();
    events_->sync();
  }

  Backend& backend_;
  const Recipe& recipe_;
  const TrainOptions& options_;
  fs::path folder_;
  std::unique_ptr<DirectoryLock> lock_;
  std::optional<CheckpointRef> start_;
  std::vector<std::string> notes_;
  std::vector<Value> shown_samples_;  // events
  BaseModel base_;
  RunData data_;
  std::optional<UpdateOrder> order_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Adapter> adapter_;
  std::unique_ptr<AdamW> optimizer_;
  std::unique_ptr<PassMemory> memory_;
  std::unique_ptr<RunFiles> files_;
  std::unique_ptr<EventLog> events_, row_losses_;
  std::vector<Value> log_history_;
  RunSums sums_;
  Recompute recompute_;
  double flops_per_token_ = 0;
  Value fingerprint_;
  int64_t step_ = 0, n_total_ = 0, warmup_ = 0, tokens_seen_ = 0;
  TrainOutcome outcome_;
};

}  // namespace

TrainOutcome train(Backend& backend, const Recipe& recipe, const TrainOptions& options) {
  return Run(backend, recipe, options).execute();
}

}  // namespace saaz
