// `saaz plan`: a training run's memory, work and disk, from running its largest micro-batch on a backend that only
// counts.
#include "backend/plan.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/system.h"
#include "cli/cli.h"
#include "cli/hub.h"
#include "model/base_tokenizer.h"
#include "model/pass.h"
#include "train/optimizer.h"
#include "train/run_data.h"
#include "train/trainer.h"

namespace saaz {
namespace {

struct PlanFlags {
  std::string recipe;
  std::vector<std::string> overrides;
};

struct Plan {
  std::vector<std::pair<std::string, int64_t>> memory;  // peak bytes by name
  int64_t n_parameters = 0, n_samples = 0, n_updates = 0;
  int64_t largest_batch = 0, epoch_tokens = 0, epoch_scored = 0;  // tokens
  double update_flops = 0, run_flops = 0;
  int64_t checkpoint_bytes = 0, disk_bytes = 0, merged_bytes = 0;

  int64_t memory_bytes() const {
    int64_t total = 0;
    for (const auto& [name, bytes] : memory) total += bytes;
    return total;
  }
};

/// Counts tokens and updates; the epochs after the first differ in order only.
void count_data(Plan& plan, std::span<const Sample> samples, const UpdateOrder& order) {
  plan.n_samples = static_cast<int64_t>(samples.size());
  for (const Sample& sample : samples) {
    plan.epoch_tokens += static_cast<int64_t>(sample.ids.size());
    plan.epoch_scored += sample.n_scored();
  }
  plan.n_updates = order.n_updates();
}

/// Loads the model and trains one step on the counting backend.
void count_step(Plan& plan, const Recipe& recipe, const BaseModel& base, const PackedBatch& batch) {
  PlanBackend backend;
  const std::unique_ptr<Model> model = load_model(backend, base, load_options_of(recipe));
  const auto seed = static_cast<uint32_t>(recipe.lora.seed.value_or(recipe.train.seed));
  const std::unique_ptr<Adapter> adapter = Adapter::create(backend, *model, lora_spec_of(recipe), seed);
  adapter->attach();
  const int64_t before_optimizer = backend.report.total_bytes();
  const AdamW optimizer(backend, *adapter, recipe.train);
  const int64_t optimizer_bytes = backend.report.total_bytes() - before_optimizer;
  PassMemory memory;
  train_pass(backend, memory, *model, packed_batch(batch.ids, batch.seq_starts), batch.targets, recompute_of(recipe),
             1);
  plan.n_parameters = adapter->n_parameters();
  plan.memory.emplace_back("weights", model->weight_bytes());
  for (const auto& [name, bytes] : backend.report.allocated_bytes) plan.memory.emplace_back(name, bytes);
  plan.memory.emplace_back("activations of one layer", memory.work().peak());
  plan.memory.emplace_back("activations between layers", memory.store().peak());
  const double token_flops = backend.report.flops() / static_cast<double>(batch.ids.size());
  const double run_tokens = static_cast<double>(plan.epoch_tokens) * static_cast<double>(plan.n_updates);
  plan.update_flops = backend.report.flops() * static_cast<double>(recipe.train.gradient_accumulation_steps);
  plan.run_flops = token_flops * run_tokens;
  plan.checkpoint_bytes = plan.n_parameters * size_of(DType::f32) + optimizer_bytes;
}

void count_disk(Plan& plan, const Recipe& recipe, const BaseModel& base) {
  const OutputRecipe& output = recipe.output;
  const int64_t made = output.save_steps > 0 ? std::max<int64_t>(1, plan.n_updates / output.save_steps) : 1;
  const int64_t kept = output.save_total_limit > 0 ? std::min(made, output.save_total_limit) : made;
  plan.disk_bytes = kept * plan.checkpoint_bytes + plan.n_parameters * size_of(DType::f32);
  for (const SourceTensor& tensor : base.weights->tensors())
    plan.merged_bytes += static_cast<int64_t>(tensor.spec.bytes());
}

Plan make_plan(const Recipe& recipe) {
  Plan plan;
  const BaseModel base = open_base_model(recipe.model.base);
  const RunData data = load_run_data(recipe, load_base_tokenizer(base.path));
  const UpdateOrder order(data.samples, recipe);
  const PackedBatch largest = order.largest_micro_batch();
  plan.largest_batch = static_cast<int64_t>(largest.ids.size());
  count_data(plan, data.samples, order);
  count_step(plan, recipe, base, largest);
  plan.run_flops /= static_cast<double>(order.n_updates_of_first_epoch());
  count_disk(plan, recipe, base);
  return plan;
}

Value to_value(const Plan& plan, int64_t available) {
  Value memory = Value::object();
  for (const auto& [name, bytes] : plan.memory) memory.set(name, bytes);
  return Value::object({{"schema_version", 1},
                        {"memory_bytes", memory},
                        {"total_memory_bytes", plan.memory_bytes()},
                        {"available_memory_bytes", available},
                        {"fits", plan.memory_bytes() <= available},
                        {"n_parameters", plan.n_parameters},
                        {"n_samples", plan.n_samples},
                        {"n_updates", plan.n_updates},
                        {"largest_micro_batch_tokens", plan.largest_batch},
                        {"epoch_tokens", plan.epoch_tokens},
                        {"epoch_scored_tokens", plan.epoch_scored},
                        {"largest_update_flops", plan.update_flops},
                        {"run_flops", plan.run_flops},
                        {"run_folder_bytes", plan.disk_bytes},
                        {"merged_bytes", plan.merged_bytes}});
}

std::string to_text(const Plan& plan, int64_t available) {
  std::string text = "memory\n";
  for (const auto& [name, bytes] : plan.memory)
    text += fmt::format("  {:28} {:>12}\n", name, bytes_text(static_cast<double>(bytes)));
  text += fmt::format("  {:28} {:>12}\n", "together", bytes_text(static_cast<double>(plan.memory_bytes())));
  text += fmt::format("  {:28} {:>12}\n", "free now", bytes_text(static_cast<double>(available)));
  text +=
      fmt::format("work\n  {} trained parameters, {} samples, {} updates\n  {} tokens an epoch, {} of them scored\n",
                  plan.n_parameters, plan.n_samples, plan.n_updates, plan.epoch_tokens, plan.epoch_scored);
  text += fmt::format("  largest micro-batch {} tokens, an update of such {:.3g} FLOP, the run at most {:.3g} FLOP\n",
                      plan.largest_batch, plan.update_flops, plan.run_flops);
  text +=
      fmt::format("disk\n  run folder about {}, a merged model {}\n", bytes_text(static_cast<double>(plan.disk_bytes)),
                  bytes_text(static_cast<double>(plan.merged_bytes)));
  if (plan.memory_bytes() > available)
    text +=
        "this does not fit into the free memory: lower train.per_device_train_batch_size or model.max_seq_length, or "
        "set "
        "quant.scheme nf4 and train.recompute layer\n";
  return text;
}

int run_plan(const PlanFlags& flags, const Globals& globals) {
  const Plan plan = make_plan(load_recipe(flags.recipe, flags.overrides, find_fetched));
  const auto available = static_cast<int64_t>(available_memory_bytes());
  if (globals.json)
    print_json(to_value(plan, available));
  else
    print_text(to_text(plan, available));
  return 0;
}

}  // namespace

Action declare_plan(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<PlanFlags>();
  arguments.positional("recipe", flags->recipe, "a recipe file");
  arguments.texts("--set", flags->overrides, Arguments::Need::optional, "key.path=value: overrides the recipe");
  return [flags, &globals] { return run_plan(*flags, globals); };
}

}  // namespace saaz
