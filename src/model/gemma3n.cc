// Gemma 3n, text: AltUp streams, LAuReL, per-layer embeddings, activation sparsity, shared keys and values. One decoder
// layer serves training, evaluation and generation. Source: transformers' Gemma3nTextModel, checked by tests/golden.
#include <algorithm>
#include <cmath>

#include "backend/step.h"
#include "model/model.h"

namespace saaz {

namespace {

struct AltUpWeights {
  Linear correction_coefs, prediction_coefs, modality_router;
  Norm router_norm;
  Tensor correct_output_scale;
};
struct LayerWeights {
  Norm input_norm, post_attention_norm, pre_ffn_norm, post_ffn_norm, post_per_layer_input_norm;
  Norm q_norm, k_norm, v_norm, post_laurel_norm;
  Linear q_proj, k_proj, v_proj, o_proj;
  Linear gate_proj, up_proj, down_proj;
  AltUpWeights altup;
  Linear laurel_left, laurel_right;
  Linear per_layer_input_gate, per_layer_projection;
};

class Gemma3n final : public Model {
 public:
  Gemma3n(Backend& backend, const BaseModel& base, const LoadOptions& options)
      : Model(backend, base.config, *base.weights, options) {
    const ModelConfig& c = config_;
    embed_tokens_ = load_table("embed_tokens.weight", c.vocab_size, c.hidden_size,
                               c.tie_word_embeddings ? Backend::Placement::products : Backend::Placement::rows);
    embed_per_layer_ = load_table("embed_tokens_per_layer.weight", c.vocab_size_per_layer_input,
                                  c.n_layers * c.hidden_size_per_layer_input, Backend::Placement::rows);
    layers_.resize(static_cast<size_t>(c.n_layers));
    for (int64_t l = 0; l < c.n_layers; ++l) load_layer(l);
    final_norm_ = load_norm("norm", c.hidden_size);
    per_layer_model_projection_ = load_linear("per_layer_model_projection", c.n_layers * c.hidden_size_per_layer_input,
                                              c.hidden_size, Quantise::no);
    register_linear(per_layer_model_projection_);
    per_layer_projection_norm_ = load_norm("per_layer_projection_norm", c.hidden_size_per_layer_input);
    altup_projections_ = load_stack("altup_projections");
    altup_unembed_projections_ = load_stack("altup_unembed_projections");
    for (Linear& linear : altup_projections_) register_linear(linear);
    for (Linear& linear : altup_unembed_projections_) register_linear(linear);
    load_head(embed_tokens_);
  }

  void segment(Ctx& ctx, int index, State& s, const Batch& batch, KvCache* cache) const override {
    if (index == 0) return embed_batch(ctx, s, batch);
    layer(ctx, index - 1, s, batch, cache);
  }

  bool takes_steps() const override {
    const ModelConfig& c = config_;
    const auto is_small = [](const Linear& linear) {
      return linear.weight.format == WeightFormat::f32 || linear.weight.format == WeightFormat::bf16;
    };
    constexpr int64_t kMostStreams = 4, kWidest = 4096, kWidestOdd = 1024;
    if (c.altup_num_inputs > kMostStreams || c.hidden_size > (c.hidden_size % 4 == 0 ? kWidest : kWidestOdd) ||
        !StepKernels::takes_attention(attention_shape(0)) || embed_tokens_.format == WeightFormat::nf4 ||
        embed_per_layer_.format == WeightFormat::nf4)
      return false;
    for (const LayerWeights& w : layers_)
      if (!is_small(w.altup.modality_router)) return false;
    return std::all_of(linears().begin(), linears().end(), [](const Linear* l) { return l->lora == nullptr; });
  }
  void queue_step(Ctx& ctx, StepKernels& kernels, const KvCache& cache, const Tensor& logits,
                  LogitsWanted wanted) const override;

  Tensor output(Ctx& ctx, const State& s) const override {
    const Tensor& streams = s[State::streams];
    const Tensor first = slice(ctx, streams, 0);
    std::vector<Tensor> all = {first};
    for (size_t j = 0; j < altup_unembed_projections_.size(); ++j) {
      const Tensor projected =
          linear(ctx, slice(ctx, streams, static_cast<int64_t>(j) + 1), altup_unembed_projections_[j]);
      all.push_back(match_magnitude(ctx, projected, first));
    }
    return rms_norm(ctx, mean_of_streams(ctx, stack(ctx, all)), final_norm_, 0);
  }

 private:
  std::vector<Linear> load_stack(const std::string& module) {
    std::vector<Linear> out;
    for (int64_t j = 0; j + 1 < config_.altup_num_inputs; ++j)
      out.push_back(
          load_linear(module + "." + std::to_string(j), config_.hidden_size, config_.hidden_size, Quantise::no));
    return out;
  }

  void load_layer(int64_t l) {
    const ModelConfig& c = config_;
    LayerWeights& w = layers_[static_cast<size_t>(l)];
    const std::string at = "layers." + std::to_string(l) + ".";
    const int64_t d = c.hidden_size, ffn = c.intermediate_size[static_cast<size_t>(l)],
                  p = c.hidden_size_per_layer_input;
    const int64_t q_dim = c.n_heads * c.head_dim, kv_dim = c.n_kv_heads * c.head_dim, n = c.altup_num_inputs;
    w.q_proj = load_linear(at + "self_attn.q_proj", q_dim, d, Quantise::by_scheme);
    w.q_norm = load_norm(at + "self_attn.q_norm", c.head_dim);
    w.v_norm = {{}, static_cast<float>(c.rms_norm_eps)};
    if (!c.shares_kv(l)) {
      w.k_proj = load_linear(at + "self_attn.k_proj", kv_dim, d, Quantise::by_scheme);
      w.v_proj = load_linear(at + "self_attn.v_proj", kv_dim, d, Quantise::by_scheme);
      w.k_norm = load_norm(at + "self_attn.k_norm", c.head_dim);
    }
    w.o_proj = load_linear(at + "self_attn.o_proj", d, q_dim, Quantise::by_scheme);
    w.gate_proj = load_linear(at + "mlp.gate_proj", ffn, d, Quantise::by_scheme);
    w.up_proj = load_linear(at + "mlp.up_proj", ffn, d, Quantise::by_scheme);
    w.down_proj = load_linear(at + "mlp.down_proj", d, ffn, Quantise::by_scheme);
    w.input_norm = load_norm(at + "input_layernorm", d);
    w.post_attention_norm = load_norm(at + "post_attention_layernorm", d);
    w.pre_ffn_norm = load_norm(at + "pre_feedforward_layernorm", d);
    w.post_ffn_norm = load_norm(at + "post_feedforward_layernorm", d);
    const auto clip = static_cast<float>(c.altup_coef_clip);
    w.altup.correction_coefs = load_clamped_linear(at + "altup.correction_coefs", n, n, clip);
    w.altup.prediction_coefs = load_clamped_linear(at + "altup.prediction_coefs", n * n, n, clip);
    w.altup.modality_router = load_linear(at + "altup.modality_router", n, d, Quantise::no);
    w.altup.router_norm = load_norm(at + "altup.router_norm", d, 1.0f / static_cast<float>(d));
    w.altup.correct_output_scale = load_vector(at + "altup.correct_output_scale", d);
    w.laurel_left = load_linear(at + "laurel.linear_left", c.laurel_rank, d, Quantise::no);
    w.laurel_right = load_linear(at + "laurel.linear_right", d, c.laurel_rank, Quantise::no);
    w.post_laurel_norm = load_norm(at + "laurel.post_laurel_norm", d);
    w.per_layer_input_gate = load_linear(at + "per_layer_input_gate", p, d, Quantise::no);
    w.per_layer_projection = load_linear(at + "per_layer_projection", d, p, Quantise::no);
    w.post_per_layer_input_norm = load_norm(at + "post_per_layer_input_norm", d);
    register_linear(w.q_proj);
    if (!c.shares_kv(l)) register_linear(w.k_proj), register_linear(w.v_proj);
    for (Linear* linear :
         {&w.o_proj, &w.gate_proj, &w.up_proj, &w.down_proj, &w.altup.correction_coefs, &w.altup.prediction_coefs,
          &w.altup.modality_router, &w.laurel_left, &w.laurel_right, &w.per_layer_input_gate, &w.per_layer_projection})
      register_linear(*linear);
  }

  void embed_batch(Ctx& ctx, State& s, const Batch& batch) const {
    const ModelConfig& c = config_;
    const auto root = static_cast<float>(std::sqrt(static_cast<double>(c.hidden_size)));
    const Tensor e = embed(ctx, batch.ids, embed_tokens_, 0, c.hidden_size, root);
    s[State::per_layer_inputs] = per_layer_inputs(ctx, e, batch);
    std::vector<Tensor> streams = {e};
    for (const Linear& projection : altup_projections_)
      streams.push_back(match_magnitude(ctx, linear(ctx, e, projection), e));
    s[State::streams] = stack(ctx, streams);
  }

  /// [L, T, P]: the normed projection of the embedding plus each layer's own embedding of the token.
  Tensor per_layer_inputs(Ctx& ctx, const Tensor& e, const Batch& batch) const {
    const ModelConfig& c = config_;
    const int64_t p = c.hidden_size_per_layer_input;
    std::vector<int32_t> ids = batch.ids;  // ids beyond the per-layer table (soft tokens) use row 0
    for (int32_t& id : ids)
      if (id >= c.vocab_size_per_layer_input) id = 0;
    const auto rho = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.hidden_size)));
    const auto root = static_cast<float>(std::sqrt(static_cast<double>(p)));
    const Tensor projected = scale(ctx, linear(ctx, e, per_layer_model_projection_), rho);
    const Tensor normed = rms_norm(ctx, projected, per_layer_projection_norm_, p);
    const Tensor embedded = embed(ctx, ids, embed_per_layer_, 0, c.n_layers * p, root);
    return split_columns(ctx, add(ctx, normed, embedded, kInvSqrt2), c.n_layers);
  }

  void layer(Ctx& ctx, int64_t l, State& s, const Batch& batch, KvCache* cache) const {
    const LayerWeights& w = layers_[static_cast<size_t>(l)];
    const auto active_idx = static_cast<int>(config_.altup_active_idx);
    const Tensor& streams = s[State::streams];
    const Tensor coefs = linear(ctx, route(ctx, slice(ctx, streams, active_idx), w.altup), w.altup.prediction_coefs);
    const Tensor predicted = altup_predict(ctx, streams, coefs);  // [N, T, D]
    const Tensor active = slice(ctx, predicted, active_idx);      // [T, D]
    const Tensor x = rms_norm(ctx, active, w.input_norm, 0);
    const Tensor attended = add_rms_norm(ctx, active, attend(ctx, l, x, s, batch, cache), w.post_attention_norm);
    const Tensor mixed = add(ctx, attended, laurel(ctx, x, w), kInvSqrt2);
    const Tensor ffn = mlp(ctx, l, rms_norm(ctx, mixed, w.pre_ffn_norm, 0));
    const Tensor out = add_rms_norm(ctx, mixed, ffn, w.post_ffn_norm);
    const Tensor gains = linear(ctx, route(ctx, out, w.altup), w.altup.correction_coefs);
    const Tensor corrected = altup_correct(ctx, predicted, out, gains, active_idx);
    s[State::streams] =
        add_to_inactive(ctx, corrected, per_layer_update(ctx, l, corrected, s[State::per_layer_inputs]));
  }

  /// tanh(W_r (RMS(x) / D)), [T, N]; the norm's weight holds 1 / D.
  Tensor route(Ctx& ctx, const Tensor& x, const AltUpWeights& w) const {
    return tanh(ctx, linear(ctx, rms_norm(ctx, x, w.router_norm, 0), w.modality_router));
  }

  Tensor laurel(Ctx& ctx, const Tensor& x, const LayerWeights& w) const {
    const Tensor low_rank = linear(ctx, linear(ctx, x, w.laurel_left), w.laurel_right);
    return add_rms_norm(ctx, x, low_rank, w.post_laurel_norm);
  }

  Tensor attend(Ctx& ctx, int64_t l, const Tensor& x, State& s, const Batch& batch, KvCache* cache) const {
    const ModelConfig& c = config_;
    const LayerWeights& w = layers_[static_cast<size_t>(l)];
    const LayerType type = c.layer_types[static_cast<size_t>(l)];
    const Tensor& table = rope_table(type);
    const Tensor q =
        rope(ctx, rms_norm(ctx, linear(ctx, x, w.q_proj), w.q_norm, c.head_dim), batch.positions, table, c.n_heads);
    KeysValues kv;
    if (c.shares_kv(l)) {
      kv = borrowed_kv(l, s, cache);
    } else {
      const Tensor k = rope(ctx, rms_norm(ctx, linear(ctx, x, w.k_proj), w.k_norm, c.head_dim), batch.positions, table,
                            c.n_kv_heads);
      const Tensor v = rms_norm(ctx, linear(ctx, x, w.v_proj), w.v_norm, c.head_dim);
      kv = publish_kv(ctx, l, s, batch, cache, {k, v});
    }
    return linear(ctx, attention(ctx, q, kv.k, kv.v, batch.spans[static_cast<size_t>(type)], attention_shape(l)),
                  w.o_proj);
  }

  Tensor mlp(Ctx& ctx, int64_t l, const Tensor& x) const {
    const LayerWeights& w = layers_[static_cast<size_t>(l)];
    return gated_mlp(ctx, x, w.gate_proj, w.up_proj, w.down_proj,
                     config_.activation_sparsity_z[static_cast<size_t>(l)]);
  }

  Tensor per_layer_update(Ctx& ctx, int64_t l, const Tensor& corrected, const Tensor& per_layer_inputs) const {
    const LayerWeights& w = layers_[static_cast<size_t>(l)];
    const Tensor scaled =
        scale_columns(ctx, slice(ctx, corrected, config_.altup_active_idx), w.altup.correct_output_scale);
    const Tensor gated = geglu(ctx, linear(ctx, scaled, w.per_layer_input_gate), slice(ctx, per_layer_inputs, l), 0);
    return rms_norm(ctx, linear(ctx, gated, w.per_layer_projection), w.post_per_layer_input_norm, 0);
  }

  /// What one layer of a step leaves for the next kernels; the same memory for all layers.
  struct StepTensors;
  StepKernels::Router router(const LayerWeights& w, const Linear& coefs) const {
    return {w.altup.router_norm.weight, w.altup.modality_router.weight, coefs.weight};
  }
  void start_step(Ctx& ctx, StepKernels& kernels, const StepTensors& t) const;
  StepKernels::AltUpOpen step_open(int64_t l, const StepTensors& t) const;
  void step_layer(StepKernels& kernels, int64_t l, const KvCache& cache, const StepTensors& t) const;

  static constexpr float kInvSqrt2 = 0.70710678118654752f;

  Weight embed_tokens_, embed_per_layer_;
  std::vector<LayerWeights> layers_;
  Norm final_norm_, per_layer_projection_norm_;
  Linear per_layer_model_projection_;
  std::vector<Linear> altup_projections_, altup_unembed_projections_;
};

// A step: `layer` once more, in the backend's step kernels.

struct Gemma3n::StepTensors {
  Tensor streams, per_layer;  // [N, T, D], [L, T, P]
  Tensor predicted, x, q, k, v, low_rank, attention, attended, laurel, mixed, y;
  Tensor gate, up, hidden, ffn, scaled, gated, update;

  StepTensors(Ctx& ctx, const ModelConfig& c, int64_t n) {
    const int64_t d = c.hidden_size, kv_dim = c.n_kv_heads * c.head_dim, q_dim = c.n_heads * c.head_dim;
    const int64_t ffn_dim = *std::max_element(c.intermediate_size.begin(), c.intermediate_size.end());
    streams = ctx.empty({c.altup_num_inputs, n, d}), predicted = ctx.empty({c.altup_num_inputs, n, d});
    per_layer = ctx.empty({c.n_layers, n, c.hidden_size_per_layer_input});
    q = ctx.empty({n, q_dim}), attention = ctx.empty({n, q_dim});
    k = ctx.empty({n, kv_dim}), v = ctx.empty({n, kv_dim});
    low_rank = ctx.empty({n, c.laurel_rank});
    gated = ctx.empty({n, c.hidden_size_per_layer_input});
    for (Tensor* t : {&x, &attended, &laurel, &mixed, &y, &ffn, &scaled, &update}) *t = ctx.empty({n, d});
    for (Tensor* t : {&gate, &up, &hidden}) *t = ctx.empty({n, ffn_dim});
  }
  int64_t n() const { return x.dim(0); }
  Tensor stream(const Tensor& of, int64_t j) const { return row_slice(of, j * n(), n()); }
  /// The first `width` columns' memory of a tensor made for the widest layer.
  Tensor narrowed(const Tensor& t, int64_t width) const { return Tensor(t.data, t.dtype, {n(), width}); }
};

void Gemma3n::start_step(Ctx& ctx, StepKernels& kernels, const StepTensors& t) const {
  const ModelConfig& c = config_;
  const int64_t n = t.n(), d = c.hidden_size, p = c.hidden_size_per_layer_input, width = c.n_layers * p;
  ArenaScope scope(ctx.arena);
  const Tensor projected = ctx.empty({c.altup_num_inputs - 1, n, d}), wide = ctx.empty({n, width}),
               embedded = ctx.empty({n, width});
  kernels.embed(embedded, embed_per_layer_, static_cast<float>(std::sqrt(static_cast<double>(p))));
  kernels.embed(t.x, embed_tokens_, static_cast<float>(std::sqrt(static_cast<double>(d))));
  std::vector<StepKernels::Product> products = {{wide, t.x, per_layer_model_projection_.weight}};
  for (size_t j = 0; j < altup_projections_.size(); ++j)
    products.push_back({t.stream(projected, static_cast<int64_t>(j)), t.x, altup_projections_[j].weight});
  kernels.products(products);
  kernels.altup_start(t.streams, t.x, projected);
  kernels.per_layer_inputs({t.per_layer, wide, embedded, per_layer_projection_norm_.weight,
                            per_layer_projection_norm_.eps, static_cast<float>(1.0 / std::sqrt(static_cast<double>(d))),
                            kInvSqrt2});
}

/// What layer l begins with, after what the one before has for the inactive streams. After the last: that alone.
StepKernels::AltUpOpen Gemma3n::step_open(int64_t l, const StepTensors& t) const {
  StepKernels::AltUpOpen open{.streams = t.streams,
                              .active = static_cast<int>(config_.altup_active_idx),
                              .eps = static_cast<float>(config_.rms_norm_eps)};
  if (l > 0)
    open.update = t.update, open.update_norm = layers_[static_cast<size_t>(l - 1)].post_per_layer_input_norm.weight;
  if (l == config_.n_layers) {
    open.updated = t.streams;
    return open;
  }
  const LayerWeights& w = layers_[static_cast<size_t>(l)];
  open.predicted = t.predicted, open.x = t.x, open.input_norm = w.input_norm.weight;
  open.router = router(w, w.altup.prediction_coefs);
  return open;
}

void Gemma3n::step_layer(StepKernels& kernels, int64_t l, const KvCache& cache, const StepTensors& t) const {
  using Product = StepKernels::Product;
  const ModelConfig& c = config_;
  const auto layer = static_cast<size_t>(l);
  const LayerWeights& w = layers_[layer];
  const auto active = static_cast<int>(c.altup_active_idx);
  const auto eps = static_cast<float>(c.rms_norm_eps);
  const bool owns = !c.shares_kv(l);
  std::vector<Product> products = {{t.q, t.x, w.q_proj.weight}, {t.low_rank, t.x, w.laurel_left.weight}};
  if (owns) products.push_back({t.k, t.x, w.k_proj.weight}), products.push_back({t.v, t.x, w.v_proj.weight});
  kernels.products(products);
  const int64_t producer = c.kv_producer(l);
  const LayerType type = c.layer_types[layer];
  kernels.attention({t.attention, t.q, owns ? t.k : Tensor{}, owns ? t.v : Tensor{}, cache.k(producer),
                     cache.v(producer), w.q_norm.weight, owns ? w.k_norm.weight : Tensor{}, rope_table(type), eps,
                     static_cast<int>(type), cache.max_length(), attention_shape(l)});
  const int64_t ffn = c.intermediate_size[layer];
  const Tensor hidden = t.narrowed(t.hidden, ffn);
  kernels.feed_forward({{t.attended, t.attention, w.o_proj.weight},
                        {t.laurel, t.low_rank, w.laurel_right.weight},
                        {t.mixed, t.y, t.stream(t.predicted, active), t.attended, t.x, t.laurel,
                         w.post_attention_norm.weight, w.post_laurel_norm.weight, w.pre_ffn_norm.weight, eps},
                        {hidden, t.y, t.narrowed(t.gate, ffn), t.narrowed(t.up, ffn), w.gate_proj.weight,
                         w.up_proj.weight, c.activation_sparsity_z[layer]},
                        {t.ffn, hidden, w.down_proj.weight}});
  kernels.turn({{t.streams, t.scaled, t.mixed, t.ffn, t.predicted, w.post_ffn_norm.weight, w.altup.correct_output_scale,
                 router(w, w.altup.correction_coefs), active, eps},
                {t.gated,
                 t.scaled,
                 t.narrowed(t.gate, c.hidden_size_per_layer_input),
                 t.stream(t.per_layer, l),
                 w.per_layer_input_gate.weight,
                 {},
                 0},
                {t.update, t.gated, w.per_layer_projection.weight},
                step_open(l + 1, t)});
}

void Gemma3n::queue_step(Ctx& ctx, StepKernels& kernels, const KvCache& cache, const Tensor& logits,
                         LogitsWanted wanted) const {
  const ModelConfig& c = config_;
  const int64_t n = logits.dim(0);
  const StepTensors t(ctx, c, n);
  start_step(ctx, kernels, t);
  kernels.altup_open(step_open(0, t));
  for (int64_t l = 0; l < c.n_layers; ++l) {
    step_layer(kernels, l, cache, t);
    if (l == 0) kernels.cut();
  }
  const auto eps = static_cast<float>(c.rms_norm_eps);
  // `predicted` is free: the projections of the streams but the first.
  std::vector<StepKernels::Product> products;
  for (size_t j = 0; j < altup_unembed_projections_.size(); ++j) {
    const auto stream = static_cast<int64_t>(j);
    products.push_back(
        {t.stream(t.predicted, stream), t.stream(t.streams, stream + 1), altup_unembed_projections_[j].weight});
  }
  kernels.products(products);
  const Tensor projected(t.predicted.data, t.predicted.dtype, {c.altup_num_inputs - 1, n, c.hidden_size});
  kernels.altup_finish(t.y, t.streams, projected, final_norm_.weight, eps);
  kernels.head({logits, t.y, this->head().weight, this->head().softcap}, wanted);
}

}  // namespace

std::unique_ptr<Model> make_gemma3n(Backend& backend, const BaseModel& base, const LoadOptions& options) {
  return std::make_unique<Gemma3n>(backend, base, options);
}

}  // namespace saaz
