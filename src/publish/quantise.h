// Writes a base as a folder in bitsandbytes' serialised form, which transformers, PEFT and this program load: the
// linears of formats.md 1.7 as NF4 or as 8-bit rows, everything else as it is. Enters: a 16-bit or GGUF base. Leaves: a
// complete folder that appears whole. One matrix is in memory at a time.
#pragma once

#include "config/recipe.h"
#include "model/weight_source.h"

namespace saaz {

struct QuantiseOptions {
  QuantScheme scheme = QuantScheme::nf4;  // or int8
  bool double_quant = true;
  uint64_t max_shard_bytes = 5'000'000'000;
};

struct QuantiseReport {
  int64_t n_quantised = 0, n_kept = 0;         // tensors
  uint64_t bytes_before = 0, bytes_after = 0;  // of the quantised matrices, 16-bit and as written
  double relative_error = 0;                   // norm(W - values written) / norm(W), over all of them
};

/// `out` must be absent or empty (in_use). usage for scheme none; bad_input when the base is quantised already or holds
/// a value that the format cannot; io, resource: disk.
QuantiseReport quantise_model(const BaseModel& base, const QuantiseOptions& options, const fs::path& out);

}  // namespace saaz
