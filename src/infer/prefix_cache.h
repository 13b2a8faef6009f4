// PrefixCache: keys and values of what was computed before, so that a system prompt or an earlier turn is computed
// once. They are kept in blocks of kBlock tokens, of every layer that owns keys and values; a block is known by all
// tokens up to its end and by the adapter that computed it, so equal prefixes share blocks and what is found is exact.
// A new sequence gets copies: all rows for full layers, for sliding ones those that its next tokens see. The block that
// was not used for longest goes first. Memory is fixed at the start.
#pragma once

#include <array>
#include <map>
#include <span>
#include <vector>

#include "model/kv_cache.h"

namespace saaz {

class PrefixCache {
 public:
  static constexpr int64_t kBlock = 32;
  using BlockTokens = std::array<int32_t, kBlock>;
  /// Where a sequence stands: its last block here. It keeps that block and those before it from going.
  static constexpr int32_t kRoot = -1;

  /// As many blocks as `bytes` hold, possibly none.
  PrefixCache(Backend& backend, const ModelConfig& config, int64_t bytes);
  ~PrefixCache();
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  struct Hold {
    int32_t block = kRoot;
    int64_t n_tokens = 0;  // up to the end of the block
    uint64_t adapter = 0;  // whose keys and values these are; never used again for another
    bool stopped = false;  // no block was free for the next tokens: nothing more is kept of this sequence
  };
  /// How many of these tokens are kept.
  int64_t kept_tokens(uint64_t adapter, std::span<const int32_t> ids) const;
  /// Copies the longest kept prefix of `ids` into an open and empty sequence of `cache`, and sets its length.
  Hold restore(uint64_t adapter, std::span<const int32_t> ids, KvCache& cache, int64_t sequence);
  /// Keeps the blocks that have become complete: `ids` are the tokens whose rows `cache` has by now.
  void store(Hold& hold, std::span<const int32_t> ids, const KvCache& cache, int64_t sequence);
  /// The sequence needs its blocks no longer.
  void release(Hold& hold);

  int64_t blocks_used() const { return static_cast<int64_t>(blocks_.size() - free_.size()); }
  int64_t blocks_total() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t bytes() const { return bytes_; }

 private:
  using Key = std::pair<int64_t, BlockTokens>;  // the block before (or the adapter, for a first one), and the tokens
  struct Block {
    Key key;
    int32_t before = kRoot;
    int64_t n_after = 0, n_holds = 0;
    uint64_t last_use = 0;
  };
  struct Layer {
    int64_t index;
    LayerType type;
    Tensor k, v;
  };
  static Key key_of(const Hold& hold, std::span<const int32_t> ids);
  void move_to(Hold& hold, int32_t block);
  int32_t free_block();
  enum class Direction : uint8_t { to_cache, to_block };
  /// Copies the rows of positions [begin, end) that lie in `block`, which starts at `block_begin`.
  void copy_rows(Direction direction, int32_t block, int64_t block_begin, const Layer& layer, const KvCache& cache,
                 int64_t sequence, int64_t begin, int64_t end);

  Backend& backend_;
  int64_t window_;
  int64_t bytes_ = 0;
  uint64_t clock_ = 0;
  std::vector<Layer> layers_;
  std::vector<void*> memory_;
  std::vector<Block> blocks_;
  std::vector<int32_t> free_;
  std::map<Key, int32_t> index_;
};

}  // namespace saaz
