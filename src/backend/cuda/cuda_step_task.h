// What the sources of a step's products share: one product and what follows it, before it is known which kernel takes
// it. Room-private.
#pragma once

#include "backend/cuda/cuda_step.h"

namespace saaz::cuda {

enum class Step::Then : uint8_t { store, store_f32, gate_up, gate_given };

struct Step::Task {
  Tensor y, x, given;
  Weight w, up;
  float cap = 0;
  const Mix* mix = nullptr;  // makes x

  Then then() const {
    if (!up.empty()) return Then::gate_up;
    if (!given.empty()) return Then::gate_given;
    return y.dtype == DType::f32 ? Then::store_f32 : Then::store;
  }
};

}  // namespace saaz::cuda
