// WeightSource: a base model's tensors under canonical names (Hugging Face's, without the "model." or
// "model.language_model." prefix: "layers.0.mlp.gate_proj.weight"), whatever file they come from. Quirks of a format
// are undone here, once.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/system.h"
#include "checkpoint/stored_tensor.h"
#include "config/model_config.h"
#include "quant/weight.h"

namespace saaz {

/// One tensor of the base as a Hugging Face checkpoint holds it.
struct SourceTensor {
  TensorSpec spec;        // full name, dtype (GGUF: bf16, as its values count as the 16-bit original), shape
  std::string canonical;  // name without prefix; empty for tensors of other towers
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual std::string path() const = 0;
  virtual bool has(const std::string& name) const = 0;
  /// A view [n_out, n_in]; bad_input naming file, tensor, expected and found shape when it does not fit or is missing.
  virtual Weight matrix(const std::string& name, int64_t n_out, int64_t n_in) const = 0;
  /// The Hugging Face value as f32 (Gemma 3's stored w, not w + 1).
  virtual std::vector<float> vector(const std::string& name, int64_t n) const = 0;
  /// Prefix of the text model's modules in Hugging Face's naming: "model." or "model.language_model.".
  virtual std::string module_prefix() const = 0;
  /// The dtype that NF4 values made from this base are rounded to: bf16 for 16-bit and GGUF bases, f32 for f32.
  virtual DType base_dtype() const = 0;
  /// Whether the linears are stored in a GGUF format of 8 bits or fewer.
  virtual bool is_quantised_gguf() const { return false; }

  /// bad_input when the tensor holds numbers that are not finite; reads all of it.
  virtual void check_values(const std::string&) const {}
  /// Gives back the memory of what was read so far; views stay valid.
  virtual void release_pages() const {}

  // The whole checkpoint, for writing it again.
  /// In file order; a tied head is left out.
  virtual std::vector<SourceTensor> tensors() const = 0;
  /// Elements [begin, begin + n) of a float tensor as f32, the Hugging Face value; begin and n multiples of 256 or to
  /// the end.
  virtual void read(const SourceTensor& tensor, int64_t begin, int64_t n, float* out) const = 0;
  /// The stored bytes, for tensors that pass through; empty when the values have to be read and converted.
  virtual Bytes raw(const SourceTensor& tensor) const = 0;
};

/// A base model on disk: a folder with config.json and safetensors, or one .gguf file.
struct BaseModel {
  fs::path path;
  ModelConfig config;
  std::unique_ptr<WeightSource> weights;
  bool is_gguf = false;
};
BaseModel open_base_model(const fs::path& path);

// The two sources; open_base_model chooses.
std::unique_ptr<WeightSource> open_safetensors_source(const fs::path& folder);
std::unique_ptr<WeightSource> open_gguf_source(const fs::path& file, ModelConfig* config);

}  // namespace saaz
