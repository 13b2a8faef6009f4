// CudaBackend: attention and its gradients. The work list is built here; bf16 with head_dim 256 goes to the tensor-core
// kernels (cuda_attention_mma.cu, cuda_attention_backward.cu; on sm_90a cuda_attention_wgmma.cu and
// _wgmma_backward.cu), everything else to the plain kernels below: any head_dim, f32 arithmetic, a block per query and
// head (per key and kv head for dk and dv), all sums in one fixed order.
#include <algorithm>
#include <cmath>

#include "backend/cuda/cuda_attention.cuh"

namespace saaz::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kWalk = kThreads;  // keys (or queries) walked at a time
enum ScratchSlot : int { kDeltaSlot = 100, kPartialSumsSlot, kPartialStatisticsSlot };

/// <a, b> over a row, in every lane.
template <class T>
__device__ float warp_dot(const float* a, const T* b, int dim, int lane) {
  float sum = 0;
  for (int d = lane; d < dim; d += 32) sum += a[d] * to_f32(b[d]);
  return warp_sum(sum);
}

/// Place in k and v of kv head `head` of the key of `position`.
template <class T>
__device__ int64_t key_offset(const AttentionArgs<T>& args, const AttentionSpan& span, int position, int head) {
  const int64_t row = span.kv_begin + position % static_cast<int>(span.kv_capacity);
  return (row * args.n_kv_heads + head) * args.head_dim;
}

template <class T>
__device__ void load_row(float* to, const T* from, int dim) {
  for (int d = threadIdx.x; d < dim; d += kThreads) to[d] = to_f32(from[d]);
}

template <class T>
__device__ void store_gradient(const AttentionDestination<T>& to, int64_t offset, const float* sums, int dim) {
  if (to.data == nullptr) return;
  T* row = to.data + offset;
  for (int d = threadIdx.x; d < dim; d += kThreads) {
    row[d] = from_f32<T>(to.add ? to_f32(row[d]) + sums[d] : sums[d]);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) plain_forward(const AttentionArgs<T> args) {
  extern __shared__ float rows[];
  __shared__ float scores[kWalk], weights[kWalk];
  const int dim = args.head_dim, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float *query = rows, *sums = rows + dim;
  const AttentionTile tile = args.tiles[blockIdx.x / args.n_heads];
  const int head = static_cast<int>(blockIdx.x) % args.n_heads, kv_head = head / args.group;
  const AttentionSpan span = args.spans[tile.span];
  const int64_t index = (span.q_begin + tile.begin) * args.n_heads + head;
  load_row(query, args.q + index * dim, dim);
  for (int d = threadIdx.x; d < dim; d += kThreads) sums[d] = 0;
  float largest = -INFINITY, sum = 0;  // the same in every thread
  __syncthreads();
  for (int first = tile.walk_begin; first < tile.walk_end; first += kWalk) {
    const int n = min(kWalk, tile.walk_end - first);
    for (int i = warp; i < n; i += kWarps) {
      const float score = args.scale * warp_dot(query, args.k + key_offset(args, span, first + i, kv_head), dim, lane);
      if (lane == 0) scores[i] = score;
    }
    __syncthreads();
    const float before = largest;
    for (int i = lane; i < n; i += 32) largest = fmaxf(largest, scores[i]);
    largest = warp_max(largest);
    if (threadIdx.x < n) weights[threadIdx.x] = expf(scores[threadIdx.x] - largest);
    __syncthreads();
    const float correction = expf(before - largest);
    float added = 0;
    for (int i = lane; i < n; i += 32) added += weights[i];
    sum = sum * correction + warp_sum(added);
    for (int d = threadIdx.x; d < dim; d += kThreads) {
      float total = sums[d] * correction;
      for (int i = 0; i < n; ++i) {
        total += weights[i] * to_f32(args.v[key_offset(args, span, first + i, kv_head) + d]);
      }
      sums[d] = total;
    }
  }
  for (int d = threadIdx.x; d < dim; d += kThreads) args.out[index * dim + d] = from_f32<T>(sums[d] / sum);
  if (args.lse != nullptr && threadIdx.x == 0) args.lse[index] = largest + logf(sum);
}

/// delta[row] = <dout, out>; a warp per row (token, head).
template <class T>
__global__ void __launch_bounds__(kThreads) row_products(const AttentionArgs<T> args, int64_t n_rows, bool vectors) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= n_rows) return;
  const int dim = args.head_dim, lane = threadIdx.x % 32;
  const T *dout = args.dout + row * dim, *out = args.out + row * dim;
  float sum = 0;
  if (vectors) {
    for (int d = lane * kVector<T>; d < dim; d += 32 * kVector<T>) {
      const Vector<T> a = load_vector(dout + d), b = load_vector(out + d);
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) sum += a.v[i] * b.v[i];
    }
  } else {
    for (int d = lane; d < dim; d += 32) sum += to_f32(dout[d]) * to_f32(out[d]);
  }
  sum = warp_sum(sum);
  if (lane == 0) args.delta[row] = sum;
}

/// dq of one query and head.
template <class T>
__global__ void __launch_bounds__(kThreads) plain_backward_queries(const AttentionArgs<T> args) {
  extern __shared__ float rows[];
  __shared__ float dscores[kWalk];
  const int dim = args.head_dim, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float *query = rows, *dout = rows + dim, *dq = rows + 2 * dim;
  const AttentionTile tile = args.tiles[blockIdx.x / args.n_heads];
  const int head = static_cast<int>(blockIdx.x) % args.n_heads, kv_head = head / args.group;
  const AttentionSpan span = args.spans[tile.span];
  const int64_t index = (span.q_begin + tile.begin) * args.n_heads + head;
  load_row(query, args.q + index * dim, dim);
  load_row(dout, args.dout + index * dim, dim);
  for (int d = threadIdx.x; d < dim; d += kThreads) dq[d] = 0;
  const float lse = args.lse[index], delta = args.delta[index];
  __syncthreads();
  for (int first = tile.walk_begin; first < tile.walk_end; first += kWalk) {
    const int n = min(kWalk, tile.walk_end - first);
    for (int i = warp; i < n; i += kWarps) {
      const int64_t at = key_offset(args, span, first + i, kv_head);
      const float p = expf(args.scale * warp_dot(query, args.k + at, dim, lane) - lse);
      const float product = warp_dot(dout, args.v + at, dim, lane);
      if (lane == 0) dscores[i] = args.scale * p * (product - delta);
    }
    __syncthreads();
    for (int d = threadIdx.x; d < dim; d += kThreads) {
      float total = dq[d];
      for (int i = 0; i < n; ++i) {
        total += dscores[i] * to_f32(args.k[key_offset(args, span, first + i, kv_head) + d]);
      }
      dq[d] = total;
    }
    __syncthreads();
  }
  store_gradient(args.dq, index * dim, dq, dim);
}

/// dk and dv of one key and kv head, summed over its heads and, within a head, over the queries.
template <class T>
__global__ void __launch_bounds__(kThreads, 8) plain_backward_keys(const AttentionArgs<T> args) {
  extern __shared__ float rows[];
  __shared__ float weights[kWalk], dscores[kWalk];
  const int dim = args.head_dim, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float *key = rows, *value = rows + dim, *dk = rows + 2 * dim, *dv = rows + 3 * dim;
  const AttentionTile tile = args.tiles[blockIdx.x / args.n_kv_heads];
  const int kv_head = static_cast<int>(blockIdx.x) % args.n_kv_heads;
  const AttentionSpan span = args.spans[tile.span];
  const int64_t at = key_offset(args, span, tile.begin, kv_head);
  load_row(key, args.k + at, dim);
  load_row(value, args.v + at, dim);
  for (int d = threadIdx.x; d < dim; d += kThreads) dk[d] = dv[d] = 0;
  __syncthreads();
  for (int head = kv_head * args.group; head < (kv_head + 1) * args.group; ++head) {
    for (int first = tile.walk_begin; first < tile.walk_end; first += kWalk) {
      const int n = min(kWalk, tile.walk_end - first);
      const int64_t index = (span.q_begin + first) * args.n_heads + head;
      for (int i = warp; i < n; i += kWarps) {
        const int64_t row = index + static_cast<int64_t>(i) * args.n_heads;
        const float p = expf(args.scale * warp_dot(key, args.q + row * dim, dim, lane) - args.lse[row]);
        const float product = warp_dot(value, args.dout + row * dim, dim, lane);
        if (lane == 0) weights[i] = p, dscores[i] = args.scale * p * (product - args.delta[row]);
      }
      __syncthreads();
      for (int d = threadIdx.x; d < dim; d += kThreads) {
        float key_total = dk[d], value_total = dv[d];
        for (int i = 0; i < n; ++i) {
          const int64_t from = (index + static_cast<int64_t>(i) * args.n_heads) * dim + d;
          key_total += dscores[i] * to_f32(args.q[from]);
          value_total += weights[i] * to_f32(args.dout[from]);
        }
        dk[d] = key_total, dv[d] = value_total;
      }
      __syncthreads();
    }
  }
  store_gradient(args.dk, at, dk, dim);
  store_gradient(args.dv, at, dv, dim);
}

// The work list.

/// Tiles of `step` queries with the keys they see, of the spans of `shortest` to `longest` queries.
std::vector<AttentionTile> query_tiles(std::span<const AttentionSpan> spans, int64_t window, int step,
                                       int64_t shortest = 0, int64_t longest = INT64_MAX) {
  std::vector<AttentionTile> tiles;
  for (size_t s = 0; s < spans.size(); ++s) {
    if (spans[s].n_queries < shortest || spans[s].n_queries > longest) continue;
    const int n = static_cast<int>(spans[s].n_queries), base = static_cast<int>(spans[s].first_position);
    for (int begin = 0; begin < n; begin += step) {
      const int end = std::min(n, begin + step);
      const int first = window == 0 ? 0 : std::max<int>(0, base + begin - static_cast<int>(window) + 1);
      tiles.push_back({static_cast<int>(s), begin, end, first, base + end, -1});
    }
  }
  return tiles;
}

/// Tiles of `step` keys, by position, with the queries that see them.
std::vector<AttentionTile> key_tiles(std::span<const AttentionSpan> spans, int64_t window, int step) {
  std::vector<AttentionTile> tiles;
  for (size_t s = 0; s < spans.size(); ++s) {
    const int n = static_cast<int>(spans[s].n_queries), base = static_cast<int>(spans[s].first_position);
    for (int begin = 0; begin < base + n; begin += step) {
      const int end = std::min(base + n, begin + step);
      const int first = std::max(0, begin - base);
      const int beyond = window == 0 ? n : std::min<int>(n, end - 1 + static_cast<int>(window) - base);
      tiles.push_back({static_cast<int>(s), begin, end, first, std::max(first, beyond), -1});
    }
  }
  return tiles;
}

/// Tiles that are a whole span and see more than kAttentionSplitKeys keys become one tile per part of the keys. Parts
/// start at multiples of kAttentionSplitKeys: how a span is split depends on nothing else in the batch.
std::vector<AttentionMerge> split_keys(std::vector<AttentionTile>& tiles, std::span<const AttentionSpan> spans) {
  std::vector<AttentionTile> parts;
  std::vector<AttentionMerge> merges;
  int n_partials = 0;
  for (const AttentionTile& tile : tiles) {
    const bool whole = tile.end - tile.begin == spans[static_cast<size_t>(tile.span)].n_queries;
    if (!whole || tile.walk_end - tile.walk_begin <= kAttentionSplitKeys) {
      parts.push_back(tile);
      continue;
    }
    const int first_partial = n_partials;
    AttentionTile part = tile;
    for (int begin = tile.walk_begin; begin < tile.walk_end; begin = part.walk_end) {
      part.walk_begin = begin;
      part.walk_end = std::min(tile.walk_end, (begin / kAttentionSplitKeys + 1) * kAttentionSplitKeys);
      part.partial = n_partials++;
      parts.push_back(part);
    }
    merges.push_back({tile.span, first_partial, n_partials - first_partial});
  }
  tiles = std::move(parts);
  return merges;
}

/// Long walks first, so that none starts last; dealt out in rounds of `n_blocks`, every other round backwards: the two
/// blocks that start together on a multiprocessor share out as evenly.
void order_by_work(std::vector<AttentionTile>& tiles, int n_blocks) {
  const auto work = [](const AttentionTile& tile) { return tile.walk_end - tile.walk_begin; };
  std::stable_sort(tiles.begin(), tiles.end(), [&](const auto& a, const auto& b) { return work(a) > work(b); });
  const auto n = static_cast<int64_t>(tiles.size()), round = static_cast<int64_t>(std::max(1, n_blocks));
  for (int64_t begin = round; begin < n; begin += 2 * round) {
    std::reverse(tiles.begin() + begin, tiles.begin() + std::min(n, begin + round));
  }
}

template <class T>
AttentionArgs<T> arguments(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionShape& shape) {
  AttentionArgs<T> args;
  args.q = q.as<const T>(), args.k = k.as<const T>(), args.v = v.as<const T>();
  args.n_heads = static_cast<int>(shape.n_heads), args.n_kv_heads = static_cast<int>(shape.n_kv_heads);
  args.head_dim = static_cast<int>(shape.head_dim), args.window = static_cast<int>(shape.window);
  args.group = args.n_heads / args.n_kv_heads, args.group_inverse = 65536 / args.group + 1;
  args.scale = shape.scale;
  return args;
}

template <class T>
AttentionDestination<T> destination(const Grad& grad) {
  return {grad.wanted() ? grad.tensor.as<T>() : nullptr, grad.write == Write::add};
}

bool aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; });
}

/// Plain kernels, those of tensor cores, or those that sm_90a has besides (cuda_attention_wgmma.cu).
enum class Path { plain, mma, wide };
Path path_of(int compute_capability, const AttentionShape& shape, DType dtype,
             std::initializer_list<const void*> pointers) {
  const bool fits = dtype == DType::bf16 && compute_capability >= 80 && shape.head_dim == kAttentionMmaDim &&
                    shape.n_heads / shape.n_kv_heads <= kAttentionMaxGroup && shape.scale > 0 && aligned(pointers);
  return !fits ? Path::plain : compute_capability == 90 ? Path::wide : Path::mma;
}

/// Launches a plain kernel with `n_rows` rows of head_dim in shared memory and `per_tile` blocks a tile.
template <class T>
void launch_plain(void (*kernel)(AttentionArgs<T>), const AttentionArgs<T>& args, int per_tile, int n_rows,
                  cudaStream_t stream, const char* name) {
  const int shared_bytes = n_rows * args.head_dim * static_cast<int>(sizeof(float));
  if (shared_bytes > 40 << 10) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), name);
  }
  kernel<<<args.n_tiles * per_tile, kThreads, shared_bytes, stream>>>(args);
  check_launch(name);
}

}  // namespace

void CudaBackend::attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                            std::span<const AttentionSpan> spans, const AttentionShape& shape) {
  const Path path = path_of(compute_capability_, shape, q.dtype, {q.data, k.data, v.data, out.data});
  const int group = static_cast<int>(shape.n_heads / shape.n_kv_heads);
  const int step = path == Path::plain ? 1 : kAttentionTileRows / group;
  // By a span's own length, never by its company: longer ones than a tile go to the wide kernel.
  std::vector<AttentionTile> wide;
  if (path == Path::wide) wide = query_tiles(spans, shape.window, kAttentionWideRows / group, step + 1);
  std::vector<AttentionTile> tiles = query_tiles(spans, shape.window, step, 0, path == Path::wide ? step : INT64_MAX);
  std::vector<AttentionMerge> merges;
  if (path != Path::plain) {
    merges = split_keys(tiles, spans);
    order_by_work(tiles, n_multiprocessors_ / static_cast<int>(shape.n_kv_heads));
    order_by_work(wide, static_cast<int>(wide.size()));
  }
  if (tiles.empty() && wide.empty()) return;
  dispatch(q.dtype, [&](auto zero) {
    using T = decltype(zero);
    AttentionArgs<T> args = arguments<T>(q, k, v, shape);
    args.out = out.as<T>();
    args.lse = lse.empty() ? nullptr : lse.f32();
    args.spans = staged(spans);
    if constexpr (std::is_same_v<T, bf16>) {
      if (!wide.empty()) {
        args.tiles = staged(std::span<const AttentionTile>(wide));
        args.n_tiles = static_cast<int>(wide.size());
        launch_attention_wide(args, stream_);
        if (tiles.empty()) return;
      }
    }
    args.tiles = staged(std::span<const AttentionTile>(tiles));
    args.n_tiles = static_cast<int>(tiles.size());
    if constexpr (std::is_same_v<T, bf16>) {
      if (path != Path::plain) {
        AttentionPartials partials;
        for (const AttentionMerge& merge : merges) {
          const int64_t queries = spans[static_cast<size_t>(merge.span)].n_queries;
          partials.most_rows = std::max(partials.most_rows, static_cast<int>(queries) * group);
        }
        if (!merges.empty()) {
          const int64_t n = merges.back().first_partial + merges.back().n_partials;
          const int64_t rows = n * shape.n_kv_heads * kAttentionTileRows;
          partials.sums = static_cast<float*>(scratch(kPartialSumsSlot, rows * kAttentionMmaDim * 4));
          partials.statistics = static_cast<float2*>(scratch(kPartialStatisticsSlot, rows * 8));
          partials.merges = staged(std::span<const AttentionMerge>(merges));
          partials.n_merges = static_cast<int>(merges.size());
        }
        return launch_attention_mma(args, partials, stream_);
      }
    }
    launch_plain(plain_forward<T>, args, args.n_heads, 2, stream_, "plain_forward");
  });
}

void CudaBackend::attention_backward(const Grad& dq, const Grad& dk, const Grad& dv, const Tensor& dout,
                                     const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                                     const Tensor& v, std::span<const AttentionSpan> spans,
                                     const AttentionShape& shape) {
  if (!dq.wanted() && !dk.wanted() && !dv.wanted()) return;
  const Path path =
      path_of(compute_capability_, shape, q.dtype,
              {q.data, k.data, v.data, out.data, dout.data, dq.tensor.data, dk.tensor.data, dv.tensor.data});
  const int group = static_cast<int>(shape.n_heads / shape.n_kv_heads);
  const bool is_wide = path == Path::wide;
  const int query_step = path == Path::plain ? 1 : (is_wide ? kAttentionWideRows : kAttentionTileRows) / group;
  const int key_step = path == Path::plain ? 1 : is_wide ? kAttentionWideKeys : kAttentionTileKeys;
  std::vector<AttentionTile> queries = query_tiles(spans, shape.window, query_step);
  std::vector<AttentionTile> keys = key_tiles(spans, shape.window, key_step);
  // Rows of no span are nobody's to write.
  int64_t n_queries = 0, n_keys = 0;
  for (const AttentionSpan& span : spans) {
    n_queries += span.n_queries;
    n_keys += span.first_position + span.n_queries;
  }
  const auto clear = [&](const Grad& grad, int64_t rows) {
    if (!grad.wanted() || grad.write == Write::add || rows == grad.tensor.rows()) return;
    check_cuda(cudaMemsetAsync(grad.tensor.data, 0, static_cast<size_t>(grad.tensor.bytes()), stream_),
               "attention_backward");
  };
  clear(dq, n_queries), clear(dk, n_keys), clear(dv, n_keys);
  if (queries.empty()) return;
  const int n_blocks = n_multiprocessors_ / static_cast<int>(shape.n_kv_heads);
  order_by_work(queries, is_wide ? static_cast<int>(queries.size()) : n_blocks);
  order_by_work(keys, is_wide ? static_cast<int>(keys.size()) : n_blocks);
  dispatch(q.dtype, [&](auto zero) {
    using T = decltype(zero);
    AttentionArgs<T> args = arguments<T>(q, k, v, shape);
    args.dout = dout.as<const T>(), args.out = out.as<T>(), args.lse = lse.f32();
    args.dq = destination<T>(dq), args.dk = destination<T>(dk), args.dv = destination<T>(dv);
    args.spans = staged(spans);
    const int64_t n_rows = q.rows() * shape.n_heads;
    args.delta = static_cast<float*>(scratch(kDeltaSlot, n_rows * 4));
    const bool vectors = shape.head_dim % kVector<T> == 0 && aligned({dout.data, out.data});
    row_products<<<static_cast<unsigned>(ceil_div(n_rows, kWarps)), kThreads, 0, stream_>>>(args, n_rows, vectors);
    check_launch("row_products");
    if (dq.wanted()) {
      args.tiles = staged(std::span<const AttentionTile>(queries));
      args.n_tiles = static_cast<int>(queries.size());
      if constexpr (std::is_same_v<T, bf16>) {
        if (path == Path::mma) launch_attention_mma_backward_queries(args, stream_);
        if (is_wide) launch_attention_wide_backward_queries(args, stream_);
      }
      if (path == Path::plain) {
        launch_plain(plain_backward_queries<T>, args, args.n_heads, 3, stream_, "plain_backward_queries");
      }
    }
    if (!dk.wanted() && !dv.wanted()) return;
    args.tiles = staged(std::span<const AttentionTile>(keys));
    args.n_tiles = static_cast<int>(keys.size());
    if constexpr (std::is_same_v<T, bf16>) {
      if (path == Path::mma) launch_attention_mma_backward_keys(args, stream_);
      if (is_wide) launch_attention_wide_backward_keys(args, stream_);
    }
    if (path == Path::plain) {
      launch_plain(plain_backward_keys<T>, args, args.n_kv_heads, 4, stream_, "plain_backward_keys");
    }
  });
}

}  // namespace saaz::cuda
