// Reading of config.json. One table names each integer field, its key and its range; parser, validate and the writer
// all walk it, so a field cannot be read without being checked. Rules between fields are in validate_relations.
#include "config/model_config.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "config/model_config_fields.h"

namespace saaz {
namespace {

/// The object that holds the text model's keys, beside the whole document (whose token ids win: they are the tuned
/// ones).
struct Source {
  const Value& document;
  const Value& text;
  const std::string& name;
};

[[noreturn]] void refuse(const std::string& name, std::string_view key, const std::string& expected,
                         const std::string& found) {
  fail(ExitCode::bad_input, "{}: {}: expected {}, found {}", name, key, expected, found);
}

std::string describe(const Value& value) {
  if (value.is_array()) return fmt::format("a list of {}", value.items().size());
  if (value.is_object()) return "an object";
  return printable(to_json(value), 60);
}

/// The member unless absent or null.
const Value* find_set(const Value& object, std::string_view key) {
  const Value* value = object.find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

int64_t read_int(const Value& value, const Source& source, std::string_view key, int64_t min, int64_t max) {
  const bool in_range = value.is_integer() && value.as_integer() >= min && value.as_integer() <= max;
  if (!in_range) refuse(source.name, key, fmt::format("an integer from {} to {}", min, max), describe(value));
  return value.as_integer();
}

double read_real(const Value& value, const Source& source, std::string_view key, double min, double max) {
  const bool in_range = value.is_number() && value.as_double() >= min && value.as_double() <= max;
  if (!in_range) refuse(source.name, key, fmt::format("a number from {:g} to {:g}", min, max), describe(value));
  return value.as_double();
}

void expect_items(const Value& list, const Source& source, std::string_view key, int64_t n_layers) {
  const bool fits = list.is_array() && list.items().size() == static_cast<size_t>(n_layers);
  if (!fits) refuse(source.name, key, fmt::format("a list of {} items, one for each layer", n_layers), describe(list));
}

Family read_family(const Source& source) {
  const Value* type = find_set(source.text, "model_type");
  if (type == nullptr) type = find_set(source.document, "model_type");
  const std::string name = type != nullptr && type->is_string() ? type->as_string() : "";
  if (name == "gemma3n" || name == "gemma3n_text") return Family::gemma3n;
  if (name == "gemma3" || name == "gemma3_text") return Family::gemma3;
  refuse(source.name, "model_type", "gemma3n, gemma3n_text, gemma3 or gemma3_text",
         name.empty() ? "no model_type" : fmt::format("'{}'", printable(name, 60)));
}

void read_fields(const Source& source, ModelConfig& config) {
  for (const IntField& field : kIntFields) {
    if (!applies(field.use, config.family)) continue;
    if (const Value* value = find_set(source.text, field.key)) {
      config.*field.member = read_int(*value, source, field.key, field.min, field.max);
    } else if (field.use == Use::required) {
      refuse(source.name, field.key, fmt::format("an integer from {} to {}", field.min, field.max), "no such key");
    }
  }
  for (const RealField& field : kRealFields) {
    if (!applies(field.use, config.family)) continue;
    const Value* value = source.text.find(field.key);
    if (value == nullptr) continue;
    if (value->is_null() && field.null == Null::means_none) {
      config.*field.member = 0;
    } else if (!value->is_null()) {
      config.*field.member = static_cast<float>(read_real(*value, source, field.key, field.min, field.max));
    }
  }
}

void read_layer_types(const Source& source, ModelConfig& config) {
  if (const Value* list = find_set(source.text, "layer_types")) {
    expect_items(*list, source, "layer_types", config.n_layers);
    config.layer_types.clear();
    for (const Value& item : list->items()) {
      const bool is_full = item.is_string() && item.as_string() == "full_attention";
      const bool is_sliding = item.is_string() && item.as_string() == "sliding_attention";
      if (!is_full && !is_sliding)
        refuse(source.name, "layer_types", "full_attention or sliding_attention", describe(item));
      config.layer_types.push_back(is_full ? LayerType::full : LayerType::sliding);
    }
    return;
  }
  int64_t period = config.family == Family::gemma3n ? 5 : 6;
  for (const char* key : {"sliding_window_pattern", "_sliding_window_pattern"}) {
    if (const Value* value = find_set(source.text, key)) period = read_int(*value, source, key, 1, kMaxLayers);
  }
  config.layer_types = periodic_layer_types(config.n_layers, period);
}

void read_intermediate_size(const Source& source, ModelConfig& config) {
  static constexpr std::string_view kKey = "intermediate_size";
  const Value* value = find_set(source.text, kKey);
  if (value == nullptr) refuse(source.name, kKey, "an integer or a list", "no such key");
  config.intermediate_size.clear();
  if (value->is_array()) {
    expect_items(*value, source, kKey, config.n_layers);
    for (const Value& item : value->items()) {
      config.intermediate_size.push_back(read_int(item, source, kKey, 1, kMaxIntermediateSize));
    }
  } else {
    config.intermediate_size.assign(config.n_layers, read_int(*value, source, kKey, 1, kMaxIntermediateSize));
  }
}

void read_activation_sparsity(const Source& source, ModelConfig& config) {
  static constexpr std::string_view kKey = "activation_sparsity_pattern";
  config.activation_sparsity.assign(config.n_layers, 0.0);
  if (config.family == Family::gemma3) return;
  const Value* value = find_set(source.text, kKey);
  if (value == nullptr) {  // transformers: ten sparse layers in a model of more than ten
    if (config.n_layers > 10) std::fill_n(config.activation_sparsity.begin(), 10, 0.95);
    return;
  }
  if (value->is_number()) {
    config.activation_sparsity.assign(config.n_layers, read_real(*value, source, kKey, 0, kMaxSparsity));
    return;
  }
  expect_items(*value, source, kKey, config.n_layers);
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    config.activation_sparsity[layer] = read_real(value->items()[layer], source, kKey, 0, kMaxSparsity);
  }
}

/// The linear factor of a rope description; 1 for the default kind.
float read_rope_factor(const Value& rope, const Source& source, const std::string& key) {
  if (!rope.is_object()) refuse(source.name, key, "an object", describe(rope));
  const Value* type = find_set(rope, "rope_type");
  if (type == nullptr) type = find_set(rope, "type");
  const std::string name = type == nullptr ? "default" : type->is_string() ? type->as_string() : "?";
  if (name == "default") return 1;
  if (name != "linear") refuse(source.name, key + ".rope_type", "default or linear", describe(*type));
  const Value* factor = find_set(rope, "factor");
  if (factor == nullptr) refuse(source.name, key + ".factor", "a number", "no such key");
  return static_cast<float>(read_real(*factor, source, key + ".factor", kMinRopeFactor, kMaxRopeFactor));
}

void read_theta(const Value& object, std::string_view key, const Source& source, const std::string& path, float& out) {
  if (const Value* value = find_set(object, key)) {
    out = static_cast<float>(read_real(*value, source, path, kMinRopeTheta, kMaxRopeTheta));
  }
}

void read_rope(const Source& source, ModelConfig& config) {
  read_theta(source.text, "rope_theta", source, "rope_theta", config.rope_theta_full);
  read_theta(source.text, "rope_local_base_freq", source, "rope_local_base_freq", config.rope_theta_sliding);
  if (const Value* scaling = find_set(source.text, "rope_scaling")) {
    config.rope_scaling_factor_full = read_rope_factor(*scaling, source, "rope_scaling");
  }
  const Value* parameters = find_set(source.text, "rope_parameters");
  if (parameters == nullptr) return;
  if (!parameters->is_object()) refuse(source.name, "rope_parameters", "an object", describe(*parameters));
  const Value* full = find_set(*parameters, "full_attention");
  const Value* sliding = find_set(*parameters, "sliding_attention");
  if (full == nullptr && sliding == nullptr) full = parameters;  // one description for all: the full layers' one
  if (full != nullptr) {
    const std::string path = full == parameters ? "rope_parameters" : "rope_parameters.full_attention";
    config.rope_scaling_factor_full = read_rope_factor(*full, source, path);
    read_theta(*full, "rope_theta", source, path + ".rope_theta", config.rope_theta_full);
  }
  if (sliding != nullptr) {
    const std::string path = "rope_parameters.sliding_attention";
    if (read_rope_factor(*sliding, source, path) != 1) refuse(source.name, path, "rope_type default", "a scaled rope");
    read_theta(*sliding, "rope_theta", source, path + ".rope_theta", config.rope_theta_sliding);
  }
}

void read_token_ids(const Source& source, ModelConfig& config) {
  const auto find = [&](const char* key) {
    const Value* value = find_set(source.document, key);
    return value != nullptr ? value : find_set(source.text, key);
  };
  const int64_t max = config.vocab_size - 1;
  if (const Value* value = find("pad_token_id")) config.pad_id = read_int(*value, source, "pad_token_id", -1, max);
  if (const Value* value = find("bos_token_id")) config.bos_id = read_int(*value, source, "bos_token_id", -1, max);
  const Value* eos = find("eos_token_id");
  if (eos == nullptr) return;
  config.eos_ids.clear();
  if (!eos->is_array()) return config.eos_ids.push_back(read_int(*eos, source, "eos_token_id", 0, max));
  for (const Value& item : eos->items()) config.eos_ids.push_back(read_int(item, source, "eos_token_id", 0, max));
}

/// Keys whose other values would change the computation, and which no released model sets.
void refuse_unsupported(const Source& source, Family family) {
  const auto expect = [&](const char* key, const Value& wanted) {
    const Value* value = find_set(source.text, key);
    if (value == nullptr) return;
    if (to_json(*value) != to_json(wanted)) refuse(source.name, key, to_json(wanted), describe(*value));
  };
  expect("hidden_activation", "gelu_pytorch_tanh");
  expect("hidden_act", "gelu_pytorch_tanh");
  expect("attention_bias", false);
  expect("attn_logit_softcapping", Value());
  expect("use_bidirectional_attention", false);
  if (family == Family::gemma3n) expect("altup_correct_scale", true);
}

}  // namespace

ModelConfig parse_model_config(const Value& config, const std::string& source_name) {
  if (!config.is_object()) refuse(source_name, "the document", "an object", config.kind_name());
  const Value* nested = find_set(config, "text_config");
  if (nested != nullptr && !nested->is_object()) refuse(source_name, "text_config", "an object", describe(*nested));
  const Source source{config, nested != nullptr ? *nested : config, source_name};

  ModelConfig out = default_config(read_family(source));
  refuse_unsupported(source, out.family);
  read_fields(source, out);
  read_intermediate_size(source, out);
  read_layer_types(source, out);
  read_activation_sparsity(source, out);
  out.activation_sparsity_z.assign(out.n_layers, 0);
  for (int64_t layer = 0; layer < out.n_layers; ++layer) {
    const double sparsity = out.activation_sparsity[layer];
    if (sparsity > 0) out.activation_sparsity_z[layer] = activation_sparsity_scale(sparsity);
  }
  read_rope(source, out);
  read_token_ids(source, out);
  if (out.family == Family::gemma3) {
    double scalar = 256;
    if (const Value* value = find_set(source.text, "query_pre_attn_scalar")) {
      scalar = read_real(*value, source, "query_pre_attn_scalar", kMinQueryScalar, kMaxQueryScalar);
    }
    out.attention_scale = static_cast<float>(1 / std::sqrt(scalar));
  }
  for (const Value* object : {&source.document, &source.text}) {
    const Value* tie = find_set(*object, "tie_word_embeddings");
    if (tie == nullptr) continue;
    if (!tie->is_bool()) refuse(source_name, "tie_word_embeddings", "true or false", describe(*tie));
    out.tie_word_embeddings = tie->as_bool();
  }
  validate(out, source_name);
  return out;
}

}  // namespace saaz
