// Batches and the key/value cache of generation. Layers that own keys and values keep them for every position (full
// attention), in a stretch of rows that a sequence gets for its whole life from a pool, or in a ring of the newest
// positions (sliding). A ring has window + longest chunk - 1 rows at least, so that a chunk never overwrites a key that
// one of its queries sees. Everything is allocated at the start.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "config/model_config.h"
#include "ops/ops.h"

namespace saaz {

/// Tokens of one forward: ids, positions in their sequences, and for each layer type what attention sees and (with a
/// cache) the cache row of each token. Host memory; must outlive the pass that uses it.
struct Batch {
  std::vector<int32_t> ids, positions;
  std::array<std::vector<AttentionSpan>, 2> spans;  // by LayerType
  std::array<std::vector<int64_t>, 2> cache_rows;   // by LayerType; empty without a cache
  std::vector<AdapterRows> adapter_rows;            // empty: none but what is attached to the model
};

/// Whole sequences without a cache: seq_starts has n + 1 entries, tokens of sequence i are [seq_starts[i], seq_starts[i
/// + 1]).
Batch packed_batch(std::span<const int32_t> ids, std::span<const int64_t> seq_starts);

struct KvLayout {
  int64_t n_sequences = 1;  // at once, numbered from 0
  int64_t max_length = 1;   // tokens of a sequence
  int64_t max_chunk = 1;    // tokens of a sequence in one batch
  int64_t kept = 0;         // newest tokens before a chunk that stay readable, beyond those that its queries see
  int64_t full_rows = 0;    // rows of a full layer, shared by the sequences; 0: max_length for each
};

class KvCache {
 public:
  /// Allocates from the backend.
  KvCache(Backend& backend, const ModelConfig& config, const KvLayout& layout);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  /// Bytes of one row of keys and values in all owning layers of a type.
  static int64_t row_bytes(const Backend& backend, const ModelConfig& config, LayerType type);
  /// Rows of a sequence's ring.
  static int64_t ring_rows(const ModelConfig& config, const KvLayout& layout);

  /// Gives the sequence room for `capacity` tokens, at most max_length; it starts empty. False when no stretch of so
  /// many rows is free.
  bool open(int64_t sequence, int64_t capacity);
  /// Forgets a sequence; its rows are free for others.
  void close(int64_t sequence);
  int64_t length(int64_t sequence) const { return sequences_[static_cast<size_t>(sequence)].length; }
  /// After rows were written from elsewhere: the first `length` tokens are there.
  void set_length(int64_t sequence, int64_t length) { sequences_[static_cast<size_t>(sequence)].length = length; }
  int64_t rows_used() const { return rows_used_; }
  int64_t rows_total() const { return layout_.full_rows; }
  int64_t bytes() const { return bytes_; }
  int64_t max_length() const { return layout_.max_length; }

  struct Append {
    int64_t sequence;
    std::span<const int32_t> ids;
  };
  /// Makes `batch` the one that appends these tokens, and sets the new lengths. resource when a sequence would exceed
  /// its capacity.
  void append(std::span<const Append> items, Batch& batch);

  const Tensor& k(int64_t layer) const { return layers_[static_cast<size_t>(layer)].k; }
  const Tensor& v(int64_t layer) const { return layers_[static_cast<size_t>(layer)].v; }
  /// Calls use(row, position, n) for stretches of neighbouring rows that hold positions [begin, end) of a sequence.
  template <class Use>
  void for_rows(int64_t sequence, LayerType type, int64_t begin, int64_t end, Use use) const {
    const Place place = place_of(sequence, type);
    while (begin < end) {
      const int64_t at = begin % place.capacity, n = std::min(end - begin, place.capacity - at);
      use(place.begin + at, begin, n);
      begin += n;
    }
  }

 private:
  struct Layer {
    Tensor k, v;
  };
  struct Extent {
    int64_t begin = 0, n = 0;
  };
  struct Sequence {
    int64_t length = 0, capacity = 0;
    Extent full;
  };
  struct Place {
    int64_t begin, capacity;
  };
  Place place_of(int64_t sequence, LayerType type) const;

  Backend& backend_;
  KvLayout layout_;
  int64_t ring_rows_ = 0, rows_used_ = 0, bytes_ = 0;
  std::vector<Layer> layers_;
  std::vector<void*> memory_;
  std::vector<Sequence> sequences_;
  std::vector<Extent> free_;  // of full layers: ascending, never touching
};

}  // namespace saaz
