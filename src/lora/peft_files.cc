// PEFT's two files, in and out. Any fault of a file is bad_input with the tensor or key named.
#include <algorithm>
#include <map>

#include "base/check.h"
#include "base/value.h"
#include "checkpoint/safetensors.h"
#include "lora/lora.h"

namespace saaz {

namespace {

constexpr std::string_view kPeftPrefix = "base_model.model.";

/// "base_model.model.model.language_model.layers.0.x.lora_A.weight" -> "layers.0.x.lora_A.weight"
std::string canonical_name(std::string_view name) {
  for (std::string_view prefix : {kPeftPrefix, std::string_view("language_model.model."),
                                  std::string_view("model.language_model."), std::string_view("model.")})
    if (name.starts_with(prefix)) name.remove_prefix(prefix.size());
  return std::string(name);
}

int64_t positive_integer(const Value& config, const char* key, const std::string& source) {
  const Value* value = config.find(key);
  check(value != nullptr && value->is_integer() && value->as_integer() >= 1 && value->as_integer() <= 65536,
        ExitCode::bad_input, "{}: '{}' must be an integer in 1..65536", source, key);
  return value->as_integer();
}

bool is_unset(const Value& value) {
  return value.is_null() || (value.is_bool() && !value.as_bool()) || (value.is_array() && value.items().empty()) ||
         (value.is_object() && value.members().empty()) || (value.is_string() && value.as_string() == "none");
}

/// Features that change the function an adapter computes and that this program does not have: refused, never ignored.
void refuse_unsupported(const Value& config, const std::string& source) {
  for (const char* key : {"use_dora", "use_qalora", "use_bdlora", "modules_to_save", "rank_pattern", "alpha_pattern",
                          "bias", "lora_bias", "layer_replication", "fan_in_fan_out", "trainable_token_indices",
                          "target_parameters", "alora_invocation_tokens"}) {
    const Value* value = config.find(key);
    check(value == nullptr || is_unset(*value), ExitCode::bad_input,
          "{}: '{}' is set, and adapters that use it cannot be read", source, key);
  }
}

TargetModules parse_targets(const Value& config, const std::string& source) {
  const Value* value = config.find("target_modules");
  if (value != nullptr && value->is_string()) {
    if (value->as_string() == "all-linear") return AllLinear{};
    return value->as_string();
  }
  check(value != nullptr && value->is_array() && !value->items().empty(), ExitCode::bad_input,
        "{}: 'target_modules' must be a list of names or a string", source);
  std::vector<std::string> names;
  for (const Value& item : value->items()) {
    check(item.is_string(), ExitCode::bad_input, "{}: 'target_modules' holds {}, names were expected", source,
          item.kind_name());
    names.push_back(item.as_string());
  }
  return names;
}

LoraSpec read_config(const fs::path& path) {
  const std::string source = path.string();
  const Value config = parse_json(read_file(path, 16 << 20), source);
  const Value* type = config.find("peft_type");
  check(type != nullptr && type->is_string() && type->as_string() == "LORA", ExitCode::bad_input,
        "{}: 'peft_type' must be \"LORA\"", source);
  refuse_unsupported(config, source);
  LoraSpec spec;
  spec.targets = parse_targets(config, source);
  spec.r = positive_integer(config, "r", source);
  const Value* alpha = config.find("lora_alpha");
  check(alpha != nullptr && alpha->is_number() && alpha->as_double() > 0 && alpha->as_double() < 1e9,
        ExitCode::bad_input, "{}: 'lora_alpha' must be a positive number", source);
  spec.alpha = alpha->as_double();
  const Value* rslora = config.find("use_rslora");
  spec.use_rslora = rslora != nullptr && rslora->is_bool() && rslora->as_bool();
  return spec;
}

/// Values of a float tensor as f32.
std::vector<float> to_f32(const TensorEntry& entry, int64_t rows, int64_t columns) {
  check(entry.shape == std::vector<int64_t>{rows, columns}, ExitCode::bad_input,
        "{}: tensor '{}' has shape {}, expected [{}, {}]", entry.file, printable(entry.name), shape_text(entry.shape),
        rows, columns);
  check(count_non_finite(entry) == 0, ExitCode::bad_input, "{}: tensor '{}' holds {} non-finite values", entry.file,
        printable(entry.name), count_non_finite(entry));
  std::vector<float> out(static_cast<size_t>(rows * columns));
  dequantise(to_weight(entry), 0, rows * columns, out.data());
  return out;
}

/// Splits "layers.0.mlp.up_proj.lora_A.weight" into the module and 'A' or 'B'; a name of another form gives an empty
/// module.
std::pair<std::string, char> split_lora_name(const std::string& name) {
  for (const char side : {'A', 'B'}) {
    const std::string suffix = std::string(".lora_") + side + ".weight";
    if (name.ends_with(suffix)) return {name.substr(0, name.size() - suffix.size()), side};
  }
  return {"", 0};
}

bool is_dead_kv(const std::string& module, const ModelConfig& config) {
  if (!module.ends_with(".k_proj") && !module.ends_with(".v_proj")) return false;
  for (int64_t l = 0; l < config.n_layers; ++l)
    if (config.shares_kv(l) && module.starts_with("layers." + std::to_string(l) + ".")) return true;
  return false;
}

}  // namespace

std::unique_ptr<Adapter> Adapter::load(Backend& backend, Model& model, const fs::path& folder, ForTraining training) {
  std::unique_ptr<Adapter> adapter(new Adapter(backend, model, read_config(folder / "adapter_config.json")));
  const SafetensorsFile file(folder / "adapter_model.safetensors");
  std::map<std::string, std::map<char, const TensorEntry*>> by_module;
  for (const TensorEntry& entry : file.tensors()) {
    const auto [module, side] = split_lora_name(canonical_name(entry.name));
    check(!module.empty(), ExitCode::bad_input, "{}: tensor '{}' is no LoRA weight this program knows", entry.file,
          printable(entry.name));
    by_module[module][side] = &entry;
  }
  std::vector<Linear*> linears;
  for (Linear* linear : model.linears())
    if (by_module.contains(linear->name)) linears.push_back(linear);
  const std::string path = (folder / "adapter_model.safetensors").string();
  check(!linears.empty(), ExitCode::bad_input,
        "{}: none of its {} modules is one of the model's {} linears (first: '{}'): another base model?", path,
        by_module.size(), model.linears().size(), by_module.empty() ? "" : printable(by_module.begin()->first));
  adapter->allocate(linears, training);
  for (const Module& module : adapter->modules_) {
    const auto& sides = by_module[module.linear->name];
    check(sides.size() == 2, ExitCode::bad_input, "{}: module '{}' has only one of lora_A and lora_B", path,
          module.linear->name);
    for (const auto& [side, target] : {std::pair{'A', &module.pair.a}, std::pair{'B', &module.pair.b}})
      backend.upload(*target, to_f32(*sides.at(side), target->dim(0), target->dim(1)).data());
    by_module.erase(module.linear->name);
  }
  for (const auto& [module, sides] : by_module) {
    check(is_dead_kv(module, model.config()), ExitCode::bad_input,
          "{}: module '{}' is not in the base model: another base model?", path, printable(module));
    adapter->notes_.push_back("dropped '" + module + "': layers that share keys and values have no such projection");
  }
  return adapter;
}

namespace {

Value config_value(const LoraSpec& spec, const std::string& base_model_name, const std::string& base_revision) {
  Value targets;
  if (const auto* names = std::get_if<std::vector<std::string>>(&spec.targets)) {
    std::vector<Value> items(names->begin(), names->end());
    targets = Value::array(std::move(items));
  } else if (const auto* pattern = std::get_if<std::string>(&spec.targets)) {
    targets = Value(*pattern);
  } else {
    targets = Value("all-linear");
  }
  const bool whole = spec.alpha == static_cast<double>(static_cast<int64_t>(spec.alpha));
  const Value none;
  return Value::object({{"alpha_pattern", Value::object()},
                        {"auto_mapping", none},
                        {"base_model_name_or_path", Value(base_model_name)},
                        {"bias", Value("none")},
                        {"corda_config", none},
                        {"eva_config", none},
                        {"exclude_modules", none},
                        {"fan_in_fan_out", Value(false)},
                        {"inference_mode", Value(true)},
                        {"init_lora_weights", Value(true)},
                        {"layer_replication", none},
                        {"layers_pattern", none},
                        {"layers_to_transform", none},
                        {"loftq_config", Value::object()},
                        {"lora_alpha", whole ? Value(static_cast<int64_t>(spec.alpha)) : Value(spec.alpha)},
                        {"lora_bias", Value(false)},
                        {"lora_dropout", Value(0.0)},
                        {"megatron_config", none},
                        {"megatron_core", Value("megatron.core")},
                        {"modules_to_save", none},
                        {"peft_type", Value("LORA")},
                        {"r", Value(spec.r)},
                        {"rank_pattern", Value::object()},
                        {"revision", base_revision.empty() ? none : Value(base_revision)},
                        {"target_modules", targets},
                        {"target_parameters", none},
                        {"task_type", Value("CAUSAL_LM")},
                        {"trainable_token_indices", none},
                        {"use_dora", Value(false)},
                        {"use_qalora", Value(false)},
                        {"use_rslora", Value(spec.use_rslora)}});
}

}  // namespace

void Adapter::save(const fs::path& folder, const std::string& base_model_name, const std::string& base_revision) const {
  std::vector<TensorSpec> specs;
  std::map<std::string, Tensor> tensors;
  for (const Module& module : modules_)
    for (const auto& [suffix, tensor] :
         {std::pair{".lora_A.weight", module.pair.a}, std::pair{".lora_B.weight", module.pair.b}}) {
      const std::string name = std::string(kPeftPrefix) + module_prefix_ + module.linear->name + suffix;
      specs.push_back({name, StoredDType::f32, {tensor.dim(0), tensor.dim(1)}});
      tensors[name] = tensor;
    }
  // The weights last: a folder that has them has both files.
  write_file_atomically(folder / "adapter_config.json",
                        to_json(config_value(spec_, base_model_name, base_revision), 2) + "\n");
  std::vector<float> host;
  write_safetensors(folder / "adapter_model.safetensors", specs, {{"format", "pt"}},
                    [&](const TensorSpec& spec, const ByteSink& sink) {
                      const Tensor& tensor = tensors.at(spec.name);
                      host.resize(static_cast<size_t>(tensor.size()));
                      backend_.download(host.data(), tensor);
                      sink(std::as_bytes(std::span(host)));
                    });
}

}  // namespace saaz
