// Attention of a few queries, all heads of one kv head together, against the keys they see; and its backward pass, once
// over queries (dq) and once over keys (dk, dv), probabilities recomputed from lse. Keys are walked by position (row
// kv_begin
// + position % kv_capacity), sums run over keys or queries one after another, and what a row does not see enters its
// sums as zeros: so the bits of a row depend neither on its neighbours in the task nor on where a ring cache wraps.
// Source: gemma3n.md 3.3 and 5.
#pragma once

#include "backend/cpu/matmul.inc.h"
#include "backend/cpu/rows.inc.h"

namespace saaz::cpu {
namespace {

struct Bump {
  float* at;
  float* take(int64_t n) {
    float* out = at;
    at += (n + 15) / 16 * 16;
    return out;
  }
};

inline int64_t rounded_keys(int64_t n_keys) { return (n_keys + 15) / 16 * 16; }

/// Four blocks of rows and of keys by head_dim, two of scores, a panel, a row statistic.
int64_t attention_scratch(const AttentionShape& shape, int64_t n_keys) {
  const int64_t group = shape.n_heads / shape.n_kv_heads;
  const int64_t rows = group > kAttentionRows ? group : kAttentionRows;
  const int64_t dim = rounded_keys(shape.head_dim);
  return 4 * (rows + kAttentionKeys) * dim + 2 * rows * rounded_keys(n_keys) + kOuterChunk * kPanel +
         rounded_keys(rows);
}

/// The rows (query, head) of a task: row r is head kv_head * group + r % group of query begin + r / group.
struct QueryBlock {
  const AttentionShape& shape;
  const AttentionSpan& span;
  int64_t begin, end, kv_head;

  int64_t group() const { return shape.n_heads / shape.n_kv_heads; }
  int64_t rows() const { return (end - begin) * group(); }
  int64_t position(int64_t row) const { return span.first_position + begin + row / group(); }
  int64_t first_visible(int64_t row) const {
    const int64_t first = position(row) - shape.window + 1;
    return shape.window == 0 || first < 0 ? 0 : first;
  }
  /// Index of the row's (token, head) pair; times head_dim: its place in q.
  int64_t index(int64_t row) const {
    return (span.q_begin + begin + row / group()) * shape.n_heads + kv_head * group() + row % group();
  }
  void gather(float* to, const float* from) const {
    const auto bytes = static_cast<size_t>(shape.head_dim) * sizeof(float);
    for (int64_t r = 0; r < rows(); ++r) {
      __builtin_memcpy(to + r * shape.head_dim, from + index(r) * shape.head_dim, bytes);
    }
  }
};

inline int64_t kv_offset(const AttentionShape& shape, const AttentionSpan& span, int64_t position, int64_t kv_head) {
  const int64_t row = span.kv_begin + position % span.kv_capacity;
  return (row * shape.n_kv_heads + kv_head) * shape.head_dim;
}

/// Calls f(position, count) for stretches of positions whose rows are neighbours.
template <class F>
inline void for_stretches(const AttentionSpan& span, int64_t begin, int64_t end, F f) {
  for (int64_t p = begin; p < end;) {
    const int64_t room = span.kv_capacity - p % span.kv_capacity;
    const int64_t count = end - p < room ? end - p : room;
    f(p, count);
    p += count;
  }
}

/// scores[r, p - begin] = <rows[r], keys[p]> for positions [begin, end).
inline void score_keys(const QueryBlock& block, const float* rows, const float* keys, int64_t begin, int64_t end,
                       float* scores, int64_t stride) {
  const AttentionShape& shape = block.shape;
  for_stretches(block.span, begin, end, [&](int64_t p, int64_t count) {
    const Rows w{keys + kv_offset(shape, block.span, p, block.kv_head), shape.n_kv_heads * shape.head_dim};
    dot_rows(scores + (p - begin), stride, {rows, shape.head_dim}, block.rows(), w, count, shape.head_dim,
             Write::overwrite);
  });
}

/// c[i, :] continues with sum_n a(i, n) w[n, :]; c is [m, dim]. Columns past the last full panel go through `panel`.
inline void chain_rows(float* c, int64_t dim, OuterA a, int64_t m, Rows w, int64_t n, float* panel) {
  int64_t at = 0;
  for (; at + kPanel <= dim; at += kPanel) {
    outer_panel(c + at, dim, kPanel, a, m, {w.data + at, w.stride}, n, 1, Finish::chain);
  }
  if (at == dim) return;
  for (int64_t j = 0; j < n; j += kOuterChunk) {
    const int64_t count = n - j < kOuterChunk ? n - j : kOuterChunk;
    for (int64_t i = 0; i < count; ++i) store_in_panels(panel, i, w.data + (j + i) * w.stride + at, dim - at);
    const OuterA from{a.data + j * a.n_stride, a.row_stride, a.n_stride};
    outer_panel(c + at, dim, dim - at, from, m, {panel, kPanel}, count, 1, Finish::chain);
  }
}

/// sums[r, :] = sum_p weights[r, p - begin] values[p, :].
inline void weigh_values(const QueryBlock& block, const float* weights, int64_t stride, const float* values,
                         int64_t begin, int64_t end, float* sums, float* panel) {
  const AttentionShape& shape = block.shape;
  __builtin_memset(sums, 0, static_cast<size_t>(block.rows() * shape.head_dim) * sizeof(float));
  for_stretches(block.span, begin, end, [&](int64_t p, int64_t count) {
    const Rows w{values + kv_offset(shape, block.span, p, block.kv_head), shape.n_kv_heads * shape.head_dim};
    chain_rows(sums, shape.head_dim, {weights + (p - begin), stride, 1}, block.rows(), w, count, panel);
  });
}

/// Zeroes row[0, first) and row[last, n).
inline void clear_outside(float* row, int64_t first, int64_t last, int64_t n) {
  __builtin_memset(row, 0, static_cast<size_t>(first) * sizeof(float));
  __builtin_memset(row + last, 0, static_cast<size_t>(n - last) * sizeof(float));
}

void attention_task(const AttentionArgs& args, const AttentionTask& task, float* scratch) {
  const AttentionShape& shape = args.shape;
  const QueryBlock block{shape, *task.span, task.begin, task.end, task.kv_head};
  const int64_t rows = block.rows(), dim = shape.head_dim;
  const int64_t begin = block.first_visible(0), end = block.position(rows - 1) + 1, stride = rounded_keys(end - begin);
  Bump bump{scratch};
  float *queries = bump.take(rows * dim), *scores = bump.take(rows * stride), *sums = bump.take(rows * dim);
  float* panel = bump.take(kOuterChunk * kPanel);
  float* inverse_sums = bump.take(rows);
  block.gather(queries, args.q);
  score_keys(block, queries, args.k, begin, end, scores, stride);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t first = block.first_visible(r) - begin, last = block.position(r) + 1 - begin;
    float* row = scores + r * stride + first;
    for_lanes(last - first,
              [&](int64_t i, int64_t count) { store(row + i, shape.scale * load(row + i, count), count); });
    const float largest = largest_of(row, last - first);
    const double sum = row_sum(last - first, [&](int64_t i, int64_t count) {
      const VecF weight = exp(load(row + i, count) - largest);
      store(row + i, weight, count);
      return weight;
    });
    clear_outside(scores + r * stride, first, last, end - begin);
    inverse_sums[r] = static_cast<float>(1.0 / sum);
    if (args.lse_to) args.lse_to[block.index(r)] = static_cast<float>(largest + __builtin_log(sum));
  }
  weigh_values(block, scores, stride, args.v, begin, end, sums, panel);
  for (int64_t r = 0; r < rows; ++r) {
    add_scaled(dim, args.out_to + block.index(r) * dim, sums + r * dim, inverse_sums[r], nullptr, 0);
  }
}

/// In place for keys [first, last) of one row: scores become probabilities, products (dout . v) become dscores.
inline void probabilities_and_gradients(float* scores, float* products, int64_t n, float scale, float lse, float mean) {
  for_lanes(n, [=](int64_t i, int64_t count) {
    const VecF p = exp(scale * load(scores + i, count) - lse);
    store(products + i, scale * (p * (load(products + i, count) - mean)), count);
    store(scores + i, p, count);
  });
}

/// <dout, out> of a row: the mean of dout . v under its probabilities.
inline float mean_product(const AttentionArgs& args, int64_t index) {
  const int64_t dim = args.shape.head_dim;
  return static_cast<float>(dot_of(args.dout + index * dim, args.out + index * dim, dim));
}

void attention_backward_queries(const AttentionArgs& args, const AttentionTask& task, float* scratch) {
  const AttentionShape& shape = args.shape;
  const QueryBlock block{shape, *task.span, task.begin, task.end, task.kv_head};
  const int64_t rows = block.rows(), dim = shape.head_dim;
  const int64_t begin = block.first_visible(0), end = block.position(rows - 1) + 1, stride = rounded_keys(end - begin);
  Bump bump{scratch};
  float *queries = bump.take(rows * dim), *douts = bump.take(rows * dim), *sums = bump.take(rows * dim);
  float *scores = bump.take(rows * stride), *products = bump.take(rows * stride);
  float* panel = bump.take(kOuterChunk * kPanel);
  block.gather(queries, args.q);
  block.gather(douts, args.dout);
  score_keys(block, queries, args.k, begin, end, scores, stride);
  score_keys(block, douts, args.v, begin, end, products, stride);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t first = block.first_visible(r) - begin, last = block.position(r) + 1 - begin, index = block.index(r);
    probabilities_and_gradients(scores + r * stride + first, products + r * stride + first, last - first, shape.scale,
                                args.lse[index], mean_product(args, index));
    clear_outside(products + r * stride, first, last, end - begin);
  }
  weigh_values(block, products, stride, args.k, begin, end, sums, panel);
  for (int64_t r = 0; r < rows; ++r) accumulate(dim, args.dq + block.index(r) * dim, Write::add, sums + r * dim, 1);
}

/// What the queries of `block` send to keys [task.begin, task.end): chains onto dk and dv, both [keys, head_dim].
inline void queries_to_keys(const AttentionArgs& args, const AttentionTask& task, const QueryBlock& block, Bump bump,
                            float* dk, float* dv) {
  const int64_t rows = block.rows(), dim = args.shape.head_dim, keys = task.end - task.begin, stride = kAttentionKeys;
  float *queries = bump.take(rows * dim), *douts = bump.take(rows * dim);
  float *scores = bump.take(rows * stride), *products = bump.take(rows * stride);
  float* panel = bump.take(kOuterChunk * kPanel);
  block.gather(queries, args.q);
  block.gather(douts, args.dout);
  score_keys(block, queries, args.k, task.begin, task.end, scores, stride);
  score_keys(block, douts, args.v, task.begin, task.end, products, stride);
  for (int64_t r = 0; r < rows; ++r) {
    int64_t first = block.first_visible(r) - task.begin, last = block.position(r) + 1 - task.begin;
    first = first < 0 ? 0 : first > keys ? keys : first;
    last = last < first ? first : last > keys ? keys : last;
    const int64_t index = block.index(r), at = r * stride + first;
    probabilities_and_gradients(scores + at, products + at, last - first, args.shape.scale, args.lse[index],
                                mean_product(args, index));
    clear_outside(scores + r * stride, first, last, keys);
    clear_outside(products + r * stride, first, last, keys);
  }
  chain_rows(dk, dim, {products, 1, stride}, keys, {queries, dim}, rows, panel);
  chain_rows(dv, dim, {scores, 1, stride}, keys, {douts, dim}, rows, panel);
}

void attention_backward_keys(const AttentionArgs& args, const AttentionTask& task, float* scratch) {
  const AttentionShape& shape = args.shape;
  const AttentionSpan& span = *task.span;
  const int64_t dim = shape.head_dim, keys = task.end - task.begin;
  Bump bump{scratch};
  float *dk = bump.take(kAttentionKeys * dim), *dv = bump.take(kAttentionKeys * dim);
  __builtin_memset(dk, 0, static_cast<size_t>(keys * dim) * sizeof(float));
  __builtin_memset(dv, 0, static_cast<size_t>(keys * dim) * sizeof(float));
  const int64_t first_after = task.begin - span.first_position, n = span.n_queries;
  const int64_t first_beyond = task.end - 1 + shape.window - span.first_position;
  const int64_t first = first_after < 0 ? 0 : first_after;
  const int64_t end = shape.window == 0 || first_beyond > n ? n : first_beyond;
  const int64_t group = shape.n_heads / shape.n_kv_heads, step = group > kAttentionRows ? 1 : kAttentionRows / group;
  for (int64_t q = first; q < end; q += step) {
    queries_to_keys(args, task, {shape, span, q, q + step < end ? q + step : end, task.kv_head}, bump, dk, dv);
  }
  for (int64_t p = task.begin; p < task.end; ++p) {
    const int64_t to = kv_offset(shape, span, p, task.kv_head), from = (p - task.begin) * dim;
    if (args.dk) accumulate(dim, args.dk + to, Write::add, dk + from, 1);
    if (args.dv) accumulate(dim, args.dv + to, Write::add, dv + from, 1);
  }
}

}  // namespace
}  // namespace saaz::cpu
