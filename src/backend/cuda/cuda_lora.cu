// CudaBackend: LoRA pairs. A pair of rank 8 or 16 on bf16 activations is bound by memory: each large operand is read
// once for all that is made of it. Other ranks, and f32, are products by cuBLAS. Sums over rows (the gradients of a and
// b) are made in parts of the rows, then added in the order of the rows.
#include <algorithm>

#include "backend/cuda/cuda_lora.cuh"

namespace saaz::cuda {

namespace {

// The narrow pass: one reading of x[M, N] for low[M, R] = scale * x c^T, or for the sum over rows of x[m, N]^T p[m, R],
// or for both. A warp has kGroups groups of columns of some rows, 16 at a time. Within a group a product's k-th column
// is whichever value both operands hold there, so the 16-byte loads serve as fragments; the sum over rows takes the
// same registers transposed.

template <int R>
constexpr int kGroups = 64 / R;
/// Columns of a block.
template <int R>
constexpr int kStrip{kWarps * kGroups<R> * kGroup};

struct NarrowPass {
  const bf16* x = nullptr;
  const bf16* c = nullptr;     // [R, N]
  const bf16* p = nullptr;     // [M, R]
  bf16* low = nullptr;         // where one strip is all columns
  float* low_parts = nullptr;  // else: [strip, M, R]
  float* sum_parts = nullptr;  // [part, N, R]
  int64_t rows = 0, dim = 0;
  int part_rows = 0;
  float scale = 1;
};

/// What a lane holds of p for 16 rows: the right operand whose k are rows.
template <int R>
struct RowFactors {
  uint32_t top[R / 8], bottom[R / 8];

  __device__ void load(const bf16* p, int64_t row, int64_t end, int group, int column) {
#pragma unroll
    for (int n = 0; n < R / 8; ++n) {
      const bf16* at = p + (row + group) * R + 8 * n + 2 * column;
      top[n] = load_pair(at, row + group < end);
      bottom[n] = load_pair(at + 8 * R, row + group + 8 < end);
    }
  }
};

/// What the block's warps have of kBlockRows rows of `low`, added up: behind one barrier, so that steps take turns with
/// two places for it.
template <int R>
__device__ void store_low(const NarrowPass& pass, float (&of_warp)[kWarps][kBlockRows][R], const float (&low)[R / 8][4],
                          int64_t row, int64_t end) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, column = lane % 4;
#pragma unroll
  for (int n = 0; n < R / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) of_warp[warp][group + i / 2 * 8][8 * n + 2 * column + i % 2] = low[n][i];
  }
  __syncthreads();
  const int r = threadIdx.x % R, row_of_block = threadIdx.x / R;
  if (row_of_block >= kBlockRows || row + row_of_block >= end) return;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += of_warp[w][row_of_block][r];
  const int64_t at = (row + row_of_block) * R + r;
  if (pass.low != nullptr)
    pass.low[at] = __float2bfloat16_rn(pass.scale * sum);
  else
    pass.low_parts[blockIdx.x * pass.rows * R + at] = sum;
}

/// This part's sums of kGroup columns from `first` on.
template <int R>
__device__ void store_sums(const NarrowPass& pass, const float (&sums)[2][R / 8][4], int64_t first) {
  const int lane = threadIdx.x % 32, group = lane / 4, column = lane % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // registers of a chunk
    const int64_t at = first + 8 * (group / 2) + 2 * i + group % 2;
    float* to = pass.sum_parts + (blockIdx.y * pass.dim + at) * R + 2 * column;
#pragma unroll
    for (int n = 0; n < R / 8; ++n) {
      const float* two = sums[i / 2][n] + i % 2 * 2;
      *reinterpret_cast<float2*>(to + 8 * n) = make_float2(two[0], two[1]);
    }
  }
}

template <int R, bool kLow, bool kSum>
__global__ void __launch_bounds__(kThreads, 1) narrow_kernel(const NarrowPass pass) {
  if constexpr (!kHasMma) return;
  constexpr int G = kGroups<R>, N8 = R / 8;
  __shared__ float low_of_warp[2][kWarps][kBlockRows][R];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, column = lane % 4;
  const int64_t strip = static_cast<int64_t>(blockIdx.x) * kStrip<R> + warp * G * kGroup;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * pass.part_rows;
  const int64_t end = begin + pass.part_rows < pass.rows ? begin + pass.part_rows : pass.rows;
  const auto is_there = [&](int j) { return strip + j * kGroup < pass.dim; };
  uint4 raw[G][2], right[kLow ? G : 1][N8];
  const auto load = [&](int j, int64_t row) {
    const bf16* at = pass.x + (row + group) * pass.dim + strip + j * kGroup + 8 * column;
    raw[j][0] = load_chunk(at, is_there(j) && row + group < end);
    raw[j][1] = load_chunk(at + 8 * pass.dim, is_there(j) && row + group + 8 < end);
  };
#pragma unroll
  for (int j = 0; j < G; ++j) {
    load(j, begin);
    if constexpr (kLow) {
#pragma unroll
      for (int n = 0; n < N8; ++n)
        right[j][n] = load_chunk(pass.c + (8 * n + group) * pass.dim + strip + j * kGroup + 8 * column, is_there(j));
    }
  }
  RowFactors<R> factors = {};
  if constexpr (kSum) factors.load(pass.p, begin, end, group, column);
  float sums[kSum ? G : 1][2][N8][4] = {};
  int buffer = 0;
  for (int64_t row = begin; row < end; row += kBlockRows, buffer ^= 1) {
    float low[N8][4] = {};
    uint32_t of_rows[N8][2] = {};
    if constexpr (kSum) {
#pragma unroll
      for (int n = 0; n < N8; ++n) {
        of_rows[n][0] = transposed_matrix(factors.top[n]);
        of_rows[n][1] = transposed_matrix(factors.bottom[n]);
      }
      factors.load(pass.p, row + kBlockRows, end, group, column);
    }
#pragma unroll
    for (int j = 0; j < G; ++j) {
      const uint4 top = raw[j][0], bottom = raw[j][1];
      load(j, row + kBlockRows);
      if constexpr (kLow) {
#pragma unroll
        for (int n = 0; n < N8; ++n) {
          mma(low[n], Fragment{top.x, bottom.x, top.y, bottom.y}, right[j][n].x, right[j][n].y);
          mma(low[n], Fragment{top.z, bottom.z, top.w, bottom.w}, right[j][n].z, right[j][n].w);
        }
      }
      if constexpr (kSum) {
        const Fragment first = {transposed_matrix(top.x), transposed_matrix(top.y), transposed_matrix(bottom.x),
                                transposed_matrix(bottom.y)};
        const Fragment second = {transposed_matrix(top.z), transposed_matrix(top.w), transposed_matrix(bottom.z),
                                 transposed_matrix(bottom.w)};
#pragma unroll
        for (int n = 0; n < N8; ++n) {
          mma(sums[j][0][n], first, of_rows[n][0], of_rows[n][1]);
          mma(sums[j][1][n], second, of_rows[n][0], of_rows[n][1]);
        }
      }
    }
    if constexpr (kLow) store_low(pass, low_of_warp[buffer], low, row, end);
  }
  if constexpr (kSum) {
#pragma unroll
    for (int j = 0; j < G; ++j)
      if (is_there(j)) store_sums<R>(pass, sums[j], strip + j * kGroup);
  }
}

/// The parts of a narrow pass put together, four values to a thread: sum [N, R], or, `transposed`, [R, N], +=
/// scale * the sum of its parts; then low, where it has parts.
struct Parts {
  float* sum = nullptr;
  const float* sum_parts = nullptr;
  int n_sum_parts = 0;
  bool transposed = false;
  bf16* low = nullptr;
  const float* low_parts = nullptr;
  int n_low_parts = 0;
  int64_t sum_items = 0, low_items = 0, dim = 0;  // items of four
  float sum_scale = 1, low_scale = 1;
};
__device__ inline float4 sum_of_parts(const float* parts, int n, int64_t items, int64_t item) {
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
  for (int part = 0; part < n; ++part) {
    const float4 x = reinterpret_cast<const float4*>(parts)[part * items + item];
    sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
  }
  return sum;
}
template <int R>
__global__ void __launch_bounds__(kThreads) parts_kernel(const Parts all) {
  int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item < all.sum_items) {
    const float4 sum = sum_of_parts(all.sum_parts, all.n_sum_parts, all.sum_items, item);
    const float values[4] = {sum.x, sum.y, sum.z, sum.w};
    const int64_t column = item / (R / 4), r = item % (R / 4) * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      all.sum[all.transposed ? (r + i) * all.dim + column : column * R + r + i] += all.sum_scale * values[i];
    return;
  }
  item -= all.sum_items;
  if (item >= all.low_items) return;
  const float4 sum = sum_of_parts(all.low_parts, all.n_low_parts, all.low_items, item);
  reinterpret_cast<uint2*>(all.low)[item] = make_uint2(pack(all.low_scale * sum.x, all.low_scale * sum.y),
                                                       pack(all.low_scale * sum.z, all.low_scale * sum.w));
}

// Up: y[M, N] (+)= scale * h[M, R] b^T. A warp keeps 128 columns of b in registers and walks rows, 16 at a time.

constexpr int kUpGroups = 4;

/// b: [N, R].
template <int R>
__global__ void __launch_bounds__(kThreads)
    up_kernel(Target<bf16> y, const bf16* h, const bf16* b, int64_t rows, int64_t dim, int part_rows, float scale) {
  if constexpr (!kHasMma) return;
  const int lane = threadIdx.x % 32, group = lane / 4, column = lane % 4;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32) * kUpGroups * kGroup;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * part_rows;
  const int64_t end = begin + part_rows < rows ? begin + part_rows : rows;
  PairColumns<R, kUpGroups> right;
  PairRows<R> left;
  right.load(b, first, dim, lane);
  left.load(h, begin, end, lane);
  for (int64_t row = begin; row < end; row += kBlockRows) {
    float out[kUpGroups][4][4] = {};
#pragma unroll
    for (int j = 0; j < kUpGroups; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) multiply<R>(out[j][i], left.h, right.b[j][i]);
    }
    left.load(h, row + kBlockRows, end, lane);
#pragma unroll
    for (int j = 0; j < kUpGroups; ++j) {
      if (first + j * kGroup >= dim) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t at_row = row + group + 8 * half;
        if (at_row >= end) continue;
        Item<8> item;
#pragma unroll
        for (int i = 0; i < 8; ++i) item.v[i] = scale * out[j][i / 2][2 * half + i % 2];
        y.put(at_row * dim + first + j * kGroup + 8 * column, item);
      }
    }
  }
}

}  // namespace

/// The kernels above for one rank.
template <int R>
struct CudaBackend::LowRank {
  CudaBackend& backend;

  struct Pair {
    bf16 *a, *b;
  };
  template <bool kTransposed>
  Pair rounded(const Tensor& a, const Tensor& b) const {
    const int64_t n_in = a.dim(1), n_out = b.dim(0);
    auto* to = static_cast<bf16*>(backend.scratch(kAdapterScratch, R * (n_in + n_out) * 2));
    round_pair<R, kTransposed><<<blocks_for(R * (n_in + n_out)), kThreads, 0, backend.stream_>>>(
        to, a.f32(), n_in, to + R * n_in, b.f32(), n_out);
    check_launch("lora pair");
    return {to, to + R * n_in};
  }

  /// low (null: not wanted) = low_scale * x c^T; sum (null: not wanted), as [N, R] or transposed, += sum_scale * x^T p.
  template <bool kLow, bool kSum>
  void narrow(const Tensor& x, const bf16* c, bf16* low, float low_scale, const bf16* p, float* sum, bool transposed,
              float sum_scale) const {
    const int64_t rows = x.rows(), dim = x.dim(-1);
    if (rows == 0) return;
    const int64_t n_strips = ceil_div(dim, kStrip<R>),
                  wanted = std::max<int64_t>(1, backend.n_multiprocessors_ / n_strips);
    constexpr int64_t kFewestRows = kSum ? 4 * kBlockRows : kBlockRows;  // of a part: each leaves N x R sums
    const int64_t part_rows = std::max(kFewestRows, ceil_div(ceil_div(rows, wanted), kBlockRows) * kBlockRows);
    const int64_t n_parts = ceil_div(rows, part_rows);
    const int64_t sum_size = kSum ? dim * R : 0, low_size = kLow && n_strips > 1 ? rows * R : 0;
    auto* parts =
        static_cast<float*>(backend.scratch(kAdapterPartsScratch, (n_parts * sum_size + n_strips * low_size) * 4));
    float* low_parts = parts + n_parts * sum_size;
    const NarrowPass pass{x.as<bf16>(), c,    p,   low_size == 0 ? low : nullptr, low_parts,
                          parts,        rows, dim, static_cast<int>(part_rows),   low_scale};
    narrow_kernel<R, kLow, kSum>
        <<<dim3(static_cast<unsigned>(n_strips), static_cast<unsigned>(n_parts)), kThreads, 0, backend.stream_>>>(pass);
    check_launch("lora narrow");
    if (sum_size + low_size == 0) return;
    const Parts all{sum,
                    parts,
                    static_cast<int>(n_parts),
                    transposed,
                    low,
                    low_parts,
                    static_cast<int>(n_strips),
                    sum_size / 4,
                    low_size / 4,
                    dim,
                    sum_scale,
                    low_scale};
    parts_kernel<R><<<blocks_for((sum_size + low_size) / 4), kThreads, 0, backend.stream_>>>(all);
    check_launch("lora parts");
  }
  void up(const Grad& y, const Tensor& h, const bf16* b, float scale) const {
    const int64_t rows = y.tensor.rows(), dim = y.tensor.dim(-1);
    if (rows == 0) return;
    const int64_t n_blocks = ceil_div(dim, kWarps * kUpGroups * kGroup);
    const int64_t wanted = std::max<int64_t>(1, 4 * backend.n_multiprocessors_ / n_blocks);
    const int64_t part_rows =
        std::min<int64_t>(8 * kBlockRows, ceil_div(ceil_div(rows, wanted), kBlockRows) * kBlockRows);
    const dim3 grid(static_cast<unsigned>(n_blocks), static_cast<unsigned>(ceil_div(rows, part_rows)));
    up_kernel<R><<<grid, kThreads, 0, backend.stream_>>>(target<bf16>(y), h.as<bf16>(), b, rows, dim,
                                                         static_cast<int>(part_rows), scale);
    check_launch("lora up");
  }

  void low(const Tensor& h, const Tensor& x, const Tensor& a) const {
    auto* to = static_cast<bf16*>(backend.scratch(kAdapterScratch, a.size() * 2));
    round_pair<R, false>
        <<<blocks_for(a.size()), kThreads, 0, backend.stream_>>>(to, a.f32(), a.dim(1), nullptr, nullptr, 0);
    check_launch("lora pair");
    narrow<true, false>(x, to, h.as<bf16>(), 1, nullptr, nullptr, false, 1);
  }
  void forward(const Grad& y, const Tensor& h, const Tensor& x, const Tensor& a, const Tensor& b, float scaling) const {
    const Pair pair = rounded<false>(a, b);
    narrow<true, false>(x, pair.a, h.as<bf16>(), 1, nullptr, nullptr, false, 1);
    up(y, h, pair.b, scaling);
  }
  void backward(const Grad& dx, const Tensor& da, const Tensor& db, const Tensor& dh, const Tensor& dy, const Tensor& x,
                const Tensor& h, const Tensor& a, const Tensor& b, float scaling) const {
    const Pair pair = rounded<true>(a, b);
    narrow<true, true>(dy, pair.b, dh.as<bf16>(), scaling, h.as<bf16>(), db.f32(), false, scaling);
    narrow<false, true>(x, nullptr, nullptr, 1, dh.as<bf16>(), da.f32(), true, 1);
    if (dx.wanted()) up(dx, dh, pair.a, 1);
  }
};

namespace {

/// The kernels take 16 bytes of a row at a time.
bool has_kernels(const Tensor& x, const Tensor& y, const Tensor& a, int compute_capability) {
  const int64_t r = a.dim(0);
  return (r == 8 || r == 16) && x.dtype == DType::bf16 && compute_capability >= 80 && x.dim(-1) % kGroup == 0 &&
         y.dim(-1) % kGroup == 0 && takes_vectors<bf16>(8, {x.data, y.data});
}

}  // namespace

void CudaBackend::lora_forward(const Grad& y, const Tensor& h, const Tensor& x, const Tensor& a, const Tensor& b,
                               float scaling) {
  const int64_t n_in = a.dim(1), r = a.dim(0);
  if (has_kernels(x, y.tensor, a, compute_capability_)) {
    if (r == 8) return LowRank<8>{*this}.forward(y, h, x, a, b, scaling);
    return LowRank<16>{*this}.forward(y, h, x, a, b, scaling);
  }
  gemm(flat(h), {flat(x), false}, {as_activations(a, kAdapterScratch), true}, n_in, 1, Write::overwrite);
  gemm(flat(y.tensor), {flat(h), false}, {as_activations(b, kAdapterScratch), true}, r, scaling, y.write);
}

void CudaBackend::lora_backward(const Grad& dx, const Tensor& da, const Tensor& db, const Tensor& dh, const Tensor& dy,
                                const Tensor& x, const Tensor& h, const Tensor& a, const Tensor& b, float scaling) {
  const int64_t n_out = b.dim(0), r = b.dim(1);
  if (has_kernels(x, dy, a, compute_capability_) && takes_vectors<bf16>(8, {dx.tensor.data})) {
    if (r == 8) return LowRank<8>{*this}.backward(dx, da, db, dh, dy, x, h, a, b, scaling);
    return LowRank<16>{*this}.backward(dx, da, db, dh, dy, x, h, a, b, scaling);
  }
  gemm(flat(dh), {flat(dy), false}, {as_activations(b, kAdapterScratch), false}, n_out, scaling, Write::overwrite);
  matmul_tn(da, dh, x, 1, Write::add);
  matmul_tn(db, dy, h, scaling, Write::add);
  if (dx.wanted()) {
    gemm(flat(dx.tensor), {flat(dh), false}, {as_activations(a, kAdapterScratch), false}, r, 1, dx.write);
  }
}

void CudaBackend::lora_down(const Tensor& h, const Tensor& x, const Tensor& a) {
  if (a.dim(0) == 8) return LowRank<8>{*this}.low(h, x, a);
  LowRank<16>{*this}.low(h, x, a);
}

}  // namespace saaz::cuda
