#include "train/counted_run.h"

#include <algorithm>
#include <optional>

#include "model/evaluate_loss.h"
#include "train/optimizer.h"
#include "train/trainer.h"

namespace saaz {

CountedRun::CountedRun(const Backend& like, const BaseModel& base, const Recipe& recipe)
    : backend(like), model(load_model(backend, base, load_options_of(recipe))) {
  const auto seed = static_cast<uint32_t>(recipe.lora.seed.value_or(recipe.train.seed));
  adapter = Adapter::create(backend, *model, lora_spec_of(recipe), seed);
  adapter->attach();
  const int64_t before = backend.report.total_bytes();
  const AdamW optimizer(backend, *adapter, recipe.train);
  optimizer_bytes = backend.report.total_bytes() - before;
}

PassNeeds pass_needs(const PlanBackend& counted, const Model& model, const Recipe& recipe, Recompute recompute,
                     UpdateOrder& order, std::span<const Sample> validation) {
  PlanBackend counter = counted;
  counter.report = {};
  PassMemory measured;
  const PackedBatch batch = order.largest_micro_batch();
  train_pass(counter, measured, model, packed_batch(batch.ids, batch.seq_starts), batch.targets, recompute, 1);
  PassNeeds needs{.activations = measured.peak(), .scratch = counter.scratch_bytes(), .flops = counter.report.flops()};
  for (const auto& [place, bytes] : counter.report.parked_bytes) needs.parked += bytes;
  if (!validation.empty())
    needs.activations.cover(evaluation_bytes(counted, model, validation, recipe.model.max_seq_length));
  return needs;
}

Recompute recompute_of(const Recipe& recipe) {
  switch (recipe.train.recompute) {
    case RecomputePolicy::none:
      return Recompute::none;
    case RecomputePolicy::offload:
      return Recompute::offload;
    default:
      return Recompute::layer;
  }
}

int64_t GpuPlan::total() const {
  int64_t sum = 0;
  for (const auto& [kind, bytes] : parts) sum += bytes;
  return sum;
}

namespace {

/// Code of kernels that is loaded when they first run, ours and cuBLAS's.
constexpr int64_t kKernelCode = int64_t{32} << 20;
/// What is decided here keeps to so much of the limit: the plan is right to 5 %.
constexpr double kDecidedShare = 0.95;
/// Roughly what any recent card does in the time in which its memory moves a byte.
constexpr double kFlopsOfAByte = 250;

class GpuPlanner {
 public:
  GpuPlanner(const Backend& backend, const BaseModel& base, const Recipe& recipe, UpdateOrder& order,
             std::span<const Sample> validation, int64_t limit, const ProbeBytes& probe_bytes)
      : backend_(backend),
        base_(base),
        recipe_(recipe),
        order_(order),
        validation_(validation),
        probe_bytes_(probe_bytes),
        decided_limit_(static_cast<int64_t>(kDecidedShare * static_cast<double>(limit))) {}

  GpuPlan fastest() {
    std::optional<GpuPlan> best;
    double best_cost = 0;
    for (const bool dense : choices()) {
      count({.dense_weights = dense});
      const GpuPlan plan = with_least_recomputation();
      const double cost = cost_of(plan);
      const bool better = !best || (fits(plan) && (!fits(*best) || cost < best_cost)) ||
                          (!fits(plan) && !fits(*best) && plan.total() < best->total());
      if (!better) continue;
      best = plan;
      best_cost = cost;
    }
    return with_tables(*best);
  }

 private:
  std::vector<bool> choices() const {
    if (recipe_.quant.scheme != QuantScheme::nf4 || recipe_.quant.cache == WeightCache::off) return {false};
    if (recipe_.quant.cache == WeightCache::on) return {true};
    return {true, false};
  }
  void count(const Residence& residence) {
    PlanBackend like(backend_);
    like.set_residence(residence);
    counted_.emplace(like, base_, recipe_);
  }
  bool fits(const GpuPlan& plan) const { return plan.total() <= decided_limit_; }

  GpuPlan planned(Recompute recompute) {
    const CountedRun& counted = *counted_;
    GpuPlan plan{.residence = counted.backend.residence(),
                 .recompute = recompute,
                 .needs = pass_needs(counted.backend, *counted.model, recipe_, recompute, order_, validation_)};
    const int64_t in_use = *backend_.own_total_bytes() - *backend_.own_free_bytes();
    plan.parts.emplace_back("in use before, kernel code", in_use + kKernelCode);
    for (const auto& [name, bytes] : counted.backend.report.allocated_bytes) plan.parts.emplace_back(name, bytes);
    plan.parts.emplace_back("activations of one layer", plan.needs.activations.work);
    plan.parts.emplace_back("activations between layers", plan.needs.activations.store);
    plan.parts.emplace_back("scratch of kernels", plan.needs.scratch);
    if (probe_bytes_) plan.parts.emplace_back("a round of probes", probe_bytes_(counted.backend, *counted.model));
    return plan;
  }

  GpuPlan with_least_recomputation() {
    if (recipe_.train.recompute != RecomputePolicy::automatic) return planned(recompute_of(recipe_));
    GpuPlan plan = planned(Recompute::none);
    if (fits(plan)) return plan;
    int most = counted_->model->n_segments(), fewest = 1;
    plan = planned(Recompute{most});
    if (!fits(plan)) return planned(Recompute::offload);
    while (fewest < most) {
      const int middle = (fewest + most) / 2;
      const GpuPlan tried = planned(Recompute{middle});
      if (fits(tried)) {
        most = middle;
        plan = tried;
      } else {
        fewest = middle + 1;
      }
    }
    return plan;
  }

  /// Of a pass, relative to its products: another forward pass for what is recomputed, and dequantising once for each
  /// product.
  double cost_of(const GpuPlan& plan) const {
    const double n_segments = counted_->model->n_segments();
    const double recomputed = std::min<double>(plan.recompute.n_segments, n_segments) / n_segments;
    double cost = recomputed / 3;
    if (recipe_.quant.scheme != QuantScheme::nf4 || plan.residence.dense_weights) return cost;
    double elements = 0;
    for (const Linear* linear : counted_->model->linears())
      if (linear->weight.format == WeightFormat::nf4) elements += static_cast<double>(linear->weight.size());
    constexpr double kBytes = 2.5;  // of a value: a code read, a bf16 written
    return cost + (2 + recomputed) * elements * kBytes * kFlopsOfAByte / plan.needs.flops;
  }

  /// Tables of rows too, where they fit and speed is wanted.
  GpuPlan with_tables(const GpuPlan& without) {
    if (!without.residence.dense_weights || !fits(without)) return without;
    count({.dense_weights = true, .tables = true});
    const GpuPlan with = planned(without.recompute);
    return fits(with) ? with : without;
  }

  const Backend& backend_;
  const BaseModel& base_;
  const Recipe& recipe_;
  UpdateOrder& order_;
  std::span<const Sample> validation_;
  const ProbeBytes& probe_bytes_;
  int64_t decided_limit_;
  std::optional<CountedRun> counted_;
};

}  // namespace

GpuPlan plan_gpu(const Backend& backend, const BaseModel& base, const Recipe& recipe, UpdateOrder& order,
                 std::span<const Sample> validation, int64_t limit, const ProbeBytes& probe_bytes) {
  return GpuPlanner(backend, base, recipe, order, validation, limit, probe_bytes).fastest();
}

}  // namespace saaz
