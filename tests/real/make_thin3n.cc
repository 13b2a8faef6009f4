// For tests/real/run: a thin Gemma 3n folder of random weights with everything that llama.cpp takes for granted
// (gemma3n.md 8.2): 25 layers of which 20 own keys and values, the first 10 sparse, 4 AltUp streams, per-layer inputs
// of 256, LAuReL rank 64.
//   make_thin3n TOKENIZER_FOLDER OUT
#include <cmath>
#include <cstdio>
#include <random>

#include "base/error.h"
#include "base/value.h"
#include "checkpoint/safetensors.h"
#include "model/base_tokenizer.h"
#include "model/gguf_names.h"
#include "quant/weight.h"

namespace {

using namespace saaz;

ModelConfig thin_config(int64_t vocab_size) {
  ModelConfig c = default_config(Family::gemma3n);
  c.vocab_size = c.vocab_size_per_layer_input = vocab_size;
  c.hidden_size = 256;
  c.n_layers = 25;
  c.n_kv_shared_layers = 5;
  c.intermediate_size.assign(25, 512);
  c.n_heads = 4;
  c.n_kv_heads = 2;
  c.head_dim = 64;
  c.sliding_window = 16;
  c.max_position_embeddings = 1024;
  c.layer_types = periodic_layer_types(25, 5);
  c.activation_sparsity.assign(25, 0);
  std::fill_n(c.activation_sparsity.begin(), 10, 0.95);
  c.activation_sparsity_z.assign(25, 0);
  std::fill_n(c.activation_sparsity_z.begin(), 10, activation_sparsity_scale(0.95));
  return c;
}

std::vector<int64_t> shape_of(const ModelConfig& c, const std::string& name) {
  const int64_t d = c.hidden_size, ffn = c.intermediate_size[0], p = c.hidden_size_per_layer_input,
                n = c.altup_num_inputs;
  const struct {
    const char* part;
    std::vector<int64_t> shape;
  } shapes[] = {{"embed_tokens_per_layer", {c.vocab_size, c.n_layers * p}},
                {"embed_tokens", {c.vocab_size, d}},
                {"per_layer_model_projection", {c.n_layers * p, d}},
                {"per_layer_projection_norm", {p}},
                {"altup_projections", {d, d}},
                {"altup_unembed_projections", {d, d}},
                {"q_norm", {c.head_dim}},
                {"k_norm", {c.head_dim}},
                {"q_proj", {c.n_heads * c.head_dim, d}},
                {"k_proj", {c.n_kv_heads * c.head_dim, d}},
                {"v_proj", {c.n_kv_heads * c.head_dim, d}},
                {"o_proj", {d, c.n_heads * c.head_dim}},
                {"gate_proj", {ffn, d}},
                {"up_proj", {ffn, d}},
                {"down_proj", {d, ffn}},
                {"per_layer_input_gate", {p, d}},
                {"per_layer_projection", {d, p}},
                {"modality_router", {n, d}},
                {"prediction_coefs", {n * n, n}},
                {"correction_coefs", {n, n}},
                {"linear_left", {c.laurel_rank, d}},
                {"linear_right", {d, c.laurel_rank}}};
  for (const auto& [part, shape] : shapes)
    if (name.find(part) != std::string::npos) return shape;
  return {d};  // norms and the output scale
}

bool is_absent(const ModelConfig& c, int64_t layer, const std::string& name) {
  const bool is_kv =
      name.find("k_proj") != name.npos || name.find("v_proj") != name.npos || name.find("k_norm") != name.npos;
  return is_kv && c.shares_kv(layer);
}

void write_model(const fs::path& tokenizer, const fs::path& out) {
  const ModelConfig c = thin_config(static_cast<int64_t>(load_tokenizer_alone(tokenizer).size()));
  fs::create_directories(out);
  std::vector<TensorSpec> specs;
  for (const GgufPlace& place : gguf_places(c)) {
    int layer = -1;
    std::sscanf(place.canonical.c_str(), "layers.%d.", &layer);
    if (layer >= 0 && is_absent(c, layer, place.canonical)) continue;
    specs.push_back({"model." + place.canonical, StoredDType::bf16, shape_of(c, place.canonical)});
  }
  std::mt19937 draw(3407);
  std::normal_distribution<float> normal;
  write_safetensors(out / "model.safetensors", specs, {}, [&](const TensorSpec& spec, const ByteSink& sink) {
    const bool is_gain = spec.shape.size() == 1;
    const float scale = is_gain ? 0.1f : 1 / std::sqrt(static_cast<float>(spec.shape[1]));
    // Each layer adds little: llama.cpp's half-precision gelu must not grow into another answer over 25 random layers.
    const float gain = spec.name.find("post_") != std::string::npos ? 0.4f : 1.0f;
    std::vector<uint16_t> values(spec.bytes() / 2);
    for (uint16_t& v : values) v = f32_to_bf16(is_gain ? gain * (1 + scale * normal(draw)) : scale * normal(draw));
    sink(std::as_bytes(std::span(values)));
  });
  write_file_atomically(out / "config.json", to_json(to_config_json(c), 2));
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
    copy_file_atomically(tokenizer / name, out / name);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    write_model(argv[1], argv[2]);
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
