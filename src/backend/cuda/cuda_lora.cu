// CudaBackend: LoRA pairs. A pair of rank 8 or 16 on bf16 activations is bound by memory: each kernel reads the large
// operand once. Other ranks, and f32, are products by cuBLAS. Sums over rows (the gradients of a and b) are made in
// parts of kPartRows rows, then added in the order of the rows.
#include <algorithm>

#include "backend/cuda/cuda_items.cuh"
#include "backend/cuda/cuda_mma.cuh"

namespace saaz::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// Down: h[M, R] = scale * x[M, K] a[R, K]^T. A block takes 16 rows, its warps share out K in steps of 32. Within a step
// the four lanes of a row hold eight neighbouring values each; a product's k-th column is whichever value both operands
// hold there, so 16-byte loads serve as fragments.

constexpr int kDownRows = 16, kDownStep = 32;

__device__ inline uint4 load_chunk(const bf16* p, bool present) {
  return present ? *reinterpret_cast<const uint4*>(p) : uint4{0, 0, 0, 0};
}

template <int R>
__global__ void __launch_bounds__(kThreads)
    down_kernel(bf16* h, const bf16* x, const bf16* a, int64_t rows, int64_t dim, float scale) {
  if constexpr (!kHasMma) return;
  __shared__ float parts[kWarps][kDownRows][R];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, column = lane % 4 * 8;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kDownRows;
  const bf16* rows_of_lane[2] = {x + (first + group) * dim + column, x + (first + group + 8) * dim + column};
  const bool present[2] = {first + group < rows, first + group + 8 < rows};
  float sums[R / 8][4] = {};
#pragma unroll 4
  for (int64_t k = static_cast<int64_t>(warp) * kDownStep; k < dim; k += kWarps * kDownStep) {
    const uint4 top = load_chunk(rows_of_lane[0] + k, present[0]), bottom = load_chunk(rows_of_lane[1] + k, present[1]);
    const Fragment low = {top.x, bottom.x, top.y, bottom.y}, high = {top.z, bottom.z, top.w, bottom.w};
#pragma unroll
    for (int n = 0; n < R / 8; ++n) {
      const uint4 right = load_chunk(a + (8 * n + group) * dim + k + column, true);
      mma(sums[n], low, right.x, right.y);
      mma(sums[n], high, right.z, right.w);
    }
  }
#pragma unroll
  for (int n = 0; n < R / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) parts[warp][group + i / 2 * 8][8 * n + lane % 4 * 2 + i % 2] = sums[n][i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kDownRows * R; i += kThreads) {
    const int64_t row = first + i / R;
    if (row >= rows) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += parts[w][i / R][i % R];
    h[row * R + i % R] = __float2bfloat16_rn(scale * sum);
  }
}

// Up: y[M, N] (+)= scale * h[M, R] b^T. A thread keeps its columns of b for kUpRows rows.

constexpr int kUpRows = 64;
/// Columns of a thread: as many as its registers hold R values of each.
template <int R>
constexpr int kColumns = R == 8 ? 8 : 4;

/// b_rows: b^T, [R, N].
template <int R>
__global__ void __launch_bounds__(kThreads)
    up_kernel(Target<bf16> y, const bf16* h, const float* b_rows, int64_t rows, int64_t dim, float scale) {
  constexpr int W = kColumns<R>;
  __shared__ __align__(16) float low[kUpRows][R];
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kUpRows;
  const int n_rows = static_cast<int>(rows - first < kUpRows ? rows - first : kUpRows);
  for (int i = threadIdx.x; i < n_rows * R; i += kThreads) low[i / R][i % R] = scale * to_f32(h[first * R + i]);
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * W;
  __syncthreads();
  if (at >= dim) return;
  Item<W> factors[R];
#pragma unroll
  for (int r = 0; r < R; ++r) factors[r] = load_item<W>(b_rows + r * dim + at);
#pragma unroll 4
  for (int row = 0; row < n_rows; ++row) {
    Item<W> out = {};
    if (y.add) out = load_item<W>(y.data + (first + row) * dim + at);
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = 0; c < W; ++c) out.v[c] += low[row][r] * factors[r].v[c];
    }
    store_item<W>(y.data + (first + row) * dim + at, out);
  }
}

// Outer: the sum over rows of p[m, R] x[m, N], by parts of the rows: parts[part][R][N].

template <int R>
__global__ void __launch_bounds__(kThreads)
    outer_kernel(float* parts, const bf16* p, const bf16* x, int64_t rows, int64_t dim, int part_rows) {
  constexpr int W = kColumns<R>, kAtOnce = 32, kInFlight = 8;
  __shared__ __align__(16) float factors[kAtOnce][R];
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * part_rows;
  const int64_t end = begin + part_rows < rows ? begin + part_rows : rows;
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * W;
  const bool present = at < dim;
  Item<W> sums[R] = {};
  for (int64_t first = begin; first < end; first += kAtOnce) {
    const int n = static_cast<int>(end - first < kAtOnce ? end - first : kAtOnce);
    __syncthreads();
    for (int i = threadIdx.x; i < n * R; i += kThreads) factors[i / R][i % R] = to_f32(p[first * R + i]);
    __syncthreads();
    if (!present) continue;
    for (int from = 0; from < n; from += kInFlight) {
      RawItem<bf16, W> raw[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i)
        if (from + i < n) raw[i] = load_raw<bf16, W>(x + (first + from + i) * dim + at);
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        if (from + i >= n) continue;
        const Item<W> values = unpack<bf16, W>(raw[i]);
#pragma unroll
        for (int r = 0; r < R; ++r) {
#pragma unroll
          for (int c = 0; c < W; ++c) sums[r].v[c] += factors[from + i][r] * values.v[c];
        }
      }
    }
  }
  if (!present) return;
#pragma unroll
  for (int r = 0; r < R; ++r) store_item<W>(parts + (static_cast<int64_t>(blockIdx.y) * R + r) * dim + at, sums[r]);
}

/// to += scale * the sum of the parts. to is [R, N], or, kTransposed, [N, R].
template <int R, bool kTransposed>
__global__ void __launch_bounds__(kThreads)
    add_parts(float* to, const float* parts, int n_parts, int64_t dim, float scale) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= R * dim) return;
  float sum = 0;
  for (int part = 0; part < n_parts; ++part) sum += parts[part * R * dim + i];
  to[kTransposed ? i % dim * R + i / dim : i] += scale * sum;
}

template <int R, class T>
__global__ void __launch_bounds__(kThreads) transpose_kernel(T* to, const float* b, int64_t dim) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < R * dim) to[i] = from_f32<T>(b[i % dim * R + i / dim]);
}

unsigned blocks_for(int64_t n) { return static_cast<unsigned>(ceil_div(n, kThreads)); }

}  // namespace

/// The kernels above for one rank.
template <int R>
struct CudaBackend::LowRank {
  CudaBackend& backend;

  void down(const Tensor& h, const Tensor& x, const Tensor& a, float scale) const {
    const int64_t rows = x.rows();
    if (rows == 0) return;
    down_kernel<R><<<static_cast<unsigned>(ceil_div(rows, kDownRows)), kThreads, 0, backend.stream_>>>(
        h.as<bf16>(), x.as<bf16>(), a.as<bf16>(), rows, x.dim(-1), scale);
    check_launch("lora down");
  }
  void up(const Grad& y, const Tensor& h, const Tensor& b_rows, float scale) const {
    const int64_t rows = y.tensor.rows(), dim = y.tensor.dim(-1);
    if (rows == 0) return;
    const dim3 grid(blocks_for(ceil_div(dim, kColumns<R>)), static_cast<unsigned>(ceil_div(rows, kUpRows)));
    up_kernel<R><<<grid, kThreads, 0, backend.stream_>>>(target<bf16>(y), h.as<bf16>(), b_rows.f32(), rows, dim, scale);
    check_launch("lora up");
  }
  template <bool kTransposed>
  void outer(const Tensor& to, const Tensor& p, const Tensor& x, float scale) const {
    const int64_t rows = x.rows(), dim = x.dim(-1);
    if (rows == 0) return;
    const unsigned n_blocks = blocks_for(ceil_div(dim, kColumns<R>));
    const int64_t wanted = std::max<int64_t>(1, 3 * backend.n_multiprocessors_ / (2 * n_blocks));
    const int64_t part_rows = std::max<int64_t>(32, ceil_div(ceil_div(rows, wanted), 32) * 32);
    const int64_t n_parts = ceil_div(rows, part_rows);
    auto* parts = static_cast<float*>(backend.scratch(kAdapterPartsScratch, n_parts * R * dim * 4));
    outer_kernel<R><<<dim3(n_blocks, static_cast<unsigned>(n_parts)), kThreads, 0, backend.stream_>>>(
        parts, p.as<bf16>(), x.as<bf16>(), rows, dim, static_cast<int>(part_rows));
    add_parts<R, kTransposed>
        <<<blocks_for(R * dim), kThreads, 0, backend.stream_>>>(to.f32(), parts, static_cast<int>(n_parts), dim, scale);
    check_launch("lora gradient");
  }
  /// b [N, R] in f32 as [R, N] of T.
  template <class T>
  Tensor transposed(const Tensor& b) const {
    const int64_t dim = b.dim(0), bytes = R * dim * static_cast<int64_t>(sizeof(T));
    const Tensor out(backend.scratch(kAdapterTransposedScratch, bytes), sizeof(T) == 2 ? DType::bf16 : DType::f32,
                     {R, dim});
    transpose_kernel<R><<<blocks_for(R * dim), kThreads, 0, backend.stream_>>>(out.as<T>(), b.f32(), dim);
    check_launch("transpose");
    return out;
  }

  void forward(const Grad& y, const Tensor& h, const Tensor& x, const Tensor& a, const Tensor& b, float scaling) const {
    down(h, x, backend.as_activations(a, kAdapterScratch), 1);
    up(y, h, transposed<float>(b), scaling);
  }
  void backward(const Grad& dx, const Tensor& da, const Tensor& db, const Tensor& dh, const Tensor& dy, const Tensor& x,
                const Tensor& h, const Tensor& a, const Tensor& b, float scaling) const {
    down(dh, dy, transposed<bf16>(b), scaling);
    outer<false>(da, dh, x, 1);
    outer<true>(db, h, dy, scaling);
    if (dx.wanted()) up(dx, dh, a, 1);
  }
};

namespace {

/// The kernels take 16 bytes of a row at a time.
bool has_kernels(const Tensor& x, const Tensor& y, const Tensor& a, int compute_capability) {
  const int64_t r = a.dim(0);
  return (r == 8 || r == 16) && x.dtype == DType::bf16 && compute_capability >= 80 && x.dim(-1) % kDownStep == 0 &&
         y.dim(-1) % kDownStep == 0 && takes_vectors<bf16>(8, {x.data, y.data});
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

}  // namespace saaz::cuda
