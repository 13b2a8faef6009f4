// Step's attention: a row normed and rotated by a warp, and a warp's keys, round for round, as a running softmax.
#pragma once

#include <cmath>

#include "backend/cuda/cuda_items.cuh"

namespace saaz::cuda::step_attention {

inline constexpr int kThreads = 512, kWarps = kThreads / 32;
inline constexpr int kKeysAtOnce = 4, kRounds = 4;  // of a warp
inline constexpr int kChunkKeys = kWarps * kKeysAtOnce * kRounds;

template <class T>
__device__ float exponential(float x) {
  return sizeof(T) == 2 ? __expf(x) : expf(x);
}

/// A lane's part of what norms and rotates a row and is there before any kernel: gains (1 where there are none),
/// angles.
template <int W>
struct NormTables {
  Item<W> gains, cosines, sines;
};
template <int W>
__device__ NormTables<W> load_tables(const float* gain, const float* angles, int dim) {
  const int first = threadIdx.x % 32 * W, half = dim / 2, pair = first < half ? first : first - half;
  NormTables<W> tables{};
#pragma unroll
  for (int i = 0; i < W; ++i) tables.gains.v[i] = 1;
  if (first >= dim) return tables;
  if (gain != nullptr) tables.gains = load_item<W>(gain + first);
  tables.cosines = load_item<W>(angles + pair), tables.sines = load_item<W>(angles + half + pair);
  return tables;
}

/// A warp's row of dim elements normed, rotated where asked; `shared` is used on the way. A lane takes W neighbours,
/// all of them in one half of the row; lanes past the row get 0.
template <int W, class T>
__device__ Item<W> norm_and_rotate(float* shared, const T* row, const NormTables<W>& tables, bool rotates, int dim,
                                   float eps) {
  const int first = threadIdx.x % 32 * W, half = dim / 2;
  Item<W> x{};
  if (first < dim) x = load_item<W>(row + first);
  float square = 0;
#pragma unroll
  for (int i = 0; i < W; ++i) square += x.v[i] * x.v[i];
  const float inverse = 1.0f / sqrtf(warp_sum(square) / static_cast<float>(dim) + eps);
#pragma unroll
  for (int i = 0; i < W; ++i) x.v[i] *= inverse * tables.gains.v[i];
  if (!rotates) return x;
  store_item<W>(shared + first, x);
  __syncwarp();
  const Item<W> other = load_item<W>(shared + (first < half ? first + half : max(0, first - half)));
  __syncwarp();
#pragma unroll
  for (int i = 0; i < W; ++i)
    x.v[i] = fmaf(x.v[i], tables.cosines.v[i], (first < half ? -other.v[i] : other.v[i]) * tables.sines.v[i]);
  return x;
}

/// Lanes that hold the same score: 2 to this, of kKeysAtOnce keys and G heads.
template <int G>
constexpr int kShiftOf = G == 4   ? 1
                         : G == 2 ? 2
                                  : 3;

/// M values in each lane become their sums over the warp; lane l gets that of index l >> (5 - log2 M).
template <int M, int kDistance = 16, int N>
__device__ float sum_transposed(float (&x)[N]) {
  if constexpr (M > 1) {
    const bool upper = (threadIdx.x & kDistance) != 0;
#pragma unroll
    for (int i = 0; i < M / 2; ++i) {
      const float low = x[i], high = x[i + M / 2], sent = upper ? low : high;
      x[i] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, sent, kDistance);
    }
    return sum_transposed<M / 2, kDistance / 2>(x);
  } else {
#pragma unroll
    for (int distance = kDistance; distance > 0; distance /= 2) x[0] += __shfl_xor_sync(0xffffffffu, x[0], distance);
    return x[0];
  }
}

/// Where a warp's keys are: of every chunk of its part, kKeysAtOnce of each round.
struct Walk {
  static constexpr int kStep = kWarps * kKeysAtOnce;
  unsigned row_bytes, capacity, place;  // place: of first_key in the ring
  int first_key, end, jump;             // jump: from a chunk's end to the part's next
  unsigned rows[kKeysAtOnce];           // of the round's keys in the ring

  __device__ unsigned wrapped(unsigned at) const {
    if (__builtin_expect(at >= capacity, 0)) at %= capacity;
    return at;
  }
  __device__ static int after(int key, int jump) {
    key += kStep;
    return (key & (kChunkKeys - 1)) < kStep ? key + jump : key;
  }
  __device__ bool has_round() const { return first_key < end; }
  __device__ void start(int key) {
    first_key = key, place = wrapped(static_cast<unsigned>(key));
    find_rows();
  }
  __device__ void advance() {
    const int next = after(first_key, jump);
    place = wrapped(place + static_cast<unsigned>(next - first_key)), first_key = next;
    find_rows();
  }
  /// In place of keys that are not there yet: the newest.
  __device__ void find_rows() {
    const unsigned last = place + static_cast<unsigned>(max(0, end - 1 - first_key));
    rows[0] = place;
#pragma unroll
    for (int i = 1; i < kKeysAtOnce; ++i) {
      const unsigned at = min(place + i, last);
      rows[i] = at - (at >= capacity ? capacity : 0);
    }
  }
};

/// base + n * bytes, in one instruction.
template <class T>
__device__ const T* step_by(const T* base, unsigned n, unsigned bytes) {
  uint64_t at;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(at) : "r"(n), "r"(bytes), "l"(reinterpret_cast<uint64_t>(base)));
  return reinterpret_cast<const T*>(at);
}

/// A round's rows as they come. Past the first cache: a line may have been read there before the previous kernel wrote
/// it.
template <class T, int W>
__device__ void load_rows(RawItem<T, W> (&to)[kKeysAtOnce], const T* row_0, const Walk& walk) {
  using Part = typename RawItem<T, W>::Part;
#pragma unroll
  for (int i = 0; i < kKeysAtOnce; ++i) {
    const auto* from = reinterpret_cast<const Part*>(step_by(row_0, walk.rows[i], walk.row_bytes));
#pragma unroll
    for (int j = 0; j < RawItem<T, W>::kLoads; ++j) to[i].part[j] = __ldcg(from + j);
  }
}

/// The bits of bf16 are the upper ones of f32: an instruction for each element.
template <class T, int W>
__device__ Item<W> widen(const RawItem<T, W>& raw) {
  if constexpr (sizeof(T) == 2 && W % 2 == 0) {
    const auto* words = reinterpret_cast<const unsigned*>(raw.part);
    Item<W> out;
#pragma unroll
    for (int i = 0; i < W; i += 2) {
      out.v[i] = __uint_as_float(words[i / 2] << 16);
      out.v[i + 1] = __uint_as_float(words[i / 2] & 0xffff0000u);
    }
    return out;
  } else {
    return unpack<T, W>(raw);
  }
}

/// A warp's running softmax: of its lane's head, and sums of values of all heads at its lane's W elements.
template <int W, int G>
struct Running {
  float largest = -INFINITY, weights = 0;
  float sums[G][W] = {};
};

/// Brings the rounds of the walk's chunk, from `first` on, closer: to the second cache.
template <class T>
__device__ void prefetch_rounds(const T* keys, const T* values, const Walk& walk, int first, int row_of_head) {
  constexpr int kLine = 128, kLanes = 32 / kKeysAtOnce / 2;  // lanes of a row
  const int lane = threadIdx.x % 32, own = lane / (2 * kLanes);
  const auto* base = reinterpret_cast<const char*>(lane / kLanes % 2 == 0 ? keys : values);
  const int end = min(walk.end, walk.first_key / kChunkKeys * kChunkKeys + kChunkKeys);
#pragma unroll 1
  for (int ahead = first * Walk::kStep + own; walk.first_key + ahead < end; ahead += Walk::kStep) {
    unsigned place = walk.place + static_cast<unsigned>(ahead);
    place -= place >= walk.capacity ? walk.capacity : 0;
    if (place >= walk.capacity) break;  // a ring shorter than a chunk
    const char* row = step_by(base, place, walk.row_bytes);
#pragma unroll 1
    for (int at = lane % kLanes * kLine; at < row_of_head; at += kLanes * kLine)
      asm volatile("prefetch.global.L2 [%0];" ::"l"(row + at));
  }
}

/// Scores of a round's keys: this lane's key and head.
template <class T, int W, int G>
__device__ float scores_of(const RawItem<T, W> (&keys)[kKeysAtOnce], const float (&q)[G][W]) {
  float products[kKeysAtOnce * G];
#pragma unroll
  for (int i = 0; i < kKeysAtOnce; ++i) {
    const Item<W> key = widen<T, W>(keys[i]);
#pragma unroll
    for (int g = 0; g < G; ++g) {
      float sum = 0;
#pragma unroll
      for (int d = 0; d < W; ++d) sum = fmaf(q[g][d], key.v[d], sum);
      products[i * G + g] = sum;
    }
  }
  return sum_transposed<kKeysAtOnce * G>(products);
}

/// Adds a round's values by its scores.
template <class T, int W, int G>
__device__ void add_values(Running<W, G>& r, const RawItem<T, W> (&values)[kKeysAtOnce], float score) {
  constexpr int kShift = kShiftOf<G>;
  float largest = fmaxf(r.largest, score);
#pragma unroll
  for (int d = 8; d < 32; d *= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, d));
  const float base = largest == -INFINITY ? 0.0f : largest;
  const float weight = exponential<T>(score - base), correction = exponential<T>(r.largest - base);
  r.largest = largest;
  const auto weight_of = [&](int i, int g) { return __shfl_sync(0xffffffffu, weight, (i * G + g) << kShift); };
  float weights[kKeysAtOnce], added = weight;
  if constexpr (G == 1) {  // what the other branch adds, in its order
#pragma unroll
    for (int i = 0; i < kKeysAtOnce; ++i) weights[i] = weight_of(i, 0);
    added = (weights[0] + weights[1]) + (weights[2] + weights[3]);
  } else {
#pragma unroll
    for (int d = 8; d < 32; d *= 2) added += __shfl_xor_sync(0xffffffffu, added, d);
  }
  r.weights = fmaf(r.weights, correction, added);
  float factors[G];  // one head: the same in all lanes
#pragma unroll
  for (int g = 0; g < G; ++g) factors[g] = G == 1 ? correction : __shfl_sync(0xffffffffu, correction, g << kShift);
#pragma unroll
  for (int i = 0; i < kKeysAtOnce; ++i) {
    const Item<W> value = widen<T, W>(values[i]);
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const float w = G == 1 ? weights[i] : weight_of(i, g);
#pragma unroll
      for (int d = 0; d < W; ++d)
        r.sums[g][d] =
            i == 0 ? fmaf(r.sums[g][d], factors[g], __fmul_rn(w, value.v[d])) : fmaf(w, value.v[d], r.sums[g][d]);
    }
  }
}

}  // namespace saaz::cuda::step_attention
