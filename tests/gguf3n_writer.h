// Writes a Gemma 3n folder as one GGUF file under the names, metadata and layout of llama.cpp's converter
// (docs/gemma3n.md 8), as a peer of the reader: the names stand here a second time, so that a slip in either shows.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/gguf_writer.h"
#include "model/base_tokenizer.h"
#include "model/weight_source.h"

namespace saaz {

struct Gguf3nOptions {
  WeightFormat matrices = WeightFormat::f32;  // f32 or q8_0; f16 where q8_0's blocks do not divide a row
  int64_t more_layers = 0;                    // claimed beyond those there are, in the block count and the lists
  /// May change a tensor before it is added; false leaves it out. An added element reads as zero.
  std::function<bool(GgufTensorSpec&)> edit;
};

namespace gguf3n {

inline const std::map<std::string, std::string>& names() {
  static const std::map<std::string, std::string> table = {{"embed_tokens", "token_embd"},
                                                           {"embed_tokens_per_layer", "per_layer_token_embd"},
                                                           {"per_layer_model_projection", "per_layer_model_proj"},
                                                           {"per_layer_projection_norm", "per_layer_proj_norm"},
                                                           {"altup_projections", "altup_proj"},
                                                           {"altup_unembed_projections", "altup_unembd_proj"},
                                                           {"norm", "output_norm"},
                                                           {"input_layernorm", "attn_norm"},
                                                           {"post_attention_layernorm", "post_attention_norm"},
                                                           {"pre_feedforward_layernorm", "ffn_norm"},
                                                           {"post_feedforward_layernorm", "post_ffw_norm"},
                                                           {"self_attn.q_proj", "attn_q"},
                                                           {"self_attn.k_proj", "attn_k"},
                                                           {"self_attn.v_proj", "attn_v"},
                                                           {"self_attn.o_proj", "attn_output"},
                                                           {"self_attn.q_norm", "attn_q_norm"},
                                                           {"self_attn.k_norm", "attn_k_norm"},
                                                           {"mlp.gate_proj", "ffn_gate"},
                                                           {"mlp.up_proj", "ffn_up"},
                                                           {"mlp.down_proj", "ffn_down"},
                                                           {"per_layer_input_gate", "inp_gate"},
                                                           {"per_layer_projection", "proj"},
                                                           {"post_per_layer_input_norm", "post_norm"},
                                                           {"altup.modality_router", "altup_router"},
                                                           {"altup.router_norm", "altup_router_norm"},
                                                           {"altup.prediction_coefs", "altup_predict_coef"},
                                                           {"altup.correction_coefs", "altup_correct_coef"},
                                                           {"altup.correct_output_scale", "altup_correct_scale"},
                                                           {"laurel.linear_left", "laurel_l"},
                                                           {"laurel.linear_right", "laurel_r"},
                                                           {"laurel.post_laurel_norm", "laurel_post_norm"}};
  return table;
}

/// "layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight", "altup_projections.1.weight" -> "altup_proj.weight"
inline std::string gguf_name(std::string name) {
  if (name.ends_with(".weight")) name.resize(name.size() - 7);
  std::string block;
  if (name.starts_with("layers.")) {
    const size_t dot = name.find('.', 7);
    block = "blk." + name.substr(7, dot - 6);
    name.erase(0, dot + 1);
  } else if (name.starts_with("altup_")) {
    name.resize(name.find('.'));
  }
  return block + names().at(name) + ".weight";
}

/// The type llama.cpp's converter stores a tensor in when asked for `matrices`.
inline WeightFormat format_of(const std::string& gguf_name, const std::vector<int64_t>& shape, WeightFormat matrices) {
  if (shape.size() == 1 || gguf_name.find("_coef.") != std::string::npos || matrices == WeightFormat::f32)
    return WeightFormat::f32;
  return shape.back() % block_size(matrices).elements == 0 ? matrices : WeightFormat::f16;
}

/// One Q8_0 block of 32: d = max / 127 as f16, then the values over d, rounded.
inline void encode_q8_0(const float* x, std::vector<std::byte>& out) {
  float largest = 0;
  for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(x[i]));
  const float d = largest / 127;
  const uint16_t half = f32_to_f16(d);
  std::byte block[34];
  std::memcpy(block, &half, sizeof half);
  for (int i = 0; i < 32; ++i)
    block[2 + i] = static_cast<std::byte>(static_cast<int8_t>(d > 0 ? std::round(x[i] / d) : 0));
  out.insert(out.end(), std::begin(block), std::end(block));
}

inline std::vector<std::byte> encode(WeightFormat format, const std::vector<float>& values) {
  std::vector<std::byte> out;
  if (format == WeightFormat::q8_0)
    for (size_t i = 0; i < values.size(); i += 32) encode_q8_0(&values[i], out);
  for (const float v : values) {
    if (format == WeightFormat::q8_0) break;
    const uint16_t half = f32_to_f16(v);
    const auto* bytes = format == WeightFormat::f16 ? reinterpret_cast<const std::byte*>(&half)
                                                    : reinterpret_cast<const std::byte*>(&v);
    out.insert(out.end(), bytes, bytes + (format == WeightFormat::f16 ? sizeof half : sizeof v));
  }
  return out;
}

/// What encode(format, values) holds, as f32.
inline std::vector<float> stored_values(WeightFormat format, const std::vector<float>& values) {
  const std::vector<std::byte> bytes = encode(format, values);
  std::vector<float> out = values;
  for (size_t i = 0; i < out.size() && format == WeightFormat::f16; ++i) out[i] = f16_to_f32(f32_to_f16(values[i]));
  for (size_t i = 0; i < out.size() && format == WeightFormat::q8_0; ++i) {
    const std::byte* block = &bytes[i / 32 * 34];
    uint16_t d = 0;
    std::memcpy(&d, block, sizeof d);
    out[i] = f16_to_f32(d) * static_cast<float>(static_cast<int8_t>(block[2 + i % 32]));
  }
  return out;
}

inline std::vector<float> values_of(const WeightSource& source, const SourceTensor& tensor) {
  int64_t n = 1;
  for (const int64_t d : tensor.spec.shape) n *= d;
  std::vector<float> out(static_cast<size_t>(n));
  source.read(tensor, 0, n, out.data());
  return out;
}

inline void add_sizes(GgufWriter& writer, const ModelConfig& c, int64_t more_layers) {
  const auto n_layers = static_cast<size_t>(c.n_layers + more_layers);
  const auto u32 = [&](const char* key, int64_t value) {
    writer.add_u32(std::string("gemma3n.") + key, static_cast<uint32_t>(value));
  };
  writer.add_text("general.architecture", "gemma3n");
  writer.add_u32("general.quantization_version", 2);
  u32("context_length", c.max_position_embeddings);
  u32("embedding_length", c.hidden_size);
  u32("block_count", c.n_layers + more_layers);
  std::vector<int32_t> widths(c.intermediate_size.begin(), c.intermediate_size.end());
  widths.resize(n_layers, widths.back());
  writer.add_i32s("gemma3n.feed_forward_length", widths);
  u32("attention.head_count", c.n_heads);
  u32("attention.head_count_kv", c.n_kv_heads);
  u32("attention.key_length", c.head_dim);
  u32("attention.value_length", c.head_dim);
  writer.add_f32("gemma3n.attention.layer_norm_rms_epsilon", c.rms_norm_eps);
  writer.add_f32("gemma3n.rope.freq_base", c.rope_theta_full);
  writer.add_f32("gemma3n.rope.freq_base_swa", c.rope_theta_sliding);
  u32("attention.sliding_window", c.sliding_window);
  writer.add_f32("gemma3n.final_logit_softcapping", c.final_logit_softcap);
  u32("altup.active_idx", c.altup_active_idx);
  u32("altup.num_inputs", c.altup_num_inputs);
  u32("embedding_length_per_layer_input", c.hidden_size_per_layer_input);
  // Published files hold this count as a float.
  writer.add_f32("gemma3n.attention.shared_kv_layers", static_cast<float>(c.n_kv_shared_layers));
  std::vector<bool> sliding;
  for (const LayerType type : c.layer_types) sliding.push_back(type == LayerType::sliding);
  sliding.resize(n_layers, true);
  writer.add_booleans("gemma3n.attention.sliding_window_pattern", sliding);
  std::vector<float> scales;  // the inverse normal CDF: -inf where nothing is cut
  for (const double s : c.activation_sparsity)
    scales.push_back(s > 0 ? activation_sparsity_scale(s) : -std::numeric_limits<float>::infinity());
  scales.resize(n_layers, -std::numeric_limits<float>::infinity());
  writer.add_f32s("gemma3n.activation_sparsity_scale", scales);
}

inline void add_tokenizer(GgufWriter& writer, const Vocabulary& vocabulary) {
  std::vector<std::string> texts;
  std::vector<float> scores;
  std::vector<int32_t> types;
  for (const Piece& piece : vocabulary.pieces) {
    const bool placeholder = is_gemma_placeholder(piece.text), spaced = piece.type == PieceType::user_defined;
    texts.push_back(piece.text);
    for (size_t at; spaced && (at = texts.back().find(kSpaceMark)) != std::string::npos;)
      texts.back().replace(at, kSpaceMark.size(), " ");
    scores.push_back(piece.type == PieceType::normal ? piece.score : -1000);
    types.push_back(
        static_cast<int32_t>(placeholder || piece.type == PieceType::unknown ? PieceType::control : piece.type));
  }
  writer.add_text("tokenizer.ggml.model", "llama");
  writer.add_text("tokenizer.ggml.pre", "default");
  writer.add_texts("tokenizer.ggml.tokens", texts);
  writer.add_f32s("tokenizer.ggml.scores", scores);
  writer.add_i32s("tokenizer.ggml.token_type", types);
  for (const auto& [key, id] : {std::pair{"bos", vocabulary.bos}, std::pair{"eos", vocabulary.eos},
                                std::pair{"unknown", vocabulary.unk}, std::pair{"padding", vocabulary.pad}})
    if (id) writer.add_u32(std::string("tokenizer.ggml.") + key + "_token_id", static_cast<uint32_t>(*id));
  writer.add_boolean("tokenizer.ggml.add_bos_token", vocabulary.add_bos);
  writer.add_boolean("tokenizer.ggml.add_space_prefix", false);
}

/// A GGUF tensor to be written: what it is made of, one tensor after the other.
struct Stored {
  GgufTensorSpec spec;
  std::vector<float> values;
};

/// Every tensor, in file order; the AltUp projections are stacked, and layers that share keys and values get zeros for
/// the projections a folder leaves out (llama.cpp's loader wants them).
inline std::vector<Stored> collect(const BaseModel& base, WeightFormat matrices) {
  const ModelConfig& c = base.config;
  std::vector<Stored> out;
  std::map<std::string, size_t> at;
  const auto add = [&](const std::string& canonical, const std::vector<int64_t>& shape, std::vector<float> values) {
    const std::string name = gguf_name(canonical);
    if (const auto found = at.find(name); found != at.end()) {
      Stored& stack = out[found->second];  // files list projections 0, 1, 2 in this order
      ++stack.spec.ne.back();
      stack.values.insert(stack.values.end(), values.begin(), values.end());
      return;
    }
    at[name] = out.size();
    GgufTensorSpec spec{name, format_of(name, shape, matrices), {shape.rbegin(), shape.rend()}};
    if (canonical.starts_with("altup_")) spec.ne.push_back(1);
    out.push_back({std::move(spec), std::move(values)});
  };
  for (const SourceTensor& tensor : base.weights->tensors())
    add(tensor.canonical, tensor.spec.shape, values_of(*base.weights, tensor));
  for (int64_t l = 0; l < c.n_layers; ++l)
    for (const auto& [module, shape] : {std::pair{"k_proj", std::vector{c.n_kv_heads * c.head_dim, c.hidden_size}},
                                        std::pair{"v_proj", std::vector{c.n_kv_heads * c.head_dim, c.hidden_size}},
                                        std::pair{"k_norm", std::vector{c.head_dim}}}) {
      const std::string name = "layers." + std::to_string(l) + ".self_attn." + module + ".weight";
      if (base.weights->has(name)) continue;
      add(name, shape, std::vector<float>(static_cast<size_t>(shape[0] * (shape.size() > 1 ? shape[1] : 1))));
    }
  return out;
}

}  // namespace gguf3n

/// `folder`: a Gemma 3n model whose text weights lie in one file. Its tokenizer goes along when it has one.
inline void write_gguf3n(const fs::path& folder, const fs::path& out, const Gguf3nOptions& options = {}) {
  const BaseModel base = open_base_model(folder);
  GgufWriter writer;
  gguf3n::add_sizes(writer, base.config, options.more_layers);
  if (has_tokenizer(folder)) gguf3n::add_tokenizer(writer, load_tokenizer_alone(folder).vocabulary());
  std::map<std::string, std::vector<float>> values;
  for (gguf3n::Stored& tensor : gguf3n::collect(base, options.matrices)) {
    if (options.edit && !options.edit(tensor.spec)) continue;
    int64_t n = 1;
    for (const int64_t d : tensor.spec.ne) n *= d;
    tensor.values.resize(static_cast<size_t>(n));
    values[tensor.spec.name] = std::move(tensor.values);
    writer.add_tensor(tensor.spec);
  }
  writer.write(out, [&](const GgufTensorSpec& spec, const ByteSink& sink) {
    sink(gguf3n::encode(spec.format, values.at(spec.name)));
  });
}

}  // namespace saaz
