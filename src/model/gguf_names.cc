// The names of llama.cpp's converter beside Hugging Face's.
#include "model/gguf_names.h"

namespace saaz {

namespace {

struct NamePair {
  const char* hugging_face;
  const char* gguf;
};
constexpr NamePair kGlobal[] = {{"embed_tokens", "token_embd"}, {"norm", "output_norm"}};
constexpr NamePair kGlobal3n[] = {{"embed_tokens_per_layer", "per_layer_token_embd"},
                                  {"per_layer_model_projection", "per_layer_model_proj"},
                                  {"per_layer_projection_norm", "per_layer_proj_norm"}};
constexpr NamePair kStacked3n[] = {{"altup_projections", "altup_proj"},
                                   {"altup_unembed_projections", "altup_unembd_proj"}};
constexpr NamePair kLayer[] = {{"input_layernorm", "attn_norm"},
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
                               {"mlp.down_proj", "ffn_down"}};
constexpr NamePair kLayer3n[] = {{"per_layer_input_gate", "inp_gate"},
                                 {"per_layer_projection", "proj"},
                                 {"post_per_layer_input_norm", "post_norm"},
                                 {"altup.modality_router", "altup_router"},
                                 {"altup.router_norm", "altup_router_norm"},
                                 {"altup.prediction_coefs", "altup_predict_coef"},
                                 {"altup.correction_coefs", "altup_correct_coef"},
                                 {"laurel.linear_left", "laurel_l"},
                                 {"laurel.linear_right", "laurel_r"},
                                 {"laurel.post_laurel_norm", "laurel_post_norm"}};

}  // namespace

std::vector<GgufPlace> gguf_places(const ModelConfig& c) {
  std::vector<GgufPlace> out;
  const auto add = [&](const std::string& hugging_face, const std::string& gguf, const char* suffix) {
    out.push_back({hugging_face + suffix, gguf + ".weight"});
  };
  for (const NamePair& p : kGlobal) add(p.hugging_face, p.gguf, ".weight");
  const bool is_3n = c.family == Family::gemma3n;
  if (is_3n) {
    for (const NamePair& p : kGlobal3n) add(p.hugging_face, p.gguf, ".weight");
    for (const NamePair& p : kStacked3n)
      for (int64_t j = 0; j + 1 < c.altup_num_inputs; ++j)
        out.push_back({std::string(p.hugging_face) + "." + std::to_string(j) + ".weight",
                       std::string(p.gguf) + ".weight", j, c.altup_num_inputs - 1});
  }
  for (int64_t l = 0; l < c.n_layers; ++l) {
    const std::string hf = "layers." + std::to_string(l) + ".", gguf = "blk." + std::to_string(l) + ".";
    for (const NamePair& p : kLayer) add(hf + p.hugging_face, gguf + p.gguf, ".weight");
    if (!is_3n) continue;
    for (const NamePair& p : kLayer3n) add(hf + p.hugging_face, gguf + p.gguf, ".weight");
    add(hf + "altup.correct_output_scale", gguf + "altup_correct_scale", "");
  }
  if (!c.tie_word_embeddings) out.push_back({"lm_head.weight", "output.weight"});
  return out;
}

bool is_stored_plus_one(const ModelConfig& config, const std::string& canonical) {
  return config.family == Family::gemma3 && canonical.ends_with("norm.weight");
}

}  // namespace saaz
