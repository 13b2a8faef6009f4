// The recipe's table of keys: path, kind, range, words, documentation, and where the value lives. Adding a key is
// adding a row here and a member in recipe.h. Rows of kind `unbuilt` name keys that are part of the recipe's format but
// have one accepted value so far.
#include <limits>
#include <type_traits>

#include "base/check.h"
#include "config/recipe.h"

namespace saaz {
namespace {

using Kind = RecipeField::Kind;
using Need = RecipeField::Need;

template <class T>
void assign(T& out, const Value& value) {
  if constexpr (std::is_same_v<T, bool>) {
    out = value.as_bool();
  } else if constexpr (std::is_same_v<T, std::string>) {
    out = value.is_null() ? "" : value.as_string();
  } else if constexpr (std::is_same_v<T, double>) {
    out = value.as_double();
  } else if constexpr (std::is_same_v<T, std::optional<int64_t>>) {
    if (!value.is_null()) out = value.as_integer();
  } else {
    out = static_cast<T>(value.as_integer());  // integers, and the index of a choice
  }
}

/// A string stands for a list of one.
void assign(std::vector<std::string>& out, const Value& value) {
  out.clear();
  if (value.is_string()) return out.push_back(value.as_string());
  for (const Value& item : value.items()) out.push_back(item.as_string());
}

template <class T>
Value value_of(const T& member) {
  if constexpr (std::is_enum_v<T>) {
    return static_cast<int64_t>(member);
  } else if constexpr (std::is_same_v<T, std::optional<int64_t>>) {
    return member ? Value(*member) : Value();
  } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
    Value list = Value::array();
    for (const std::string& item : member) list.push_back(item);
    return list;
  } else {
    return member;
  }
}

/// A member of a section of the recipe: pointers to members, applied one after another.
template <auto... Members>
struct At {
  static void set(Recipe& recipe, const Value& value) { assign((recipe.*....*Members), value); }
  static Value get(const Recipe& recipe) { return value_of((recipe.*....*Members)); }
};

template <auto... Members>
constexpr RecipeField integer(const char* path, Need need, int64_t min, int64_t max, const char* doc) {
  using Place = At<Members...>;
  return {path, Kind::integer, need,      static_cast<double>(min), static_cast<double>(max), "", "",
          doc,  Place::set,    Place::get};
}
template <auto... Members>
constexpr RecipeField real(const char* path, double min, double max, const char* doc) {
  return {path, Kind::real, Need::optional, min, max, "", "", doc, At<Members...>::set, At<Members...>::get};
}
template <auto... Members>
constexpr RecipeField boolean(const char* path, const char* doc) {
  return {path, Kind::boolean, Need::optional, 0, 0, "", "", doc, At<Members...>::set, At<Members...>::get};
}
template <auto... Members>
constexpr RecipeField text(const char* path, Need need, const char* doc) {
  return {path, Kind::text, need, 0, 0, "", "", doc, At<Members...>::set, At<Members...>::get};
}
template <auto... Members>
constexpr RecipeField choice(const char* path, const char* words, const char* unbuilt, const char* doc) {
  return {path, Kind::choice, Need::optional, 0, 0, words, unbuilt, doc, At<Members...>::set, At<Members...>::get};
}
constexpr RecipeField unbuilt(const char* path, const char* only_value, const char* doc) {
  return {path, Kind::unbuilt, Need::optional, 0, 0, only_value, "", doc, nullptr, nullptr};
}

void set_target_modules(Recipe& recipe, const Value& value) {
  LoraRecipe& lora = recipe.lora;
  lora.target_modules.clear();
  lora.target_regex.clear();
  lora.target_preset = TargetPreset::custom;
  if (value.is_array()) return assign(lora.target_modules, value);
  if (value.as_string() == "all-linear") {
    lora.target_preset = TargetPreset::all_linear;  // PEFT's word for it
  } else {
    lora.target_regex = value.as_string();
  }
}

Value get_target_modules(const Recipe& recipe) {
  const LoraRecipe& lora = recipe.lora;
  if (!lora.target_regex.empty()) return lora.target_regex;
  return value_of(lora.target_modules);
}

void set_trackers(Recipe& recipe, const Value& value) {
  recipe.report = {false, false};
  for (const Value& word : value.items()) {
    const bool is_all = word.as_string() == "all";
    recipe.report.tensorboard |= is_all || word.as_string() == "tensorboard";
    recipe.report.wandb |= is_all || word.as_string() == "wandb";
  }
}

Value get_trackers(const Recipe& recipe) {
  Value list = Value::array();
  if (recipe.report.tensorboard) list.push_back("tensorboard");
  if (recipe.report.wandb) list.push_back("wandb");
  if (list.items().empty()) list.push_back("none");
  return list;
}

using Model = ModelRecipe;
using Quant = QuantRecipe;
using Lora = LoraRecipe;
using Data = DataRecipe;
using Train = TrainRecipe;
constexpr int64_t kMaxSeed = std::numeric_limits<uint32_t>::max();
constexpr int64_t kMaxSteps = 1'000'000'000;

constexpr RecipeField kFields[] = {
    text<&Recipe::model, &Model::base>(
        "model.base", Need::required,
        "a model folder, a GGUF file, or a fetched model (owner/name, owner/name@revision)"),
    text<&Recipe::model, &Model::revision>(
        "model.revision", Need::nullable,
        "branch, tag or commit of a fetched base; null: the one in model.base, or main"),
    integer<&Recipe::model, &Model::max_seq_length>("model.max_seq_length", Need::optional, 8, 1 << 20,
                                                    "tokens kept of a sample"),
    unbuilt("model.text_only", "true", "leave the image and sound towers out"),

    choice<&Recipe::quant, &Quant::scheme>("quant.scheme", "none|nf4|int8", "fp4", "storage of the frozen linears"),
    boolean<&Recipe::quant, &Quant::double_quant>("quant.double_quant", "quantise the block scales of nf4, too"),
    choice<&Recipe::quant, &Quant::compute_dtype>(
        "quant.compute_dtype", "auto|f32|bf16", "f16|fp16|float16",
        "what enters the products with frozen weights; auto: f32 on the CPU, bf16 on a GPU"),
    choice<&Recipe::quant, &Quant::cache>(
        "quant.cache", "auto|on|off", "",
        "on a GPU, nf4 weights dequantised once and kept: faster, in four times the memory; auto: where that fits"),

    choice<&Recipe::lora, &Lora::target_preset>(
        "lora.target_preset", "source|source-card|all-linear", "",
        "source: gate, up and down projections; source-card: attention as well"),
    {"lora.target_modules", Kind::text_or_list, Need::optional, 0, 0, "", "",
     "module names, or one regular expression for whole paths; instead of target_preset", set_target_modules,
     get_target_modules},
    integer<&Recipe::lora, &Lora::r>("lora.r", Need::optional, 1, 1024, "rank"),
    real<&Recipe::lora, &Lora::lora_alpha>("lora.lora_alpha", 1e-3, 4096, "the update is scaled by lora_alpha / r"),
    unbuilt("lora.lora_dropout", "0", "dropout before lora_A"),
    unbuilt("lora.bias", "\"none\"", "which biases train"),
    boolean<&Recipe::lora, &Lora::use_rslora>("lora.use_rslora", "scale by lora_alpha / sqrt(r)"),
    unbuilt("lora.use_dora", "false", "weight-decomposed LoRA"),
    integer<&Recipe::lora, &Lora::seed>("lora.seed", Need::nullable, 0, kMaxSeed, "of lora_A; null: train.seed"),

    {"data.train", Kind::text_or_list, Need::required, 0, 0, "", "",
     "JSONL, JSON or Parquet files, or folders with train.jsonl", At<&Recipe::data, &Data::train>::set,
     At<&Recipe::data, &Data::train>::get},
    choice<&Recipe::data, &Data::format>("data.format", "auto|messages|sharegpt|alpaca|prompt_completion|text", "",
                                         "shape of a row; auto: by the first row's keys"),
    choice<&Recipe::data, &Data::normalize>(
        "data.normalize", "none|chat|strict", "",
        "Persian text in one spelling (data.md); strict: without short vowel marks, affixes joined by half spaces"),
    choice<&Recipe::data, &Data::loss_on>("data.loss_on", "assistant|all", "", "which tokens are scored"),
    boolean<&Recipe::data, &Data::packing>("data.packing", "fill each micro-batch with as many samples as fit"),
    integer<&Recipe::data, &Data::skip_bad_rows>("data.skip_bad_rows", Need::optional, 0, kMaxSteps,
                                                 "bad rows to leave out before giving up"),
    text<&Recipe::data, &Data::validation, &ValidationRecipe::file>("data.validation.file", Need::nullable,
                                                                    "validation rows"),
    real<&Recipe::data, &Data::validation, &ValidationRecipe::fraction>("data.validation.fraction", 0, 0.9,
                                                                        "share of the training rows set aside"),
    integer<&Recipe::data, &Data::validation, &ValidationRecipe::seed>("data.validation.seed", Need::optional, 0,
                                                                       kMaxSeed, "of that choice"),

    integer<&Recipe::train, &Train::per_device_train_batch_size>("train.per_device_train_batch_size", Need::optional, 1,
                                                                 4096, "samples of a micro-batch"),
    integer<&Recipe::train, &Train::gradient_accumulation_steps>("train.gradient_accumulation_steps", Need::optional, 1,
                                                                 65536, "micro-batches of an update"),
    real<&Recipe::train, &Train::learning_rate>("train.learning_rate", 1e-12, 1, "its peak"),
    choice<&Recipe::train, &Train::lr_scheduler_type>("train.lr_scheduler_type", "linear|cosine|constant", "",
                                                      "its course after the warmup"),
    integer<&Recipe::train, &Train::warmup_steps>("train.warmup_steps", Need::optional, 0, kMaxSteps,
                                                  "updates of warmup"),
    real<&Recipe::train, &Train::warmup_ratio>("train.warmup_ratio", 0, 1, "warmup as a share of all updates"),
    real<&Recipe::train, &Train::num_train_epochs>("train.num_train_epochs", 1e-6, 1e4, "passes over the data"),
    integer<&Recipe::train, &Train::max_steps>("train.max_steps", Need::nullable, 1, kMaxSteps,
                                               "updates, instead of num_train_epochs"),
    choice<&Recipe::train, &Train::optim>("train.optim", "adamw_torch|adamw_8bit", "paged_adamw_8bit|sgd|adafactor",
                                          "optimizer"),
    real<&Recipe::train, &Train::weight_decay>("train.weight_decay", 0, 10, "decoupled"),
    real<&Recipe::train, &Train::adam_beta1>("train.adam_beta1", 0, 0.99999, "decay of the first moment"),
    real<&Recipe::train, &Train::adam_beta2>("train.adam_beta2", 0, 0.9999999, "decay of the second moment"),
    real<&Recipe::train, &Train::adam_epsilon>("train.adam_epsilon", 1e-16, 1, "added to the second moment's root"),
    real<&Recipe::train, &Train::max_grad_norm>("train.max_grad_norm", 0, 1e6, "clip to this norm; 0: never"),
    integer<&Recipe::train, &Train::seed>("train.seed", Need::optional, 0, kMaxSeed, "of everything without its own"),
    integer<&Recipe::train, &Train::data_seed>("train.data_seed", Need::nullable, 0, kMaxSeed,
                                               "of the order of samples; null: train.seed"),
    choice<&Recipe::train, &Train::recompute>("train.recompute", "auto|layer|offload|none", "",
                                              "recompute activations in the backward pass; auto: of as few layers as "
                                              "a GPU's memory allows; offload: layer inputs wait in host memory"),
    integer<&Recipe::train, &Train::logging_steps>(
        "train.logging_steps", Need::optional, 1, kMaxSteps,
        "updates between two log lines; the first and the last of a run always have one"),

    integer<&Recipe::eval, &EvalRecipe::every_steps>("eval.every_steps", Need::optional, 0, kMaxSteps,
                                                     "updates between validations and probes; 0: only first and last"),
    unbuilt("eval.tasks", "[]", "benchmarks"),
    text<&Recipe::eval, &EvalRecipe::probes>("eval.probes", Need::nullable,
                                             "prompts answered during training: default-fa, or a file with one a line"),

    text<&Recipe::output, &OutputRecipe::dir>("output.dir", Need::required, "the run folder"),
    integer<&Recipe::output, &OutputRecipe::save_steps>("output.save_steps", Need::optional, 0, kMaxSteps,
                                                        "updates between checkpoints; 0: only the last"),
    integer<&Recipe::output, &OutputRecipe::save_total_limit>("output.save_total_limit", Need::optional, 0, kMaxSteps,
                                                              "checkpoints kept; 0: all"),

    {"report.to", Kind::choices, Need::optional, 0, 0, "tensorboard|wandb|all|none", "",
     "whose files the run folder holds, as one word or a list (run-folder.md); nothing is sent", set_trackers,
     get_trackers},
    text<&Recipe::report, &ReportRecipe::watch>("report.watch", Need::nullable,
                                                "HOST:PORT to serve the dashboard at while training"),
};

std::string comma_list(std::string_view words) {
  std::string out;
  for (const char c : words) out += c == '|' ? std::string(", ") : std::string(1, c);
  return out;
}

}  // namespace

std::span<const RecipeField> recipe_fields() { return kFields; }

std::string expected_text(const RecipeField& field) {
  const char* or_null = field.need == Need::nullable ? " or null" : "";
  switch (field.kind) {
    case Kind::integer:
      return fmt::format("an integer from {} to {}{}", static_cast<int64_t>(field.min), static_cast<int64_t>(field.max),
                         or_null);
    case Kind::real:
      return fmt::format("a number from {:g} to {:g}", field.min, field.max);
    case Kind::boolean:
      return "true or false";
    case Kind::text:
      return fmt::format("a string{}", or_null);
    case Kind::choice:
      return fmt::format("one of {}", comma_list(field.words));
    case Kind::choices:
      return fmt::format("one or a list of {}", comma_list(field.words));
    case Kind::text_or_list:
      return "a string or a list of strings";
    case Kind::unbuilt:
      return field.words;
  }
  return "";
}

std::string default_text(const RecipeField& field) {
  if (field.need == Need::required) return "";
  if (field.kind == Kind::unbuilt) return field.words;
  const Value defaults = resolved(Recipe());
  const Value* value = &defaults;
  for (std::string_view rest = field.path; value != nullptr && !rest.empty();) {
    const size_t dot = rest.find('.');
    value = value->find(rest.substr(0, dot));
    rest = dot == std::string_view::npos ? "" : rest.substr(dot + 1);
  }
  if (value == nullptr) return "";
  return value->is_string() ? value->as_string() : to_json(*value);
}

}  // namespace saaz
