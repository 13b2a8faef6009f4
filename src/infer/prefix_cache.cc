#include "infer/prefix_cache.h"

#include <algorithm>

namespace saaz {

PrefixCache::PrefixCache(Backend& backend, const ModelConfig& config, int64_t bytes)
    : backend_(backend), window_(config.sliding_window) {
  const int64_t block_bytes = kBlock * (KvCache::row_bytes(backend, config, LayerType::full) +
                                        KvCache::row_bytes(backend, config, LayerType::sliding));
  constexpr int64_t kMostBlocks = 1 << 20;
  const int64_t n_blocks = std::min(bytes / block_bytes, kMostBlocks);
  if (n_blocks <= 0) return;
  for (int64_t l = 0; l < config.n_layers; ++l) {
    if (config.shares_kv(l)) continue;
    Layer layer{l, config.layer_types[static_cast<size_t>(l)], {}, {}};
    for (Tensor* t : {&layer.k, &layer.v}) {
      *t = Tensor(nullptr, backend.activation_dtype(), {n_blocks * kBlock, config.n_kv_heads * config.head_dim});
      t->data = backend_.allocate(t->bytes(), "kept prefixes");
      bytes_ += t->bytes();
      memory_.push_back(t->data);
    }
    layers_.push_back(layer);
  }
  blocks_.resize(static_cast<size_t>(n_blocks));
  for (int64_t b = n_blocks; b-- > 0;) free_.push_back(static_cast<int32_t>(b));
}

PrefixCache::~PrefixCache() {
  for (void* memory : memory_) backend_.release(memory);
}

PrefixCache::Key PrefixCache::key_of(const Hold& hold, std::span<const int32_t> ids) {
  Key key{hold.block == kRoot ? -1 - static_cast<int64_t>(hold.adapter) : hold.block, {}};
  std::copy_n(ids.begin() + hold.n_tokens, kBlock, key.second.begin());
  return key;
}

/// `hold` goes on to the block after its own.
void PrefixCache::move_to(Hold& hold, int32_t block) {
  if (hold.block != kRoot) --blocks_[static_cast<size_t>(hold.block)].n_holds;
  ++blocks_[static_cast<size_t>(block)].n_holds;
  blocks_[static_cast<size_t>(block)].last_use = ++clock_;
  hold.block = block;
  hold.n_tokens += kBlock;
}

void PrefixCache::release(Hold& hold) {
  if (hold.block != kRoot) --blocks_[static_cast<size_t>(hold.block)].n_holds;
  hold.block = kRoot;
  hold.stopped = true;
}

/// A free block, or the one not used for longest of those that no block comes after and nobody holds; -1 for none.
int32_t PrefixCache::free_block() {
  if (!free_.empty()) {
    const int32_t block = free_.back();
    free_.pop_back();
    return block;
  }
  int32_t oldest = -1;
  for (size_t b = 0; b < blocks_.size(); ++b)
    if (blocks_[b].n_after == 0 && blocks_[b].n_holds == 0 &&
        (oldest < 0 || blocks_[b].last_use < blocks_[static_cast<size_t>(oldest)].last_use))
      oldest = static_cast<int32_t>(b);
  if (oldest < 0) return -1;
  Block& block = blocks_[static_cast<size_t>(oldest)];
  index_.erase(block.key);
  if (block.before != kRoot) --blocks_[static_cast<size_t>(block.before)].n_after;
  block = {};
  return oldest;
}

void PrefixCache::copy_rows(Direction direction, int32_t block, int64_t block_begin, const Layer& layer,
                            const KvCache& cache, int64_t sequence, int64_t begin, int64_t end) {
  cache.for_rows(sequence, layer.type, begin, end, [&](int64_t row, int64_t position, int64_t n) {
    const int64_t kept_row = block * kBlock + position - block_begin;
    for (const auto& [kept, live] : {std::pair(layer.k, cache.k(layer.index)), {layer.v, cache.v(layer.index)}}) {
      const Tensor kept_rows = row_slice(kept, kept_row, n), live_rows = row_slice(live, row, n);
      if (direction == Direction::to_cache)
        backend_.copy(live_rows, kept_rows);
      else
        backend_.copy(kept_rows, live_rows);
    }
  });
}

int64_t PrefixCache::kept_tokens(uint64_t adapter, std::span<const int32_t> ids) const {
  Hold at{.adapter = adapter};
  while (at.n_tokens + kBlock <= static_cast<int64_t>(ids.size())) {
    const auto it = index_.find(key_of(at, ids));
    if (it == index_.end()) break;
    at.block = it->second;
    at.n_tokens += kBlock;
  }
  return at.n_tokens;
}

PrefixCache::Hold PrefixCache::restore(uint64_t adapter, std::span<const int32_t> ids, KvCache& cache,
                                       int64_t sequence) {
  Hold hold{.adapter = adapter, .stopped = blocks_.empty()};
  std::vector<int32_t> found;
  while (hold.n_tokens + kBlock <= static_cast<int64_t>(ids.size())) {
    const auto it = index_.find(key_of(hold, ids));
    if (it == index_.end()) break;
    move_to(hold, it->second);
    found.push_back(it->second);
  }
  for (size_t i = 0; i < found.size(); ++i) {
    const int64_t block_begin = static_cast<int64_t>(i) * kBlock, block_end = block_begin + kBlock;
    for (const Layer& layer : layers_) {
      // The next token sees itself and window - 1 before it.
      const int64_t seen = layer.type == LayerType::full ? 0 : hold.n_tokens - window_ + 1;
      copy_rows(Direction::to_cache, found[i], block_begin, layer, cache, sequence, std::max(block_begin, seen),
                block_end);
    }
  }
  cache.set_length(sequence, hold.n_tokens);
  return hold;
}

void PrefixCache::store(Hold& hold, std::span<const int32_t> ids, const KvCache& cache, int64_t sequence) {
  while (!hold.stopped && hold.n_tokens + kBlock <= static_cast<int64_t>(ids.size())) {
    const Key key = key_of(hold, ids);
    if (const auto it = index_.find(key); it != index_.end()) {
      move_to(hold, it->second);
      continue;
    }
    const int32_t block = free_block();
    if (block < 0) {
      release(hold);
      return;
    }
    blocks_[static_cast<size_t>(block)].key = key;
    blocks_[static_cast<size_t>(block)].before = hold.block;
    if (hold.block != kRoot) ++blocks_[static_cast<size_t>(hold.block)].n_after;
    index_.emplace(key, block);
    const int64_t begin = hold.n_tokens;
    for (const Layer& layer : layers_)
      copy_rows(Direction::to_block, block, begin, layer, cache, sequence, begin, begin + kBlock);
    move_to(hold, block);
  }
}

}  // namespace saaz
