// Gemma 3, text: one residual stream, norms around attention and MLP, sliding and full layers. Source: transformers'
// Gemma3TextModel, checked by tests/golden.
#include <cmath>

#include "model/model.h"

namespace saaz {

namespace {

struct LayerWeights {
  Norm input_norm, post_attention_norm, pre_ffn_norm, post_ffn_norm, q_norm, k_norm;
  Linear q_proj, k_proj, v_proj, o_proj;
  Linear gate_proj, up_proj, down_proj;
};

class Gemma3 final : public Model {
 public:
  Gemma3(Backend& backend, const BaseModel& base, const LoadOptions& options)
      : Model(backend, base.config, *base.weights, options) {
    const ModelConfig& c = config_;
    norm_offset_ = 1;
    embed_tokens_ = load_table("embed_tokens.weight", c.vocab_size, c.hidden_size,
                               c.tie_word_embeddings ? Backend::Placement::products : Backend::Placement::rows);
    layers_.resize(static_cast<size_t>(c.n_layers));
    for (int64_t l = 0; l < c.n_layers; ++l) load_layer(l);
    final_norm_ = load_norm("norm", c.hidden_size);
    load_head(embed_tokens_);
  }

  void segment(Ctx& ctx, int index, State& s, const Batch& batch, KvCache* cache) const override {
    if (index == 0) {
      const auto root = static_cast<float>(std::sqrt(static_cast<double>(config_.hidden_size)));
      s[State::streams] = embed(ctx, batch.ids, embed_tokens_, 0, config_.hidden_size, root);
      return;
    }
    const int64_t l = index - 1;
    const LayerWeights& w = layers_[static_cast<size_t>(l)];
    const Tensor& h = s[State::streams];
    const Tensor attn = attend(ctx, l, rms_norm(ctx, h, w.input_norm, 0), s, batch, cache);
    const Tensor mixed = add(ctx, h, rms_norm(ctx, attn, w.post_attention_norm, 0), 1);
    const Tensor x = rms_norm(ctx, mixed, w.pre_ffn_norm, 0);
    const Tensor ffn = gated_mlp(ctx, x, w.gate_proj, w.up_proj, w.down_proj, 0);
    s[State::streams] = add(ctx, mixed, rms_norm(ctx, ffn, w.post_ffn_norm, 0), 1);
  }

  Tensor output(Ctx& ctx, const State& s) const override { return rms_norm(ctx, s[State::streams], final_norm_, 0); }

 private:
  void load_layer(int64_t l) {
    const ModelConfig& c = config_;
    LayerWeights& w = layers_[static_cast<size_t>(l)];
    const std::string at = "layers." + std::to_string(l) + ".";
    const int64_t d = c.hidden_size, ffn = c.intermediate_size[static_cast<size_t>(l)];
    const int64_t q_dim = c.n_heads * c.head_dim, kv_dim = c.n_kv_heads * c.head_dim;
    w.q_proj = load_linear(at + "self_attn.q_proj", q_dim, d, Quantise::by_scheme);
    w.k_proj = load_linear(at + "self_attn.k_proj", kv_dim, d, Quantise::by_scheme);
    w.v_proj = load_linear(at + "self_attn.v_proj", kv_dim, d, Quantise::by_scheme);
    w.o_proj = load_linear(at + "self_attn.o_proj", d, q_dim, Quantise::by_scheme);
    w.q_norm = load_norm(at + "self_attn.q_norm", c.head_dim);
    w.k_norm = load_norm(at + "self_attn.k_norm", c.head_dim);
    w.gate_proj = load_linear(at + "mlp.gate_proj", ffn, d, Quantise::by_scheme);
    w.up_proj = load_linear(at + "mlp.up_proj", ffn, d, Quantise::by_scheme);
    w.down_proj = load_linear(at + "mlp.down_proj", d, ffn, Quantise::by_scheme);
    w.input_norm = load_norm(at + "input_layernorm", d);
    w.post_attention_norm = load_norm(at + "post_attention_layernorm", d);
    w.pre_ffn_norm = load_norm(at + "pre_feedforward_layernorm", d);
    w.post_ffn_norm = load_norm(at + "post_feedforward_layernorm", d);
    for (Linear* linear : {&w.q_proj, &w.k_proj, &w.v_proj, &w.o_proj, &w.gate_proj, &w.up_proj, &w.down_proj})
      register_linear(*linear);
  }

  Tensor attend(Ctx& ctx, int64_t l, const Tensor& x, State& s, const Batch& batch, KvCache* cache) const {
    const ModelConfig& c = config_;
    const LayerWeights& w = layers_[static_cast<size_t>(l)];
    const LayerType type = c.layer_types[static_cast<size_t>(l)];
    const Tensor& table = rope_table(type);
    const Tensor q =
        rope(ctx, rms_norm(ctx, linear(ctx, x, w.q_proj), w.q_norm, c.head_dim), batch.positions, table, c.n_heads);
    const Tensor k =
        rope(ctx, rms_norm(ctx, linear(ctx, x, w.k_proj), w.k_norm, c.head_dim), batch.positions, table, c.n_kv_heads);
    const KeysValues kv = publish_kv(ctx, l, s, batch, cache, {k, linear(ctx, x, w.v_proj)});
    return linear(ctx, attention(ctx, q, kv.k, kv.v, batch.spans[static_cast<size_t>(type)], attention_shape(l)),
                  w.o_proj);
  }

  Weight embed_tokens_;
  std::vector<LayerWeights> layers_;
  Norm final_norm_;
};

}  // namespace

std::unique_ptr<Model> make_gemma3(Backend& backend, const BaseModel& base, const LoadOptions& options) {
  return std::make_unique<Gemma3>(backend, base, options);
}

}  // namespace saaz
