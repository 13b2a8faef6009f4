// The floating-point operations of passes as a function of what is in the batch: a sum of a part that grows with
// tokens, one with the squares of the samples' lengths (attention), and one with scored tokens (the head). Enters: a
// model on a counting backend. Invariant: exact for single samples of the lengths it was fitted on.
#pragma once

#include <functional>
#include <span>

#include "data/batcher.h"
#include "model/pass.h"

namespace saaz {

struct PassCost {
  double token = 0, square = 0, scored = 0;  // FLOP for each
  double of(const Sample& sample) const;
  double of(std::span<const Sample> samples, std::span<const int64_t> indices) const;
};

/// FLOP of a pass over a batch, by running it on a counting backend.
using CountFlops = std::function<double(const Batch& batch, Targets targets)>;
/// Fitted on samples of `length` (at least 2) and half of it.
PassCost fit_pass_cost(int64_t length, const CountFlops& count);

}  // namespace saaz
