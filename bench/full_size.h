// Gemma 3n E4B at full size with random weights, made in place from a seed: one pool of normal bf16 values that every
// matrix is a window of, so that a machine needs 5 GB for it and no file. Gate values of random weights are close to
// normal, so the sparse layers are as sparse as the real model's.
#pragma once

#include <string>
#include <vector>

#include "model/weight_source.h"

namespace saaz::bench {

/// E4B's configuration: the class defaults of transformers.
BaseModel random_full_size_model(uint64_t seed);

/// Lengths of `n` conversations as the source's dataset has them: log-normal, mean 310, at most 4000.
std::vector<int64_t> source_lengths(int64_t n, uint64_t seed);

/// Times of the kernels that ran between start and stop, by name, from CUPTI; nothing where CUPTI cannot be loaded.
class KernelProfile {
 public:
  void start();
  /// A table on stdout: share, milliseconds, launches, name.
  void stop_and_print(const char* title, int n_repeats);
};

}  // namespace saaz::bench
