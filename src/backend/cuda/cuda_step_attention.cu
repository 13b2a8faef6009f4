// Step: attention of one new token of each sequence. A block takes the heads of one kv head and a part of the keys, 256
// at a time, a warp four keys at a time. The blocks of a token norm and rotate its query themselves, and the one with
// the newest keys stores the token's own first. For few tokens a cluster of blocks has the block's warps, so that more
// multiprocessors take the keys; the warps' sums are joined in one order either way. Parts begin at multiples of 256
// positions and are joined in order by the block that ends last, so a row's bits depend on its position alone.
#include <algorithm>

#include "backend/cuda/cuda_step.h"
#include "backend/cuda/cuda_step_attention.cuh"
#include "backend/cuda/cuda_step_cluster.cuh"

namespace saaz::cuda {

namespace {

using namespace step_attention;

constexpr int kMostParts = 64, kMostDim = 256;
constexpr int64_t kFewTokens = 4;
constexpr int kClusterBlocks = 4;
static_assert(kFewTokens * kClusterBlocks <= StepKernels::kMostRows);  // of `arrived`
constexpr int kScratchParts = 180, kScratchStatistics = 181;

template <class T>
struct Arguments {
  T* out;
  const T *q, *k, *v;  // k null: the cache has the token's
  T *k_cache, *v_cache;
  const float *q_norm, *k_norm, *rope;
  const AttentionSpan* spans;
  int* arrived;        // [T, H / G, B]: parts that are done
  float* sums;         // [T, H / G, parts, G, D], not yet divided
  float2* statistics;  // [T, H / G, B, parts, G]: largest score, sum of weights; a cluster's blocks have the same
  int n_kv_heads, dim, window, n_parts;
  float eps, scale;
  float kv_heads_per_block;  // 1 / blocks of a kv head
};

/// What a part's warps count: this lane's warp's factor, relative to the largest score of all, and both for the whole.
/// By one warp; its halves do the same.
template <class T, int G>
__device__ float2 weigh_warps(float& factor, const float2* statistics) {
  const float2 own = statistics[threadIdx.x % kWarps * G];
  float largest = own.x;
#pragma unroll
  for (int d = kWarps / 2; d > 0; d /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, d));
  factor = exponential<T>(own.x - largest);
  float sum = __fmul_rn(factor, own.y);
#pragma unroll
  for (int d = kWarps / 2; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  return make_float2(largest, sum);
}

/// The same of at most 64 parts, with `stride` between those of one head.
template <class T>
__device__ float2 weigh_parts(float* factors, const float2* statistics, int stride, int n) {
  const int lane = threadIdx.x % 32;
  const float2 none = make_float2(-INFINITY, 0);
  const float2 first = lane < n ? __ldcg(statistics + lane * stride) : none;
  const float2 second = lane + 32 < n ? __ldcg(statistics + (lane + 32) * stride) : none;
  const float largest = warp_max(fmaxf(first.x, second.x));
  const float of_first = exponential<T>(first.x - largest), of_second = exponential<T>(second.x - largest);
  if (lane < n) factors[lane * stride] = of_first;
  if (lane + 32 < n) factors[(lane + 32) * stride] = of_second;
  return make_float2(largest, warp_sum(fmaf(of_first, first.y, of_second * second.y)));
}

/// A block, one of B that share a part: each has some of the warps and joins some of the columns.
template <int W, int B>
struct Share {
  static constexpr int kWarps = step_attention::kWarps / B, kThreads = kWarps * 32, kColumns = 32 * W / B;
  static constexpr int kBytes = step_attention::kWarps * (kColumns * 4 + 8);  // that the warps send to each block

  __device__ static int rank() { return B == 1 ? 0 : blockIdx.x % B; }
  __device__ static int first_column() { return rank() * kColumns; }
};

/// What threads of one block make of several parts: by the block that ends last, of those with the same columns.
template <class T, int W, int G, int B>
__device__ __noinline__ void join_parts(const Arguments<T>& a, int n_used, float (&factors)[kMostParts][G],
                                        float2 (&whole)[G], bool& is_last) {
  using S = Share<W, B>;
  const unsigned of_heads = blockIdx.z * gridDim.y + blockIdx.y, of_columns = of_heads * B + S::rank();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __threadfence();
  __syncthreads();
  int* arrived = a.arrived + of_columns;
  if (threadIdx.x == 0) is_last = atomicAdd(arrived, 1) == n_used - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  if (threadIdx.x == 0) *arrived = 0;
  const int64_t first_slot = static_cast<int64_t>(of_heads) * a.n_parts * G;
  if (warp < G) {
    const float2* statistics = a.statistics + static_cast<int64_t>(of_columns) * a.n_parts * G + warp;
    const float2 of_all = weigh_parts<T>(&factors[0][warp], statistics, G, n_used);
    if (lane == 0) whole[warp] = of_all;
  }
  __syncthreads();
  const int element = S::first_column() + threadIdx.x % S::kColumns;
#pragma unroll 1
  for (int g = threadIdx.x / S::kColumns; g < G && element < a.dim; g += S::kThreads / S::kColumns) {
    const float* sums = a.sums + (first_slot + g) * a.dim + element;
    float value = 0;
#pragma unroll 4
    for (int p = 0; p < n_used; ++p) value = fmaf(factors[p][g], __ldcg(sums + p * G * a.dim), value);
    a.out[(static_cast<int64_t>(of_heads) * G + g) * a.dim + element] = from_f32<T>(value / whole[g].y);
  }
}

/// Where in the cluster this lane's columns of its warp's sums go, and the warp's statistics with them.
template <int W, int B>
struct Joiner {
  uint32_t sums, statistics, arrival;

  /// Found before the keys are there, and kept.
  __device__ void find(const float* sums_of_warps, const float2* statistics_of_warps, const uint64_t& its_arrival,
                       int warp) {
    constexpr int kLanes = 32 / B;  // that have one block's columns
    const int lane = threadIdx.x % 32, to = lane / kLanes;
    sums = of_block(sums_of_warps + warp * Share<W, B>::kColumns + lane % kLanes * W, to);
    statistics = of_block(statistics_of_warps + warp, to), arrival = of_block(&its_arrival, to);
    asm volatile("" : "+r"(sums), "+r"(statistics), "+r"(arrival));
  }
  __device__ void send(const Running<W, 1>& running) const {
    const float* x = running.sums[0];
#pragma unroll
    for (int i = 0; i < W; i += W % 4 == 0 ? 4 : 1) {
      if constexpr (W % 4 == 0)
        put(sums + i * 4, arrival,
            make_uint4(__float_as_uint(x[i]), __float_as_uint(x[i + 1]), __float_as_uint(x[i + 2]),
                       __float_as_uint(x[i + 3])));
      else
        put(sums + i * 4, arrival, x[i]);
    }
    if (threadIdx.x % (32 / B) == 0) put(statistics, arrival, make_float2(running.largest, running.weights));
  }
};

/// Which keys a part sees.
struct Seen {
  int position, begin, end, first_chunk, n_chunks;

  __device__ Seen(const AttentionSpan& span, int window)
      : position(static_cast<int>(span.first_position)),
        begin(window == 0 ? 0 : max(0, position + 1 - window)),
        end(position + 1),
        first_chunk(begin / kChunkKeys),
        n_chunks(position / kChunkKeys - first_chunk + 1) {}
  __device__ bool is_newest_of(int part, int n_parts) const {
    return part == (n_chunks <= n_parts ? n_chunks - 1 : (n_chunks - 1) % n_parts);
  }
};

/// A warp's rounds: those with a key that is seen. Others would count nothing.
template <class T>
__device__ inline Walk walk_of(const Arguments<T>& a, const AttentionSpan& span, const Seen& seen, int part,
                               int warp_of_part) {
  Walk walk{.row_bytes = static_cast<unsigned>(a.n_kv_heads * a.dim) * static_cast<unsigned>(sizeof(T)),
            .capacity = static_cast<unsigned>(span.kv_capacity),
            .place = 0,
            .first_key = 0,
            .end = seen.end,
            .jump = (a.n_parts - 1) * kChunkKeys,
            .rows = {}};
  int first_key = (seen.first_chunk + part) * kChunkKeys + warp_of_part * kKeysAtOnce;
#pragma unroll 1
  while (first_key + kKeysAtOnce <= seen.begin) first_key = Walk::after(first_key, walk.jump);
  walk.start(first_key);
  return walk;
}

/// What a block shares.
template <class T, int W, int G, int B>
struct Shared {
  __align__(16) float rows[G + 2][kMostDim];
  __align__(16) T newest[2][kMostDim];  // key, value, as the cache has them
  float2 statistics_of_warps[kWarps][G], whole[G];
  float factors[kMostParts][G];
  bool is_last;
  uint64_t arrival;  // of what a cluster's warps send
};

/// The row that this warp makes, if it does: a query, the newest key or value.
template <class T, int W, int G>
struct OwnRow {
  bool is_query, is_key, is_value, is_made;
  NormTables<W> tables;
  const T* row = nullptr;
  T* to = nullptr;

  /// keys_0, values_0: this lane's of the ring's first row.
  __device__ OwnRow(const Arguments<T>& a, const Walk& walk, int position, bool has_newest, int kv_head,
                    const T* keys_0, const T* values_0) {
    const int warp = this_warp();
    is_query = warp < G, is_key = warp == G, is_value = warp == G + 1;
    is_made = is_query || (has_newest && (is_key || is_value));
    if (!is_made) return;
    const int64_t first_row = static_cast<int64_t>(blockIdx.z * gridDim.y + blockIdx.y) * G;
    tables = load_tables<W>(is_query ? a.q_norm
                            : is_key ? a.k_norm
                                     : nullptr,
                            a.rope + static_cast<int64_t>(position) * a.dim, a.dim);
    const int64_t of_token = static_cast<int64_t>(blockIdx.z * a.n_kv_heads + kv_head) * a.dim;
    row = is_query ? a.q + (first_row + warp) * a.dim : (is_key ? a.k : a.v) + of_token;
    if (!is_query)
      to = const_cast<T*>(is_key ? keys_0 : values_0) +
           static_cast<int64_t>(walk.wrapped(position)) * (a.n_kv_heads * a.dim);
  }
  template <int B>
  __device__ void make(Shared<T, W, G, B>& shared, const Arguments<T>& a) const {
    if (!is_made) return;
    const int lane = threadIdx.x % 32, warp = this_warp();
    if (is_query || a.k != nullptr) {
      Item<W> x = norm_and_rotate<W>(shared.rows[warp], row, tables, !is_value, a.dim, a.eps);
      if (is_query) {
#pragma unroll
        for (int i = 0; i < W; ++i) x.v[i] *= a.scale;
        store_item<W>(&shared.rows[warp][lane * W], x);
      } else {
        store_item<W>(&shared.newest[warp - G][lane * W], x);
        if (lane * W < a.dim) store_item<W>(to, x);
      }
    } else {
      using Part = typename RawItem<T, W>::Part;
#pragma unroll
      for (int i = 0; i < RawItem<T, W>::kLoads; ++i)
        reinterpret_cast<Part*>(&shared.newest[warp - G][lane * W])[i] = __ldcg(reinterpret_cast<const Part*>(to) + i);
    }
  }
};

/// Where the sums of a block's columns of head `g` of `part` go.
template <class T, int W, int G, int B>
struct Result {
  using S = Share<W, B>;
  const Arguments<T>& a;
  int n_used, column = threadIdx.x % S::kColumns, element = S::first_column() + column;
  int64_t first_row, slot;
  float2* statistics;

  __device__ Result(const Arguments<T>& a, const Seen& seen, int part) : a(a), n_used(min(seen.n_chunks, a.n_parts)) {
    const unsigned of_heads = blockIdx.z * gridDim.y + blockIdx.y;
    first_row = of_heads * G;
    slot = (static_cast<int64_t>(of_heads) * a.n_parts + part) * G;
    statistics = a.statistics + (static_cast<int64_t>(of_heads * B + S::rank()) * a.n_parts + part) * G;
  }
  __device__ void give(int g, float value, float weights) const {
    if (n_used == 1)
      a.out[(first_row + g) * a.dim + element] = from_f32<T>(value / weights);
    else
      a.sums[(slot + g) * a.dim + element] = value;
  }
};

/// The sums of a part's warps: a cluster's, sent by each to the blocks that have the columns.
template <class T, int W, int B>
__device__ inline void join_cluster(const Result<T, W, 1, B>& to, Shared<T, W, 1, B>& shared,
                                    const Joiner<W, B>& joiner, const Running<W, 1>& running,
                                    const float* sums_of_warps) {
  using S = Share<W, B>;
  joiner.send(running);
  await(shared.arrival);
  float factor;
  const float2 of_part = weigh_warps<T, 1>(factor, &shared.statistics_of_warps[0][0]);
  if (threadIdx.x == 0 && to.n_used > 1) *to.statistics = of_part;
  float value = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w)
    value = fmaf(__shfl_sync(0xffffffffu, factor, w), sums_of_warps[w * S::kColumns + to.column], value);
  if (threadIdx.x < S::kColumns && to.element < to.a.dim) to.give(0, value, of_part.y);
}

/// A block's, by its shared memory.
template <class T, int W, int G>
__device__ inline void join_warps(const Result<T, W, G, 1>& to, Shared<T, W, G, 1>& shared,
                                  const Running<W, G>& running, float* sums_of_warps) {
  using S = Share<W, 1>;
  const int lane = threadIdx.x % 32, warp = this_warp();
#pragma unroll
  for (int g = 0; g < G; ++g) {
    Item<W> sums;
#pragma unroll
    for (int i = 0; i < W; ++i) sums.v[i] = running.sums[g][i];
    store_item<W>(&sums_of_warps[(warp * G + g) * S::kColumns + lane * W], sums);
  }
  constexpr int kShift = kShiftOf<G>;
  if (lane < 8 && (lane & ((1 << kShift) - 1)) == 0)
    shared.statistics_of_warps[warp][lane >> kShift] = make_float2(running.largest, running.weights);
  __syncthreads();
  if (warp < G) {
    float factor;
    const float2 of_part = weigh_warps<T, G>(factor, &shared.statistics_of_warps[0][warp]);
    shared.factors[lane % kWarps][warp] = factor;
    if (lane == 0) shared.whole[warp] = of_part;
    if (lane == 0 && to.n_used > 1) to.statistics[warp] = of_part;
  }
  __syncthreads();
#pragma unroll 1
  for (int g = threadIdx.x / S::kColumns; g < G && to.element < to.a.dim; g += S::kThreads / S::kColumns) {
    float value = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
      value = fmaf(shared.factors[w][g], sums_of_warps[(w * G + g) * S::kColumns + to.column], value);
    to.give(g, value, shared.whole[g].y);
  }
}

/// A warp's keys and values on their way. One head: there is room for rows ahead, the first before any kernel. More: no
/// earlier than they are needed.
template <class T, int W, int G>
struct Rounds {
  static constexpr bool kAhead = G == 1;
  const T *keys_0, *values_0;
  RawItem<T, W> keys[kKeysAtOnce], values[kKeysAtOnce];

  __device__ void load_keys(const Walk& walk) { load_rows<T, W>(keys, keys_0, walk); }
  __device__ void load_values(const Walk& walk) { load_rows<T, W>(values, values_0, walk); }
  __device__ void begin(const Walk& walk, int to_row, int dim) {
    if (kAhead && walk.has_round()) load_keys(walk), load_values(walk);
    prefetch_rounds(keys_0 - to_row, values_0 - to_row, walk, kAhead ? 1 : 0, dim * static_cast<int>(sizeof(T)));
  }
  template <int B>
  __device__ void attend(Running<W, G>& running, Walk& walk, const Seen& seen, const Shared<T, W, G, B>& shared) {
    const int lane = threadIdx.x % 32;
    float q[G][W];
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const Item<W> query = load_item<W>(&shared.rows[g][lane * W]);
#pragma unroll
      for (int i = 0; i < W; ++i) q[g][i] = query.v[i];
    }
    // The newest key was not there yet.
    if (kAhead && walk.first_key <= seen.position && seen.position < walk.first_key + kKeysAtOnce) {
#pragma unroll
      for (int i = 0; i < kKeysAtOnce; ++i) {
        if (walk.first_key + i < seen.position) continue;
        keys[i] = load_raw<T, W>(&shared.newest[0][lane * W]), values[i] = load_raw<T, W>(&shared.newest[1][lane * W]);
      }
    }
#pragma unroll 1
    while (walk.has_round()) {
      if (!kAhead) load_keys(walk), load_values(walk);
      float score = scores_of<T, W, G>(keys, q);
      const int key = walk.first_key + lane / 8;
      if (key < seen.begin || key >= seen.end) score = -INFINITY;
      walk.advance();
      if (kAhead && walk.has_round()) load_keys(walk);
      add_values<T, W, G>(running, values, score);
      if (kAhead && walk.has_round()) load_values(walk);
    }
  }
};

/// A block, or a cluster of B, takes G heads of one kv head. Grid: parts * B, heads / G, tokens.
template <class T, int W, int G, int B>
__global__ void __launch_bounds__(Share<W, B>::kThreads) attention_kernel(const __grid_constant__ Arguments<T> a) {
  using S = Share<W, B>;
  static_assert((B == 1 || G == 1) && S::kWarps >= G + 2);
  __shared__ Shared<T, W, G, B> shared;
  extern __shared__ __align__(16) float sums_of_warps[];  // [kWarps, G, kColumns]
  const int lane = threadIdx.x % 32, part = blockIdx.x / B, rank = S::rank(), dim = a.dim;
  const int warp_of_part = rank * S::kWarps + this_warp();
  let_next_start();
  const AttentionSpan span = a.spans[blockIdx.z];  // there since the step's first kernel
  if (B > 1 && this_warp() == 0) expect(lane == 0, shared.arrival, S::kBytes), show_barriers();
  const Seen seen(span, a.window);
  if (part >= seen.n_chunks) return;  // so do the cluster's others
  if (B > 1) arrive_at_cluster();
  const int kv_head = static_cast<int>((static_cast<float>(blockIdx.y) + 0.5f) * a.kv_heads_per_block);
  Walk walk = walk_of(a, span, seen, part, warp_of_part);
  const int to_row = lane * W < dim ? lane * W : 0;
  const int64_t place_0 = (span.kv_begin * a.n_kv_heads + kv_head) * dim + to_row;
  Rounds<T, W, G> rounds{a.k_cache + place_0, a.v_cache + place_0, {}, {}};
  rounds.begin(walk, to_row, dim);
  // All heads' blocks store the same.
  const bool has_newest = seen.is_newest_of(part, a.n_parts) && seen.position / (S::kWarps * kKeysAtOnce) % B == rank;
  const OwnRow<T, W, G> own(a, walk, seen.position, has_newest, kv_head, rounds.keys_0, rounds.values_0);
  [[maybe_unused]] Joiner<W, B> joiner;
  if constexpr (B > 1) {
    joiner.find(sums_of_warps, &shared.statistics_of_warps[0][0], shared.arrival, warp_of_part);
    wait_for_cluster();
  }
  wait_for_previous();
  own.make(shared, a);
  __syncthreads();
  Running<W, G> running;
  rounds.attend(running, walk, seen, shared);
  const Result<T, W, G, B> result(a, seen, part);
  if constexpr (B > 1)
    join_cluster(result, shared, joiner, running, sums_of_warps);
  else
    join_warps(result, shared, running, sums_of_warps);
  if (result.n_used > 1) join_parts<T, W, G, B>(a, result.n_used, shared.factors, shared.whole, shared.is_last);
}

/// f(width) with how many neighbours a lane holds: all in one half of the row (StepKernels::takes_attention).
template <class F>
void with_lane_width(int64_t dim, F f) {
  if (dim <= 32) return f(std::integral_constant<int, 1>{});
  if (dim <= 64) return f(std::integral_constant<int, 2>{});
  if (dim <= 128) return f(std::integral_constant<int, 4>{});
  f(std::integral_constant<int, 8>{});
}
/// For sums_of_warps.
int shared_bytes_of(int64_t heads, int64_t dim) {
  int bytes = 0;
  with_lane_width(dim, [&](auto width) { bytes = static_cast<int>(kWarps * heads * 32 * decltype(width)::value * 4); });
  return bytes;
}

/// f(G) with how many heads a block takes: few where there are few blocks, the same bits either way; two where a block
/// may not have shared memory for four.
template <class F>
void with_group(int64_t group, int64_t tokens, bool has_room_for_four, F f) {
  if (group == 1 || tokens <= kFewTokens) return f(std::integral_constant<int, 1>{});
  if (group == 2 || !has_room_for_four) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, 4>{});
}

}  // namespace

void Step::attention(const Attention& a) {
  const AttentionShape& shape = a.shape;
  const int64_t tokens = a.q.dim(0), group = shape.n_heads / shape.n_kv_heads;
  const int64_t seen = shape.window == 0 ? a.longest : std::min(shape.window, a.longest);
  const int64_t n_parts = std::min<int64_t>(kMostParts, ceil_div(seen, kChunkKeys) + 1);
  const int64_t slots = tokens * shape.n_kv_heads * n_parts * group;
  auto* sums = static_cast<float*>(backend_.scratch(kScratchParts, slots * shape.head_dim * 4));
  auto* statistics = static_cast<float2*>(backend_.scratch(kScratchStatistics, slots * kClusterBlocks * 8));
  dispatch(a.q.dtype, [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> args{.out = a.out.as<T>(),
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
                      .n_kv_heads = static_cast<int>(shape.n_kv_heads),
                      .dim = static_cast<int>(shape.head_dim),
                      .window = static_cast<int>(shape.window),
                      .n_parts = static_cast<int>(n_parts),
                      .eps = a.norm_eps,
                      .scale = shape.scale,
                      .kv_heads_per_block = 0};
    constexpr int64_t kOtherShared = 10 << 10;
    const bool has_room = shared_bytes_of(4, shape.head_dim) + kOtherShared <= most_shared_;
    const auto launch_with = [&](auto g, auto blocks) {
      constexpr int G = decltype(g)::value, B = decltype(blocks)::value;
      const int64_t n_groups = shape.n_heads / G;
      args.kv_heads_per_block = static_cast<float>(shape.n_kv_heads) / static_cast<float>(n_groups);
      const dim3 grid(static_cast<unsigned>(n_parts * B), static_cast<unsigned>(n_groups),
                      static_cast<unsigned>(tokens));
      const int shared_bytes = shared_bytes_of(G, shape.head_dim) / B;
      with_lane_width(shape.head_dim, [&](auto width) {
        constexpr int W = decltype(width)::value;
        const auto kernel = attention_kernel<T, W, G, B>;
        check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
                   "attention");
        if (B > 1) share_first_cache(kernel);
        launch_clusters(B, kernel, grid, dim3(Share<W, B>::kThreads), shared_bytes, args);
      });
    };
    with_group(group, tokens, has_room, [&](auto g) {
      constexpr std::integral_constant<int, kClusterBlocks> cluster;
      if constexpr (decltype(g)::value == 1)
        if (tokens <= kFewTokens && backend_.compute_capability_ >= 90) return launch_with(g, cluster);
      launch_with(g, std::integral_constant<int, 1>{});
    });
  });
}

}  // namespace saaz::cuda
