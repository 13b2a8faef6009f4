// Step: the gated activation that lets few values through: those of the gate well above its row's mean. Where there are
// few rows, up's product is made for those alone: every block finds which they are, and takes some of them, eight or
// (NF4, more than one row) 16 of up's rows to a tile. How a row is summed does not depend on which others are in its
// tile.
#include <algorithm>

#include "backend/cuda/cuda_step_sparse_row.cuh"

namespace saaz::cuda {

using namespace sparse;

namespace {

/// As sparse_geglu_kernel.
template <class T, int W>
__global__ void __launch_bounds__(kGateThreads)
    sparse_gate_kernel(T* y, const T* gate, const T* up, float sparsity_z, int64_t dim) {
  let_next_start();
  wait_for_previous();
  const int64_t row = blockIdx.x * dim;
  const HeldRows<T, W, 2, 2> held({gate + row, up + row}, dim);
  __shared__ float shared[33];
  float sum = 0, square = 0;
  held.each([&](int64_t, const auto& in) {
#pragma unroll
    for (int i = 0; i < W; ++i) sum += in[0].v[i];
  });
  const float mean = block_sum(sum, shared) / static_cast<float>(dim);
  held.each([&](int64_t, const auto& in) {
#pragma unroll
    for (int i = 0; i < W; ++i) square += (in[0].v[i] - mean) * (in[0].v[i] - mean);
  });
  const float cut = mean + sqrtf(block_sum(square, shared) / static_cast<float>(dim)) * sparsity_z;
  held.each([&](int64_t at, const auto& in) {
    Item<W> out;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const float over = in[0].v[i] - cut;
      out.v[i] = sparse_gated(over, in[1].v[i]);
    }
    store_item<W>(y + row + at, out);
  });
}

struct UpArguments {
  Matrix up;
  const bf16 *x, *gate;
  bf16* y;
  const float* tables;  // the signed map [256], the values of NF4 [16]
  float sparsity_z;
  int n_in, n_out, n_rows, n_chunks;
};

/// The first column of item h of virtual thread v of kGateThreads.
__device__ inline int first_column(int v, int h) {
  return (static_cast<int>(threadIdx.x) + v * kThreads + h * kGateThreads) * kItemValues;
}

/// The values of a row of the gate that this thread looks at, as threads of sparse_gate_kernel would hold them.
struct GateValues {
  uint4 raw[kVirtual][kMostItems];
  int n_items;
  __device__ GateValues(const bf16* row, int n_out) : n_items(n_out / static_cast<int>(kItemsWidth)) {
#pragma unroll
    for (int v = 0; v < kVirtual; ++v)
#pragma unroll
      for (int h = 0; h < kMostItems; ++h)
        if (h < n_items) raw[v][h] = *reinterpret_cast<const uint4*>(row + first_column(v, h));
  }
  /// f(value, v, h, i)
  template <class F>
  __device__ void each(F f) const {
#pragma unroll
    for (int v = 0; v < kVirtual; ++v)
#pragma unroll
      for (int h = 0; h < kMostItems; ++h)
        if (h < n_items) {
          const auto* values = reinterpret_cast<const bf16*>(&raw[v][h]);
#pragma unroll
          for (int i = 0; i < kItemValues; ++i) f(to_f32(values[i]), v, h, i);
        }
  }
};

/// The sum of what kGateThreads threads would have; in every thread.
__device__ inline float virtual_sum(const float (&of_thread)[kVirtual]) {
  __shared__ float of_warp[kVirtual * kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int v = 0; v < kVirtual; ++v) {
    const float sum = warp_sum(of_thread[v]);
    if (lane == 0) of_warp[v * kWarps + warp] = sum;
  }
  __syncthreads();
  const float sum = warp_sum(of_warp[lane]);
  __syncthreads();
  return sum;
}

/// What sparse_gate_kernel cuts a row at.
__device__ inline float cut_of(const GateValues& gate, int n_out, float sparsity_z) {
  float sums[kVirtual] = {}, squares[kVirtual] = {};
  gate.each([&](float x, int v, int, int) { sums[v] += x; });
  const float mean = virtual_sum(sums) / static_cast<float>(n_out);
  gate.each([&](float x, int v, int, int) { squares[v] += (x - mean) * (x - mean); });
  return mean + sqrtf(virtual_sum(squares) / static_cast<float>(n_out)) * sparsity_z;
}

/// Which columns any row lets through, in `list`; returns how many. cuts: of the rows.
__device__ inline int find_active(uint16_t* list, float* cuts, const UpArguments& a) {
  __shared__ int of_warp[kWarps];
  uint64_t active = 0;
  for (int row = 0; row < a.n_rows; ++row) {
    const GateValues gate(a.gate + static_cast<int64_t>(row) * a.n_out, a.n_out);
    const float cut = cut_of(gate, a.n_out, a.sparsity_z);
    if (threadIdx.x == 0) cuts[row] = cut;
    gate.each([&](float x, int v, int h, int i) {
      active |= static_cast<uint64_t>(x - cut <= 0.0f ? 0 : 1) << ((v * kMostItems + h) * kItemValues + i);
    });
  }
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, count = __popcll(active);
  int before = count;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, before, d);
    before += lane >= d ? other : 0;
  }
  if (lane == 31) of_warp[warp] = before;
  before -= count;
  __syncthreads();
  int n_active = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    before += w < warp ? of_warp[w] : 0;
    n_active += of_warp[w];
  }
  for (; active != 0; active &= active - 1) {
    const int bit = __ffsll(static_cast<long long>(active)) - 1, item = bit / kItemValues;
    list[before++] = static_cast<uint16_t>(first_column(item / kMostItems, item % kMostItems) + bit % kItemValues);
  }
  __syncthreads();
  return n_active;
}

/// Zeros where no row lets anything through: a share of the columns.
__device__ inline void clear_inactive(const UpArguments& a, const float* cuts) {
  const int share = (a.n_out + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
  const int begin = static_cast<int>(blockIdx.x) * share;
  for (int n = begin + static_cast<int>(threadIdx.x); n < min(a.n_out, begin + share); n += kThreads) {
    bool is_active = false;
    for (int row = 0; row < a.n_rows; ++row)
      is_active |= !(to_f32(a.gate[static_cast<int64_t>(row) * a.n_out + n]) - cuts[row] <= 0.0f);
    if (is_active) continue;
    for (int row = 0; row < a.n_rows; ++row) a.y[static_cast<int64_t>(row) * a.n_out + n] = __float2bfloat16_rn(0.0f);
  }
}

template <bool kNf4>
struct UpShared {
  static constexpr int kTile = kNf4 ? 16 : 8;
  float sums[kWarps][8][kTile];
  float cuts[8];
  float map[256];
  alignas(16) char pairs[kNf4 ? kCodeTableBytes : 16];
  // then the list, then rows of x
};

template <bool kNf4>
__global__ void __launch_bounds__(kThreads, 1) sparse_up_kernel(const __grid_constant__ UpArguments a) {
  if constexpr (!kHasMma) return;
  extern __shared__ uint4 shared[];
  using S = UpShared<kNf4>;
  S& s = *reinterpret_cast<S*>(shared);
  auto* list = reinterpret_cast<uint16_t*>(reinterpret_cast<char*>(shared) + sizeof(S));
  char* rows = reinterpret_cast<char*>(list + a.n_out);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, stride = a.n_in * 2 + 16;
  let_next_start();
  if (kNf4 && threadIdx.x < 256) s.map[threadIdx.x] = a.tables[threadIdx.x];
  if (kNf4) fill_pairs<kThreads>(shared_address(s.pairs), a.tables + 256);
  wait_for_previous();
  for (int row = 0; row < a.n_rows; ++row)
    for (int i = threadIdx.x * 8; i < a.n_in; i += kThreads * 8)
      copy_async(shared_address(rows + row * stride + i * 2), a.x + static_cast<int64_t>(row) * a.n_in + i, true);
  const int n_active = find_active(list, s.cuts, a);
  wait_for_copies();
  __syncthreads();
  constexpr int kChunks = kNf4 ? kNf4Chunks : kLoads, kChunkBytes = kNf4 ? 128 : 64;  // of x
  const int group = warp / kGroup, in_group = warp % kGroup, n_blocks = static_cast<int>(gridDim.x);
  for (int first = (static_cast<int>(blockIdx.x) + group * n_blocks) * S::kTile; first < n_active;
       first += kWarps / kGroup * n_blocks * S::kTile) {
    const int64_t upper = list[min(first + lane / 4, n_active - 1)],
                  lower = list[min(first + lane / 4 + 8, n_active - 1)];
    Sums<false> sums = {};
    for (int chunk = in_group * kChunks; chunk < a.n_chunks; chunk += kGroup * kChunks) {
      Batch batch;
      const RowFragments<false> x(rows + chunk * kChunkBytes, stride, a.n_rows);
      if constexpr (kNf4) {
        load_nf4(batch, a.up, upper * a.n_chunks + chunk, lower * a.n_chunks + chunk);
        add_nf4<false>(sums, batch, x, a.up, s.pairs, s.map);
      } else {
        const uint4* values = static_cast<const uint4*>(a.up.data) + (upper * a.n_chunks + chunk) * 4 + lane % 4;
#pragma unroll
        for (int u = 0; u < kLoads; ++u)
          batch[u] = chunk + u < a.n_chunks ? stream_load(values + u * 4) : make_uint4(0, 0, 0, 0);
        add_bf16<false>(sums, batch, x, a.n_chunks - chunk);
      }
    }
    for_sums<false>(kNf4, [&](int row, int n, int e) { s.sums[warp][row][n] = sums[e]; });
    group_barrier(group, kGroup);
    for (int i = static_cast<int>(threadIdx.x) - group * kGroup * 32; i < a.n_rows * S::kTile; i += kGroup * 32) {
      const int row = i / S::kTile, n = i % S::kTile;
      if (first + n >= n_active) continue;
      float up = 0;
#pragma unroll
      for (int w = 0; w < kGroup; ++w) up += s.sums[group * kGroup + w][row][n];
      const int64_t at = static_cast<int64_t>(row) * a.n_out + list[first + n];
      const float over = to_f32(a.gate[at]) - s.cuts[row];
      a.y[at] = __float2bfloat16_rn(sparse_gated(over, to_f32(__float2bfloat16_rn(up))));
    }
    group_barrier(group, kGroup);
  }
  clear_inactive(a, s.cuts);
}

__global__ void __launch_bounds__(kThreads, 1) sparse_row_kernel(const __grid_constant__ RowArguments a) {
  if constexpr (!kHasMma) return;
  extern __shared__ uint4 shared[];
  RowShared& s = *reinterpret_cast<RowShared*>(shared);
  char* x = reinterpret_cast<char*>(shared) + sizeof(RowShared);
  static_assert(sizeof(RowShared) % 16 == 0);
  const int warp = this_warp();
  let_next_start();
  if (threadIdx.x < 64) copy_async(shared_address(s.map + threadIdx.x * 4), a.map + threadIdx.x * 4, true);
  wait_for_previous();
  const RowOfGate gate{s.gate, a.n_out, a.of_width};
  gate.copy(a.gate);
  end_copies();
#pragma unroll 1
  for (int i = threadIdx.x * 8; i < a.n_in; i += kThreads * 8) copy_async(shared_address(x + i * 2), a.x + i, true);
  end_copies();
  // While the gate travels: before the wait there is seldom time, as the block's place was the last kernel's.
  fill_pairs<kThreads, kPairStride>(shared_address(s.pairs), a.values);
  wait_for_batches<1>();
  const float cut = gate.cut(s, a.sparsity_z, warp);
  const int n_own = list_own(s, gate.open(s, cut), warp);
  // By the second group, which seldom has a tile.
  if (warp >= kGroup) clear_closed(a.y, s.open, a.n_out, kGroup * 32);
  make_own(s, a, x, n_own, cut, warp);
}

}  // namespace

void Step::sparse_gate(const Gated& g) {
  const int64_t tokens = g.y.dim(0), dim = g.y.dim(1);
  dispatch(g.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(takes_vectors<T>(dim, {g.y.data, g.gate.data, g.up.data}), [&](auto width) {
      constexpr int W = decltype(width)::value;
      launch(sparse_gate_kernel<T, W>, dim3(static_cast<unsigned>(tokens)),
             static_cast<unsigned>(std::min<int64_t>(kGateThreads, ceil_div(ceil_div(dim, W), 32) * 32)), 0,
             g.y.as<T>(), g.gate.as<T>(), g.up.as<T>(), g.sparsity_z, dim);
    });
  });
}

/// y from the gate and x; up is made for all rows where these are many.
void Step::sparse_up(const Task& up, const Gated& g) {
  const bool nf4 = up.w.format == WeightFormat::nf4;
  const int64_t rows = up.x.rows(), n_out = up.w.n_out;
  const int64_t bytes =
      (nf4 ? sizeof(UpShared<true>) : sizeof(UpShared<false>)) + n_out * 2 + rows * (up.w.n_in * 2 + 16);
  if (rows > kMostSparseRows || n_out % kItemsWidth != 0 || n_out > kMostItems * kItemsWidth || bytes > most_shared_) {
    run_in_chunks({&up, 1}, kGroup);
    return sparse_gate(g);
  }
  const unsigned n_blocks = static_cast<unsigned>(backend_.n_multiprocessors_);
  const int64_t row_bytes = sizeof(RowShared) + up.w.n_in * 2;
  if (nf4 && rows == 1 && matrix_of(up.w).nested != nullptr && row_bytes <= most_shared_ &&
      ceil_div(n_out, n_blocks * kRowTile) * kRowTile <= kMostOwn) {
    RowArguments row{.up = matrix_of(up.w),
                     .x = up.x.as<bf16>(),
                     .gate = g.gate.as<bf16>(),
                     .y = g.y.as<bf16>(),
                     .map = nf4_tables_,
                     .values = {},
                     .sparsity_z = g.sparsity_z,
                     .of_width = 1.0f / static_cast<float>(n_out),
                     .n_out = static_cast<int>(n_out),
                     .n_in = static_cast<int>(up.w.n_in),
                     .n_chunks = static_cast<int>(up.w.n_in / 64)};
    std::copy(kNf4Values.begin(), kNf4Values.end(), row.values);
    check_cuda(cudaFuncSetAttribute(sparse_row_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(row_bytes)),
               "shared memory of a sparse gate");
    share_first_cache(sparse_row_kernel);
    return launch(sparse_row_kernel, dim3(n_blocks), dim3(kThreads), static_cast<int>(row_bytes), row);
  }
  const UpArguments args{.up = matrix_of(up.w),
                         .x = up.x.as<bf16>(),
                         .gate = g.gate.as<bf16>(),
                         .y = g.y.as<bf16>(),
                         .tables = nf4_tables_,
                         .sparsity_z = g.sparsity_z,
                         .n_in = static_cast<int>(up.w.n_in),
                         .n_out = static_cast<int>(n_out),
                         .n_rows = static_cast<int>(rows),
                         .n_chunks = static_cast<int>(up.w.n_in) / (nf4 ? 64 : 32)};
  const auto kernel = nf4 ? sparse_up_kernel<true> : sparse_up_kernel<false>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
             "shared memory of a sparse gate");
  launch(kernel, dim3(n_blocks), dim3(kThreads), static_cast<int>(bytes), args);
}

}  // namespace saaz::cuda
