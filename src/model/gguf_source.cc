// A base model from one GGUF file: metadata to ModelConfig, tensor names to Hugging Face's, llama.cpp's value changes
// undone (Gemma 3 stores norm gains as w + 1; Gemma 3n stacks its AltUp projections). Table: docs/formats.md 2.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "checkpoint/gguf.h"
#include "model/gguf_names.h"
#include "model/weight_source.h"

namespace saaz {

namespace {

class GgufSource final : public WeightSource {
 public:
  GgufSource(GgufFile file, const ModelConfig& config)
      : file_(std::move(file)), config_(config), places_(gguf_places(config)) {}

  std::string path() const override { return file_.name(); }
  bool has(const std::string& name) const override {
    const GgufPlace* place = place_of(name);
    return place != nullptr && file_.find(place->gguf) != nullptr;
  }
  DType base_dtype() const override { return DType::bf16; }
  std::string module_prefix() const override { return "model."; }
  bool is_quantised_gguf() const override {
    constexpr const char* kAnyLinear = "layers.0.mlp.up_proj.weight";
    if (!has(kAnyLinear)) return false;
    const WeightFormat format = view(*place_of(kAnyLinear)).format;
    return format != WeightFormat::f32 && format != WeightFormat::f16 && format != WeightFormat::bf16;
  }

  Weight matrix(const std::string& name, int64_t n_out, int64_t n_in) const override {
    const GgufPlace& place = checked(name);
    const Weight w = view(place);
    check(w.n_out == n_out && w.n_in == n_in, ExitCode::bad_input,
          "{}: tensor '{}' is [{}, {}], the metadata asks for [{}, {}]", path(), place.gguf, w.n_out, w.n_in, n_out,
          n_in);
    return w;
  }

  std::vector<float> vector(const std::string& name, int64_t n) const override {
    const GgufPlace& place = checked(name);
    const Weight w = view(place);
    check(w.size() == n, ExitCode::bad_input, "{}: tensor '{}' has {} values, the metadata asks for {}", path(),
          place.gguf, w.size(), n);
    std::vector<float> out(static_cast<size_t>(n));
    read_values(place, w, 0, n, out.data());
    return out;
  }

  std::vector<SourceTensor> tensors() const override {
    std::vector<SourceTensor> out;
    for (const GgufPlace& place : places_) {
      const GgufTensor* tensor = file_.find(place.gguf);
      if (tensor == nullptr) continue;
      const Weight w = view(place);
      const bool vector = tensor->ne.size() == 1;
      const std::string full =
          place.canonical == "lm_head.weight" ? place.canonical : module_prefix() + place.canonical;
      out.push_back(
          {{full, StoredDType::bf16, vector ? std::vector<int64_t>{w.n_in} : std::vector<int64_t>{w.n_out, w.n_in}},
           place.canonical});
    }
    return out;
  }

  void read(const SourceTensor& tensor, int64_t begin, int64_t n, float* out) const override {
    const GgufPlace& place = checked(tensor.canonical);
    read_values(place, view(place), begin, n, out);
  }

  Bytes raw(const SourceTensor&) const override { return {}; }
  void release_pages() const override { file_.release_pages(); }

 private:
  const GgufPlace* place_of(const std::string& name) const {
    const auto found =
        std::find_if(places_.begin(), places_.end(), [&](const GgufPlace& p) { return p.canonical == name; });
    return found == places_.end() ? nullptr : &*found;
  }

  const GgufPlace& checked(const std::string& name) const {
    const GgufPlace* place = place_of(name);
    check(place != nullptr && file_.find(place->gguf) != nullptr, ExitCode::bad_input,
          "{}: no tensor '{}': the file does not fit its metadata", path(), place == nullptr ? name : place->gguf);
    return *place;
  }

  Weight view(const GgufPlace& place) const {
    Weight w = file_.weight(place.gguf);
    if (place.count == 0) return w;
    const std::vector<int64_t>& ne = file_.find(place.gguf)->ne;
    const int64_t count = ne.size() == 3 ? ne[2] : 1;
    check(count == place.count, ExitCode::bad_input, "{}: tensor '{}' holds {} matrices, {} were expected", path(),
          place.gguf, count, place.count);
    w.n_out /= count;
    const BlockSize block = block_size(w.format);
    w.data = static_cast<const std::byte*>(w.data) + place.index * w.size() / block.elements * block.bytes;
    return w;
  }

  void read_values(const GgufPlace& place, const Weight& w, int64_t begin, int64_t n, float* out) const {
    dequantise(w, begin, n, out);
    if (is_stored_plus_one(config_, place.canonical))
      for (int64_t i = 0; i < n; ++i) out[i] -= 1;
    for (int64_t i = 0; i < n; ++i)
      check(std::isfinite(out[i]), ExitCode::bad_input,
            "{}: tensor '{}' holds a non-finite value at element {}: the file is damaged", path(), place.gguf,
            begin + i);
  }

  GgufFile file_;
  ModelConfig config_;
  std::vector<GgufPlace> places_;
};

/// Sizes above this are no model's; `validate` has the exact ranges.
int64_t checked_size(const GgufFile& file, std::string_view key, int64_t value) {
  constexpr int64_t kMax = 1 << 30;
  check(value >= 0 && value <= kMax, ExitCode::bad_input, "{}: '{}' is {}, 0..{} was expected", file.name(), key, value,
        kMax);
  return value;
}

/// Metadata reader with the architecture's prefix.
struct Metadata {
  const GgufFile& file;
  std::string prefix;
  bool has(const char* key) const { return file.has(prefix + key); }
  int64_t integer(const char* key) const { return checked_size(file, prefix + key, file.integer(prefix + key)); }
  double real(const char* key) const { return file.real(prefix + key); }
};

std::vector<int64_t> per_layer(const Metadata& m, const char* key, int64_t n_layers) {
  std::vector<int64_t> out;
  for (const int64_t value : m.file.integers(m.prefix + key)) out.push_back(checked_size(m.file, key, value));
  if (out.size() == 1) out.assign(static_cast<size_t>(n_layers), out[0]);
  return out;
}

void read_layer_types(const Metadata& m, ModelConfig& c) {
  constexpr int64_t kPeriod3 = 6, kPeriod3n = 5;
  const int64_t period = c.family == Family::gemma3 ? kPeriod3 : kPeriod3n;
  c.layer_types = periodic_layer_types(c.n_layers, period);
  if (!m.has("attention.sliding_window_pattern")) return;
  const std::vector<bool> pattern = m.file.booleans(m.prefix + "attention.sliding_window_pattern");
  c.layer_types.clear();
  for (const bool sliding : pattern) c.layer_types.push_back(sliding ? LayerType::sliding : LayerType::full);
}

void read_gemma3n(const Metadata& m, ModelConfig& c) {
  c.altup_num_inputs = m.integer("altup.num_inputs");
  c.altup_active_idx = m.integer("altup.active_idx");
  c.hidden_size_per_layer_input = m.integer("embedding_length_per_layer_input");
  if (m.has("final_logit_softcapping")) c.final_logit_softcap = m.real("final_logit_softcapping");
  c.n_kv_shared_layers = m.integer("attention.shared_kv_layers");
  c.activation_sparsity.assign(static_cast<size_t>(c.n_layers), 0);
  c.activation_sparsity_z.assign(static_cast<size_t>(c.n_layers), 0);
  if (m.has("activation_sparsity_scale")) {
    const std::vector<double> scales = m.file.reals(m.prefix + "activation_sparsity_scale");
    check(scales.size() == static_cast<size_t>(c.n_layers), ExitCode::bad_input,
          "{}: '{}activation_sparsity_scale' has {} entries for {} layers", m.file.name(), m.prefix, scales.size(),
          c.n_layers);
    for (size_t l = 0; l < scales.size(); ++l) {
      if (!std::isfinite(scales[l])) continue;  // the inverse normal CDF of 0: a dense layer
      // The stored f32 is the inverse CDF of a short decimal fraction: undo both.
      constexpr double kDecimals = 1e6;
      c.activation_sparsity[l] = std::round(0.5 * std::erfc(-scales[l] / std::sqrt(2.0)) * kDecimals) / kDecimals;
      c.activation_sparsity_z[l] = activation_sparsity_scale(c.activation_sparsity[l]);
    }
  }
  const GgufTensor* laurel = m.file.find("blk.0.laurel_l.weight");
  check(laurel != nullptr && laurel->ne.size() == 2, ExitCode::bad_input, "{}: no matrix 'blk.0.laurel_l.weight'",
        m.file.name());
  c.laurel_rank = checked_size(m.file, "laurel_l rows", laurel->ne[1]);
  const GgufTensor* per_layer_table = m.file.find("per_layer_token_embd.weight");
  check(per_layer_table != nullptr && per_layer_table->ne.size() == 2, ExitCode::bad_input,
        "{}: no matrix 'per_layer_token_embd.weight'", m.file.name());
  c.vocab_size_per_layer_input = checked_size(m.file, "per_layer_token_embd rows", per_layer_table->ne[1]);
}

ModelConfig read_config(const GgufFile& file) {
  const std::string architecture(file.text("general.architecture"));
  check(architecture == "gemma3" || architecture == "gemma3n", ExitCode::bad_input,
        "{}: architecture '{}' is not gemma3 or gemma3n", file.name(), printable(architecture));
  const Metadata m{file, architecture + "."};
  ModelConfig c = default_config(architecture == "gemma3" ? Family::gemma3 : Family::gemma3n);
  constexpr int64_t kMaxLayers = 1024;
  c.n_layers = m.integer("block_count");
  check(c.n_layers >= 1 && c.n_layers <= kMaxLayers, ExitCode::bad_input,
        "{}: '{}block_count' is {}, 1..{} was expected", file.name(), m.prefix, c.n_layers, kMaxLayers);
  c.hidden_size = m.integer("embedding_length");
  c.intermediate_size = per_layer(m, "feed_forward_length", c.n_layers);
  c.n_heads = m.integer("attention.head_count");
  c.n_kv_heads = m.integer("attention.head_count_kv");
  c.head_dim = m.integer("attention.key_length");
  c.rms_norm_eps = m.real("attention.layer_norm_rms_epsilon");
  if (m.has("rope.freq_base")) c.rope_theta_full = m.real("rope.freq_base");
  if (m.has("rope.freq_base_swa")) c.rope_theta_sliding = m.real("rope.freq_base_swa");
  if (m.has("rope.scaling.factor")) c.rope_scaling_factor_full = m.real("rope.scaling.factor");
  c.sliding_window = m.integer("attention.sliding_window");
  c.max_position_embeddings = m.integer("context_length");
  c.activation_sparsity.assign(static_cast<size_t>(c.n_layers), 0);
  c.activation_sparsity_z.assign(static_cast<size_t>(c.n_layers), 0);
  const GgufTensor* table = file.find("token_embd.weight");
  check(table != nullptr && table->ne.size() == 2, ExitCode::bad_input, "{}: no matrix 'token_embd.weight'",
        file.name());
  c.vocab_size = checked_size(file, "token_embd rows", table->ne[1]);
  c.tie_word_embeddings = file.find("output.weight") == nullptr;
  if (c.family == Family::gemma3)
    c.attention_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.head_dim)));
  read_layer_types(m, c);
  if (c.family == Family::gemma3n) read_gemma3n(m, c);
  validate(c, file.name());
  return c;
}

}  // namespace

std::unique_ptr<WeightSource> open_gguf_source(const fs::path& path, ModelConfig* config) {
  GgufFile file(path);
  *config = read_config(file);
  return std::make_unique<GgufSource>(std::move(file), *config);
}

}  // namespace saaz
