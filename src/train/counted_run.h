// A run that only counts: the model, its adapter and the optimizer on a backend that computes nothing, and from them
// what a GPU's memory must hold. Decides what is left to the plan: quant.cache: auto, train.recompute: auto.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/plan.h"
#include "config/recipe.h"
#include "lora/lora.h"
#include "model/pass.h"
#include "train/run_data.h"

namespace saaz {

/// Counts as `like` would take it; a PlanBackend as `like` carries a residence.
struct CountedRun {
  PlanBackend backend;
  std::unique_ptr<Model> model;
  std::unique_ptr<Adapter> adapter;  // attached
  int64_t optimizer_bytes = 0;

  CountedRun(const Backend& like, const BaseModel& base, const Recipe& recipe);
};

/// What a pass takes: activations, a GPU's scratch memory, and pinned host memory for what is parked.
struct PassNeeds {
  PassBytes activations;
  int64_t scratch = 0, parked = 0;
  double flops = 0;  // of the largest micro-batch
};
/// Of the run's largest micro-batch and validation batch, adapter attached or not.
PassNeeds pass_needs(const PlanBackend& counted, const Model& model, const Recipe& recipe, Recompute recompute,
                     UpdateOrder& order, std::span<const Sample> validation);

/// What the recipe says; automatic is `layer` until a GPU's plan decides.
Recompute recompute_of(const Recipe& recipe);

struct GpuPlan {
  using Parts = std::vector<std::pair<std::string, int64_t>>;
  Residence residence;
  Recompute recompute;
  Parts parts;  // kind, bytes of the card's memory as the driver counts them
  PassNeeds needs;
  int64_t total() const;
};
/// The fastest way that stays within `limit` bytes in use on the card, what the recipe fixes being fixed; the smallest
/// where none does. What is in use already (contexts, other programs) counts.
/// probe_bytes: what a round of probes takes there, beside the rest; may be empty.
using ProbeBytes = std::function<int64_t(const Backend& like, const Model& model)>;
GpuPlan plan_gpu(const Backend& backend, const BaseModel& base, const Recipe& recipe, UpdateOrder& order,
                 std::span<const Sample> validation, int64_t limit, const ProbeBytes& probe_bytes);

}  // namespace saaz
