// Session: a base, its tokenizer, the model and an optional adapter, opened from a command's flags. Order of life: the
// backend and the base outlive the model, the model outlives the adapter.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/cli.h"
#include "data/batcher.h"
#include "lora/lora.h"
#include "tokenizer/tokenizer.h"

namespace saaz {

struct ModelFlags {
  std::string model, adapter;
  QuantScheme quant = QuantScheme::none;
  ComputeDtype compute_dtype = ComputeDtype::automatic;
};
/// --model, --quant, --compute-dtype
void declare_base_model(Arguments& arguments, ModelFlags& flags);
/// The same and --adapter.
void declare_model(Arguments& arguments, ModelFlags& flags);

/// --max-seq-length, --loss-on
void declare_encoding(Arguments& arguments, EncodeOptions& options);

class Session {
 public:
  /// Answers of a quantised GGUF file are made with 8-bit activations unless the flags say otherwise, as llama.cpp
  /// makes them; figures (losses) always with f32.
  enum class Purpose : uint8_t { answers, figures };
  /// Opens base and tokenizer; no weights are read yet.
  Session(const ModelFlags& flags, const Globals& globals, Purpose purpose = Purpose::answers);
  /// Loads the weights. `max_positions`: the longest sequence, prompt and answer together.
  void load(int64_t max_positions);
  /// Attaches the adapter that the flags name, if they do.
  void attach_adapter();

  /// The most positions the model was made for.
  int64_t context() const { return base_.config.max_position_embeddings; }
  const Tokenizer& tokenizer() const { return tokenizer_; }
  Backend& backend() { return *backend_; }
  Model& model() { return *model_; }
  Adapter* adapter() { return adapter_.get(); }
  const std::string& model_name() const { return flags_.model; }
  const std::string& adapter_folder() const { return flags_.adapter; }

 private:
  ModelFlags flags_;
  const Globals& globals_;
  BaseModel base_;
  Tokenizer tokenizer_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Adapter> adapter_;
};

}  // namespace saaz
