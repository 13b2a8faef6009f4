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

KvCache::KvCache(Backend& backend, const ModelConfig& config, int64_t n_sequences, int64_t max_length,
                 int64_t max_chunk)
    : backend_(backend), max_length_(max_length), max_chunk_(max_chunk), lengths_(static_cast<size_t>(n_sequences), 0) {
  capacity_[static_cast<int>(LayerType::full)] = max_length;
  capacity_[static_cast<int>(LayerType::sliding)] = std::min(max_length, config.sliding_window + max_chunk - 1);
  layers_.resize(static_cast<size_t>(config.n_layers));
  for (int64_t l = 0; l < config.n_layers; ++l) {
    if (config.shares_kv(l)) continue;
    const int64_t rows = n_sequences * capacity_[static_cast<int>(config.layer_types[static_cast<size_t>(l)])];
    for (Tensor* t : {&layers_[static_cast<size_t>(l)].k, &layers_[static_cast<size_t>(l)].v}) {
      *t = Tensor(nullptr, backend.activation_dtype(), {rows, config.n_kv_heads * config.head_dim});
      t->data = backend_.allocate(t->bytes(), "key/value cache");
      memory_.push_back(t->data);
    }
  }
}

KvCache::~KvCache() {
  for (void* memory : memory_) backend_.release(memory);
}

Batch KvCache::append(std::span<const Append> items) {
  Batch batch;
  for (const Append& item : items) {
    const auto n = static_cast<int64_t>(item.ids.size());
    int64_t& length = lengths_[static_cast<size_t>(item.sequence)];
    check(n <= max_chunk_, ExitCode::bug, "KvCache: chunk of {} tokens, made for {}", n, max_chunk_);
    check(length + n <= max_length_, ExitCode::resource,
          "the context holds {} tokens and {} more were to be added, but its limit is {}: shorten the prompt or raise "
          "the limit",
          length, n, max_length_);
    const auto q_begin = static_cast<int64_t>(batch.ids.size());
    batch.ids.insert(batch.ids.end(), item.ids.begin(), item.ids.end());
    for (int64_t i = 0; i < n; ++i) batch.positions.push_back(static_cast<int32_t>(length + i));
    for (size_t type = 0; type < capacity_.size(); ++type) {
      const int64_t capacity = capacity_[type], kv_begin = item.sequence * capacity;
      batch.spans[type].push_back({.q_begin = q_begin,
                                   .n_queries = n,
                                   .first_position = length,
                                   .kv_begin = kv_begin,
                                   .kv_capacity = capacity});
      for (int64_t i = 0; i < n; ++i) batch.cache_rows[type].push_back(kv_begin + (length + i) % capacity);
    }
    length += n;
  }
  return batch;
}

}  // namespace saaz
