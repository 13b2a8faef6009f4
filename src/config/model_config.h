// ModelConfig: every size and constant of a Gemma 3n or Gemma 3 text model. Enters: the config.json of a model folder
// (nested or flat, old and new keys), or, for a GGUF file, fields that the reader of its metadata fills into
// default_config and passes to validate. Leaves: a struct whose every field is in range, so that later code may
// multiply sizes without asking. Names are Hugging Face's where they have one; values and rules: docs/gemma3n.md
// section 1.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/value.h"

namespace saaz {

enum class Family { gemma3n, gemma3 };
enum class LayerType { full, sliding };

struct ModelConfig {
  Family family = Family::gemma3n;
  int64_t vocab_size = 0;                  // rows of the token embedding
  int64_t hidden_size = 0;                 // D
  int64_t n_layers = 0;                    // num_hidden_layers
  std::vector<int64_t> intermediate_size;  // [n_layers]
  int64_t n_heads = 0;                     // num_attention_heads
  int64_t n_kv_heads = 0;                  // num_key_value_heads; divides n_heads
  int64_t head_dim = 0;                    // even
  int64_t sliding_window = 0;              // tokens a sliding layer sees, its own included
  int64_t max_position_embeddings = 0;
  std::vector<LayerType> layer_types;  // [n_layers]
  float rope_theta_full = 0;
  float rope_theta_sliding = 0;
  float rope_scaling_factor_full = 1;  // positions of full layers are divided by it
  float rms_norm_eps = 0;
  float final_logit_softcap = 0;  // 0 = none
  float attention_scale = 1;      // 1 for Gemma 3n; query_pre_attn_scalar^-0.5 for Gemma 3
  int64_t pad_id = 0;             // -1 = none, also for bos
  int64_t bos_id = 0;
  std::vector<int64_t> eos_ids;
  bool tie_word_embeddings = true;

  // Gemma 3n only; zero or empty for Gemma 3, but for the two sparsity lists, which are [n_layers] of zeros there.
  int64_t vocab_size_per_layer_input = 0;
  int64_t hidden_size_per_layer_input = 0;  // P
  int64_t altup_num_inputs = 0;             // N
  int64_t altup_active_idx = 0;
  float altup_coef_clip = 0;  // 0 = none
  int64_t laurel_rank = 0;
  int64_t n_kv_shared_layers = 0;            // the last n layers use the K/V of an earlier one
  std::vector<double> activation_sparsity;   // [n_layers], fraction of gate values cut; 0 = none
  std::vector<float> activation_sparsity_z;  // [n_layers], activation_sparsity_scale of it; 0 = none

  /// True when `layer` computes no K/V of its own.
  bool shares_kv(int64_t layer) const { return layer >= n_layers - n_kv_shared_layers; }
  /// The layer whose K/V `layer` uses: the last one of its type that computes its own; itself when it does not share.
  /// -1 when there is none (never after validate).
  int64_t kv_producer(int64_t layer) const;
};

/// The class defaults of transformers: Gemma 3n E4B; Gemma 3 with hidden_size, n_layers and the lists left empty.
ModelConfig default_config(Family family);

/// full iff (i + 1) % period == 0; [n_layers].
std::vector<LayerType> periodic_layer_types(int64_t n_layers, int64_t period);

/// Reads a parsed config.json. `source` (its path) starts every message. Errors: bad_input naming the key, the expected
/// range and what was found, also for features that no released model uses (attention softcap, biases, other
/// activations).
ModelConfig parse_model_config(const Value& config, const std::string& source);

/// Checks every field and the rules between fields. Errors as parse_model_config.
void validate(const ModelConfig& config, const std::string& source);

/// A complete flat config.json (Gemma3nForCausalLM or Gemma3ForCausalLM, dtype bfloat16) with old and new keys.
Value to_config_json(const ModelConfig& config);

/// How many standard deviations above the mean a gate value must lie to survive `sparsity`, 0 < sparsity < 1, rounded
/// as PyTorch's float32 icdf does: erfinv(2 p - 1) * sqrt(2). 0.95 gives 1.6448533535.
float activation_sparsity_scale(double sparsity);

}  // namespace saaz
