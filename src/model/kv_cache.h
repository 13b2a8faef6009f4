// Batches and the key/value cache of generation. Layers that own keys and values keep them for every position (full
// attention) or in a ring of window + longest chunk - 1 rows (sliding), so that a chunk never overwrites a key that one
// of its queries sees.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "config/model_config.h"

namespace saaz {

/// Tokens of one forward: ids, positions in their sequences, and for each layer type what attention sees and (with a
/// cache) the cache row of each token. Host memory; must outlive the pass that uses it.
struct Batch {
  std::vector<int32_t> ids, positions;
  std::array<std::vector<AttentionSpan>, 2> spans;  // by LayerType
  std::array<std::vector<int64_t>, 2> cache_rows;   // by LayerType; empty without a cache
};

/// Whole sequences without a cache: seq_starts has n + 1 entries, tokens of sequence i are [seq_starts[i], seq_starts[i
/// + 1]).
Batch packed_batch(std::span<const int32_t> ids, std::span<const int64_t> seq_starts);

class KvCache {
 public:
  /// Room for n_sequences of up to max_length tokens, fed in chunks of at most max_chunk. Allocates from the backend.
  KvCache(Backend& backend, const ModelConfig& config, int64_t n_sequences, int64_t max_length, int64_t max_chunk);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  struct Append {
    int64_t sequence;
    std::span<const int32_t> ids;
  };
  /// The batch that appends these tokens, and the new lengths. resource when a sequence would exceed max_length.
  Batch append(std::span<const Append> items);
  int64_t length(int64_t sequence) const { return lengths_[static_cast<size_t>(sequence)]; }
  /// Forgets a sequence; its rows are free for another.
  void clear(int64_t sequence) { lengths_[static_cast<size_t>(sequence)] = 0; }
  const Tensor& k(int64_t layer) const { return layers_[static_cast<size_t>(layer)].k; }
  const Tensor& v(int64_t layer) const { return layers_[static_cast<size_t>(layer)].v; }

 private:
  struct Layer {
    Tensor k, v;
  };
  Backend& backend_;
  int64_t max_length_, max_chunk_;
  std::array<int64_t, 2> capacity_;  // rows of a sequence, by LayerType
  std::vector<Layer> layers_;
  std::vector<void*> memory_;
  std::vector<int64_t> lengths_;
};

}  // namespace saaz
