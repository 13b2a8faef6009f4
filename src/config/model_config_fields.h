// The table of ModelConfig's plain fields: Hugging Face key, member, range. Used by the parser (model_config.cc) and by
// the checks and the writer (model_config_rules.cc). The upper bounds are far above any released model and low enough
// that products of three sizes fit 64 bits.
#pragma once

#include "config/model_config.h"

namespace saaz {

inline constexpr int64_t kMaxLayers = 512;
inline constexpr int64_t kMaxIntermediateSize = 1 << 20;
inline constexpr double kMaxSparsity = 0.999999;
inline constexpr double kMinRopeTheta = 1, kMaxRopeTheta = 1e12;
inline constexpr double kMinRopeFactor = 1e-3, kMaxRopeFactor = 1e4;
inline constexpr double kMinQueryScalar = 1e-3, kMaxQueryScalar = 1e6;

enum class Use { required, optional, gemma3n };
enum class Null { means_none, means_default };

struct IntField {
  const char* key;
  int64_t ModelConfig::*member;
  int64_t min, max;
  Use use;
};
struct RealField {
  const char* key;
  float ModelConfig::*member;
  double min, max;
  Use use;
  Null null;
};

inline bool applies(Use use, Family family) { return use != Use::gemma3n || family == Family::gemma3n; }

inline constexpr IntField kIntFields[] = {
    {"num_hidden_layers", &ModelConfig::n_layers, 1, kMaxLayers, Use::required},
    {"hidden_size", &ModelConfig::hidden_size, 1, 1 << 16, Use::required},
    {"vocab_size", &ModelConfig::vocab_size, 1, 1 << 22, Use::optional},
    {"num_attention_heads", &ModelConfig::n_heads, 1, 1024, Use::optional},
    {"num_key_value_heads", &ModelConfig::n_kv_heads, 1, 1024, Use::optional},
    {"head_dim", &ModelConfig::head_dim, 2, 1024, Use::optional},
    {"sliding_window", &ModelConfig::sliding_window, 1, 1 << 24, Use::optional},
    {"max_position_embeddings", &ModelConfig::max_position_embeddings, 1, 1 << 24, Use::optional},
    {"vocab_size_per_layer_input", &ModelConfig::vocab_size_per_layer_input, 1, 1 << 22, Use::gemma3n},
    {"hidden_size_per_layer_input", &ModelConfig::hidden_size_per_layer_input, 1, 1 << 16, Use::gemma3n},
    {"altup_num_inputs", &ModelConfig::altup_num_inputs, 2, 16, Use::gemma3n},
    {"altup_active_idx", &ModelConfig::altup_active_idx, 0, 15, Use::gemma3n},
    {"laurel_rank", &ModelConfig::laurel_rank, 1, 1 << 16, Use::gemma3n},
    {"num_kv_shared_layers", &ModelConfig::n_kv_shared_layers, 0, kMaxLayers, Use::gemma3n},
};

// A member of 0 is "none" where null may be written, and skips the range.
inline constexpr RealField kRealFields[] = {
    {"rms_norm_eps", &ModelConfig::rms_norm_eps, 1e-12, 0.1, Use::optional, Null::means_default},
    {"final_logit_softcapping", &ModelConfig::final_logit_softcap, 1e-3, 1e6, Use::optional, Null::means_none},
    {"altup_coef_clip", &ModelConfig::altup_coef_clip, 1e-3, 1e6, Use::gemma3n, Null::means_none},
};

}  // namespace saaz
