// Step: NF4 products of one row: one launch of products that read the same x, or a layer's whole feed-forward part:
// attention's projection with LAuReL's, the mix, gate and up, down. A warp's part of a tile, 16 rows by 256 columns (a
// batch), is four blocks of scales wide; the tensor cores' right operand has eight columns and x is one row. So each
// block of x has two columns of its own, one for the first half of a warp's batches and one for the second: x stays in
// registers for all tiles, and of the sums of a block of weights by all columns one is taken. Codes travel to shared
// memory by asynchronous copies, whole lines at a time, some batches ahead, from one phase into the next: loads to
// registers of 8 bytes a lane would ask the first cache for eight lines each, and it would be what the kernel waits
// for. All blocks meet before the mix, which is sound as there is one for each multiprocessor: whatever runs there
// before it ends without them. Down's x is looked at until it has come. Loops are kept as loops: all that a layer runs
// has to fit in the cache of instructions. Every sum has the order that products_kernel gives it.
#include "backend/cuda/cuda_step_nf4.cuh"

#include <algorithm>

namespace saaz::cuda {

using namespace nf4_row;

namespace {

/// Where a warp is in its stages.
struct Ring {
  const Layout& layout;
  Codes codes;
  int stage = 0;
  __device__ Ring(const Layout& layout, const RowArguments& args) : layout(layout), codes(args) {
#pragma unroll 1
    for (int i = 0; i < kStages; ++i) codes.send_next(layout.stage(i));
  }
  __device__ void take(uint2 (&upper)[kNf4Chunks], uint2 (&lower)[kNf4Chunks]) {
    wait_for_batches<kStages - 1>();
    __syncwarp();
    Codes::read(upper, lower, layout.stage(stage));
    __syncwarp();  // all have read: the place is free
    codes.send_next(layout.stage(stage));
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
};

/// A tile by its group, of which this warp leaves its part in `left`; the last to be finished, where there are two.
__device__ inline void make_tile(const Phase& phase, const Tile& now, Ring& ring, const RowOfX& x,
                                 const TileScales& scales, Leaving& leaving, float (&left)[2][kWarps][kMostTile],
                                 const float* map) {
  const ProductArguments& products = phase.products;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Segment& segment = products.segments[now.segment];
  const float offset = segment.w[now.matrix].offset;
  float sums[2] = {};
#pragma unroll 1
  for (int k = 0; k < phase.n_batches; ++k) {
    uint2 upper[kNf4Chunks], lower[kNf4Chunks];
    ring.take(upper, lower);
    float of_block[2];
    multiply(of_block, upper, lower, x, k, ring.layout.pairs + lane * 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = __fmul_rn(scales.of(k, half, map, offset), of_block[half]);
      sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 1));
      sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 2));
      sums[half] = __fadd_rn(sums[half], sum);
    }
  }
  leaving.begin();
  if (lane % 4 == 0) left[now.matrix][warp][lane / 4] = sums[0], left[now.matrix][warp][lane / 4 + 8] = sums[1];
  if (segment.then == Then::gate_up && now.matrix == 0) return;
  const bool is_first = place_in_group(products) == 0;
  leaving.end(is_first);
  if (!is_first || lane >= kMostTile) return;
  float total[2] = {};
#pragma unroll 1
  for (int w = warp; w < warp + products.group(); ++w) {
    total[0] += left[0][w][lane];
    if (now.matrix == 1) total[1] += left[1][w][lane];
  }
  finish(segment, 0, now.row(products) + lane, total[0], total[1]);
}

/// This warp's tiles of a phase, from `now` and its scales on. row: x in shared memory; null: in global memory.
__device__ inline void make_tiles(const RowArguments& args, int phase, const bf16* row, Tile& now, TileScales& scales,
                                  Ring& ring, Layout::Sums& sums, const float* map) {
  RowOfX x;
  // Of the last phase it comes bit by bit: a second meeting would wait for all codes that travel.
  do {
    x.load(args.phases[phase], row);
  } while (phase == 2 && !__all_sync(0xffffffffu, x.has_come()));
  int buffer = 0;
  Leaving leaving(ring.layout, phase, args.phases[phase].products);
#pragma unroll 1
  while (now.phase == phase) {
    Tile next = now;
    next.advance(args);
    // The next phase's are asked for by the caller: to hand them over here would wait for them.
    const TileScales coming(args, next, next.phase == phase);
    make_tile(args.phases[phase], now, ring, x, scales, leaving, sums[buffer], map);
    if (next.matrix == 0) buffer ^= 1;
    now = next, scales = coming;
  }
}

/// A bf16 product beside the first phase's, a batch of a row for a warp, from the last warps of the last blocks on.
class DenseTile {
 public:
  static constexpr int kTile = 8;
  __device__ DenseTile(const Segment& s, int n_blocks) : s_(s), group_(group_of(s)), last_(kWarps - 1 - this_warp()) {
    const int block = n_blocks - 1 - static_cast<int>(blockIdx.x), lane = threadIdx.x % 32;
    row_ = block < 0 || s.n_out == 0 ? 0 : (last_ / group_ * n_blocks + block) * kTile;
    present_ = block >= 0 && row_ < s.n_out && last_ / group_ < kWarps / group_;
    first_ = (group_ - 1 - last_ % group_) * kLoads;
    if (!present_) return;
    const uint4* from = static_cast<const uint4*>(s.w[0].data) +
                        (static_cast<int64_t>(row_ + lane / 4) * s.n_chunks + first_) * 4 + lane % 4;
    // Beyond the row's end its last chunk again, times zeros.
#pragma unroll
    for (int u = 0; u < kLoads; ++u) batch_[u] = stream_load(from + min(u, s.n_chunks - 1 - first_) * 4);
  }
  /// Warps for eight rows, which meet at a barrier.
  __device__ static int group_of(const Segment& s) { return max(1, (s.n_chunks + kLoads - 1) / kLoads); }
  /// left: of a block's warps.
  __device__ void make(const Layout& layout, float (&left)[kWarps][kTile]) const {
    if (!present_) return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint4 x[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      const int chunk = min(first_ + u, s_.n_chunks - 1);
      x[u] = load_made(s_.x + chunk * 32 + lane % 4 * 8);
    }
    float first[4] = {}, second[4] = {};
#pragma unroll
    for (int u = 0; u < kLoads; ++u) {
      if (lane >= 4 || first_ + u >= s_.n_chunks) x[u] = make_uint4(0, 0, 0, 0);
      mma(first, {x[u].x, 0, x[u].y, 0}, batch_[u].x, batch_[u].y);
      mma(second, {x[u].z, 0, x[u].w, 0}, batch_[u].z, batch_[u].w);
    }
    if (lane < 4) left[warp][2 * lane] = first[0] + second[0], left[warp][2 * lane + 1] = first[1] + second[1];
    const uint32_t barrier = barrier_of(layout, kMostPhases, last_ / group_);
    arrive(barrier);
    if (first_ != 0) return;
    wait(barrier, 0);
    if (lane >= kTile) return;
    float total = 0;
#pragma unroll 1
    for (int w = warp; w < warp + group_; ++w) total += left[w][lane];
    finish(s_, 0, row_ + lane, total, 0);
  }

 private:
  const Segment& s_;
  int group_, last_, row_, first_;
  bool present_;
  uint4 batch_[kLoads];
};

/// By all threads, before they meet: a barrier for each group that there is.
__device__ inline void make_barriers(const Layout& layout, const RowArguments& args) {
  const int i = static_cast<int>(threadIdx.x), phase = i / kWarps;
  if (phase > kMostPhases) return;
  const bool is_dense = phase == kMostPhases, is_there = is_dense ? args.dense.n_out > 0 : phase < args.n_phases;
  const int group = is_dense ? DenseTile::group_of(args.dense) : args.phases[phase].products.group();
  if (is_there && i % kWarps * group < kWarps) init_barrier(barrier_of(layout, 0, i), group * 32);
}

/// All blocks of a launch meet once in it: what was written before is seen by all afterwards. By one thread of a block.
class Meeting {
 public:
  __device__ explicit Meeting(unsigned long long* met) : met_(met) {}
  /// A release waits for all copies of codes, too: only where something was written.
  __device__ void arrive(bool releases) {
    unsigned long long before;
    if (releases)
      asm volatile("atom.add.release.gpu.global.u64 %0, [%1], 1;" : "=l"(before) : "l"(met_) : "memory");
    else
      asm volatile("atom.add.relaxed.gpu.global.u64 %0, [%1], 1;" : "=l"(before) : "l"(met_) : "memory");
    all_ = before - before % gridDim.x + gridDim.x;
  }
  __device__ void await() const {
    unsigned long long now;
    do {
      asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(now) : "l"(met_) : "memory");
    } while (now < all_);
  }

 private:
  unsigned long long *met_, all_ = 0;
};

/// The result of the main phase, which the last phase reads, before there is anything of it.
__device__ inline void clear(const Segment& s) {
  const int at = (static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x)) * 8;
  if (at < s.n_out)
    *reinterpret_cast<uint4*>(static_cast<bf16*>(s.y) + at) = make_uint4(kNotYet, kNotYet, kNotYet, kNotYet);
}

__global__ void __launch_bounds__(kThreads, 1) nf4_row_kernel(const __grid_constant__ RowArguments args) {
  if constexpr (!kHasMma) return;
  extern __shared__ uint4 shared[];
  char* low = reinterpret_cast<char*>(shared);
  const Layout layout(shared);
  float* map = reinterpret_cast<float*>(low + Layout::kMap);
  auto& dense_sums = *reinterpret_cast<float(*)[kWarps][DenseTile::kTile]>(low + Layout::kDense);
  bf16* row = reinterpret_cast<bf16*>(low + Layout::kRow);
  let_next_start();
  const ProductArguments& mixing = args.phases[args.mix_phase < 0 ? 0 : args.mix_phase].products;
  const Mixer<kWarps, kStages - 1> mixer(mixing.mix, args.mix_phase < 0 ? 0 : mixing.segments[0].n_in,
                                         low + Layout::kNorms);
  if (threadIdx.x < 64)
    copy_async(layout.start + Layout::kMap + threadIdx.x * 16, mixing.tables + threadIdx.x * 4, true);
  Ring ring(layout, args);
  Tile now(args);
  TileScales scales(args, now, true);
  const DenseTile dense(args.dense, args.phases[0].n_blocks);
  Meeting meeting(args.met);
  // Such a block may have come late, and all wait for it.
  const bool has_come = args.n_phases > 1 && blockIdx.x >= args.phases[0].n_blocks;
  if (has_come) {
    wait_for_previous();
    if (threadIdx.x == 0) meeting.arrive(false);
  }
  make_barriers(layout, args);
  fill_pairs<kThreads>(layout.pairs, args.values);
  wait_for_batches<kStages - 1>();  // the map
  __syncthreads();
  wait_for_previous();
  if (args.n_phases == kMostPhases && !has_come) clear(args.phases[1].products.segments[0]);
  dense.make(layout, dense_sums);
#pragma unroll 1
  for (int phase = 0; phase < args.n_phases; ++phase) {
    if (phase > 0) __syncthreads();
    if (phase == 1) {
      if (threadIdx.x == 0) {
        if (!has_come) meeting.arrive(true);
        meeting.await();
      }
      __syncthreads();
    }
    const bool mixes = phase == args.mix_phase;
    if (mixes) {
      mixer.make(0, row, blockIdx.x == 0);
      __syncthreads();
    }
    // Before the mix its norms lie where sums do afterwards.
    auto& sums = *reinterpret_cast<Layout::Sums*>(low + (phase < args.mix_phase ? Layout::kRow : Layout::kNorms));
    make_tiles(args, phase, mixes ? row : nullptr, now, scales, ring, sums, map);
    scales = TileScales(args, now, true);
  }
}

/// What a launch of products is for the kernel above: NF4, and bf16 once at most. False: not for it.
bool take(const ProductArguments& from, Phase& phase, Segment& dense) {
  ProductArguments& to = phase.products;
  to = from;
  to.n_segments = to.n_jobs = 0;
  bool fits = from.n_rows == 1;
  for (int i = 0; i < from.n_segments; ++i) {
    const Segment& s = from.segments[i];
    if (!s.is_nf4) {
      const int n = (s.n_chunks + kLoads - 1) / kLoads;
      fits = fits && dense.n_out == 0 && s.then != Then::gate_up && n <= from.group() && kWarps % n == 0 && n != 2;
      dense = s;
      continue;
    }
    Segment& own = to.segments[to.n_segments++];
    own = s;
    own.first_job = to.n_jobs;
    to.n_jobs += s.n_out / kMostTile;
    const Segment& first = to.segments[0];
    fits = fits && s.n_in == first.n_in && s.x == first.x && s.w[0].nested != nullptr &&
           (s.then != Then::gate_up || s.w[1].nested != nullptr);
  }
  if (!fits || to.n_segments == 0) return false;
  const int n_chunks = to.segments[0].n_chunks, n = phase.n_batches = n_chunks / kNf4Chunks >> to.group_shift;
  return n_chunks == n * kNf4Chunks * to.group() && (n == 1 || n == 2 || n == kMostBatches) &&
         kNestedBlock % n_chunks == 0;
}
void set_blocks(Phase& phase, int64_t n) {
  phase.n_blocks = static_cast<int>(n);
  phase.job_step = phase.n_blocks * (kWarps >> phase.products.group_shift);
}
/// Tiles of a bf16 product that so many blocks have warps for.
int64_t dense_room(const Segment& dense, int n_blocks) {
  return static_cast<int64_t>(kWarps / std::max(1, (dense.n_chunks + kLoads - 1) / kLoads)) * n_blocks;
}

}  // namespace

void Step::launch_rows(RowArguments& args) {
  std::copy(kNf4Values.begin(), kNf4Values.end(), args.values);
  args.met = met_;
  check_cuda(cudaFuncSetAttribute(nf4_row_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
             "shared memory of a step's products");
  share_first_cache(nf4_row_kernel);
  launch(nf4_row_kernel, dim3(static_cast<unsigned>(args.n_blocks)), dim3(kThreads), kSharedBytes, args);
}

bool Step::run_nf4_row(const ProductArguments& products) {
  RowArguments args;
  Phase& phase = args.phases[0];
  if (!take(products, phase, args.dense) || kSharedBytes + kReserved > most_shared_) return false;
  // No more blocks than have work: the next kernel's have room beside them.
  const int64_t tiles = args.dense.n_out / DenseTile::kTile,
                blocks = ceil_div(static_cast<int64_t>(phase.products.n_jobs) * products.group(), kWarps) +
                         ceil_div(tiles, dense_room(args.dense, 1));
  set_blocks(phase, std::min<int64_t>(blocks, backend_.n_multiprocessors_));
  if (tiles > dense_room(args.dense, phase.n_blocks)) return false;
  args.n_phases = 1, args.n_blocks = phase.n_blocks;
  if (products.mix.y != nullptr) args.mix_phase = 0;
  launch_rows(args);
  return true;
}

bool Step::run_nf4_feed_forward(const FeedForward& f) {
  const Gated& g = f.gated;
  const bool whole = g.sparsity_z == 0;
  if (g.x.rows() != 1 || !takes_mix(f.mix, g.gate_weight) || g.up_weight.empty() ||
      kSharedBytes + kReserved > most_shared_)
    return false;
  for (const Weight* w : {&f.attended.w, &f.laurel.w, &g.up_weight, &f.down.w})
    if (!fits_chunks(*w, g.x.dtype)) return false;
  const Task lead[] = {{f.attended.y, f.attended.x, {}, f.attended.w, {}, f.attended.cap},
                       {f.laurel.y, f.laurel.x, {}, f.laurel.w, {}, f.laurel.cap}};
  const Task main = whole ? Task{g.y, g.x, {}, g.gate_weight, g.up_weight, 0, &f.mix}
                          : Task{g.gate, g.x, {}, g.gate_weight, {}, 0, &f.mix};
  const Task tail{f.down.y, f.down.x, {}, f.down.w, {}, f.down.cap};
  RowArguments args;
  Segment none;
  if (!take(arguments_of(lead, 0), args.phases[0], args.dense) ||
      !take(arguments_of({&main, 1}, 0), args.phases[1], none) || none.n_out > 0 ||
      (whole && !take(arguments_of({&tail, 1}, 0), args.phases[2], none)) || none.n_out > 0)
    return false;
  // What comes bit by bit is one vector, of bf16.
  if (whole && (args.phases[2].products.segments[0].x != g.y.as<bf16>() || g.y.dtype != DType::bf16)) return false;
  for (Phase& phase : args.phases) set_blocks(phase, backend_.n_multiprocessors_);
  // The last blocks may wait for room that attention has: they get nothing of the first phase.
  set_blocks(args.phases[0], std::max(1, backend_.n_multiprocessors_ / 2));
  if (args.dense.n_out / DenseTile::kTile > dense_room(args.dense, args.phases[0].n_blocks) ||
      g.gate_weight.n_out > static_cast<int64_t>(args.phases[0].n_blocks) * kThreads * 8)
    return false;
  args.n_phases = whole ? 3 : 2, args.n_blocks = backend_.n_multiprocessors_;
  args.mix_phase = 1;
  launch_rows(args);
  if (whole) return true;
  sparse_up({g.up, g.x, {}, g.up_weight, {}}, g);
  products({&f.down, 1});
  return true;
}

}  // namespace saaz::cuda
