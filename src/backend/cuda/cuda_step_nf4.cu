// Step: NF4 products of one row. A warp's part of a tile, 16 rows by 256 columns, is four blocks of scales wide; the
// tensor cores' right operand has eight columns and x is one row, so each of the four blocks of x takes a column of its
// own, zeros elsewhere, and one chain of products leaves the sums of all four, where each lane has the scale of one.
// All a warp will read is on its way early, four batches at once. Every sum has the order that products_kernel gives
// it.
#include <algorithm>

#include "backend/cuda/cuda_step_products.cuh"

namespace saaz::cuda {

namespace {

constexpr int kWarps = kNf4BlockWarps, kThreads = kWarps * 32;
constexpr int kBatchBytes = 256 * 2;      // of x
constexpr int kTableAlignment = 1 << 16;  // see pair_at

/// A lane's part of a batch: 16 codes of its row in each of four chunks, then of the row 8 below; and of both rows the
/// scale of the chunk lane % 4, or its code and what that is nested in.
struct RowBatch {
  uint2 codes[kLoads];
  uint32_t scale[2];
  float nested[2];
};

/// Where a lane reads a tile's batches: of its upper row and the one 8 below.
struct LanePointers {
  const char *codes[2], *scales[2];
  const float* nested[2];
  int scale_bytes;

  /// upper, lower: the rows' first chunks.
  __device__ LanePointers(const Matrix& w, uint32_t upper, uint32_t lower) : scale_bytes(w.nested != nullptr ? 1 : 4) {
    const uint32_t rows[] = {upper, lower}, t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      codes[half] = static_cast<const char*>(w.data) + static_cast<int64_t>(rows[half]) * 32 + t * 8;
      const uint32_t own = rows[half] + t;
      scales[half] = w.nested != nullptr ? reinterpret_cast<const char*>(w.codes + own)
                                         : reinterpret_cast<const char*>(w.scales + own);
      nested[half] = w.nested + rows[half] / kNestedBlock;
    }
  }
  /// The batch that begins `chunk` chunks further; all of them within one nested block.
  __device__ void load(RowBatch& to, int chunk) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int c = 0; c < kNf4Chunks; ++c)
        to.codes[half * kNf4Chunks + c] =
            stream_load(reinterpret_cast<const uint2*>(codes[half] + chunk * 32 + c * 32));
      const char* scale = scales[half] + chunk * scale_bytes;
      if (scale_bytes == 1) {
        to.scale[half] = __ldg(reinterpret_cast<const uint8_t*>(scale));
        to.nested[half] = __ldg(nested[half]);
      } else {
        to.scale[half] = __ldg(reinterpret_cast<const uint32_t*>(scale));
      }
    }
  }
};

__device__ inline uint4 load_shared(uint32_t address) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(address));
  return x;
}

/// What a lane needs of shared memory.
struct RowTables {
  const float* map;
  uint32_t column;    // of the pairs
  uint32_t x, zeros;  // the row's columns that this lane brings into a product, of the first batch; 32 zero bytes
  int own_chunk;      // in whose product; -1: none
};

/// sums[0], sums[1]: of the tile's rows lane / 4 and the one 8 below, the same in the four lanes of a row.
__device__ inline void add(float (&sums)[2], const RowBatch& b, const Matrix& w, const RowTables& tables, int batch) {
  float first[4] = {}, second[4] = {};
#pragma unroll
  for (int c = 0; c < kNf4Chunks; ++c) {
    const uint32_t at = c == tables.own_chunk ? tables.x + batch * kBatchBytes : tables.zeros;
    auto& of_blocks = c < 2 ? first : second;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const uint32_t upper = part == 0 ? b.codes[c].x : b.codes[c].y;
      const uint32_t lower = part == 0 ? b.codes[kNf4Chunks + c].x : b.codes[kNf4Chunks + c].y;
      const uint4 x = load_shared(at + part * 16);
      const uint32_t column = tables.column;
      mma(of_blocks,
          {pair_at(column, upper, 0), pair_at(column, lower, 0), pair_at(column, upper, 1), pair_at(column, lower, 1)},
          x.x, x.y);
      mma(of_blocks,
          {pair_at(column, upper, 2), pair_at(column, lower, 2), pair_at(column, upper, 3), pair_at(column, lower, 3)},
          x.z, x.w);
    }
  }
  const bool is_second = threadIdx.x % 4 >= 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float scale =
        w.nested != nullptr ? tables.map[b.scale[half]] * b.nested[half] + w.offset : __uint_as_float(b.scale[half]);
    float sum = __fmul_rn(scale, is_second ? second[2 * half] : first[2 * half]);
    sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 1));
    sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 2));
    sums[half] = __fadd_rn(sums[half], sum);
  }
}

/// In shared memory, before x and the table of pairs.
struct RowShared {
  float sums[2][2][kWarps][kMostTile];  // of two jobs, by matrix
  float map[256];
  uint4 zeros[2];
};

/// kDepth: batches on their way.
template <bool kMixes, int kDepth>
__global__ void __launch_bounds__(kThreads, 1) nf4_row_kernel(const __grid_constant__ ProductArguments args) {
  if constexpr (!kHasMma) return;
  extern __shared__ uint4 shared[];
  RowShared& s = *reinterpret_cast<RowShared*>(shared);
  char* row = reinterpret_cast<char*>(shared) + sizeof(RowShared);
  const uint32_t start = shared_address(shared),
                 pairs = (start + kTableAlignment - 1) / kTableAlignment * kTableAlignment;
  const Segment& segment = args.segments[0];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = args.group(), in_group = warp & (group - 1);
  const int n_chunks = segment.n_chunks, n_matrices = segment.then == Then::gate_up ? 2 : 1;
  const int n_quads = n_chunks / (kNf4Chunks * kDepth) >> args.group_shift, stride = group * kNf4Chunks;
  const int jobs_at_once = static_cast<int>(gridDim.x) * (kWarps >> args.group_shift);
  let_next_start();
  struct Place {
    int job, matrix = 0, quad = 0;
  };
  Place ahead{(warp >> args.group_shift) * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x)};
  RowBatch batches[kDepth];
  // Of the next quad; past the last job those of the first once more, which nobody uses.
  const auto pointers = [&] {
    const int job = ahead.job < args.n_jobs ? ahead.job : 0;
    const auto upper = static_cast<uint32_t>((job * kMostTile + lane / 4) * n_chunks + in_group * kNf4Chunks +
                                             ahead.quad * kDepth * stride);
    return LanePointers(segment.w[ahead.matrix], upper, upper + static_cast<uint32_t>(8 * n_chunks));
  };
  const auto advance = [&](Place& p) {
    if (++p.quad < n_quads) return;
    p.quad = 0;
    if (++p.matrix < n_matrices) return;
    p.matrix = 0;
    p.job += jobs_at_once;
  };
  Place now = ahead;
  {
    const LanePointers first = pointers();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) first.load(batches[k], k * stride);
  }
  advance(ahead);

  for (int i = static_cast<int>(threadIdx.x); i < 256 * 8; i += kThreads) {
    const uint32_t pair = pack(args.tables[256 + (i >> 7)], args.tables[256 + (i >> 3 & 15)]);
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(pairs + (i >> 3) * 256 + (i & 7) * 16), "r"(pair)
                 : "memory");
  }
  if (threadIdx.x < 256) s.map[threadIdx.x] = args.tables[threadIdx.x];
  if (threadIdx.x < 2) s.zeros[threadIdx.x] = make_uint4(0, 0, 0, 0);
  if constexpr (kMixes) {
    const Mixer<kWarps> mixer(args.mix, segment.n_in, row + segment.n_in * 2);
    wait_for_previous();
    mixer.make(0, reinterpret_cast<bf16*>(row), blockIdx.x == 0);
  } else {
    wait_for_previous();
    for (int i = static_cast<int>(threadIdx.x) * 8; i < segment.n_in; i += kThreads * 8)
      copy_async(shared_address(row + i * 2), segment.x + i, true);
    wait_for_copies();
  }
  __syncthreads();

  const int own_chunk = lane / 4 % 2 == 0 ? lane / 8 : -1;
  const RowTables tables{
      s.map, pairs + lane * 4,
      shared_address(row) + static_cast<uint32_t>(in_group * kBatchBytes + lane / 8 * 128 + lane % 4 * 32),
      shared_address(s.zeros), own_chunk};
  float sums[2] = {};
  int buffer = 0;
#pragma unroll 1
  while (now.job < args.n_jobs) {
    const bool has_next = ahead.job < args.n_jobs;
    const LanePointers next = pointers();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      add(sums, batches[k], segment.w[now.matrix], tables, (now.quad * kDepth + k) * group);
      if (has_next) next.load(batches[k], k * stride);
    }
    advance(ahead);
    const Place done = now;
    advance(now);
    if (now.quad != 0) continue;
    auto& left = s.sums[buffer];
    if (lane % 4 == 0) left[done.matrix][warp][lane / 4] = sums[0], left[done.matrix][warp][lane / 4 + 8] = sums[1];
    sums[0] = sums[1] = 0;
    if (now.matrix != 0) continue;
    if (group == 1)
      __syncwarp();
    else
      group_barrier(warp >> args.group_shift, group);
    const int n = static_cast<int>(threadIdx.x) - (warp - in_group) * 32;
    if (n < kMostTile) {
      float total[2] = {};
#pragma unroll 4
      for (int w = 0; w < group; ++w) {
        total[0] += left[0][warp - in_group + w][n];
        if (n_matrices > 1) total[1] += left[1][warp - in_group + w][n];
      }
      finish(segment, 0, static_cast<int64_t>(done.job) * kMostTile + n, total[0], total[1]);
    }
    buffer ^= 1;
  }
}

}  // namespace

bool Step::run_nf4_row(const ProductArguments& args) {
  const Segment& s = args.segments[0];
  const int64_t low_bytes =
      static_cast<int64_t>(sizeof(RowShared)) + s.n_in * 2 + (args.mix.y != nullptr ? s.n_in * 12 : 0);
  constexpr int64_t kReserved = 4 << 10;  // what the driver and static variables have before it, at most
  const bool fits = args.n_segments == 1 && args.n_rows == 1 && s.is_nf4 &&
                    s.n_chunks % (kNf4Chunks * args.group() * 2) == 0 && kNestedBlock % s.n_chunks == 0 &&
                    low_bytes + kReserved <= kTableAlignment && 2 * kTableAlignment <= most_shared_;
  if (!fits) return false;
  const bool deep = s.n_chunks % (kNf4Chunks * args.group() * 4) == 0, mixes = args.mix.y != nullptr;
  const auto kernel = deep ? (mixes ? nf4_row_kernel<true, 4> : nf4_row_kernel<false, 4>)
                           : (mixes ? nf4_row_kernel<true, 2> : nf4_row_kernel<false, 2>);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 2 * kTableAlignment),
             "shared memory of a step's products");
  const int64_t blocks = std::min<int64_t>(ceil_div(static_cast<int64_t>(args.n_jobs) * args.group(), kWarps),
                                           backend_.n_multiprocessors_);
  launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 2 * kTableAlignment, args);
  return true;
}

}  // namespace saaz::cuda
