// ModelConfig after reading: defaults, the rules that hold between fields, K/V sharing, the sparsity threshold, and the
// way back to config.json. Enters: a struct from config.json or from GGUF metadata. Invariant after validate: every
// list has n_layers items, every size is in the table's range, and each sharing layer has a producer of its own type.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "base/check.h"
#include "config/model_config_fields.h"

namespace saaz {
namespace {

void expect_range(double value, double min, double max, std::string_view key, const std::string& source) {
  check(value >= min && value <= max, ExitCode::bad_input, "{}: {}: expected a number from {:g} to {:g}, found {:g}",
        source, key, min, max, value);
}

void expect_length(size_t n, int64_t n_layers, std::string_view key, const std::string& source) {
  check(n == static_cast<size_t>(n_layers), ExitCode::bad_input,
        "{}: {}: expected {} items, one for each layer, found {}", source, key, n_layers, n);
}

void validate_tables(const ModelConfig& config, const std::string& source) {
  for (const IntField& field : kIntFields) {
    if (applies(field.use, config.family)) expect_range(config.*field.member, field.min, field.max, field.key, source);
  }
  for (const RealField& field : kRealFields) {
    const float value = config.*field.member;
    if (!applies(field.use, config.family) || (value == 0 && field.null == Null::means_none)) continue;
    // The bounds are decimal; one that was just read may sit a float rounding outside.
    expect_range(value, static_cast<float>(field.min), static_cast<float>(field.max), field.key, source);
  }
}

void validate_lists(const ModelConfig& config, const std::string& source) {
  expect_length(config.layer_types.size(), config.n_layers, "layer_types", source);
  expect_length(config.intermediate_size.size(), config.n_layers, "intermediate_size", source);
  expect_length(config.activation_sparsity.size(), config.n_layers, "activation_sparsity_pattern", source);
  expect_length(config.activation_sparsity_z.size(), config.n_layers, "activation_sparsity_scale", source);
  for (const int64_t size : config.intermediate_size) {
    expect_range(size, 1, kMaxIntermediateSize, "intermediate_size", source);
  }
  for (const double sparsity : config.activation_sparsity) {
    expect_range(sparsity, 0, kMaxSparsity, "activation_sparsity_pattern", source);
  }
  for (const float z : config.activation_sparsity_z) expect_range(z, -100, 100, "activation_sparsity_scale", source);
}

void validate_relations(const ModelConfig& config, const std::string& source) {
  check(config.head_dim % 2 == 0, ExitCode::bad_input, "{}: head_dim: expected an even number, found {}", source,
        config.head_dim);
  check(config.n_heads % config.n_kv_heads == 0, ExitCode::bad_input,
        "{}: num_key_value_heads: expected a divisor of num_attention_heads ({}), found {}", source, config.n_heads,
        config.n_kv_heads);
  if (config.family == Family::gemma3) return;
  check(config.altup_active_idx < config.altup_num_inputs, ExitCode::bad_input,
        "{}: altup_active_idx: expected less than altup_num_inputs ({}), found {}", source, config.altup_num_inputs,
        config.altup_active_idx);
  check(config.n_kv_shared_layers < config.n_layers, ExitCode::bad_input,
        "{}: num_kv_shared_layers: expected less than num_hidden_layers ({}), found {}", source, config.n_layers,
        config.n_kv_shared_layers);
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    check(config.kv_producer(layer) >= 0, ExitCode::bad_input,
          "{}: num_kv_shared_layers: layer {} shares the K/V of an earlier {} layer, but none of the first {} layers "
          "is one",
          source, layer, config.layer_types[layer] == LayerType::full ? "full_attention" : "sliding_attention",
          config.n_layers - config.n_kv_shared_layers);
  }
}

Value layer_type_names(const ModelConfig& config) {
  Value names = Value::array();
  for (const LayerType type : config.layer_types) {
    names.push_back(type == LayerType::full ? "full_attention" : "sliding_attention");
  }
  return names;
}

/// A float's shortest decimal (1e-06, not 9.999999974752427e-07).
double shortest(float value) { return std::stod(fmt::format("{}", value)); }

Value rope_parameters(float theta, float factor) {
  Value rope = Value::object({{"rope_theta", shortest(theta)}, {"rope_type", factor == 1 ? "default" : "linear"}});
  if (factor != 1) rope.set("factor", shortest(factor));
  return rope;
}

void set_rope(Value& json, const ModelConfig& config) {
  const float factor = config.rope_scaling_factor_full;
  json.set("rope_theta", shortest(config.rope_theta_full));
  json.set("rope_local_base_freq", shortest(config.rope_theta_sliding));
  json.set("rope_scaling",
           factor == 1 ? Value() : Value::object({{"rope_type", "linear"}, {"factor", shortest(factor)}}));
  json.set("rope_parameters", Value::object({{"full_attention", rope_parameters(config.rope_theta_full, factor)},
                                             {"sliding_attention", rope_parameters(config.rope_theta_sliding, 1)}}));
}

void set_token_ids(Value& json, const ModelConfig& config) {
  const auto id_or_null = [](int64_t id) { return id < 0 ? Value() : Value(id); };
  json.set("pad_token_id", id_or_null(config.pad_id));
  json.set("bos_token_id", id_or_null(config.bos_id));
  Value eos = Value::array();
  for (const int64_t id : config.eos_ids) eos.push_back(id);
  json.set("eos_token_id", config.eos_ids.size() == 1 ? Value(config.eos_ids[0]) : eos);
}

void set_family_keys(Value& json, const ModelConfig& config) {
  if (config.family == Family::gemma3n) {
    Value sizes = Value::array(), sparsity = Value::array();
    for (const int64_t size : config.intermediate_size) sizes.push_back(size);
    for (const double value : config.activation_sparsity) sparsity.push_back(value);
    json.set("intermediate_size", sizes);
    json.set("activation_sparsity_pattern", sparsity);
    json.set("altup_correct_scale", true);
    return;
  }
  // Gemma 3's class takes one size, and before layer_types a period; the scalar was squared out of a float: undo its
  // noise.
  json.set("intermediate_size", config.intermediate_size.front());
  const double scalar = 1 / std::pow(static_cast<double>(config.attention_scale), 2);
  const double rounded = std::round(scalar * 1000) / 1000;
  const bool is_whole = rounded == std::floor(rounded);  // transformers 5 insists on an integer
  json.set("query_pre_attn_scalar", is_whole ? Value(static_cast<int64_t>(rounded)) : Value(rounded));
  for (int64_t period = 1; period <= config.n_layers; ++period) {
    if (periodic_layer_types(config.n_layers, period) != config.layer_types) continue;
    json.set("sliding_window_pattern", period);
    break;
  }
  json.set("attn_logit_softcapping", Value());
}

/// a[0] + a[1] z + ...
template <size_t N>
float polynomial(float z, const float (&a)[N]) {
  float sum = a[N - 1];
  for (size_t i = N - 1; i-- > 0;) sum = sum * z + a[i];
  return sum;
}

/// Float32 throughout, step for step as PyTorch evaluates it: a rational guess, then two Newton steps. An exact inverse
/// would move the sparsity threshold of 0.95 by two units in the last place away from the one the models were trained
/// with.
float inverse_erf(float y) {
  float x = 0;
  if (std::abs(y) <= 0.7f) {
    const float z = y * y;
    x = y * polynomial(z, {0.886226899f, -1.645349621f, 0.914624893f, -0.140543331f}) /
        polynomial(z, {1.0f, -2.118377725f, 1.442710462f, -0.329097515f, 0.012229801f});
  } else {
    const float z = std::sqrt(-std::log((1 - std::abs(y)) / 2));
    x = std::copysign(polynomial(z, {-1.970840454f, -1.624906493f, 3.429567803f, 1.641345311f}), y) /
        polynomial(z, {1.0f, 3.543889200f, 1.637067800f});
  }
  const auto slope = static_cast<float>(2 / std::sqrt(std::numbers::pi));
  for (int step = 0; step < 2; ++step) x -= (std::erf(x) - y) / (slope * std::exp(-x * x));
  return x;
}

}  // namespace

int64_t ModelConfig::kv_producer(int64_t layer) const {
  if (!shares_kv(layer)) return layer;
  int64_t producer = n_layers - n_kv_shared_layers - 1;
  while (producer >= 0 && layer_types[producer] != layer_types[layer]) --producer;
  return producer;
}

std::vector<LayerType> periodic_layer_types(int64_t n_layers, int64_t period) {
  std::vector<LayerType> types(n_layers, LayerType::sliding);
  for (int64_t layer = period - 1; layer < n_layers; layer += period) types[layer] = LayerType::full;
  return types;
}

ModelConfig default_config(Family family) {
  ModelConfig config;
  config.family = family;
  config.n_heads = 8;
  config.head_dim = 256;
  config.rope_theta_full = 1e6f;
  config.rope_theta_sliding = 1e4f;
  config.rms_norm_eps = 1e-6f;
  config.pad_id = 0;
  config.bos_id = 2;
  config.eos_ids = {1};
  if (family == Family::gemma3) {
    config.vocab_size = 262208;
    config.n_kv_heads = 4;
    config.sliding_window = 4096;
    config.max_position_embeddings = 131072;
    config.attention_scale = 1.0f / 16;
    return config;
  }
  config.vocab_size = 262400;
  config.hidden_size = 2048;
  config.n_layers = 35;
  config.intermediate_size.assign(35, 16384);
  config.n_kv_heads = 2;
  config.sliding_window = 512;
  config.max_position_embeddings = 32768;
  config.layer_types = periodic_layer_types(35, 5);
  config.final_logit_softcap = 30;
  config.vocab_size_per_layer_input = 262144;
  config.hidden_size_per_layer_input = 256;
  config.altup_num_inputs = 4;
  config.altup_coef_clip = 120;
  config.laurel_rank = 64;
  config.n_kv_shared_layers = 15;
  config.activation_sparsity.assign(35, 0.0);
  std::fill_n(config.activation_sparsity.begin(), 10, 0.95);
  config.activation_sparsity_z.assign(35, 0.0f);
  std::fill_n(config.activation_sparsity_z.begin(), 10, activation_sparsity_scale(0.95));
  return config;
}

void validate(const ModelConfig& config, const std::string& source) {
  validate_tables(config, source);
  validate_lists(config, source);
  validate_relations(config, source);
  expect_range(config.rope_theta_full, kMinRopeTheta, kMaxRopeTheta, "rope_theta", source);
  expect_range(config.rope_theta_sliding, kMinRopeTheta, kMaxRopeTheta, "rope_local_base_freq", source);
  expect_range(config.rope_scaling_factor_full, static_cast<float>(kMinRopeFactor), kMaxRopeFactor,
               "rope_scaling.factor", source);
  expect_range(config.attention_scale, 1e-4, 100, "attention scale", source);
  expect_range(config.pad_id, -1, config.vocab_size - 1, "pad_token_id", source);
  expect_range(config.bos_id, -1, config.vocab_size - 1, "bos_token_id", source);
  for (const int64_t id : config.eos_ids) expect_range(id, 0, config.vocab_size - 1, "eos_token_id", source);
}

Value to_config_json(const ModelConfig& config) {
  const bool is_3n = config.family == Family::gemma3n;
  Value json = Value::object();
  json.set("architectures", Value::array({is_3n ? "Gemma3nForCausalLM" : "Gemma3ForCausalLM"}));
  json.set("model_type", is_3n ? "gemma3n_text" : "gemma3_text");
  json.set("dtype", "bfloat16");
  json.set("torch_dtype", "bfloat16");
  for (const IntField& field : kIntFields) {
    if (applies(field.use, config.family)) json.set(field.key, config.*field.member);
  }
  for (const RealField& field : kRealFields) {
    if (!applies(field.use, config.family)) continue;
    const float value = config.*field.member;
    json.set(field.key, value == 0 ? Value() : Value(shortest(value)));
  }
  set_family_keys(json, config);
  json.set("layer_types", layer_type_names(config));
  set_rope(json, config);
  set_token_ids(json, config);
  json.set("hidden_activation", "gelu_pytorch_tanh");
  json.set("attention_bias", false);
  json.set("attention_dropout", 0.0);
  json.set("initializer_range", 0.02);
  json.set("tie_word_embeddings", config.tie_word_embeddings);
  json.set("use_cache", true);
  return json;
}

float activation_sparsity_scale(double sparsity) {
  const float y = 2 * static_cast<float>(sparsity) - 1;
  const float z = inverse_erf(y) * static_cast<float>(std::numbers::sqrt2);
  return z == 0 ? std::numeric_limits<float>::min() : z;
}

}  // namespace saaz
