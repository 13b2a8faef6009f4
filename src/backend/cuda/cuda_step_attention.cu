// Step: attention of one new token of each sequence. A block takes the heads of one kv head and a part of the keys, 256
// at a time, a warp four keys at a time. The blocks of a token norm and rotate its
// query themselves, and the one with the newest keys stores the token's own first. Parts begin at multiples of 256
// positions and are joined in order by the block that ends last, so a row's bits depend on its position alone.
#include <algorithm>
#include <cmath>

#include "backend/cuda/cuda_items.cuh"
#include "backend/cuda/cuda_step.h"

namespace saaz::cuda {

namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kKeysAtOnce = 4, kRounds = 4, kChunk = kWarps * kKeysAtOnce * kRounds;  // of a warp, of a block
constexpr int kMostParts = 64, kMostDim = 256;
constexpr int kScratchParts = 180, kScratchStatistics = 181;

template <class T>
struct Arguments {
  T* out;
  const T *q, *k, *v;  // k null: the cache has the token's
  T *k_cache, *v_cache;
  const float *q_norm, *k_norm, *rope;
  const AttentionSpan* spans;
  int* arrived;
  float* sums;         // [T, H / G, parts, G, D], not yet divided
  float2* statistics;  // [T, H / G, parts, G]: largest score, sum of weights
  int n_heads, n_kv_heads, dim, window, n_parts;
  float eps, scale;
};

template <class T>
__device__ float exponential(float x) {
  return sizeof(T) == 2 ? __expf(x) : expf(x);
}

/// A warp's row of dim elements normed, rotated by `angles` where given, into `to`. A lane takes W neighbours, all of
/// them in one half of the row.
template <int W, class T>
__device__ void norm_and_rotate(float* to, const T* row, const float* gain, const float* angles, int dim, float eps) {
  const int first = threadIdx.x % 32 * W, half = dim / 2;
  const bool inside = first < dim;
  Item<W> x{}, gains, cosines, sines;
  if (inside) {
    x = load_item<W>(row + first);
    if (gain != nullptr) gains = load_item<W>(gain + first);
    const int pair = first < half ? first : first - half;
    if (angles != nullptr) cosines = load_item<W>(angles + pair), sines = load_item<W>(angles + half + pair);
  }
  float square = 0;
#pragma unroll
  for (int i = 0; i < W; ++i) square += x.v[i] * x.v[i];
  const float inverse = 1.0f / sqrtf(warp_sum(square) / static_cast<float>(dim) + eps);
#pragma unroll
  for (int i = 0; i < W; ++i) x.v[i] *= gain != nullptr ? inverse * gains.v[i] : inverse;
  if (inside) store_item<W>(to + first, x);
  __syncwarp();
  if (angles == nullptr) return;
  Item<W> other{};
  if (inside) other = load_item<W>(to + (first < half ? first + half : first - half));
  __syncwarp();
#pragma unroll
  for (int i = 0; i < W; ++i) x.v[i] = x.v[i] * cosines.v[i] + (first < half ? -other.v[i] : other.v[i]) * sines.v[i];
  if (inside) store_item<W>(to + first, x);
}

/// Lanes that hold the same score: 2 to this, of kKeysAtOnce keys and G heads.
template <int G>
constexpr int kShiftOf = G == 4   ? 1
                         : G == 2 ? 2
                                  : 3;

/// M values in each lane become their sums over the warp; lane l gets that of index l >> (5 - log2 M).
template <int M>
__device__ float sum_transposed(float (&x)[M]) {
  const int lane = threadIdx.x % 32;
  int distance = 16;
#pragma unroll
  for (int m = M; m > 1; m /= 2) {
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < m / 2; ++i) {
      const float kept = upper ? x[i + m / 2] : x[i], sent = upper ? x[i] : x[i + m / 2];
      x[i] = kept + __shfl_xor_sync(0xffffffffu, sent, distance);
    }
    distance /= 2;
  }
  for (; distance > 0; distance /= 2) x[0] += __shfl_xor_sync(0xffffffffu, x[0], distance);
  return x[0];
}

/// Past the first cache: a line may have been read there before the previous kernel wrote it.
template <class T, int W>
__device__ RawItem<T, W> load_keys(const T* row, int first, int dim) {
  RawItem<T, W> raw{};
  if (first >= dim) return raw;
  const auto* from = reinterpret_cast<const typename RawItem<T, W>::Part*>(row + first);
#pragma unroll
  for (int i = 0; i < RawItem<T, W>::kLoads; ++i) raw.part[i] = __ldcg(from + i);
  return raw;
}

/// A warp's keys and values of one round, as they come.
template <class T, int W>
struct Round {
  RawItem<T, W> keys[kKeysAtOnce], values[kKeysAtOnce];
};

/// A warp's running softmax: of its lane's head, and sums of values of all heads at its lane's W elements.
template <int W, int G>
struct Running {
  float largest = -INFINITY, weights = 0;
  float sums[G][W] = {};
};

/// Brings the keys and values of a chunk, the newest aside, closer: to the second cache.
template <class T>
__device__ void prefetch_keys(const Arguments<T>& a, const AttentionSpan& span, int kv_head, int chunk, int begin,
                              int end) {
  constexpr int kLine = 128 / static_cast<int>(sizeof(T));
  const int lines = (a.dim + kLine - 1) / kLine, first = max(begin, chunk * kChunk);
  const int n = min(end - 1, (chunk + 1) * kChunk) - first;
#pragma unroll 1
  for (int i = threadIdx.x; i < n * lines; i += kThreads) {
    const int key = first + i / lines;
    const int64_t row = span.kv_begin + key % static_cast<int>(span.kv_capacity);
    const int64_t at = (row * a.n_kv_heads + kv_head) * a.dim + i % lines * kLine;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(a.k_cache + at));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(a.v_cache + at));
  }
}

/// kKeysAtOnce keys, from `first_key` on.
template <class T, int W>
__device__ void load_round(Round<T, W>& to, const Arguments<T>& a, const AttentionSpan& span, int kv_head,
                           int first_key, int end) {
  const int capacity = static_cast<int>(span.kv_capacity), first_place = first_key % capacity;
#pragma unroll
  for (int i = 0; i < kKeysAtOnce; ++i) {
    // Keys that are not seen are read all the same, where the ring has room for them.
    int place = min(first_place + i, first_place + max(0, end - 1 - first_key));
    place -= place >= capacity ? capacity : 0;
    const int64_t at = ((span.kv_begin + place) * a.n_kv_heads + kv_head) * a.dim;
    const int first = threadIdx.x % 32 * W;
    to.keys[i] = load_keys<T, W>(a.k_cache + at, first, a.dim);
    to.values[i] = load_keys<T, W>(a.v_cache + at, first, a.dim);
  }
}

/// Adds a round's keys; those outside [begin, end) count nothing.
template <class T, int W, int G>
__device__ void add_keys(Running<W, G>& r, const Round<T, W>& round, const float (&q)[G][W], int first_key, int begin,
                         int end) {
  constexpr int kValues = kKeysAtOnce * G, kShift = kShiftOf<G>;
  const int lane = threadIdx.x % 32;
  float products[kValues];
#pragma unroll
  for (int i = 0; i < kKeysAtOnce; ++i) {
    const Item<W> key = unpack<T, W>(round.keys[i]);
#pragma unroll
    for (int g = 0; g < G; ++g) {
      float sum = 0;
#pragma unroll
      for (int d = 0; d < W; ++d) sum += q[g][d] * key.v[d];
      products[i * G + g] = sum;
    }
  }
  // This lane's key and head.
  float score = sum_transposed(products);
  const int key = first_key + lane / 8;
  if (key < begin || key >= end) score = -INFINITY;
  float largest = fmaxf(r.largest, score);
#pragma unroll
  for (int d = 8; d < 32; d *= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, d));
  const float base = largest == -INFINITY ? 0.0f : largest;
  const float weight = exponential<T>(score - base), correction = exponential<T>(r.largest - base);
  float added = weight;
#pragma unroll
  for (int d = 8; d < 32; d *= 2) added += __shfl_xor_sync(0xffffffffu, added, d);
  r.weights = r.weights * correction + added;
  r.largest = largest;
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const float factor = __shfl_sync(0xffffffffu, correction, g << kShift);
#pragma unroll
    for (int d = 0; d < W; ++d) r.sums[g][d] *= factor;
  }
#pragma unroll
  for (int i = 0; i < kKeysAtOnce; ++i) {
    const Item<W> value = unpack<T, W>(round.values[i]);
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const float w = __shfl_sync(0xffffffffu, weight, (i * G + g) << kShift);
#pragma unroll
      for (int d = 0; d < W; ++d) r.sums[g][d] += w * value.v[d];
    }
  }
}

/// What parts count: their factors, relative to the largest score of all, and both for the whole. By one warp, for at
/// most 64 parts.
template <class T, class Statistics>
__device__ float2 weigh_parts(float* factors, int stride, int n, Statistics statistics) {
  const int lane = threadIdx.x % 32;
  const float2 none = make_float2(-INFINITY, 0);
  const float2 first = lane < n ? statistics(lane) : none, second = lane + 32 < n ? statistics(lane + 32) : none;
  const float largest = warp_max(fmaxf(first.x, second.x));
  const float of_first = exponential<T>(first.x - largest), of_second = exponential<T>(second.x - largest);
  if (lane < n) factors[lane * stride] = of_first;
  if (lane + 32 < n) factors[(lane + 32) * stride] = of_second;
  return make_float2(largest, warp_sum(of_first * first.y + of_second * second.y));
}

/// A block takes G heads of one kv head. Grid: parts, heads / G, tokens.
template <class T, int W, int G>
__global__ void __launch_bounds__(kThreads) attention_kernel(const __grid_constant__ Arguments<T> a) {
  __shared__ __align__(16) float rows[G + 2][kMostDim];
  extern __shared__ __align__(16) float sums_of_warps[];  // [kWarps, G, dim]
  __shared__ float2 statistics_of_warps[kWarps][G], whole[G];
  __shared__ float factors[kMostParts][G];
  __shared__ bool is_last;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = blockIdx.x, dim = a.dim;
  const int kv_head = static_cast<int>(blockIdx.y) * G / (a.n_heads / a.n_kv_heads);
  const int64_t t = blockIdx.z;
  let_next_start();
  const AttentionSpan span = a.spans[t];  // there since the step's first kernel
  const int position = static_cast<int>(span.first_position), end = position + 1;
  const int begin = a.window == 0 ? 0 : max(0, end - a.window);
  const int first_chunk = begin / kChunk, n_chunks = position / kChunk - first_chunk + 1;
  if (part >= n_chunks) return;
  // Rounds of this part; the newest chunk has no more than there are keys.
  const int n_here = (n_chunks - part + a.n_parts - 1) / a.n_parts;
  const bool ends_here = part == (n_chunks - 1) % a.n_parts;
  const int n_rounds = kRounds * n_here - (ends_here ? kRounds - 1 - position % kChunk / (kWarps * kKeysAtOnce) : 0);
  const auto first_key_of = [&](int i) {
    const int chunk = part + i / kRounds * a.n_parts, round = i % kRounds;
    return (first_chunk + chunk) * kChunk + (round * kWarps + warp) * kKeysAtOnce;
  };
  // One head: there is room for two rounds, the first already now. More: one at a time.
  constexpr bool kAhead = G == 1;
  Round<T, W> now, next;
  prefetch_keys(a, span, kv_head, first_chunk + part, begin, end);
  if (kAhead) load_round(now, a, span, kv_head, first_key_of(0), end);
  wait_for_previous();
  const float* angles = a.rope + static_cast<int64_t>(position) * dim;
  const int64_t of_heads = t * gridDim.y + blockIdx.y, first_row = of_heads * G;
  const bool has_newest = a.k != nullptr && part == (n_chunks - 1) % a.n_parts;  // all heads' blocks store the same
  const int64_t of_token = (t * a.n_kv_heads + kv_head) * dim;
  const bool is_query = warp < G, is_key = warp == G, is_value = warp == G + 1;
  if (is_query || (has_newest && (is_key || is_value)))
    norm_and_rotate<W>(rows[warp], is_query ? a.q + (first_row + warp) * dim : (is_key ? a.k : a.v) + of_token,
                       is_query ? a.q_norm
                       : is_key ? a.k_norm
                                : nullptr,
                       is_value ? nullptr : angles, dim, a.eps);
  __syncwarp();
  if (has_newest && (is_key || is_value) && lane * W < dim) {
    const int64_t row = span.kv_begin + position % static_cast<int>(span.kv_capacity);
    T* to = (is_key ? a.k_cache : a.v_cache) + (row * a.n_kv_heads + kv_head) * dim;
    store_item<W>(to + lane * W, load_item<W>(&rows[warp][lane * W]));
  }
  __syncthreads();
  float q[G][W];
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const bool inside = lane * W < dim;
    const Item<W> row = inside ? load_item<W>(&rows[g][lane * W]) : Item<W>{};
#pragma unroll
    for (int i = 0; i < W; ++i) q[g][i] = row.v[i] * a.scale;
  }
  Running<W, G> running;
  // The newest key was not there yet.
  const int first_key = first_key_of(0);
  if (kAhead && first_key <= position && position < first_key + kKeysAtOnce)
    load_round(now, a, span, kv_head, first_key, end);
#pragma unroll 1
  for (int i = 0; i < n_rounds; ++i) {
    if (!kAhead) load_round(now, a, span, kv_head, first_key_of(i), end);
    if (kAhead && i + 1 < n_rounds) load_round(next, a, span, kv_head, first_key_of(i + 1), end);
    add_keys<T, W, G>(running, now, q, first_key_of(i), begin, end);
    if (kAhead) now = next;
  }

#pragma unroll
  for (int g = 0; g < G; ++g) {
    Item<W> sums;
#pragma unroll
    for (int i = 0; i < W; ++i) sums.v[i] = running.sums[g][i];
    if (lane * W < dim) store_item<W>(&sums_of_warps[(warp * G + g) * dim + lane * W], sums);
  }
  constexpr int kShift = kShiftOf<G>;
  if (lane < 8 && (lane & ((1 << kShift) - 1)) == 0)
    statistics_of_warps[warp][lane >> kShift] = make_float2(running.largest, running.weights);
  __syncthreads();
  const int n_used = min(n_chunks, a.n_parts);
  const int64_t slot = (of_heads * a.n_parts + part) * G;
  if (warp < G) {
    const float2 of_block =
        weigh_parts<T>(&factors[0][warp], G, kWarps, [&](int w) { return statistics_of_warps[w][warp]; });
    if (lane == 0) whole[warp] = of_block;
    if (lane == 0 && n_used > 1) a.statistics[slot + warp] = of_block;
  }
  __syncthreads();
  const int first_head = threadIdx.x / kMostDim, element = threadIdx.x % kMostDim;
#pragma unroll 1
  for (int g = first_head; g < G && element < dim; g += kThreads / kMostDim) {
    const int i = g * dim + element;
    float value = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) value += factors[w][g] * sums_of_warps[w * G * dim + i];
    if (n_used == 1)
      a.out[first_row * dim + i] = from_f32<T>(value / whole[g].y);
    else
      a.sums[slot * dim + i] = value;
  }
  if (n_used == 1) return;
  __threadfence();
  __syncthreads();
  int* arrived = a.arrived + of_heads;
  if (threadIdx.x == 0) is_last = atomicAdd(arrived, 1) == n_used - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  if (threadIdx.x == 0) *arrived = 0;
  const int64_t first_slot = slot - static_cast<int64_t>(part) * G;
  if (warp < G) {
    const float2 of_all = weigh_parts<T>(&factors[0][warp], G, n_used,
                                         [&](int p) { return __ldcg(a.statistics + first_slot + p * G + warp); });
    if (lane == 0) whole[warp] = of_all;
  }
  __syncthreads();
#pragma unroll 1
  for (int g = first_head; g < G && element < dim; g += kThreads / kMostDim) {
    const float* sums = a.sums + (first_slot + g) * dim + element;
    float value = 0;
#pragma unroll 4
    for (int p = 0; p < n_used; ++p) value += factors[p][g] * __ldcg(sums + p * G * dim);
    a.out[first_row * dim + g * dim + element] = from_f32<T>(value / whole[g].y);
  }
}

/// f(width) with how many neighbours a lane holds: all in one half of the row (StepKernels::takes_attention).
template <class F>
void with_lane_width(int64_t dim, F f) {
  if (dim <= 32) return f(std::integral_constant<int, 1>{});
  if (dim <= 64) return f(std::integral_constant<int, 2>{});
  if (dim <= 128) return f(std::integral_constant<int, 4>{});
  f(std::integral_constant<int, 8>{});
}
int shared_bytes_of(int64_t heads, int64_t dim) { return static_cast<int>(kWarps * heads * dim * 4); }

/// f(G) with how many heads a block takes: few where there are few blocks, the same bits either way; two where a block
/// may not have shared memory for four.
template <class F>
void with_group(int64_t group, int64_t tokens, bool has_room_for_four, F f) {
  constexpr int64_t kFewTokens = 4;
  if (group == 1 || tokens <= kFewTokens) return f(std::integral_constant<int, 1>{});
  if (group == 2 || !has_room_for_four) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, 4>{});
}

}  // namespace

void Step::attention(const Attention& a) {
  const AttentionShape& shape = a.shape;
  const int64_t tokens = a.q.dim(0), group = shape.n_heads / shape.n_kv_heads;
  const int64_t seen = shape.window == 0 ? a.longest : std::min(shape.window, a.longest);
  const int64_t n_parts = std::min<int64_t>(kMostParts, ceil_div(seen, kChunk) + 1);
  const int64_t slots = tokens * shape.n_kv_heads * n_parts * group;
  auto* sums = static_cast<float*>(backend_.scratch(kScratchParts, slots * shape.head_dim * 4));
  auto* statistics = static_cast<float2*>(backend_.scratch(kScratchStatistics, slots * 8));
  dispatch(a.q.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Arguments<T> args{.out = a.out.as<T>(),
                            .q = a.q.as<T>(),
                            .k = a.k.as<T>(),
                            .v = a.v.as<T>(),
                            .k_cache = a.k_cache.as<T>(),
                            .v_cache = a.v_cache.as<T>(),
                            .q_norm = a.q_norm.as<float>(),
                            .k_norm = a.k_norm.as<float>(),
                            .rope = a.rope_table.f32(),
                            .spans = tokens_.spans[a.layer_type],
                            .arrived = arrived_,
                            .sums = sums,
                            .statistics = statistics,
                            .n_heads = static_cast<int>(shape.n_heads),
                            .n_kv_heads = static_cast<int>(shape.n_kv_heads),
                            .dim = static_cast<int>(shape.head_dim),
                            .window = static_cast<int>(shape.window),
                            .n_parts = static_cast<int>(n_parts),
                            .eps = a.norm_eps,
                            .scale = shape.scale};
    constexpr int64_t kOtherShared = 8 << 10;
    const bool has_room = shared_bytes_of(4, shape.head_dim) + kOtherShared <= most_shared_;
    with_group(group, tokens, has_room, [&](auto g) {
      const int64_t n_groups = shape.n_heads / decltype(g)::value;
      const dim3 grid(static_cast<unsigned>(n_parts), static_cast<unsigned>(n_groups), static_cast<unsigned>(tokens));
      const int shared_bytes = shared_bytes_of(decltype(g)::value, shape.head_dim);
      with_lane_width(shape.head_dim, [&](auto width) {
        const auto kernel = attention_kernel<T, decltype(width)::value, decltype(g)::value>;
        check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
                   "attention");
        launch(kernel, grid, dim3(kThreads), shared_bytes, args);
      });
    });
  });
}

}  // namespace saaz::cuda
