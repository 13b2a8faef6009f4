// Items: W consecutive elements that a thread reads or writes at once, 16 bytes where sizes and addresses allow, single
// elements elsewhere; and the two loops over them: elements of flat tensors, and rows with sums. Which thread takes
// which item follows from the row's length alone, so a row's sums have one order in any batch.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "backend/cuda/cuda_common.cuh"

namespace saaz::cuda {

__device__ inline float to_f32(__half x) { return __half2float(x); }  // tables alone

template <int W>
struct Item {
  float v[W];
};

/// The stored bits of an item: what waits in registers.
template <class T, int W>
struct RawItem {
  static constexpr int kBytes = W * static_cast<int>(sizeof(T));
  using Words = std::conditional_t<kBytes % 16 == 0, uint4, std::conditional_t<kBytes == 8, uint2, unsigned>>;
  using Part = std::conditional_t<W == 1, T, Words>;
  static constexpr int kLoads = kBytes / static_cast<int>(sizeof(Part));
  Part part[kLoads];
};
template <class T, int W>
__device__ RawItem<T, W> load_raw(const T* p) {
  RawItem<T, W> raw;
  const auto* from = reinterpret_cast<const typename RawItem<T, W>::Part*>(p);
#pragma unroll
  for (int i = 0; i < RawItem<T, W>::kLoads; ++i) raw.part[i] = from[i];
  return raw;
}
template <class T, int W>
__device__ Item<W> unpack(const RawItem<T, W>& raw) {
  const T* values = reinterpret_cast<const T*>(raw.part);
  Item<W> out;
#pragma unroll
  for (int i = 0; i < W; ++i) out.v[i] = to_f32(values[i]);
  return out;
}
template <int W, class T>
__device__ Item<W> load_item(const T* p) {
  return unpack<T, W>(load_raw<T, W>(p));
}
template <int W, class T>
__device__ void store_item(T* p, const Item<W>& x) {
  RawItem<T, W> raw;
  T* values = reinterpret_cast<T*>(raw.part);
#pragma unroll
  for (int i = 0; i < W; ++i) values[i] = from_f32<T>(x.v[i]);
  auto* to = reinterpret_cast<typename RawItem<T, W>::Part*>(p);
#pragma unroll
  for (int i = 0; i < RawItem<T, W>::kLoads; ++i) to[i] = raw.part[i];
}

/// Where a gradient goes, by address; null: not wanted.
template <class T>
struct Target {
  T* data = nullptr;
  bool add = false;

  __device__ explicit operator bool() const { return data != nullptr; }
  template <int W>
  __device__ void put(int64_t at, Item<W> x) const {
    if (add) {
      const Item<W> old = load_item<W>(data + at);
#pragma unroll
      for (int i = 0; i < W; ++i) x.v[i] += old.v[i];
    }
    store_item<W>(data + at, x);
  }
};
template <class T>
Target<T> target(const Grad& g) {
  return {g.wanted() ? g.tensor.as<T>() : nullptr, g.write == Write::add};
}

/// Whether rows of `dim` elements at all of these addresses (null ones aside) can be taken 16 bytes at a time.
template <class T>
bool takes_vectors(int64_t dim, std::initializer_list<const void*> addresses) {
  bool aligned = dim % kVector<T> == 0;
  for (const void* p : addresses) aligned &= reinterpret_cast<uintptr_t>(p) % 16 == 0;
  return aligned;
}
/// f(std::integral_constant<int, W>) with 16 bytes of T, or one element.
template <class T, class F>
void with_width(bool vectors, F f) {
  if (vectors)
    f(std::integral_constant<int, kVector<T>>{});
  else
    f(std::integral_constant<int, 1>{});
}

// Flat elements: `Map` has `template <int W> __device__ void at(int64_t i)` for elements i .. i + W.

constexpr int kMapThreads = 256;
template <int W, class Map>
__global__ void __launch_bounds__(kMapThreads) map_kernel(int64_t n, Map map) {
  int64_t i = (static_cast<int64_t>(blockIdx.x) * kMapThreads + threadIdx.x) * W;
  if (i + W <= n) return map.template at<W>(i);
  for (; i < n; ++i) map.template at<1>(i);
}
/// stride: how far apart the elements are that `map` takes together, in elements.
template <class T, class Map>
void launch_map(cudaStream_t stream, int64_t n, std::initializer_list<const void*> addresses, Map map, const char* name,
                int64_t stride = 0) {
  if (n == 0) return;
  with_width<T>(takes_vectors<T>(stride, addresses), [&](auto width) {
    constexpr int W = decltype(width)::value;
    map_kernel<W><<<static_cast<unsigned>(ceil_div(n, W * kMapThreads)), kMapThreads, 0, stream>>>(n, map);
  });
  check_launch(name);
}

// Rows: blockDim.x threads for a row; where that is one warp, blockDim.y rows in a block.

constexpr int kRowThreads = 512;  // at most

struct RowLaunch {
  int64_t rows, dim;
  dim3 grid, block;
};
/// For rows of items of `width` elements, of which a thread holds `held`.
inline RowLaunch row_launch(int64_t rows, int64_t dim, int width, int held) {
  unsigned threads = 32;
  while (threads < kRowThreads && static_cast<int64_t>(threads) * held * width < dim) threads *= 2;
  const unsigned rows_of_block = threads == 32 ? 4 : 1;
  return {rows, dim, dim3(static_cast<unsigned>(ceil_div(rows, rows_of_block))), dim3(threads, rows_of_block)};
}
/// launch(T{}, width, RowLaunch) for a kernel over x's rows (dtype T) that touches these addresses.
template <class Launch>
void for_rows(const Tensor& x, int held, std::initializer_list<const void*> addresses, const char* name,
              Launch launch) {
  const int64_t dim = x.dim(-1), n = x.size();
  if (n == 0) return;
  dispatch(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(takes_vectors<T>(dim, addresses),
                  [&](auto width) { launch(zero, width, row_launch(n / dim, dim, decltype(width)::value, held)); });
  });
  check_launch(name);
}
/// The row of this thread. Past the last one whole warps leave, and only where no barrier follows.
__device__ inline int64_t row_of_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; }

/// This thread's items of N rows of equal length, the first kHeld of them in registers, further ones read each time.
template <class T, int W, int N, int kHeld>
class HeldRows {
 public:
  __device__ HeldRows(const T* const (&rows)[N], int64_t dim) : n_items_(static_cast<int>(dim / W)) {
#pragma unroll
    for (int r = 0; r < N; ++r) rows_[r] = rows[r];
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int item = threadIdx.x + h * blockDim.x;
      if (item >= n_items_) continue;
#pragma unroll
      for (int r = 0; r < N; ++r) held_[h][r] = load_raw<T, W>(rows_[r] + static_cast<int64_t>(item) * W);
    }
  }
  /// f(element, items of the N rows from there), in the same order each time.
  template <class F>
  __device__ void each(F f) const {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int item = threadIdx.x + h * blockDim.x;
      if (item < n_items_) call(f, item, held_[h]);
    }
    for (int item = threadIdx.x + kHeld * blockDim.x; item < n_items_; item += blockDim.x) {
      RawItem<T, W> raw[N];
#pragma unroll
      for (int r = 0; r < N; ++r) raw[r] = load_raw<T, W>(rows_[r] + static_cast<int64_t>(item) * W);
      call(f, item, raw);
    }
  }

 private:
  template <class F>
  __device__ static void call(F& f, int item, const RawItem<T, W> (&raw)[N]) {
    Item<W> values[N];
#pragma unroll
    for (int r = 0; r < N; ++r) values[r] = unpack<T, W>(raw[r]);
    f(static_cast<int64_t>(item) * W, values);
  }

  const T* rows_[N];
  int n_items_;
  RawItem<T, W> held_[kHeld][N];
};

/// Each x[k] becomes its sum over the row's threads, in all of them.
template <int K>
__device__ void row_sums(float (&x)[K]) {
  __shared__ float partial[K][kRowThreads / 32];
#pragma unroll
  for (int k = 0; k < K; ++k) x[k] = warp_sum(x[k]);
  if (blockDim.x == 32) return;
  const int lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
  if (lane == 0) {
#pragma unroll
    for (int k = 0; k < K; ++k) partial[k][threadIdx.x / 32] = x[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) x[k] = warp_sum(lane < n_warps ? partial[k][lane] : 0.0f);
  __syncthreads();  // the next call writes `partial` again
}
__device__ inline float row_sum(float x) {
  float sum[1] = {x};
  row_sums(sum);
  return sum[0];
}

}  // namespace saaz::cuda
