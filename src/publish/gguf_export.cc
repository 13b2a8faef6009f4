#include "publish/gguf_export.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>

#include "base/check.h"
#include "base/stop.h"
#include "checkpoint/gguf_writer.h"
#include "model/base_tokenizer.h"
#include "model/gguf_names.h"
#include "publish/merged_tensors.h"
#include "quant/blockwise.h"

namespace saaz {

namespace {

constexpr int64_t kPiece = 1 << 20;  // elements held at once; a multiple of every block

/// llama.cpp's number for what most of a file is (general.file_type).
uint32_t file_type(WeightFormat format) {
  switch (format) {
    case WeightFormat::f16:
      return 1;
    case WeightFormat::q4_0:
      return 2;
    case WeightFormat::q8_0:
      return 7;
    case WeightFormat::q5_0:
      return 8;
    case WeightFormat::bf16:
      return 32;
    default:
      return 0;  // all f32
  }
}

/// formats.md 2.1.
WeightFormat stored_format(const std::string& gguf, const std::vector<int64_t>& ne, WeightFormat wanted) {
  const auto has = [&](const char* part) { return gguf.find(part) != std::string::npos; };
  if (ne.size() == 1 || has("_norm.") || has("_coef.")) return WeightFormat::f32;
  const bool is_dense = block_size(wanted).elements == 1;
  if (is_dense) return wanted;
  if (has("altup") || has("laurel") || has("per_layer_model_proj")) return WeightFormat::bf16;
  if (ne[0] % block_size(wanted).elements != 0) return WeightFormat::bf16;
  const bool is_head = gguf == "token_embd.weight" || gguf == "output.weight";
  return is_head ? WeightFormat::q8_0 : wanted;
}

void encode(WeightFormat format, std::span<const float> values, std::vector<std::byte>& out) {
  const BlockSize block = block_size(format);
  const auto n = static_cast<int64_t>(values.size());
  out.resize(static_cast<size_t>(n / block.elements * block.bytes));
  switch (format) {
    case WeightFormat::q8_0:
      return quantise_q8_0(values.data(), n, out.data());
    case WeightFormat::q5_0:
      return quantise_q5_0(values.data(), n, out.data());
    case WeightFormat::q4_0:
      return quantise_q4_0(values.data(), n, out.data());
    case WeightFormat::f32:
      return round_to(StoredDType::f32, values, out);
    case WeightFormat::f16:
      return round_to(StoredDType::f16, values, out);
    default:
      return round_to(StoredDType::bf16, values, out);
  }
}

/// The space mark as the space it stands for, as user-defined tokens are stored.
std::string with_spaces(std::string_view text) {
  std::string out;
  for (size_t at; (at = text.find(kSpaceMark)) != text.npos; text.remove_prefix(at + kSpaceMark.size())) {
    out += text.substr(0, at);
    out += ' ';
  }
  return out += text;
}

/// A GGUF tensor and the Hugging Face tensors it is made of, one after the other; none: zeros.
struct Stored {
  GgufTensorSpec spec;
  std::vector<SourceTensor> from;
};

class Exporter {
 public:
  Exporter(const BaseModel& base, WeightFormat format) : base_(base), config_(base.config), format_(format) {
    check(has_tokenizer(base.path), ExitCode::bad_input,
          "{} has no tokenizer, and llama.cpp loads no model without one: add its tokenizer.json",
          printable(base.path.string()));
    tokenizer_.emplace(load_base_tokenizer(base));
    n_tokens_ = std::min(config_.vocab_size, static_cast<int64_t>(tokenizer_->size()));
    if (config_.family == Family::gemma3n) n_tokens_ = std::min(n_tokens_, config_.vocab_size_per_layer_input);
    collect();
  }

  GgufReport write(const fs::path& out) {
    GgufWriter writer;
    add_metadata(writer);
    add_tokenizer(writer);
    std::map<std::string, const Stored*> by_name;
    for (const Stored& tensor : tensors_) {
      writer.add_tensor(tensor.spec);
      by_name[tensor.spec.name] = &tensor;
    }
    writer.write(out, [&](const GgufTensorSpec& spec, const ByteSink& sink) { produce(*by_name.at(spec.name), sink); });
    return {.n_tensors = static_cast<int64_t>(tensors_.size()),
            .n_tokens = n_tokens_,
            .bytes = fs::file_size(out),
            .notes = differences()};
  }

  const Tokenizer& tokenizer() const { return *tokenizer_; }

 private:
  void collect() {
    std::map<std::string, SourceTensor> by_canonical;
    for (SourceTensor& tensor : base_.weights->tensors())
      if (!tensor.canonical.empty()) by_canonical[tensor.canonical] = std::move(tensor);
    std::map<std::string, size_t> stacks;
    for (const GgufPlace& place : gguf_places(config_)) {
      const auto found = by_canonical.find(place.canonical);
      std::vector<int64_t> shape = found == by_canonical.end() ? absent_shape(place) : found->second.spec.shape;
      if (place.gguf == "token_embd.weight" || place.gguf == "output.weight" ||
          place.gguf == "per_layer_token_embd.weight")
        shape[0] = n_tokens_;
      if (const auto stack = stacks.find(place.gguf); stack != stacks.end()) {
        ++tensors_[stack->second].spec.ne.back();
        tensors_[stack->second].from.push_back(found->second);
        continue;
      }
      Stored tensor{.spec = {place.gguf, WeightFormat::f32, {shape.rbegin(), shape.rend()}}};
      tensor.spec.format = stored_format(place.gguf, tensor.spec.ne, format_);
      if (found != by_canonical.end()) tensor.from.push_back(found->second);
      if (place.count > 0) {
        stacks[place.gguf] = tensors_.size();
        tensor.spec.ne.push_back(1);
      }
      tensors_.push_back(std::move(tensor));
    }
  }

  /// Layers that borrow keys and values may lack their own projections, which llama.cpp's loader wants all the same.
  std::vector<int64_t> absent_shape(const GgufPlace& place) const {
    if (place.canonical.ends_with("self_attn.k_norm.weight")) return {config_.head_dim};
    const bool is_kv =
        place.canonical.ends_with("self_attn.k_proj.weight") || place.canonical.ends_with("self_attn.v_proj.weight");
    check(is_kv, ExitCode::bad_input, "{}: tensor '{}' is missing: the checkpoint does not fit its config",
          base_.weights->path(), place.canonical);
    return {config_.n_kv_heads * config_.head_dim, config_.hidden_size};
  }

  void produce(const Stored& tensor, const ByteSink& sink) const {
    std::vector<float> values;
    std::vector<std::byte> bytes;
    int64_t n_each = 1;
    for (const int64_t d : tensor.spec.ne) n_each *= d;
    const auto n_sources = static_cast<int64_t>(std::max<size_t>(1, tensor.from.size()));
    n_each /= n_sources;
    for (int64_t s = 0; s < n_sources; ++s)
      for (int64_t begin = 0; begin < n_each; begin += kPiece) {
        check_stop();
        values.assign(static_cast<size_t>(std::min(kPiece, n_each - begin)), 0.0f);
        if (!tensor.from.empty()) read(tensor.from[static_cast<size_t>(s)], begin, values);
        encode(tensor.spec.format, values, bytes);
        sink(bytes);
      }
  }

  void read(const SourceTensor& source, int64_t begin, std::span<float> values) const {
    base_.weights->read(source, begin, static_cast<int64_t>(values.size()), values.data());
    if (is_stored_plus_one(config_, source.canonical))
      for (float& v : values) v += 1;
    constexpr float kLargestF16 = 65504;
    const float largest = format_ == WeightFormat::f16 ? kLargestF16 : std::numeric_limits<float>::max();
    for (size_t i = 0; i < values.size(); ++i)
      check(std::fabs(values[i]) <= largest, ExitCode::bad_input,
            "{}: tensor '{}' holds {} at element {}, which {} cannot hold: choose bf16 or f32, or repair the model",
            base_.weights->path(), source.spec.name, values[i], begin + static_cast<int64_t>(i), name_of(format_));
  }

  void add_metadata(GgufWriter& writer) const {
    const ModelConfig& c = config_;
    const std::string arch = c.family == Family::gemma3n ? "gemma3n" : "gemma3", at = arch + ".";
    const auto u32 = [&](const char* key, int64_t value) { writer.add_u32(at + key, static_cast<uint32_t>(value)); };
    writer.add_text("general.architecture", arch);
    writer.add_text("general.type", "model");
    const fs::path named = base_.path.has_filename() ? base_.path : base_.path.parent_path();
    writer.add_text("general.name", base_.is_gguf ? named.stem().string() : named.filename().string());
    writer.add_u32("general.file_type", file_type(format_));
    writer.add_u32("general.quantization_version", 2);
    u32("context_length", c.max_position_embeddings);
    u32("embedding_length", c.hidden_size);
    u32("block_count", c.n_layers);
    const std::vector<int32_t> widths(c.intermediate_size.begin(), c.intermediate_size.end());
    const bool is_even = std::all_of(widths.begin(), widths.end(), [&](int32_t w) { return w == widths[0]; });
    if (is_even)
      u32("feed_forward_length", widths[0]);
    else
      writer.add_i32s(at + "feed_forward_length", widths);
    u32("attention.head_count", c.n_heads);
    u32("attention.head_count_kv", c.n_kv_heads);
    u32("attention.key_length", c.head_dim);
    u32("attention.value_length", c.head_dim);
    writer.add_f32(at + "attention.layer_norm_rms_epsilon", c.rms_norm_eps);
    writer.add_f32(at + "rope.freq_base", c.rope_theta_full);
    writer.add_f32(at + "rope.freq_base_swa", c.rope_theta_sliding);
    if (c.rope_scaling_factor_full != 1) {
      writer.add_text(at + "rope.scaling.type", "linear");
      writer.add_f32(at + "rope.scaling.factor", c.rope_scaling_factor_full);
    }
    u32("attention.sliding_window", c.sliding_window);
    std::vector<bool> sliding;
    for (const LayerType type : c.layer_types) sliding.push_back(type == LayerType::sliding);
    writer.add_booleans(at + "attention.sliding_window_pattern", sliding);
    if (c.final_logit_softcap > 0) writer.add_f32(at + "final_logit_softcapping", c.final_logit_softcap);
    if (c.family == Family::gemma3n) add_gemma3n(writer);
  }

  void add_gemma3n(GgufWriter& writer) const {
    const ModelConfig& c = config_;
    writer.add_u32("gemma3n.altup.active_idx", static_cast<uint32_t>(c.altup_active_idx));
    writer.add_u32("gemma3n.altup.num_inputs", static_cast<uint32_t>(c.altup_num_inputs));
    writer.add_u32("gemma3n.embedding_length_per_layer_input", static_cast<uint32_t>(c.hidden_size_per_layer_input));
    writer.add_u32("gemma3n.attention.shared_kv_layers", static_cast<uint32_t>(c.n_kv_shared_layers));
    std::vector<float> scales;  // the inverse normal CDF of the share that is cut: -inf where nothing is
    for (const float z : c.activation_sparsity_z)
      scales.push_back(z != 0 ? z : -std::numeric_limits<float>::infinity());
    writer.add_f32s("gemma3n.activation_sparsity_scale", scales);
  }

  void add_tokenizer(GgufWriter& writer) const {
    const Vocabulary& vocabulary = tokenizer_->vocabulary();
    constexpr float kNoScore = -1000;  // of what no merge makes
    std::vector<std::string> texts;
    std::vector<float> scores;
    std::vector<int32_t> types;
    for (int64_t id = 0; id < n_tokens_; ++id) {
      const Piece& piece = vocabulary.pieces[static_cast<size_t>(id)];
      texts.push_back(piece.type == PieceType::user_defined ? with_spaces(piece.text) : piece.text);
      scores.push_back(piece.type == PieceType::normal ? piece.score : kNoScore);
      const bool is_control = piece.type == PieceType::unknown || is_gemma_placeholder(piece.text);
      types.push_back(static_cast<int32_t>(is_control ? PieceType::control : piece.type));
    }
    writer.add_text("tokenizer.ggml.model", "llama");
    writer.add_text("tokenizer.ggml.pre", "default");
    writer.add_texts("tokenizer.ggml.tokens", texts);
    writer.add_f32s("tokenizer.ggml.scores", scores);
    writer.add_i32s("tokenizer.ggml.token_type", types);
    const auto add_id = [&](const char* key, std::optional<int32_t> id) {
      if (id && *id < n_tokens_)
        writer.add_u32(std::string("tokenizer.ggml.") + key + "_token_id", static_cast<uint32_t>(*id));
    };
    add_id("bos", vocabulary.bos);
    add_id("eos", vocabulary.eos);
    add_id("eot", tokenizer_->find_token("<end_of_turn>"));
    add_id("unknown", vocabulary.unk);
    add_id("padding", vocabulary.pad);
    writer.add_boolean("tokenizer.ggml.add_bos_token", vocabulary.add_bos);
    writer.add_boolean("tokenizer.ggml.add_eos_token", false);
    writer.add_boolean("tokenizer.ggml.add_space_prefix", false);
    if (const std::optional<std::string> text = base_chat_template(base_.path))
      writer.add_text("tokenizer.chat_template", *text);
  }

  /// What llama.cpp takes for granted (gemma3n.md 8.2) and this model does otherwise.
  std::vector<std::string> differences() const {
    const ModelConfig& c = config_;
    std::vector<std::string> notes;
    const auto note = [&](bool differs, const std::string& text) {
      if (differs) notes.push_back("llama.cpp will not compute this model: " + text);
    };
    if (c.family == Family::gemma3) {
      constexpr int64_t kLayersOf27B = 62;
      const int64_t scalar = c.n_layers == kLayersOf27B ? c.hidden_size / c.n_heads : c.head_dim;
      const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(scalar)));
      note(c.attention_scale != scale,
           fmt::format("it scales attention by {}, here it is {}", scale, c.attention_scale));
      return notes;
    }
    constexpr int64_t kOwners = 20, kSparse = 10;
    note(c.n_layers - c.n_kv_shared_layers != kOwners,
         fmt::format("it lets the first {} layers own keys and values, here {} do", kOwners,
                     c.n_layers - c.n_kv_shared_layers));
    for (int64_t l = kOwners; l < c.n_layers && notes.empty(); ++l)
      note(c.kv_producer(l) != kOwners - (c.layer_types[static_cast<size_t>(l)] == LayerType::sliding ? 2 : 1),
           fmt::format("it has layer {} borrow from layer 18 (sliding) or 19 (full), here from {}", l,
                       c.kv_producer(l)));
    bool sparsity_fits = true;
    for (int64_t l = 0; l < c.n_layers; ++l)
      sparsity_fits &= c.activation_sparsity[static_cast<size_t>(l)] == (l < kSparse ? 0.95 : 0.0);
    note(!sparsity_fits, "it makes the first 10 layers 95 % sparse and the others dense");
    note(c.altup_num_inputs != 4 || c.altup_active_idx != 0, "it counts on 4 AltUp streams, the first one active");
    note(c.hidden_size_per_layer_input != 256 || c.laurel_rank != 64,
         "it counts on per-layer inputs of 256 and a LAuReL rank of 64");
    note(c.final_logit_softcap != 30, "it caps logits at 30");
    return notes;
  }

  const BaseModel& base_;
  const ModelConfig& config_;
  WeightFormat format_;
  std::optional<Tokenizer> tokenizer_;
  int64_t n_tokens_ = 0;
  std::vector<Stored> tensors_;
};

/// Gemma's turns in Ollama's template language: a system text opens the first user turn, as the published template has
/// it. Ollama adds <bos> itself.
constexpr const char* kOllamaTemplate =
    R"({{- $system := "" }}
{{- range .Messages }}
{{- if eq .Role "system" }}{{ $system = .Content }}{{ end }}
{{- end }}
{{- range $i, $message := .Messages }}
{{- if eq .Role "user" }}<start_of_turn>user
{{ if $system }}{{ $system }}

{{ $system = "" }}{{ end }}{{ .Content }}<end_of_turn>
{{ else if eq .Role "assistant" }}<start_of_turn>model
{{ .Content }}<end_of_turn>
{{ end }}
{{- end }}<start_of_turn>model
)";

std::string modelfile() {
  return fmt::format(
      "FROM ./model.gguf\nTEMPLATE \"\"\"{}\"\"\"\nPARAMETER stop <end_of_turn>\nPARAMETER stop <eos>\n"
      "PARAMETER temperature 1\nPARAMETER top_k 64\nPARAMETER top_p 0.95\nPARAMETER min_p 0\n"
      "PARAMETER repeat_penalty 1\n",
      kOllamaTemplate);
}

}  // namespace

GgufReport export_gguf(const BaseModel& base, WeightFormat format, const fs::path& out) {
  check(!fs::exists(out), ExitCode::in_use, "{} exists: choose another file", printable(out.string()));
  return Exporter(base, format).write(out);
}

GgufReport export_ollama(const BaseModel& base, WeightFormat format, const fs::path& out) {
  check(!fs::exists(out) || (fs::is_directory(out) && fs::is_empty(out)), ExitCode::in_use,
        "{} exists and is not empty: choose another output folder", printable(out.string()));
  Exporter exporter(base, format);
  AtomicFolder folder(out);
  GgufReport report = exporter.write(folder.partial() / "model.gguf");
  write_file_atomically(folder.partial() / "Modelfile", modelfile());
  folder.commit();
  return report;
}

}  // namespace saaz
