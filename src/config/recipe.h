// Recipe: everything a training run is told. Enters: one YAML file (docs/recipe.md) and `--set a.b=c` overrides.
// Leaves: a typed struct in which every value was checked, and, through `resolved`, the complete recipe as written into
// the run folder. Strict: an unknown key, a wrong type, a value out of range, or a key whose feature is not built yet
// is an error (usage) with file:line:column. Paths in a recipe are relative to the working directory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/value.h"

namespace saaz {

enum class QuantScheme { none, nf4, int8 };
enum class ComputeDtype { automatic, f32, bf16, int8, llm_int8 };  // the last two: of serving commands only
enum class TargetPreset { source, source_card, all_linear, custom };
enum class DataFormat { automatic, messages, sharegpt, alpaca, prompt_completion, text };
enum class LossOn { assistant, all };
enum class NormalizeProfile { none, chat, strict };  // data/normalize.h
enum class LrScheduler { linear, cosine, constant };
enum class Optimizer { adamw_torch, adamw_8bit };
enum class RecomputePolicy { automatic, layer, offload, none };
enum class WeightCache { automatic, on, off };

struct ModelRecipe {
  std::string base;
  std::string revision;  // of a base named as on the hub; empty: the one that was fetched last
  int64_t max_seq_length = 2048;
};
struct QuantRecipe {
  QuantScheme scheme = QuantScheme::nf4;
  bool double_quant = true;
  ComputeDtype compute_dtype = ComputeDtype::automatic;
  WeightCache cache = WeightCache::automatic;  // of NF4 weights, dense, in a GPU's memory
};
struct LoraRecipe {
  TargetPreset target_preset = TargetPreset::source;
  std::vector<std::string> target_modules;  // names; those of the preset when it is source or source_card
  std::string target_regex;                 // set instead of names when the recipe gives one string
  int64_t r = 8;
  double lora_alpha = 16;
  bool use_rslora = false;
  std::optional<int64_t> seed;  // of lora_A; parse_recipe fills in train.seed
};
struct ValidationRecipe {
  std::string file;  // empty = none
  double fraction = 0;
  int64_t seed = 3407;
};
struct DataRecipe {
  std::vector<std::string> train;
  DataFormat format = DataFormat::automatic;
  NormalizeProfile normalize = NormalizeProfile::none;
  LossOn loss_on = LossOn::assistant;
  bool packing = false;
  int64_t skip_bad_rows = 0;
  ValidationRecipe validation;
};
struct TrainRecipe {
  int64_t per_device_train_batch_size = 2;
  int64_t gradient_accumulation_steps = 4;
  double learning_rate = 2e-4;
  LrScheduler lr_scheduler_type = LrScheduler::linear;
  int64_t warmup_steps = 0;
  double warmup_ratio = 0;
  double num_train_epochs = 1;
  std::optional<int64_t> max_steps;  // wins over num_train_epochs
  Optimizer optim = Optimizer::adamw_torch;
  double weight_decay = 0.01;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.999;
  double adam_epsilon = 1e-8;
  double max_grad_norm = 1;  // 0 = no clipping
  int64_t seed = 3407;
  std::optional<int64_t> data_seed;  // of the order of rows; parse_recipe fills in seed
  RecomputePolicy recompute = RecomputePolicy::automatic;
  int64_t logging_steps = 1;
};
struct EvalRecipe {
  int64_t every_steps = 100;  // 0 = only at the start and the end
  std::string probes;         // kDefaultProbes, a file of prompts, or empty = none
};
struct OutputRecipe {
  std::string dir;
  int64_t save_steps = 100;      // 0 = only at the end
  int64_t save_total_limit = 3;  // 0 = keep all
};
struct ReportRecipe {
  bool tensorboard = true, wandb = true;  // trackers whose files the run folder holds
  std::string watch;                      // HOST:PORT of the dashboard; empty = none
};

/// The built-in prompts.
inline constexpr std::string_view kDefaultProbes = "default-fa";

struct Recipe {
  ModelRecipe model;
  QuantRecipe quant;
  LoraRecipe lora;
  DataRecipe data;
  TrainRecipe train;
  EvalRecipe eval;
  OutputRecipe output;
  ReportRecipe report;
};

/// One row of the table behind parsing, hints, `resolved` and the documentation of the recipe.
struct RecipeField {
  enum class Kind { integer, real, boolean, text, choice, choices, text_or_list, unbuilt };
  enum class Need { required, optional, nullable };

  const char* path;  // "train.learning_rate"
  Kind kind;
  Need need;
  double min, max;      // integer, real
  const char* words;    // choice, choices: the words in order, "linear|cosine"; unbuilt: the one accepted value as JSON
  const char* unbuilt;  // choice: words that a later version will know
  const char* doc;
  void (*set)(Recipe&, const Value&);  // a choice is given as the index of its word, choices as a list of words
  Value (*get)(const Recipe&);
};
std::span<const RecipeField> recipe_fields();
/// "an integer from 1 to 1024", "one of linear, cosine", ...
std::string expected_text(const RecipeField& field);
/// The default as it would be written in YAML; empty for a required key.
std::string default_text(const RecipeField& field);

/// Sets `key.path=value` in a parsed recipe; the value is YAML. usage when the text has no '=' or a name is empty.
void apply_override(Value& document, std::string_view assignment);

/// `source` (the file's path) starts the messages. Reads no file.
Recipe parse_recipe(const Value& document, const std::string& source);

/// Checks that the base model, the data and the probes' file exist. bad_input for a missing path, and for a model
/// that is not fetched.
void check_inputs(const Recipe& recipe, const Value& document, const std::string& source);

/// Turn "owner/name" or "owner/name@revision" of a fetched model or dataset into its folder; other names stay.
struct FetchedNames {
  std::function<std::string(const std::string&name)> model, dataset;
};
/// File, overrides, parse_recipe and check_inputs. Bases and data that were fetched are named by their folders then,
/// and model.revision has done its work and is empty.
Recipe load_recipe(const std::filesystem::path& path, std::span<const std::string> overrides,
                   const FetchedNames& fetched = {});

/// The complete recipe, every default written out: to_yaml of it is a recipe that parses to the same struct.
Value resolved(const Recipe& recipe);

}  // namespace saaz
