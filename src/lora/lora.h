// LoRA adapters as PEFT defines them (docs/formats.md 4): which linears they attach to, how they start, and their
// files. An Adapter owns one flat f32 buffer of parameters and, when training, one of gradients with the loss sum and
// the count of scored tokens at its end: one all-reduce could sum a step of several processes.
#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "checkpoint/stored_tensor.h"
#include "model/model.h"

namespace saaz {

/// What an adapter targets: names (a path equals one or ends in "." + one), a regular expression (full match of the
/// path, RE2 syntax) or every linear but the head.
struct AllLinear {};
using TargetModules = std::variant<std::vector<std::string>, std::string, AllLinear>;

struct LoraSpec {
  TargetModules targets;
  int64_t r = 8;
  double alpha = 16;
  bool use_rslora = false;  // scale alpha / sqrt(r) instead of alpha / r
  float scaling() const;
};

enum class ForTraining : uint8_t { no, yes };

class Adapter {
 public:
  struct Module {
    Linear* linear;
    LoraPair pair;
    int64_t offset;  // of a in the flat buffer; b follows a
    int64_t size() const { return pair.a.size() + pair.b.size(); }
  };

  /// A new adapter, initialised as PEFT does after torch.manual_seed(seed): bit-equal A, zero B. usage when nothing
  /// matches.
  static std::unique_ptr<Adapter> create(Backend& backend, Model& model, const LoraSpec& spec, uint32_t seed);
  /// A PEFT folder (adapter_config.json, adapter_model.safetensors). bad_input naming every tensor that is missing, of
  /// a wrong shape or unknown; tensors for keys and values of sharing layers are dropped and listed in `notes`.
  static std::unique_ptr<Adapter> load(Backend& backend, Model& model, const fs::path& folder, ForTraining training);
  ~Adapter();
  Adapter(const Adapter&) = delete;
  Adapter& operator=(const Adapter&) = delete;

  /// Points the model's linears at this adapter, or at none.
  void attach();
  void detach();

  const std::vector<Module>& modules() const { return modules_; }
  /// The pairs by Linear::index, null where this adapter has none: for AdapterRows. Valid as long as the adapter.
  std::vector<const LoraPair*> pairs_by_linear(const Model& model) const;
  const LoraSpec& spec() const { return spec_; }
  const std::vector<std::string>& notes() const { return notes_; }
  int64_t n_parameters() const { return parameters_.size(); }
  /// Flat [n_parameters]; gradients empty when not training. The totals [2] (loss sum, scored tokens) follow the
  /// gradients.
  const Tensor& parameters() const { return parameters_; }
  const Tensor& gradients() const { return gradients_; }
  const Tensor& gradients_and_totals() const { return gradients_and_totals_; }

  /// Writes adapter_model.safetensors (f32) and adapter_config.json into an existing folder, each atomically. The base
  /// is named as PEFT names it: a path, or a repository of the hub and its revision.
  void save(const fs::path& folder, const std::string& base_model_name, const std::string& base_revision = "") const;

 private:
  Adapter(Backend& backend, const Model& model, LoraSpec spec)
      : backend_(backend), module_prefix_(model.module_prefix()), spec_(std::move(spec)) {}
  void allocate(std::vector<Linear*> linears, ForTraining training);

  Backend& backend_;
  std::string module_prefix_;
  LoraSpec spec_;
  std::vector<Module> modules_;
  std::vector<std::string> notes_;
  Tensor parameters_, gradients_, gradients_and_totals_;
};

/// The linears of `model` that `targets` selects, in PEFT's order. A regular expression sees whole module paths.
std::vector<Linear*> select_linears(const Model& model, const TargetModules& targets);

}  // namespace saaz
