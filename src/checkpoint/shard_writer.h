// Writes a model's tensors as one safetensors file or as shards with an index, the way transformers' save_pretrained
// lays them out. Enters: a size limit, the tensors' specs in model order, a source of bytes. Leaves: files that appear
// whole, the index last; then left-over files of an earlier save are removed. Source: docs/formats.md 5.4.
#pragma once

#include <string>
#include <vector>

#include "base/system.h"
#include "checkpoint/stored_tensor.h"

namespace saaz {

struct Shard {
  std::string file;
  std::vector<TensorSpec> tensors;
};

/// Greedy, in the given order: a tensor larger than the limit gets a shard of its own at once; another one opens a new
/// shard when the sum would exceed the limit. One shard is "model.safetensors". Names are unique.
std::vector<Shard> plan_shards(const std::vector<TensorSpec>& tensors, uint64_t max_shard_bytes);

/// Writes all shards of `plan` into the existing `folder` (and the index when there are several), asking `source` for
/// each tensor once. resource, io: disk errors.
void write_shards(const fs::path& folder, const std::vector<Shard>& plan, const Metadata& metadata,
                  const TensorSource& source);

}  // namespace saaz
