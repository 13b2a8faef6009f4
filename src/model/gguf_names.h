// Where the tensors of a Hugging Face checkpoint lie in a GGUF file. One table for the reader (gguf_source.cc) and the
// writer (publish/gguf_export.cc). Source: docs/gemma3n.md 8.3.
#pragma once

#include <string>
#include <vector>

#include "config/model_config.h"

namespace saaz {

/// A Hugging Face tensor's place: a GGUF tensor, or matrix `index` of a stack of `count`.
struct GgufPlace {
  std::string canonical, gguf;   // "layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight"
  int64_t index = 0, count = 0;  // count 0: not a stack
};
/// Every tensor of a text model, an untied head included, in file order.
std::vector<GgufPlace> gguf_places(const ModelConfig& config);

/// llama.cpp stores Gemma 3's gains as they multiply, w + 1; Hugging Face stores w.
bool is_stored_plus_one(const ModelConfig& config, const std::string& canonical);

}  // namespace saaz
