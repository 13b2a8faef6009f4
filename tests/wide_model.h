// A Gemma 3n of 8 layers with random bf16 weights, as wide as rounding's averages need: its per-layer inputs are as
// wide as E4B's, its gates a row of thousands. In the goldens, where both are tiny, some token's gated row is nearly
// zero as a whole, and its norm makes any rounding there large.
#pragma once

#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "model/weight_source.h"

namespace saaz {

class WideSource final : public WeightSource {
 public:
  explicit WideSource(int64_t head_dim) : head_dim_(head_dim) {}
  std::string path() const override { return "a wide random model"; }
  bool has(const std::string&) const override { return true; }
  Weight matrix(const std::string& name, int64_t n_out, int64_t n_in) const override {
    const float deviation = name.starts_with("embed") ? 0.3f : 1 / std::sqrt(static_cast<float>(n_in));
    std::vector<uint16_t>& values = matrices_[name];
    if (values.empty())
      for (const float x : drawn(name, n_out * n_in)) values.push_back(f32_to_bf16(deviation * x));
    return {.format = WeightFormat::bf16, .n_out = n_out, .n_in = n_in, .data = values.data()};
  }
  std::vector<float> vector(const std::string& name, int64_t n) const override {
    // Scores are not scaled down by the model: a trained query norm does it.
    const float mean = name.find("q_norm") != std::string::npos         ? 1 / std::sqrt(static_cast<float>(head_dim_))
                       : name.find("output_scale") != std::string::npos ? 0.5f
                                                                        : 1.0f;
    std::vector<float> out = drawn(name, n);
    for (float& x : out) x = mean * (1 + 0.2f * x);
    return out;
  }
  std::string module_prefix() const override { return "model."; }
  DType base_dtype() const override { return DType::bf16; }
  std::vector<SourceTensor> tensors() const override { return {}; }
  void read(const SourceTensor&, int64_t, int64_t, float*) const override {}
  Bytes raw(const SourceTensor&) const override { return {}; }

 private:
  /// Sums of twelve uniform values, of a seed that the name gives.
  static std::vector<float> drawn(const std::string& name, int64_t n) {
    std::seed_seq seed(name.begin(), name.end());
    std::mt19937_64 draw(seed);
    std::vector<float> out(static_cast<size_t>(n));
    for (float& x : out) {
      uint64_t sum = 0;
      for (int word = 0; word < 3; ++word)
        for (uint64_t bits = draw(), part = 0; part < 4; ++part, bits >>= 16) sum += bits & 0xffff;
      x = static_cast<float>(sum) * 0x1p-16f - 6;
    }
    return out;
  }

  int64_t head_dim_;
  mutable std::map<std::string, std::vector<uint16_t>> matrices_;
};

inline BaseModel wide_model() {
  constexpr int64_t kLayers = 8, kSparseLayers = 2;
  BaseModel base;
  base.path = "a wide random model";
  ModelConfig& c = base.config = default_config(Family::gemma3n);
  c.vocab_size = c.vocab_size_per_layer_input = 320;
  c.hidden_size = 256, c.hidden_size_per_layer_input = 256;
  c.n_layers = kLayers, c.n_kv_shared_layers = 4;
  c.intermediate_size.assign(kLayers, 2048);
  c.n_heads = 4, c.n_kv_heads = 2, c.head_dim = 64, c.sliding_window = 8;
  c.max_position_embeddings = 256;
  c.layer_types = periodic_layer_types(kLayers, 4);
  c.laurel_rank = 16;
  c.activation_sparsity.assign(kLayers, 0);
  c.activation_sparsity_z.assign(kLayers, 0);
  for (size_t l = 0; l < kSparseLayers; ++l) {
    c.activation_sparsity[l] = 0.95;
    c.activation_sparsity_z[l] = activation_sparsity_scale(0.95);
  }
  validate(c, "a wide random model");
  base.weights = std::make_unique<WideSource>(c.head_dim);
  return base;
}

}  // namespace saaz
