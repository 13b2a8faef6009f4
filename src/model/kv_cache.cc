#include "model/kv_cache.h"

#include <algorithm>

#include "base/check.h"

namespace saaz {

Batch packed_batch(std::span<const int32_t> ids, std::span<const int64_t> seq_starts) {
  Batch batch;
  batch.ids.assign(ids.begin(), ids.end());
  for (size_t s = 0; s + 1 < seq_starts.size(); ++s) {
    const int64_t begin = seq_starts[s], n = seq_starts[s + 1] - begin;
    if (n == 0) continue;
    for (int64_t i = 0; i < n; ++i) batch.positions.push_back(static_cast<int32_t>(i));
    for (auto& spans : batch.spans)
      spans.push_back({.q_begin = begin, .n_queries = n, .first_position = 0, .kv_begin = begin, .kv_capacity = n});
  }
  return batch;
}

int64_t KvCache::row_bytes(const Backend& backend, const ModelConfig& config, LayerType type) {
  int64_t n_layers = 0;
  for (int64_t l = 0; l < config.n_layers; ++l)
    n_layers += !config.shares_kv(l) && config.layer_types[static_cast<size_t>(l)] == type ? 1 : 0;
  return n_layers * 2 * config.n_kv_heads * config.head_dim * size_of(backend.activation_dtype());
}

int64_t KvCache::ring_rows(const ModelConfig& config, const KvLayout& layout) {
  return std::min(layout.max_length, config.sliding_window + layout.max_chunk - 1 + layout.kept);
}

KvCache::KvCache(Backend& backend, const ModelConfig& config, const KvLayout& layout)
    : backend_(backend),
      layout_(layout),
      ring_rows_(ring_rows(config, layout)),
      sequences_(static_cast<size_t>(layout.n_sequences)) {
  if (layout_.full_rows == 0) layout_.full_rows = layout.n_sequences * layout.max_length;
  free_.push_back({0, layout_.full_rows});
  layers_.resize(static_cast<size_t>(config.n_layers));
  for (int64_t l = 0; l < config.n_layers; ++l) {
    if (config.shares_kv(l)) continue;
    const bool full = config.layer_types[static_cast<size_t>(l)] == LayerType::full;
    const int64_t rows = full ? layout_.full_rows : layout.n_sequences * ring_rows_;
    for (Tensor* t : {&layers_[static_cast<size_t>(l)].k, &layers_[static_cast<size_t>(l)].v}) {
      *t = Tensor(nullptr, backend.activation_dtype(), {rows, config.n_kv_heads * config.head_dim});
      t->data = backend_.allocate(t->bytes(), "key/value cache");
      bytes_ += t->bytes();
      memory_.push_back(t->data);
    }
  }
}

KvCache::~KvCache() {
  for (void* memory : memory_) backend_.release(memory);
}

bool KvCache::open(int64_t sequence, int64_t capacity) {
  const auto fits = std::find_if(free_.begin(), free_.end(), [&](const Extent& e) { return e.n >= capacity; });
  if (fits == free_.end()) return false;
  sequences_[static_cast<size_t>(sequence)] = {.length = 0, .capacity = capacity, .full = {fits->begin, capacity}};
  *fits = {fits->begin + capacity, fits->n - capacity};
  if (fits->n == 0) free_.erase(fits);
  rows_used_ += capacity;
  return true;
}

void KvCache::close(int64_t sequence) {
  const Extent extent = sequences_[static_cast<size_t>(sequence)].full;
  sequences_[static_cast<size_t>(sequence)] = {};
  rows_used_ -= extent.n;
  const auto after = std::find_if(free_.begin(), free_.end(), [&](const Extent& e) { return e.begin > extent.begin; });
  auto it = free_.insert(after, extent);
  if (it + 1 != free_.end() && it->begin + it->n == (it + 1)->begin) {
    it->n += (it + 1)->n;
    free_.erase(it + 1);
  }
  if (it != free_.begin() && (it - 1)->begin + (it - 1)->n == it->begin) {
    (it - 1)->n += it->n;
    free_.erase(it);
  }
}

KvCache::Place KvCache::place_of(int64_t sequence, LayerType type) const {
  const Sequence& s = sequences_[static_cast<size_t>(sequence)];
  if (type == LayerType::full) return {s.full.begin, s.capacity};
  return {sequence * ring_rows_, ring_rows_};
}

void KvCache::append(std::span<const Append> items, Batch& batch) {
  batch.ids.clear(), batch.positions.clear(), batch.adapter_rows.clear();
  for (size_t type = 0; type < batch.spans.size(); ++type) batch.spans[type].clear(), batch.cache_rows[type].clear();
  for (const Append& item : items) {
    const auto n = static_cast<int64_t>(item.ids.size());
    Sequence& sequence = sequences_[static_cast<size_t>(item.sequence)];
    const int64_t length = sequence.length;
    check(n <= layout_.max_chunk, ExitCode::bug, "KvCache: chunk of {} tokens, made for {}", n, layout_.max_chunk);
    check(length + n <= sequence.capacity, ExitCode::resource,
          "the context holds {} tokens and {} more were to be added, but its limit is {}: shorten the prompt or raise "
          "the limit",
          length, n, sequence.capacity);
    const auto q_begin = static_cast<int64_t>(batch.ids.size());
    batch.ids.insert(batch.ids.end(), item.ids.begin(), item.ids.end());
    for (int64_t i = 0; i < n; ++i) batch.positions.push_back(static_cast<int32_t>(length + i));
    for (const LayerType type : {LayerType::full, LayerType::sliding}) {
      const Place place = place_of(item.sequence, type);
      batch.spans[static_cast<size_t>(type)].push_back({.q_begin = q_begin,
                                                        .n_queries = n,
                                                        .first_position = length,
                                                        .kv_begin = place.begin,
                                                        .kv_capacity = place.capacity});
      std::vector<int64_t>& rows = batch.cache_rows[static_cast<size_t>(type)];
      for (int64_t i = 0; i < n; ++i) rows.push_back(place.begin + (length + i) % place.capacity);
    }
    sequence.length += n;
  }
}

}  // namespace saaz
