// AdamW over an adapter's flat buffers, as torch (f32 states) or as bitsandbytes (8-bit blockwise states; small tensors
// stay f32). Learning-rate schedules as Hugging Face's. Sources: docs/formats.md 3 and 6.4.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/tensor_set.h"
#include "config/recipe.h"
#include "lora/lora.h"

namespace saaz {

/// Learning rate of update u (0-based) of n_updates.
double learning_rate_at(const TrainRecipe& recipe, int64_t update, int64_t n_updates, int64_t warmup_steps);
int64_t warmup_steps_of(const TrainRecipe& recipe, int64_t n_updates);

class AdamW {
 public:
  /// Zero states for every tensor of the adapter; both outlive the object.
  AdamW(Backend& backend, const Adapter& adapter, const TrainRecipe& recipe);
  ~AdamW();
  AdamW(const AdamW&) = delete;
  AdamW& operator=(const AdamW&) = delete;

  /// The 2-norm of all gradients (f64 sum).
  double gradient_norm() const;
  /// One update with gradients scaled by grad_scale.
  void step(double learning_rate, double grad_scale);
  int64_t n_steps() const { return n_steps_; }
  /// Whether all parameters and states are finite numbers.
  bool is_finite() const;

  /// Writes the states to a safetensors file (atomically), names "<tensor>.state1" and so on, and reads them back
  /// exactly: verification when the file does not fit the adapter.
  void save(const fs::path& path) const;
  void load(const fs::path& path);

 private:
  struct State {
    std::string name;
    Tensor parameter, gradient;
    Tensor m, v;                // f32, or u8 codes
    Tensor m_absmax, v_absmax;  // 8-bit only
    bool is_8bit() const { return m.dtype == DType::u8; }
  };
  std::vector<std::pair<std::string, Tensor>> named_states() const;
  Tensor allocate(DType dtype, int64_t n);
  void join_states();

  Backend& backend_;
  const TrainRecipe& recipe_;
  std::vector<State> states_;
  std::vector<State> runs_;  // of states_, joined
  std::vector<void*> memory_;
  Tensor gradients_;
  int64_t n_steps_ = 0;
};

}  // namespace saaz
