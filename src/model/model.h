// Model: one forward for training, evaluation and generation. A model is a chain of segments over a State
// (autograd/segment.h): segment 0 embeds the batch, segment l + 1 is decoder layer l; `output` turns the final State
// into the normed hidden states. A batch has no batch dimension: the tokens of all its sequences lie one after another,
// [T, ...].
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "autograd/segment.h"
#include "config/model_config.h"
#include "config/recipe.h"
#include "model/kv_cache.h"
#include "model/weight_source.h"
#include "ops/ops.h"
#include "quant/blockwise.h"
#include "quant/int8.h"

namespace saaz {

struct LoadOptions {
  QuantScheme scheme = QuantScheme::none;
  bool double_quant = true;
  int64_t max_positions = 0;  // rope tables; 0 = the config's max_position_embeddings
  bool ends_at_stop = false;  // a stop signal ends the loading between two tensors (check_stop)
};

class StepKernels;  // backend/step.h

class Model {
 public:
  virtual ~Model() = default;
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  /// Runs one segment on `state`. With a cache, new keys and values go into it and attention reads from it.
  virtual void segment(Ctx& ctx, int index, State& state, const Batch& batch, KvCache* cache) const = 0;
  /// The normed hidden states [T, hidden_size] after the last layer.
  virtual Tensor output(Ctx& ctx, const State& state) const = 0;
  /// Whether `queue_step` does what the segments do, as the model is now: with no adapter attached.
  virtual bool takes_steps() const { return false; }
  /// Queues a step of logits.dim(0) sequences: new keys and values into the cache, softcapped logits [T, vocab_size].
  virtual void queue_step(Ctx&, StepKernels&, const KvCache&, const Tensor& /*logits*/, LogitsWanted) const {}

  const ModelConfig& config() const { return config_; }
  int n_segments() const { return static_cast<int>(config_.n_layers) + 1; }
  const Head& head() const { return head_; }
  /// Every linear an adapter may attach to, in the order PEFT walks the modules. Names are module paths without prefix.
  const std::vector<Linear*>& linears() const { return linears_; }
  /// "model." or "model.language_model.": completes module paths.
  const std::string& module_prefix() const { return module_prefix_; }
  int64_t max_positions() const { return rope_full_.dim(0); }
  /// Bytes of the weights in their formats, the mapped ones included.
  int64_t weight_bytes() const { return weight_bytes_ + table_bytes_; }
  /// Of these, bytes that are still read from the mapped files, all of them in every pass.
  int64_t mapped_bytes() const { return mapped_bytes_; }
  /// Of these, tables of which only the rows of a batch's tokens are read.
  int64_t table_bytes() const { return table_bytes_; }

 protected:
  Model(Backend& backend, const ModelConfig& config, const WeightSource& source, const LoadOptions& options);

  // Binding, for the constructors of the families.
  enum class Quantise : uint8_t { no, by_scheme };
  Linear load_linear(const std::string& module, int64_t n_out, int64_t n_in, Quantise quantise);
  Weight load_table(const std::string& name, int64_t n_rows, int64_t dim, Backend::Placement placement);
  /// The head: lm_head when the config unties it, else the embedding table.
  void load_head(const Weight& embed_tokens);
  /// The norm's gain, times `factor`.
  Norm load_norm(const std::string& module, int64_t dim, float factor = 1);
  Tensor load_vector(const std::string& name, int64_t n);
  /// A small matrix as f32 in backend memory, each value clamped to +-limit (0 = not).
  Linear load_clamped_linear(const std::string& module, int64_t n_out, int64_t n_in, float limit);
  Tensor upload(const std::vector<float>& values, std::initializer_list<int64_t> dims, const char* what);
  void register_linear(Linear& linear) {
    linear.index = static_cast<int32_t>(linears_.size());
    linears_.push_back(&linear);
  }

  const Tensor& rope_table(LayerType type) const { return type == LayerType::full ? rope_full_ : rope_sliding_; }
  AttentionShape attention_shape(int64_t layer) const;
  /// Stores new keys and values where later layers and steps find them; returns what this layer's queries attend to.
  struct KeysValues {
    Tensor k, v;
  };
  KeysValues publish_kv(Ctx& ctx, int64_t layer, State& state, const Batch& batch, KvCache* cache,
                        KeysValues fresh) const;
  KeysValues borrowed_kv(int64_t layer, const State& state, const KvCache* cache) const;

  ModelConfig config_;
  float norm_offset_ = 0;  // Gemma 3 stores w - 1

 private:
  /// The weight in the format of the scheme, owned by the model; itself where it is stored so.
  Weight by_scheme(const Weight& w);
  /// The source's, with finite numbers only.
  Weight checked_matrix(const std::string& name, int64_t n_out, int64_t n_in);
  std::vector<float> checked_vector(const std::string& name, int64_t n);
  /// The weight where the backend wants it, released with the model.
  Weight placed(const Weight& w, Backend::Placement placement);

  Head head_;
  std::string module_prefix_;
  struct Release {
    Backend* backend;
    void operator()(void* memory) const { backend->release(memory); }
  };
  Backend& backend_;
  const WeightSource& source_;
  LoadOptions options_;
  std::vector<std::unique_ptr<void, Release>> owned_;
  std::deque<Nf4Matrix> nf4_;
  std::deque<Int8Matrix> int8_;
  std::vector<Linear*> linears_;
  Tensor rope_full_, rope_sliding_;
  int64_t weight_bytes_ = 0, table_bytes_ = 0, mapped_bytes_ = 0;
};

/// Builds the model of `base` on a backend; both must outlive it (weights are views of the mapped base).
std::unique_ptr<Model> load_model(Backend& backend, const BaseModel& base, const LoadOptions& options);

// The families (the registry table in model.cc names them).
std::unique_ptr<Model> make_gemma3n(Backend& backend, const BaseModel& base, const LoadOptions& options);
std::unique_ptr<Model> make_gemma3(Backend& backend, const BaseModel& base, const LoadOptions& options);

}  // namespace saaz
