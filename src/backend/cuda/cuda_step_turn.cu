// Step: from one layer to the next in one launch: AltUp closes, the per-layer gate and its projection, AltUp opens. A
// cluster of 16 blocks takes a token. Up to the gate each block makes the whole token by itself, a warp 128 columns of
// each row: an exchange between blocks takes longer than to read it all. Of the products a block has a sixteenth of
// both weights in shared memory; what the others need of the results is sent to their shared memory. Then the warp that
// has the block's own columns opens. Every sum has the order that the kernels of the single phases give it, so a row's
// bits do not tell which of the two forms ran.
#include "backend/cuda/cuda_step_chunks.cuh"
#include "backend/cuda/cuda_step_cluster.cuh"
#include "backend/cuda/cuda_step_rows.cuh"

namespace saaz::cuda {

namespace {

constexpr int kBlocks = 16, kWarps = 16, kThreads = (kWarps + 1) * 32;  // one warp more for what is sent between
constexpr int kDim = 2048, kNarrow = 256;                               // of the streams, of the per-layer inputs
constexpr int kColumns = kDim / kBlocks, kGates = kNarrow / kBlocks;    // of a block
constexpr int kTile = 8, kBatchColumns = kLoads * 32;                   // of a warp's part of a product
constexpr int kGateBatches = kDim / kBatchColumns;                      // of a tile
constexpr int64_t kMostTokens = 8;
static_assert(kColumns == 32 * 4 && kGates * kGateBatches == kTile * kWarps && kColumns == kTile * kWarps &&
              kNarrow == kBatchColumns && kWarps == kBlocks && kDim / 4 / 32 == kBlocks);

/// Rows of weights: of a router, the one that closes and the one that opens; of the layer. Of what closes a block has
/// all columns, of what opens its own.
enum Row { kNorm, kRouter, kCoefs = kRouter + kMostStreams, kFfnNorm, kScale, kOfRouter };
enum { kUpdateNorm = kOfRouter + kCoefs + 1, kInputNorm, kRows };
static_assert(kRows == kWarps);
struct RowSource {
  const void* first = nullptr;   // of the first block; null: none
  uint32_t step = 0, bytes = 0;  // to the next one's; of each
};

struct Arguments {
  RowSource rows[kRows];
  bool is_bf16[2];                        // the routers
  float eps[2];                           // closes, opens
  const bf16 *mixed, *ffn, *predicted;    // closes
  const bf16 *gate, *given, *projection;  // the per-layer input
  bf16 *updated, *next_predicted, *x;     // opens; the last two null: not wanted, or the first
  int tokens;
};

/// What blocks send to each other, then what a block's warps leave for each other. All but kGated: sums.
enum Phase { kUpdate, kX, kOpening, kGated, kArrivals, kFfn = kArrivals, kClosing, kExchanges };
/// Between the warps of the products and the one that is none of them.
enum HandOver { kGateMade, kProjectionHere, kOpenCoefs, kHandOvers };
struct Exchange {
  float squares[kBlocks];
  float routed[kBlocks][kMostStreams];
};
struct Shared {
  uint4 weights[2][kWarps][kLoads][32];  // of the gate, the projection: by lane, as Batch
  float4 rows[kRows][32];
  float4 columns[2][kWarps * 32];  // of all blocks: kFfnNorm, kScale
  Exchange exchanges[kExchanges];
  uint4 x[(kDim + kNarrow) / 8];            // of the gate, of the projection: as `kept`
  alignas(16) float products[2][kColumns];  // of the gate, by warp; of the projection
  alignas(16) float open_coefs[32];
  uint2 streams[kMostStreams][32];
  uint64_t arrivals[kArrivals];
  uint64_t handed[kHandOvers];
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// Eight values of a product's x as they are kept: the second and the third pair change places.
__device__ inline uint4 kept(uint2 four, uint2 next) { return {four.x, next.x, four.y, next.y}; }

__device__ inline Shared& of_this_block() {
  extern __shared__ uint4 shared[];
  return *reinterpret_cast<Shared*>(shared);
}

/// The warps of the products meet.
__device__ inline void meet() { asm volatile("bar.sync 1, %0;" ::"n"(kWarps * 32) : "memory"); }
__device__ inline void hand_over(HandOver what) { arrive(shared_address(&of_this_block().handed[what])); }
__device__ inline void await_handed(HandOver what) { wait(shared_address(&of_this_block().handed[what]), 0); }
/// By one warp: its block's sum to all blocks, which read it with `inverse_of`. Some functions are not inlined: all
/// code is cold here, so each time that it is there costs a fetch from memory.
__device__ __noinline__ void send_square(int phase, float x) {
  Shared& s = of_this_block();
  const int lane = threadIdx.x % 32;
  x = warp_sum(x);
  if (lane < kBlocks)
    put(of_block(&s.exchanges[phase].squares[blockIdx.x % kBlocks], lane), of_block(&s.arrivals[phase], lane), x);
}
/// The inverse RMS, from the sums of all blocks or warps in the order of warp_sum.
__device__ __noinline__ float inverse_of(int phase, float eps) {
  Shared& s = of_this_block();
  if (phase < kArrivals) await(s.arrivals[phase]);
  const float4* sums = reinterpret_cast<const float4*>(s.exchanges[phase].squares);
  const float4 a = sums[0], b = sums[1], c = sums[2], d = sums[3];
  const float x = (a.x + c.x) + (b.x + d.x), y = (a.y + c.y) + (b.y + d.y);
  const float z = (a.z + c.z) + (b.z + d.z), w = (a.w + c.w) + (b.w + d.w);
  return inverse_rms((x + z) + (y + w), kDim, eps);
}

/// By all warps of the products: a row each of those of which the block has its columns, and what `columns` keeps.
__device__ inline void fetch_rows(const Arguments& a, int rank) {
  Shared& s = of_this_block();
  const int row = threadIdx.x / 32, lane = threadIdx.x % 32;
  const RowSource& from = a.rows[row];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    copy_async(shared_address(&s.columns[i][threadIdx.x]),
               static_cast<const float*>(a.rows[kFfnNorm + i].first) + threadIdx.x * 4, true);
  if ((row >= kOfRouter || row == kCoefs) && lane * 16 < from.bytes)
    copy_async(shared_address(&s.rows[row][lane]),
               static_cast<const char*>(from.first) + (rank * from.step + lane * 16), true);
  end_copies();
}
/// This lane's columns.
__device__ inline Item<4> fetched(int row) {
  return load_item<4>(reinterpret_cast<const float*>(&of_this_block().rows[row][threadIdx.x % 32]));
}
/// Of all columns, this thread's.
__device__ inline Item<4> of_columns(int row) {
  return load_item<4>(reinterpret_cast<const float*>(&of_this_block().columns[row - kFfnNorm][threadIdx.x]));
}

/// By one warp, its block's sums to all blocks.
__device__ inline void send_routed(const Routed& x, int rank) {
  Shared& s = of_this_block();
  const int lane = threadIdx.x % 32;
  const float* sum = &s.exchanges[kOpening].routed[rank][lane / 8];
#pragma unroll
  for (int to = lane % 8; to < kBlocks; to += 8) put(of_block(sum, to), of_block(&s.arrivals[kOpening], to), x.sum);
  if (lane < kBlocks)
    put(of_block(&s.exchanges[kOpening].squares[rank], lane), of_block(&s.arrivals[kOpening], lane), x.square);
}
/// By a warp: the coefficient of this lane (any value where it has none); a lane each squashes the sum of a stream.
__device__ __noinline__ float coefficient(int phase, float eps) {
  Shared& s = of_this_block();
  const int lane = threadIdx.x % 32;
  const float inverse = inverse_of(phase, eps);
  // Streams are next to each other, so blocks are 4 lanes or words apart: the sums of all, in the order of warp_sum.
  const float* routed = s.exchanges[phase].routed[0] + lane % 16;
  float sum = (routed[0] + routed[32]) + (routed[16] + routed[48]);
  sum += __shfl_xor_sync(0xffffffffu, sum, 8);
  sum += __shfl_xor_sync(0xffffffffu, sum, 4);
  const float squashed = tanhf(sum * inverse);
  const Item<4> coefs = fetched((phase == kOpening ? kOfRouter : 0) + kCoefs);
  sum = 0;
#pragma unroll
  for (int j = 0; j < kMostStreams; ++j) sum += coefs.v[j] * __shfl_sync(0xffffffffu, squashed, j);
  return sum;
}

/// As a bf16 tensor between two kernels would leave it.
__device__ inline void round_item(Item<4>& x) {
#pragma unroll
  for (int i = 0; i < 4; ++i) x.v[i] = to_f32(__float2bfloat16_rn(x.v[i]));
}

/// Of the gate: by all warps of the products, their own.
__device__ inline void fetch_gate(const Arguments& a, int rank) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, unit = rank * kWarps + warp;
  const int row = unit / kGateBatches * kTile + lane / 4;
  const bf16* from = a.gate + (row * kDim + unit % kGateBatches * kBatchColumns + lane % 4 * 8);
  const uint32_t to = shared_address(&of_this_block().weights[0][warp][0][lane]);
#pragma unroll
  for (int u = 0; u < kLoads; ++u) stream_async(to + u * 512, from + u * 32);
  end_copies();
}
/// Of the projection: by one warp for all, so that no copy is before what the others do.
__device__ inline void fetch_projection(const Arguments& a, int rank) {
  const int lane = threadIdx.x % 32;
  const bf16* from = a.projection + ((rank * kColumns + lane / 4) * kNarrow + lane % 4 * 8);
  const uint32_t to = shared_address(&of_this_block().weights[1][0][0][lane]);
#pragma unroll 1
  for (int warp = 0; warp < kWarps; ++warp) {
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      stream_async(to + (warp * kLoads + u) * 512, from + (warp * kTile * kNarrow + u * 32));
  }
}

/// One tile of a product when its x has come: this warp's part of its columns, one row; as add_bf16. The 16 bytes of x
/// that a lane reads are the operand as it stands (see `kept`): its rows 0 to 7 are x's first two words, 8 to 15 the
/// other two, so each of the two chains has its sums in its own half. Lanes 0 to 3 have two columns of the tile each.
__device__ __noinline__ void multiply(bool projects) {
  Shared& s = of_this_block();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, unit = blockIdx.x % kBlocks * kWarps + warp;
  wait_for_copies();
  if (projects) await_handed(kProjectionHere);
  Batch batch;
#pragma unroll
  for (int u = 0; u < kLoads; ++u) batch[u] = s.weights[projects][warp][u][lane];
  if (projects)
    await(s.arrivals[kGated]);
  else
    meet();
  const uint4* x = s.x + (projects ? kDim / 8 : unit % kGateBatches * (kBatchColumns / 8)) + lane % 4;
  float first[4] = {}, second[4] = {};
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
    const uint4 words = x[u * 4];
    const Fragment operand = {words.x, words.y, words.z, words.w};
    mma(first, operand, batch[u].x, batch[u].y);
    mma(second, operand, batch[u].z, batch[u].w);
  }
  if (lane < kTile / 2)
    *reinterpret_cast<float2*>(&s.products[projects][warp * kTile + 2 * lane]) =
        make_float2(0.0f + (first[0] + second[2]), 0.0f + (first[1] + second[3]));
}

/// The gate's results of this block, from the sums of its warps, to all blocks: by one warp. `given`: of its lane.
__device__ inline void send_gated(int rank, float given) {
  Shared& s = of_this_block();
  const int lane = threadIdx.x % 32, tile = lane / kTile % 2;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kGateBatches; ++w) sum += s.products[0][(tile * kGateBatches + w) * kTile + lane % kTile];
  const uint32_t bits = __bfloat16_as_ushort(__float2bfloat16_rn(gelu_of(sum) * given));
  const uint32_t pair = bits | __shfl_down_sync(0xffffffffu, bits, 1) << 16;  // of even lanes
  const int half = lane % 2 * 8;
  const uint4 eight = kept({__shfl_sync(0xffffffffu, pair, half), __shfl_sync(0xffffffffu, pair, half + 2)},
                           {__shfl_sync(0xffffffffu, pair, half + 4), __shfl_sync(0xffffffffu, pair, half + 6)});
  put(of_block(s.x + (kDim + rank * kGates + half) / 8, lane / 2), of_block(&s.arrivals[kGated], lane / 2), eight);
}

/// A stream as AltUp corrects it.
__device__ inline Item<4> corrected(const RawItem<bf16, 4>& predicted, const Item<4>& out, float own_gain, int stream) {
  const float gain = __shfl_sync(0xffffffffu, own_gain, stream);
  Item<4> x = unpack<bf16, 4>(predicted);
#pragma unroll
  for (int i = 0; i < 4; ++i) x.v[i] += (1.0f + gain) * out.v[i];
  return x;
}
/// Of this warp's columns, x of the gate. Two lanes have 8 columns: see `kept`.
__device__ inline void scale_first(const Item<4>& first, const Item<4>& scale) {
  const int lane = threadIdx.x % 32;
  Item<4> scaled{};
  add_gained(scaled, first, scale, 1.0f);
  auto* words = reinterpret_cast<uint32_t*>(of_this_block().x + threadIdx.x / 2) + lane % 2;
  words[0] = pack(scaled.v[0], scaled.v[1]), words[2] = pack(scaled.v[2], scaled.v[3]);
}

/// Stream `j` as AltUp predicts it, from the stream itself.
__device__ inline void predict(Item<4>& x, const Item<4> (&streams)[kMostStreams], int j) {
  const Item<4> coefs = load_item<4>(of_this_block().open_coefs + j * kMostStreams);
#pragma unroll
  for (int k = 0; k < kMostStreams; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x.v[i] += coefs.v[k] * streams[k].v[i];
  }
}

/// AltUp opens, of the columns of one warp.
__device__ inline void open(const Arguments& a, int offset) {
  Shared& s = of_this_block();
  const int lane = threadIdx.x % 32, stride = a.tokens * kDim;
  Item<4> update = load_item<4>(s.products[1] + lane * 4);
  round_item(update);
  send_square(kUpdate, square_of(update));
  const Item<4> norm = fetched(kUpdateNorm);
  Item<4> streams[kMostStreams];
#pragma unroll
  for (int j = 0; j < kMostStreams; ++j) streams[j] = load_item<4>(reinterpret_cast<const bf16*>(&s.streams[j][lane]));
  const float inverse = inverse_of(kUpdate, a.eps[1]);
#pragma unroll
  for (int j = 1; j < kMostStreams; ++j) {
    // As add_gained, said outright: a product that three streams share might be rounded by itself.
#pragma unroll
    for (int i = 0; i < 4; ++i) streams[j].v[i] = __fmaf_rn(update.v[i] * inverse, norm.v[i], streams[j].v[i]);
  }
  // What others wait for goes out before anything is stored.
  const bool opens = a.next_predicted != nullptr;
  Item<4> active = streams[0];
  if (opens) {
    await_handed(kOpenCoefs);
    predict(active, streams, 0);
    send_square(kX, square_of(active));
  }
  if (a.updated != nullptr) {
#pragma unroll
    for (int j = 0; j < kMostStreams; ++j) store_item<4>(a.updated + (j * stride + offset), streams[j]);
  }
  if (!opens) return;
  store_item<4>(a.next_predicted + offset, active);
#pragma unroll
  for (int j = 1; j < kMostStreams; ++j) {
    Item<4> predicted = streams[j];
    predict(predicted, streams, j);
    store_item<4>(a.next_predicted + (j * stride + offset), predicted);
  }
  Item<4> x{};
  add_gained(x, active, fetched(kInputNorm), inverse_of(kX, a.eps[1]));
  store_item<4>(a.x + offset, x);
}

/// The warp that is none of the products': has the projection fetched, sends the gate's results, makes the coefficients
/// that open.
__device__ inline void send_between(const Arguments& a, int rank, int t) {
  Shared& s = of_this_block();
  const int lane = threadIdx.x % 32;
  fetch_projection(a, rank);
  wait_for_previous();
  const float given = to_f32(a.given[t * kNarrow + rank * kGates + lane % kGates]);
  wait_for_cluster();
  wait_for_copies();
  hand_over(kProjectionHere);
  await_handed(kGateMade);
  send_gated(rank, given);
  if (a.next_predicted == nullptr) return;
  s.open_coefs[lane] = coefficient(kOpening, a.eps[1]);
  hand_over(kOpenCoefs);
}

/// AltUp closes, then the gate: all of the token, 128 columns a warp. What the opening needs of the block's own columns
/// is made after the gate, while its results are on their way.
__device__ inline void close(const Arguments& a, int rank, int offset, bool is_own) {
  Shared& s = of_this_block();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  fetch_rows(a, rank);
  LaneRouter router;
  router.norm = load_item<4>(static_cast<const float*>(a.rows[kNorm].first) + threadIdx.x * 4);
  const RowSource& rows = a.rows[kRouter];
  router.load(static_cast<const char*>(rows.first) + threadIdx.x * (a.is_bf16[0] ? 8 : 16), rows.step * kBlocks,
              a.is_bf16[0]);
  __syncwarp();  // keeps the order
  fetch_gate(a, rank);
  wait_for_previous();
  const auto raw_ffn = load_raw<bf16, 4>(a.ffn + offset), raw_mixed = load_raw<bf16, 4>(a.mixed + offset);
  const auto raw_active = load_raw<bf16, 4>(a.predicted + offset);
  RawItem<bf16, 4> predicted[kMostStreams] = {};  // but the first
  if (is_own) {
#pragma unroll
    for (int j = 1; j < kMostStreams; ++j)
      predicted[j] = load_raw<bf16, 4>(a.predicted + (j * a.tokens * kDim + offset));
  }
  router.unpack(a.is_bf16[0]);
  const Item<4> ffn = unpack<bf16, 4>(raw_ffn);
  const float square = warp_sum(square_of(ffn));
  if (lane == 0) s.exchanges[kFfn].squares[warp] = square;
  if (is_own) {
#pragma unroll
    for (int j = 1; j < kMostStreams; ++j) s.streams[j][lane] = predicted[j].part[0];
  }
  wait_for_batches<1>();  // rows
  meet();
  Item<4> x = unpack<bf16, 4>(raw_mixed);
  add_gained(x, ffn, of_columns(kFfnNorm), inverse_of(kFfn, a.eps[0]));
#pragma unroll 1
  for (int opens = 0;; opens = 1) {
    const Routed routed = route(router, x);
    if (opens != 0) {
      send_routed(routed, rank);
      break;
    }
    Exchange& closing = s.exchanges[kClosing];
    if (lane == 0) closing.squares[warp] = routed.square;
    if (lane % 8 == 0) closing.routed[warp][lane / 8] = routed.sum;
    meet();
    const float own = coefficient(kClosing, a.eps[0]);
    const Item<4> active = unpack<bf16, 4>(raw_active);
#pragma unroll
    for (int i = 0; i < 4; ++i) x.v[i] -= active.v[i];
    const Item<4> out = x;
    x = corrected(raw_active, out, own, 0);
    scale_first(x, of_columns(kScale));
    multiply(false);
    wait_for_cluster();  // from here on `handed` may be used
    hand_over(kGateMade);
    if (!is_own) break;
    store_item<4>(reinterpret_cast<bf16*>(&s.streams[0][lane]), x);
#pragma unroll
    for (int j = 1; j < kMostStreams; ++j) {
      RawItem<bf16, 4> stream;
      stream.part[0] = s.streams[j][lane];
      store_item<4>(reinterpret_cast<bf16*>(&s.streams[j][lane]), corrected(stream, out, own, j));
    }
    if (a.next_predicted == nullptr) break;
    round_item(x);
    router.norm = fetched(kOfRouter + kNorm);
    router.load(reinterpret_cast<const char*>(s.rows[kOfRouter + kRouter]) + lane * (a.is_bf16[1] ? 8 : 16),
                sizeof(s.rows[0]), a.is_bf16[1]);
    router.unpack(a.is_bf16[1]);
  }
}

#endif

/// Launch bounds: registers enough for a block of the kernel before beside one of this. Every thread runs through the
/// code once and finds it in no cache: it is kept small.
__global__ void __launch_bounds__(1024) turn_kernel(const __grid_constant__ Arguments a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const int warp = this_warp(), lane = threadIdx.x % 32;
  const int rank = blockIdx.x % kBlocks, t = blockIdx.x / kBlocks;
  const int offset = t * kDim + threadIdx.x * 4;
  let_next_start();
  if (warp == kWarps) {
    if (lane < kHandOvers) {
      const int n_warps = lane == kGateMade ? kWarps : 1;
      init_barrier(shared_address(&of_this_block().handed[lane]), n_warps * 32);
    }
    expect(lane < kArrivals, of_this_block().arrivals[lane],
           lane == kGated ? kNarrow * 2 : (lane == kOpening ? kBlocks * 20 : kBlocks * 4));
  }
  show_barriers(), arrive_at_cluster();
  if (warp == kWarps) {
    send_between(a, rank, t);
    return;
  }
  close(a, rank, offset, warp == rank);
  multiply(true);
  meet();
  if (warp == rank) open(a, offset);
#endif
}

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
bool is_dense(const Weight& w, int64_t n_out, int64_t n_in) {
  return w.format == WeightFormat::bf16 && w.n_out == n_out && w.n_in == n_in && is_aligned(w.data);
}

RowSource columns_of(const float* row) {
  return row == nullptr ? RowSource{} : RowSource{row, kColumns * sizeof(float), kColumns * sizeof(float)};
}
void fetch_router(RowSource* rows, const StepKernels::Router& r) {
  const RouterArgs args = router_args(r);
  const uint32_t size = args.is_bf16 ? sizeof(bf16) : sizeof(float);
  rows[kNorm] = columns_of(args.norm);
  for (int j = 0; j < kMostStreams; ++j)
    rows[kRouter + j] = {static_cast<const char*>(args.router) + j * kDim * size, kColumns * size, kColumns * size};
  rows[kCoefs] = {args.coefs, 0, static_cast<uint32_t>(args.n_coefs * kMostStreams * sizeof(float))};
}
bool fits_router(const StepKernels::Router& r, int64_t n_coefs) {
  return r.coefs.n_out == n_coefs && is_aligned(r.norm.data) && is_aligned(r.router.data) && is_aligned(r.coefs.data);
}

}  // namespace

bool Step::takes_turn(const Turn& t) {
  const Tensor& streams = t.close.predicted;
  const bool fits = streams.dtype == DType::bf16 && streams.dim(1) <= kMostTokens && streams.dim(2) == kDim &&
                    !t.close.ffn_norm.empty() && !t.close.scale.empty() && streams.dim(0) == kMostStreams &&
                    t.close.active == 0 && t.open.active == 0 && fits_router(t.close.router, kMostStreams) &&
                    (t.open.predicted.empty() || fits_router(t.open.router, kMostStreams * kMostStreams)) &&
                    is_dense(t.gated.gate_weight, kNarrow, kDim) && is_dense(t.update.w, kDim, kNarrow) &&
                    t.gated.up_weight.empty() && t.gated.sparsity_z == 0 && t.update.cap == 0;
  if (!fits || backend_.compute_capability_ < 90 || static_cast<int64_t>(sizeof(Shared)) > most_shared_) return false;
  if (!has_clusters_) {
    int n_clusters = 0;
    cudaLaunchAttribute cluster;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {kBlocks, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(kBlocks), config.blockDim = dim3(kThreads), config.dynamicSmemBytes = sizeof(Shared);
    config.attrs = &cluster, config.numAttrs = 1;
    // A card whose groups of multiprocessors are smaller says so in either call.
    has_clusters_ =
        cudaFuncSetAttribute(turn_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
        cudaFuncSetAttribute(turn_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)) == cudaSuccess &&
        cudaOccupancyMaxActiveClusters(&n_clusters, turn_kernel, &config) == cudaSuccess && n_clusters > 0;
    if (!*has_clusters_) cudaGetLastError();
  }
  return *has_clusters_;
}

void Step::turn(const Turn& t) {
  const int64_t tokens = t.close.predicted.dim(1);
  if (tokens == 0) return;
  if (!takes_turn(t)) {
    altup_close(t.close);
    gated(t.gated);
    products({&t.update, 1});
    altup_open(t.open);
    return;
  }
  const bool opens = !t.open.predicted.empty();
  Arguments args{.rows = {},
                 .is_bf16 = {t.close.router.router.format == WeightFormat::bf16,
                             opens && t.open.router.router.format == WeightFormat::bf16},
                 .eps = {t.close.eps, t.open.eps},
                 .mixed = t.close.mixed.as<bf16>(),
                 .ffn = t.close.ffn.as<bf16>(),
                 .predicted = t.close.predicted.as<bf16>(),
                 .gate = static_cast<const bf16*>(t.gated.gate_weight.data),
                 .given = t.gated.up.as<bf16>(),
                 .projection = static_cast<const bf16*>(t.update.w.data),
                 .updated = t.open.updated.as<bf16>(),
                 .next_predicted = t.open.predicted.as<bf16>(),
                 .x = t.open.x.as<bf16>(),
                 .tokens = static_cast<int>(tokens)};
  fetch_router(args.rows, t.close.router);
  args.rows[kFfnNorm] = columns_of(t.close.ffn_norm.as<float>()),
  args.rows[kScale] = columns_of(t.close.scale.as<float>());
  args.rows[kUpdateNorm] = columns_of(t.open.update_norm.as<float>());
  if (opens) {
    fetch_router(args.rows + kOfRouter, t.open.router);
    args.rows[kInputNorm] = columns_of(t.open.input_norm.as<float>());
  }
  share_first_cache(turn_kernel);
  launch_clusters(kBlocks, turn_kernel, dim3(static_cast<unsigned>(tokens * kBlocks)), dim3(kThreads),
                  static_cast<int>(sizeof(Shared)), args);
}

}  // namespace saaz::cuda
