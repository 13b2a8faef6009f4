// ModelConfig: old and new keys, nested and flat, what is refused and how, and the way back to config.json.
#include "config/model_config.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"

namespace saaz {
namespace {

constexpr const char* kTiny3n = R"({"model_type": "gemma3n_text", "num_hidden_layers": 6, "hidden_size": 32,
  "intermediate_size": [64, 64, 64, 64, 64, 48], "vocab_size": 300, "vocab_size_per_layer_input": 280,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "laurel_rank": 4,
  "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.95, 0, 0, 0, 0, 0.5],
  "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention", "full_attention",
  "sliding_attention"], "rope_theta": 5e5, "rope_local_base_freq": 2e4, "sliding_window_pattern": 2})";

constexpr const char* kTiny3 = R"({"model_type": "gemma3_text", "num_hidden_layers": 7, "hidden_size": 32,
  "intermediate_size": 64, "vocab_size": 300, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8,
  "query_pre_attn_scalar": 16, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})";

ModelConfig parse(const std::string& text) {
  return parse_model_config(parse_json(text, "config.json"), "config.json");
}

/// `base` with one member set to a JSON value.
std::string with(const char* base, const std::string& key, const std::string& value) {
  Value document = parse_json(base, "base");
  document.set(key, parse_json(value, "value"));
  return to_json(document);
}

TEST(ModelConfig, ReadsFlatGemma3n) {
  const ModelConfig c = parse(kTiny3n);
  EXPECT_EQ(c.family, Family::gemma3n);
  EXPECT_EQ(c.intermediate_size.back(), 48);
  EXPECT_EQ(c.layer_types[1], LayerType::full) << "a layer_types list wins over a pattern";
  EXPECT_EQ(c.rope_theta_full, 5e5f);
  EXPECT_EQ(c.rope_theta_sliding, 2e4f);
  EXPECT_EQ(c.attention_scale, 1.0f);
  EXPECT_EQ(c.final_logit_softcap, 30.0f);
  EXPECT_EQ(c.altup_num_inputs, 4);
  EXPECT_EQ(c.eos_ids, std::vector<int64_t>{1});
  EXPECT_FALSE(c.shares_kv(3));
  EXPECT_TRUE(c.shares_kv(4));
  EXPECT_EQ(c.kv_producer(1), 1);
  EXPECT_EQ(c.kv_producer(4), 3);
  EXPECT_EQ(c.kv_producer(5), 2);
}

TEST(ModelConfig, ReadsGemma3WithOldKeys) {
  const ModelConfig c = parse(kTiny3);
  EXPECT_EQ(c.family, Family::gemma3);
  EXPECT_EQ(c.attention_scale, 0.25f);
  EXPECT_EQ(c.rope_scaling_factor_full, 8.0f);
  EXPECT_EQ(c.rope_theta_full, 1e6f);
  EXPECT_EQ(c.rope_theta_sliding, 1e4f);
  EXPECT_EQ(c.final_logit_softcap, 0.0f);
  EXPECT_EQ(c.layer_types, periodic_layer_types(7, 6));
  EXPECT_EQ(c.layer_types[5], LayerType::full);
  EXPECT_EQ(c.max_position_embeddings, 131072);
  EXPECT_EQ(parse(with(kTiny3, "sliding_window_pattern", "2")).layer_types, periodic_layer_types(7, 2));
  EXPECT_EQ(parse(with(kTiny3, "_sliding_window_pattern", "3")).layer_types, periodic_layer_types(7, 3));
}

TEST(ModelConfig, NewRopeKeysWinOverOldOnes) {
  const ModelConfig c = parse(with(kTiny3, "rope_parameters",
                                   R"({"full_attention": {"rope_type": "linear", "factor": 4, "rope_theta": 2e6},
                                       "sliding_attention": {"rope_type": "default", "rope_theta": 3e4}})"));
  EXPECT_EQ(c.rope_scaling_factor_full, 4.0f);
  EXPECT_EQ(c.rope_theta_full, 2e6f);
  EXPECT_EQ(c.rope_theta_sliding, 3e4f);
}

TEST(ModelConfig, ReadsNestedWithDefaultsAndOuterTokenIds) {
  // The 4B hub file: many text fields are left to the class's defaults.
  const ModelConfig g4 =
      parse(R"({"model_type": "gemma3", "eos_token_id": [1, 106], "text_config": {"hidden_size": 2560,
    "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0,
    "rope_type": "linear"}, "sliding_window": 1024}, "vision_config": {"hidden_size": 1152}})");
  EXPECT_EQ(g4.n_heads, 8);
  EXPECT_EQ(g4.n_kv_heads, 4);
  EXPECT_EQ(g4.head_dim, 256);
  EXPECT_EQ(g4.vocab_size, 262208);
  EXPECT_EQ(g4.attention_scale, 0.0625f);
  EXPECT_EQ(g4.eos_ids, (std::vector<int64_t>{1, 106}));

  const ModelConfig e4b = parse(R"({"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text",
    "num_hidden_layers": 35, "hidden_size": 2048, "intermediate_size": 16384}})");
  EXPECT_EQ(to_json(to_config_json(e4b)), to_json(to_config_json(default_config(Family::gemma3n))));
  EXPECT_EQ(e4b.kv_producer(34), 19);
  EXPECT_EQ(e4b.kv_producer(33), 18);
  EXPECT_EQ(e4b.activation_sparsity[9], 0.95);
  EXPECT_EQ(e4b.activation_sparsity[10], 0.0);
}

TEST(ModelConfig, WritesAConfigThatReadsBack) {
  for (const char* text : {kTiny3n, kTiny3}) {
    const ModelConfig c = parse(text);
    const std::string json = to_json(to_config_json(c));
    const ModelConfig back = parse(json);
    EXPECT_EQ(to_json(to_config_json(back)), json);
    EXPECT_EQ(back.layer_types, c.layer_types);
    EXPECT_EQ(back.rms_norm_eps, c.rms_norm_eps);
    EXPECT_EQ(back.attention_scale, c.attention_scale);
    EXPECT_EQ(back.rope_scaling_factor_full, c.rope_scaling_factor_full);
    EXPECT_EQ(back.activation_sparsity_z, c.activation_sparsity_z);
    EXPECT_NE(json.find("\"rms_norm_eps\": 1.0e-06"), std::string::npos);
  }
}

TEST(ModelConfig, SparsityThresholdIsPyTorchsFloat) {
  EXPECT_EQ(activation_sparsity_scale(0.95), 1.6448533535f);
  EXPECT_GT(activation_sparsity_scale(0.5), 0.0f);
  EXPECT_LT(activation_sparsity_scale(0.5), 1e-30f);
  // The standard normal table; float32 with two Newton steps keeps six digits.
  EXPECT_NEAR(activation_sparsity_scale(0.9), 1.2815515655, 2e-6);
  EXPECT_NEAR(activation_sparsity_scale(0.6), 0.2533471031, 2e-6);
  EXPECT_NEAR(activation_sparsity_scale(0.05), -1.6448536270, 2e-6);
}

TEST(ModelConfig, RefusesBadValues) {
  const struct {
    const char* base;
    const char* key;
    const char* value;
    const char* fragment;
  } kCases[] = {
      {kTiny3n, "model_type", "\"llama\"",
       "model_type: expected gemma3n, gemma3n_text, gemma3 or gemma3_text, found 'llama'"},
      {kTiny3n, "model_type", "null", "found no model_type"},
      {kTiny3n, "hidden_size", "0", "hidden_size: expected an integer from 1 to 65536, found 0"},
      {kTiny3n, "hidden_size", "-5", "found -5"},
      {kTiny3n, "hidden_size", "1000000000", "found 1000000000"},
      {kTiny3n, "hidden_size", "32.5", "found 32.5"},
      {kTiny3n, "hidden_size", "\"32\"", "found \"32\""},
      {kTiny3n, "hidden_size", "null", "found no such key"},
      {kTiny3n, "hidden_size", "18446744073709551617", "hidden_size: expected an integer"},
      {kTiny3n, "num_hidden_layers", "513", "num_hidden_layers: expected an integer from 1 to 512"},
      {kTiny3n, "vocab_size", "4194305", "vocab_size: expected"},
      {kTiny3n, "vocab_size", "[1]", "found a list of 1"},
      {kTiny3n, "head_dim", "7", "head_dim: expected an even number, found 7"},
      {kTiny3n, "num_key_value_heads", "3", "expected a divisor of num_attention_heads (4), found 3"},
      {kTiny3n, "intermediate_size", "[64]", "intermediate_size: expected a list of 6 items"},
      {kTiny3n, "intermediate_size", "[64,64,64,64,64,0]",
       "intermediate_size: expected an integer from 1 to 1048576, found 0"},
      {kTiny3n, "layer_types", "[\"full_attention\"]", "layer_types: expected a list of 6 items"},
      {kTiny3n, "layer_types", "[1,1,1,1,1,1]", "layer_types: expected full_attention or sliding_attention, found 1"},
      {kTiny3n, "layer_types", "\"full_attention\"", "layer_types: expected a list"},
      {kTiny3n, "activation_sparsity_pattern", "[0.95]", "activation_sparsity_pattern: expected a list of 6 items"},
      {kTiny3n, "activation_sparsity_pattern", "[1.0,0,0,0,0,0]",
       "activation_sparsity_pattern: expected a number from 0"},
      {kTiny3n, "num_kv_shared_layers", "6", "num_kv_shared_layers: expected less than num_hidden_layers (6), found 6"},
      {kTiny3n, "num_kv_shared_layers", "5",
       "layer 1 shares the K/V of an earlier full_attention layer, but none of the first 1"},
      {kTiny3n, "altup_active_idx", "4", "altup_active_idx: expected less than altup_num_inputs (4), found 4"},
      {kTiny3n, "altup_num_inputs", "1", "altup_num_inputs: expected an integer from 2 to 16"},
      {kTiny3n, "altup_coef_clip", "-1", "altup_coef_clip: expected a number"},
      {kTiny3n, "altup_correct_scale", "false", "altup_correct_scale: expected true, found false"},
      {kTiny3n, "rms_norm_eps", "0", "rms_norm_eps: expected a number from 1e-12 to 0.1, found 0"},
      {kTiny3n, "rope_theta", "0.5", "rope_theta: expected a number from 1 to 1e+12"},
      {kTiny3n, "final_logit_softcapping", "-30", "final_logit_softcapping: expected"},
      {kTiny3n, "bos_token_id", "300", "bos_token_id: expected an integer from -1 to 299, found 300"},
      {kTiny3n, "eos_token_id", "[1, -2]", "eos_token_id: expected an integer from 0 to 299, found -2"},
      {kTiny3n, "hidden_activation", "\"silu\"", "hidden_activation: expected \"gelu_pytorch_tanh\", found \"silu\""},
      {kTiny3n, "tie_word_embeddings", "1", "tie_word_embeddings: expected true or false, found 1"},
      {kTiny3n, "text_config", "3", "text_config: expected an object, found 3"},
      {kTiny3, "query_pre_attn_scalar", "0", "query_pre_attn_scalar: expected a number"},
      {kTiny3, "attn_logit_softcapping", "50.0", "attn_logit_softcapping: expected null, found 50.0"},
      {kTiny3, "rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 2}",
       "rope_scaling.rope_type: expected default or linear"},
      {kTiny3, "rope_scaling", "{\"rope_type\": \"linear\"}",
       "rope_scaling.factor: expected a number, found no such key"},
      {kTiny3, "rope_scaling", "{\"type\": \"linear\", \"factor\": 0}", "rope_scaling.factor: expected"},
      {kTiny3, "rope_parameters", "{\"sliding_attention\": {\"rope_type\": \"linear\", \"factor\": 2}}",
       "rope_parameters.sliding_attention: expected rope_type default"},
      {kTiny3, "sliding_window_pattern", "0", "sliding_window_pattern: expected an integer from 1"},
  };
  for (const auto& c : kCases) {
    try {
      parse(with(c.base, c.key, c.value));
      ADD_FAILURE() << "accepted " << c.key << " = " << c.value;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_input);
      const std::string message = error.what();
      EXPECT_TRUE(message.starts_with("config.json: ")) << message;
      EXPECT_NE(message.find(c.fragment), std::string::npos) << message << "\n  lacks: " << c.fragment;
    }
  }
  EXPECT_THROW(parse("[]"), Error);
}

TEST(ModelConfig, ValidateChecksWhatNoParserRead) {
  const auto refuses = [](auto&& change) {
    ModelConfig c = default_config(Family::gemma3n);
    change(c);
    try {
      validate(c, "model.gguf");
    } catch (const Error& error) {
      return error.code() == ExitCode::bad_input && std::string_view(error.what()).starts_with("model.gguf: ");
    }
    return false;
  };
  EXPECT_NO_THROW(validate(default_config(Family::gemma3n), "model.gguf"));
  EXPECT_TRUE(refuses([](ModelConfig& c) { c.rms_norm_eps = std::numeric_limits<float>::quiet_NaN(); }));
  EXPECT_TRUE(refuses([](ModelConfig& c) { c.rope_theta_sliding = std::numeric_limits<float>::infinity(); }));
  EXPECT_TRUE(refuses([](ModelConfig& c) { c.hidden_size = int64_t{1} << 40; }));
  EXPECT_TRUE(refuses([](ModelConfig& c) { c.layer_types.pop_back(); }));
  EXPECT_TRUE(refuses([](ModelConfig& c) { c.activation_sparsity_z.clear(); }));
  EXPECT_TRUE(refuses([](ModelConfig& c) { c.activation_sparsity_z[0] = -std::numeric_limits<float>::infinity(); }));
  EXPECT_TRUE(refuses([](ModelConfig& c) { c.eos_ids = {262400}; }));
}

}  // namespace
}  // namespace saaz
