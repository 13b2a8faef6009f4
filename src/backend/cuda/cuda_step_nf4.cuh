// Step: pieces of the kernel for NF4 products of one row: where a warp is in its work, codes on their way through
// shared memory, their scales, x, and the product of a batch: 16 rows of a weight by 256 columns, four blocks of
// scales. Room-private.
#pragma once

#include "backend/cuda/cuda_barrier.cuh"
#include "backend/cuda/cuda_step_products.cuh"

namespace saaz::cuda::nf4_row {

inline constexpr int kWarps = kNf4BlockWarps, kThreads = kWarps * 32;
inline constexpr int kBatchColumns = 256, kRowBytes = kBatchColumns / 2, kBatchBytes = kMostTile * kRowBytes;
inline constexpr int kMostBatches = 4;           // of a warp in a row
inline constexpr int kTableAlignment = 1 << 16;  // see pair_at
inline constexpr int kStages = 3;                // batches of a warp on their way
inline constexpr int kMostPhases = 3;
inline constexpr int kReserved = 1 << 10;  // before a block's shared memory, by the driver
inline constexpr int kSharedBytes = 2 * kTableAlignment + (kStages - 2) * kWarps * kBatchBytes - kReserved;

/// NF4 products that read the same x.
struct Phase {
  ProductArguments products;
  int n_blocks = 0;   // that take part
  int n_batches = 0;  // of a warp in a row: 1, 2 or 4
  int job_step = 0;   // from one job of a group to its next
};
/// What one launch makes.
struct RowArguments {
  Phase phases[kMostPhases];
  Segment dense;  // bf16, made in the first phase; n_out 0: none
  float values[16];
  unsigned long long* met = nullptr;               // what blocks that meet count, each once in a launch
  int n_blocks = 0, n_phases = 0, mix_phase = -1;  // the last: whose x is the mix
};

/// Shared memory of a block, by offset. The table of pairs has gaps, which are the first stage.
struct Layout {
  using Sums = float[2][2][kWarps][kMostTile];  // of two jobs, by matrix
  uint32_t start, pairs;
  __device__ explicit Layout(const void* shared)
      : start(shared_address(shared)), pairs((start + kTableAlignment - 1) / kTableAlignment * kTableAlignment) {}
  static constexpr uint32_t kMap = 0, kDense = 256 * 4, kBarriers = kDense + kWarps * 8 * 4;
  static constexpr uint32_t kRow = kBarriers + (kMostPhases + 1) * kWarps * 8;
  static constexpr uint32_t kNorms = kRow + kMostMixed * 2, kLowStage = kNorms + kMostMixed * 3 * 4;
  static_assert(sizeof(Sums) <= kMostMixed * 2 && kLowStage % 128 == 0);
  static_assert(kReserved + 512 + 128 + kLowStage + kWarps * kBatchBytes <= kTableAlignment);
  struct Stage {
    uint32_t at, stride;  // of rows
  };
  __device__ Stage stage(int i) const {
    const uint32_t warp = threadIdx.x / 32;
    if (i == 0) return {pairs + kRowBytes + warp * kMostTile * 256, 256};
    if (i == 1) return {(start + kLowStage + 127) / 128 * 128 + warp * kBatchBytes, kRowBytes};
    return {pairs + kCodeTableBytes + (warp * (kStages - 2) + i - 2) * kBatchBytes, kRowBytes};
  }
};

/// A tile of one matrix, in the order in which a warp's groups take them, phase after phase.
struct Tile {
  int phase = 0, job, segment = 0, matrix = 0;

  __device__ explicit Tile(const RowArguments& args) : job(first_job(args.phases[0])) { settle(args); }
  __device__ bool ended(const RowArguments& args) const { return phase == args.n_phases; }
  __device__ void advance(const RowArguments& args) {
    const Phase& p = args.phases[phase];
    matrix ^= p.products.segments[segment].then == Then::gate_up ? 1 : 0;
    if (matrix == 1) return;
    job += p.job_step;
    settle(args);
  }
  __device__ int row(const ProductArguments& products) const {
    return (job - products.segments[segment].first_job) * kMostTile;
  }

 private:
  __device__ static int first_job(const Phase& p) {
    const auto block = static_cast<int>(blockIdx.x);
    return block < p.n_blocks ? (this_warp() >> p.products.group_shift) * p.n_blocks + block : p.products.n_jobs;
  }
  __device__ void settle(const RowArguments& args) {
#pragma unroll 1
    while (job >= args.phases[phase].products.n_jobs) {
      segment = 0;
      if (++phase == args.n_phases) return;
      job = first_job(args.phases[phase]);
    }
    const ProductArguments& products = args.phases[phase].products;
#pragma unroll 1
    while (segment + 1 < products.n_segments && job >= products.segments[segment + 1].first_job) ++segment;
  }
};
__device__ inline int place_in_group(const ProductArguments& args) {
  return static_cast<int>(threadIdx.x / 32) & (args.group() - 1);
}

/// Barriers of a phase's groups, or of the bf16 product beside the first (phase kMostPhases), one thread making each.
__device__ inline uint32_t barrier_of(const Layout& layout, int phase, int group) {
  return layout.start + Layout::kBarriers + static_cast<uint32_t>(phase * kWarps + group) * 8;
}

/// A group leaves its parts of one tile after the other. Only its first warp waits until a tile's are there; the others
/// go on, up to where the tile's after the next would overwrite what the first may still read.
class Leaving {
 public:
  __device__ Leaving(const Layout& layout, int phase, const ProductArguments& products)
      : barrier_(barrier_of(layout, phase, static_cast<int>(threadIdx.x / 32) >> products.group_shift)) {}
  __device__ void begin() const { wait(barrier_, parity_ ^ 1); }
  __device__ void end(bool waits) {
    arrive(barrier_);
    if (waits) wait(barrier_, parity_);
    parity_ ^= 1;
  }

 private:
  uint32_t barrier_;
  int parity_ = 0;
};

/// Sends for codes, a batch after the other: 16 rows of 128 bytes, of which lanes 8 i .. 8 i + 7 fetch every fourth row
/// from row i. A block of 32 bytes of row r lies at place block ^ r % 4, so that reading meets no bank twice.
class Codes {
 public:
  __device__ explicit Codes(const RowArguments& args) : args_(args), tile_(args) { find(); }
  __device__ void send_next(Layout::Stage stage) {
    if (!tile_.ended(args_)) {
      const uint32_t to = stage.at + lane() / 8 * stage.stride + ((lane() % 8) ^ (lane() / 8 * 2)) * 16;
#pragma unroll
      for (int i = 0; i < 4; ++i) stream_async(to + i * 4 * stage.stride, from_ + i * 4 * row_bytes_);
      from_ += batch_step_;
      if (--n_left_ == 0) {
        tile_.advance(args_);
        find();
      }
    }
    end_copies();
  }
  /// In the lane's rows lane / 4 and 8 below: its eight bytes of each block.
  __device__ static void read(uint2 (&upper)[kNf4Chunks], uint2 (&lower)[kNf4Chunks], Layout::Stage stage) {
    const uint32_t row = lane() / 4, at = stage.at + row * stage.stride + row % 4 * 32 + lane() % 4 * 8;
    const uint32_t below = at + 8 * stage.stride;
#pragma unroll
    for (int c = 0; c < kNf4Chunks; ++c) upper[c] = load(at ^ c * 32), lower[c] = load(below ^ c * 32);
  }

 private:
  __device__ static uint32_t lane() { return threadIdx.x % 32; }
  __device__ static uint2 load(uint32_t address) {
    uint2 x;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(address) : "memory");
    return x;
  }
  __device__ void find() {
    if (tile_.ended(args_)) return;
    const Phase& phase = args_.phases[tile_.phase];
    const ProductArguments& products = phase.products;
    n_left_ = phase.n_batches;
    row_bytes_ = products.segments[0].n_chunks * 32, batch_step_ = products.group() * kRowBytes;
    from_ = static_cast<const char*>(products.segments[tile_.segment].w[tile_.matrix].data) +
            static_cast<int64_t>(tile_.row(products) + static_cast<int>(lane() / 8)) * row_bytes_ +
            place_in_group(products) * kRowBytes + lane() % 8 * 16;
  }
  const RowArguments& args_;
  Tile tile_;
  int n_left_ = 0, row_bytes_ = 0, batch_step_ = 0;
  const char* from_ = nullptr;
};

/// The scales of a lane's two rows of a tile: the codes of the four blocks of batch lane % 4, and what they are nested
/// in. Past the last tile nothing.
struct TileScales {
  uint32_t codes[2] = {};
  float nested[2] = {};

  __device__ TileScales(const RowArguments& args, const Tile& tile, bool wanted) {
    if (!wanted || tile.ended(args)) return;
    const Phase& phase = args.phases[tile.phase];
    const ProductArguments& products = phase.products;
    const Matrix& w = products.segments[tile.segment].w[tile.matrix];
    const int n_chunks = products.segments[0].n_chunks, lane = threadIdx.x % 32;
    const int batch = (lane & (phase.n_batches - 1)) * products.group() + place_in_group(products);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t first = static_cast<uint32_t>((tile.row(products) + lane / 4 + half * 8) * n_chunks);
      codes[half] = stream_load(reinterpret_cast<const uint32_t*>(w.codes + first + batch * kNf4Chunks));
      nested[half] = __ldg(w.nested + first / kNestedBlock);
    }
  }
  /// Of block lane % 4 of a batch.
  __device__ float of(int batch, int half, const float* map, float offset) const {
    const uint32_t of_batch = __shfl_sync(0xffffffffu, codes[half], (threadIdx.x % 32 & ~3u) | batch);
    return map[of_batch >> (threadIdx.x % 4 * 8) & 255] * nested[half] + offset;
  }
};

/// Eight bf16 that another block of this launch may be about to write; not from the first cache.
__device__ inline uint4 load_made(const bf16* p) {
  uint4 x;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(p)
               : "memory");
  return x;
}
/// What stands where a result has not come yet: a NaN that no rounding to bf16 gives.
inline constexpr uint32_t kNotYet = 0xffffffff;

/// x by columns of the right operand: column 2 c + h has block c of the batches h * half and on.
struct RowOfX {
  uint4 x[kMostBatches / 2][2];
  int half;

  /// row: x in shared memory; null: in global memory.
  __device__ void load(const Phase& phase, const bf16* row) {
    half = phase.n_batches == kMostBatches ? 2 : 1;
    const ProductArguments& products = phase.products;
    const int column = threadIdx.x % 32 / 4, first = column % 2 * half, n = phase.n_batches;
#pragma unroll
    for (int j = 0; j < kMostBatches / 2; ++j) {
      const bool present = j < half && first + j < n;
      const int at = ((first + j) * products.group() + place_in_group(products)) * kBatchColumns + column / 2 * 64 +
                     threadIdx.x % 4 * 16;
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        x[j][part] = make_uint4(0, 0, 0, 0);
        if (present && row != nullptr) x[j][part] = *reinterpret_cast<const uint4*>(row + at + part * 8);
        if (present && row == nullptr) x[j][part] = load_made(products.segments[0].x + at + part * 8);
      }
    }
  }
  /// Whether nothing of it is kNotYet.
  __device__ bool has_come() const {
    uint32_t largest = 0;
#pragma unroll
    for (int j = 0; j < kMostBatches / 2; ++j)
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const uint4 v = x[j][part];
        largest = __vmaxu2(__vmaxu2(__vmaxu2(largest, v.x), v.y), __vmaxu2(v.z, v.w));
      }
    return largest % 65536 != 65535 && largest >> 16 != 65535;
  }
};

/// Of the tile's rows lane / 4 and the one 8 below: the sum of block lane % 4 of batch `k`, unscaled.
__device__ inline void multiply(float (&of_block)[2], const uint2 (&upper)[kNf4Chunks],
                                const uint2 (&lower)[kNf4Chunks], const RowOfX& row, int k, uint32_t column) {
  float sums[kNf4Chunks][4] = {};
  const bool in_second = k >= row.half, next = in_second ? k > row.half : k > 0;
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    const uint4 x = next ? row.x[1][part] : row.x[0][part];
#pragma unroll
    for (int c = 0; c < kNf4Chunks; ++c) {
      const uint32_t above = part == 0 ? upper[c].x : upper[c].y, below = part == 0 ? lower[c].x : lower[c].y;
      mma(sums[c],
          {pair_at(column, above, 0), pair_at(column, below, 0), pair_at(column, above, 1), pair_at(column, below, 1)},
          x.x, x.y);
      mma(sums[c],
          {pair_at(column, above, 2), pair_at(column, below, 2), pair_at(column, above, 3), pair_at(column, below, 3)},
          x.z, x.w);
    }
  }
  const bool is_odd = threadIdx.x % 2 == 1, is_second = threadIdx.x % 4 >= 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float of[kNf4Chunks];
#pragma unroll
    for (int c = 0; c < kNf4Chunks; ++c) of[c] = in_second ? sums[c][2 * half + 1] : sums[c][2 * half];
    const float first = is_odd ? of[1] : of[0], second = is_odd ? of[3] : of[2];
    of_block[half] = is_second ? second : first;
  }
}

}  // namespace saaz::cuda::nf4_row
