// Binding of weights, rope tables and the key/value flow that both families share.
#include "model/model.h"

#include <algorithm>
#include <cmath>

#include "backend/plan.h"
#include "base/check.h"
#include "base/stop.h"

namespace saaz {

namespace {

/// cos in the first half of each row, sin in the second; angles in f32 as Hugging Face computes them.
std::vector<float> rope_values(int64_t n_positions, int64_t head_dim, double theta, double scaling_factor) {
  const int64_t half = head_dim / 2;
  std::vector<float> inv_freq(static_cast<size_t>(half));
  for (int64_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    inv_freq[static_cast<size_t>(i)] =
        1.0f / static_cast<float>(std::pow(theta, static_cast<double>(exponent))) / static_cast<float>(scaling_factor);
  }
  std::vector<float> table(static_cast<size_t>(n_positions * head_dim));
  for (int64_t p = 0; p < n_positions; ++p)
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(p) * inv_freq[static_cast<size_t>(i)];
      table[static_cast<size_t>(p * head_dim + i)] = static_cast<float>(std::cos(static_cast<double>(angle)));
      table[static_cast<size_t>(p * head_dim + half + i)] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  return table;
}

}  // namespace

Model::Model(Backend& backend, const ModelConfig& config, const WeightSource& source, const LoadOptions& options)
    : config_(config), module_prefix_(source.module_prefix()), backend_(backend), source_(source), options_(options) {
  const int64_t n = options.max_positions > 0 ? std::min(options.max_positions, config.max_position_embeddings)
                                              : config.max_position_embeddings;
  rope_full_ = upload(rope_values(n, config.head_dim, config.rope_theta_full, config.rope_scaling_factor_full),
                      {n, config.head_dim}, "rope tables");
  rope_sliding_ =
      upload(rope_values(n, config.head_dim, config.rope_theta_sliding, 1), {n, config.head_dim}, "rope tables");
}

Tensor Model::upload(const std::vector<float>& values, std::initializer_list<int64_t> dims, const char* what) {
  Tensor t(nullptr, DType::f32, dims);
  t.data = backend_.allocate(t.bytes(), what);
  owned_.emplace_back(t.data, Release{&backend_});
  backend_.upload(t, values.data());
  return t;
}

Weight Model::by_scheme(const Weight& w) {
  if (options_.scheme == QuantScheme::none) return w;
  const WeightFormat format = options_.scheme == QuantScheme::nf4 ? WeightFormat::nf4 : WeightFormat::int8;
  if (w.format == format) return w;
  if (backend_.is_plan()) {
    // Scales that stand for the kind they would be of.
    const bool plain = format == WeightFormat::nf4 && !options_.double_quant;
    return {.format = format,
            .n_out = w.n_out,
            .n_in = w.n_in,
            .data = w.data,
            .absmax = plain ? static_cast<const float*>(w.data) : nullptr};
  }
  if (format == WeightFormat::nf4) {
    nf4_.push_back(quantise_nf4(w, {.double_quant = options_.double_quant}, source_.base_dtype()));
    return nf4_.back().view();
  }
  int8_.push_back(quantise_int8(w));
  return int8_.back().view();
}

Weight Model::checked_matrix(const std::string& name, int64_t n_out, int64_t n_in) {
  if (options_.ends_at_stop) check_stop();
  const Weight w = source_.matrix(name, n_out, n_in);
  if (!backend_.is_plan()) source_.check_values(name);
  return w;
}

std::vector<float> Model::checked_vector(const std::string& name, int64_t n) {
  if (options_.ends_at_stop) check_stop();
  std::vector<float> values = source_.vector(name, n);
  if (!backend_.is_plan()) source_.check_values(name);
  return values;
}

Linear Model::load_linear(const std::string& module, int64_t n_out, int64_t n_in, Quantise quantise) {
  const Weight stored = checked_matrix(module + ".weight", n_out, n_in);
  const Weight wanted = quantise == Quantise::by_scheme ? by_scheme(stored) : stored;
  weight_bytes_ += saaz::weight_bytes(wanted);
  const Linear linear{module, placed(wanted, Backend::Placement::products), nullptr};
  const bool is_ours = wanted.data != stored.data;
  if (linear.weight.data == stored.data) mapped_bytes_ += saaz::weight_bytes(stored);
  if (is_ours && linear.weight.data != wanted.data) {  // the backend has its own copy
    if (wanted.format == WeightFormat::nf4) {
      nf4_.pop_back();
    } else {
      int8_.pop_back();
    }
  }
  if (linear.weight.data != stored.data) source_.release_pages();
  return linear;
}

Linear Model::load_clamped_linear(const std::string& module, int64_t n_out, int64_t n_in, float limit) {
  std::vector<float> values(static_cast<size_t>(n_out * n_in));
  dequantise(checked_matrix(module + ".weight", n_out, n_in), 0, n_out * n_in, values.data());
  if (limit > 0)
    for (float& v : values) v = std::clamp(v, -limit, limit);
  return {module, dense_weight(upload(values, {n_out, n_in}, "small weights")), nullptr};
}

Weight Model::placed(const Weight& w, Backend::Placement placement) {
  const Weight out = backend_.place(w, placement);
  if (out.data != w.data) owned_.emplace_back(const_cast<void*>(out.data), Release{&backend_});
  return out;
}

Weight Model::load_table(const std::string& name, int64_t n_rows, int64_t dim, Backend::Placement placement) {
  const Weight w = checked_matrix(name, n_rows, dim);
  (placement == Backend::Placement::rows ? table_bytes_ : weight_bytes_) += saaz::weight_bytes(w);
  const Weight out = placed(w, placement);
  if (out.data == w.data && placement == Backend::Placement::products) mapped_bytes_ += saaz::weight_bytes(w);
  source_.release_pages();
  return out;
}

void Model::load_head(const Weight& embed_tokens) {
  const auto softcap = static_cast<float>(config_.final_logit_softcap);
  head_ = {config_.tie_word_embeddings
               ? embed_tokens
               : load_table("lm_head.weight", config_.vocab_size, config_.hidden_size, Backend::Placement::products),
           softcap};
}

Tensor Model::load_vector(const std::string& name, int64_t n) {
  return upload(checked_vector(name, n), {n}, "small weights");
}

Norm Model::load_norm(const std::string& module, int64_t dim, float factor) {
  std::vector<float> w = checked_vector(module + ".weight", dim);
  for (float& v : w) v = (v + norm_offset_) * factor;
  return {upload(w, {dim}, "small weights"), static_cast<float>(config_.rms_norm_eps)};
}

AttentionShape Model::attention_shape(int64_t layer) const {
  const bool sliding = config_.layer_types[static_cast<size_t>(layer)] == LayerType::sliding;
  return {.n_heads = config_.n_heads,
          .n_kv_heads = config_.n_kv_heads,
          .head_dim = config_.head_dim,
          .window = sliding ? config_.sliding_window : 0,
          .scale = static_cast<float>(config_.attention_scale)};
}

namespace {
std::pair<State::Field, State::Field> kv_fields(LayerType type) {
  if (type == LayerType::full) return {State::full_k, State::full_v};
  return {State::sliding_k, State::sliding_v};
}
}  // namespace

Model::KeysValues Model::publish_kv(Ctx& ctx, int64_t layer, State& state, const Batch& batch, KvCache* cache,
                                    KeysValues fresh) const {
  const LayerType type = config_.layer_types[static_cast<size_t>(layer)];
  if (cache != nullptr) {
    const std::vector<int64_t>& rows = batch.cache_rows[static_cast<size_t>(type)];
    ctx.backend.scatter_rows(cache->k(layer), rows, fresh.k);
    ctx.backend.scatter_rows(cache->v(layer), rows, fresh.v);
    return {cache->k(layer), cache->v(layer)};
  }
  for (int64_t l = config_.n_layers - config_.n_kv_shared_layers; l < config_.n_layers; ++l)
    if (config_.kv_producer(l) == layer) {
      const auto [k, v] = kv_fields(type);
      state[k] = fresh.k;
      state[v] = fresh.v;
      break;
    }
  return fresh;
}

Model::KeysValues Model::borrowed_kv(int64_t layer, const State& state, const KvCache* cache) const {
  if (cache != nullptr) {
    const int64_t producer = config_.kv_producer(layer);
    return {cache->k(producer), cache->v(producer)};
  }
  const auto [k, v] = kv_fields(config_.layer_types[static_cast<size_t>(layer)]);
  return {state[k], state[v]};
}

namespace {
struct FamilyEntry {
  Family family;
  std::unique_ptr<Model> (*make)(Backend&, const BaseModel&, const LoadOptions&);
};
constexpr FamilyEntry kFamilies[] = {{Family::gemma3n, make_gemma3n}, {Family::gemma3, make_gemma3}};
}  // namespace

std::unique_ptr<Model> load_model(Backend& backend, const BaseModel& base, const LoadOptions& options) {
  for (const FamilyEntry& entry : kFamilies)
    if (entry.family == base.config.family) {
      std::unique_ptr<Model> model = entry.make(backend, base, options);
      base.weights->release_pages();
      return model;
    }
  fail(ExitCode::bug, "no model of this family is built");
}

}  // namespace saaz
