// Step: from one layer to the next in one launch: AltUp closes, the per-layer gate and its projection, AltUp opens. A
// cluster of 16 blocks takes a token. A block's first warp has 128 columns of each row in registers, all its warps a
// sixteenth of both weights in shared memory, asked for before the previous kernel's end; what the others need of a
// phase is sent to their shared memory. Every sum has the order that the kernels of the single phases give it, so a
// row's bits do not tell which of the two forms ran.
#include "backend/cuda/cuda_step_chunks.cuh"
#include "backend/cuda/cuda_step_rows.cuh"

namespace saaz::cuda {

namespace {

constexpr int kBlocks = 16, kWarps = 16, kThreads = (kWarps + 1) * 32;  // one warp more for the coefficients that open
constexpr int kDim = 2048, kNarrow = 256;                               // of the streams, of the per-layer inputs
constexpr int kColumns = kDim / kBlocks, kGates = kNarrow / kBlocks;    // of a block
constexpr int kTile = 8, kBatchColumns = kLoads * 32;                   // of a warp's part of a product
constexpr int kGateBatches = kDim / kBatchColumns;                      // of a tile
constexpr int64_t kMostTokens = 8;
static_assert(kColumns == 32 * 4 && kGates * kGateBatches == kTile * kWarps && kColumns == kTile * kWarps &&
              kNarrow == kBatchColumns && kDim / 4 / 32 == kBlocks);

struct Arguments {
  const bf16 *mixed, *ffn, *predicted;  // closes
  const float *ffn_norm, *scale;
  RouterArgs closing;
  const bf16 *gate, *given, *projection;  // the per-layer input
  bf16 *updated, *next_predicted, *x;     // opens; the last two null: not wanted, or the first
  const float *update_norm, *input_norm;
  RouterArgs opening;
  int n;
  int64_t tokens;
  float close_eps, open_eps;
};

/// A router's weights of a block's columns: a lane finds there what it has put there itself.
struct RouterSlots {
  float4 norm[32], rows[kMostStreams][32];
};
[[maybe_unused]] constexpr int kMostSums = 1 + kMostStreams;
/// Sums of each block.
struct alignas(16) Exchange {
  float sums[kBlocks][8];
  uint64_t arrival;
};
struct Shared {
  uint4 gate[kWarps][kLoads][32], projection[kWarps][kLoads][32];  // by lane, as Batch
  float4 ffn_norm[32], scale[32], update_norm[32], input_norm[32];
  RouterSlots closing, opening;
  Exchange of_ffn, of_closing, of_opening, of_update, of_x;
  uint64_t scaled_arrival, gated_arrival;
  alignas(16) bf16 own_scaled[kColumns];
  alignas(16) bf16 scaled[kDim];
  alignas(16) bf16 gated[kNarrow];
  alignas(16) bf16 update[kColumns];
  float gate_sums[kWarps][kTile];
  float open_coefs[32];
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/// Where `p` lies in the shared memory of another block of the cluster.
__device__ inline uint32_t of_block(const void* p, int rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
  return address;
}

/// What the other blocks send: a barrier that ends its only phase when so many bytes have come. No fence is needed,
/// which a barrier of the cluster would make of all the card's memory.
__device__ inline void expect(uint64_t& arrival, uint32_t bytes) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&arrival)) : "memory");
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&arrival)), "r"(bytes)
               : "memory");
}
__device__ inline void await(uint64_t& arrival) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}" ::"r"(shared_address(&arrival))
      : "memory");
}
/// `bytes` from here to an address in a block of the cluster, counted by that block's arrival. What was written here
/// before must have been fenced for it.
__device__ inline void put_bulk(uint32_t address, uint32_t arrival, const void* from, uint32_t bytes) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(address),
      "r"(shared_address(from)), "r"(bytes), "r"(arrival)
      : "memory");
}
/// To an address in a block of the cluster, counted by that block's arrival.
__device__ inline void put(uint32_t address, uint32_t arrival, float x) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(address), "f"(x),
               "r"(arrival)
               : "memory");
}
__device__ inline void put(uint32_t address, uint32_t arrival, uint4 x) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
      "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(arrival)
      : "memory");
}

/// By one warp: its block's sums to all blocks, which read them with `total`.
template <int K>
__device__ void send(Exchange& to, int rank, float (&x)[K]) {
  static_assert(K == 1 || K == kMostSums);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < K; ++k) x[k] = warp_sum(x[k]);
  if (lane >= kBlocks) return;
  const uint32_t address = of_block(&to.sums[rank][0], lane), arrival = of_block(&to.arrival, lane);
  if constexpr (K == 1) {
    put(address, arrival, x[0]);
  } else {
    put(address, arrival,
        make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3])));
    put(address + 16, arrival, x[4]);
  }
}
template <int K>
__device__ void total(float (&x)[K], Exchange& from) {
  const int lane = threadIdx.x % 32;
  await(from.arrival);
#pragma unroll
  for (int k = 0; k < K; ++k) x[k] = warp_sum(lane < kBlocks ? from.sums[lane][k] : 0.0f);
}

__device__ inline void copy_eight(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(__cvta_generic_to_global(from)) : "memory");
}
/// Starts copying this lane's columns.
__device__ inline void fetch(float4* slots, const float* row, int column) {
  if (row != nullptr) copy_async(shared_address(slots + threadIdx.x % 32), row + column, true);
}
__device__ inline void fetch(RouterSlots& slots, const RouterArgs& r, int n, int column) {
  fetch(slots.norm, r.norm, column);
  if (r.router == nullptr) return;
  for (int j = 0; j < n; ++j)
    if (r.is_bf16)
      copy_eight(shared_address(&slots.rows[j][threadIdx.x % 32]),
                 static_cast<const bf16*>(r.router) + j * kDim + column);
    else
      fetch(slots.rows[j], static_cast<const float*>(r.router) + j * kDim, column);
}
__device__ inline Item<4> fetched(const float4* slots) {
  return load_item<4>(reinterpret_cast<const float*>(slots + threadIdx.x % 32));
}

/// What coefficients are made of: the router's sums over x. As HeldRouter.
__device__ inline void router_sums(float (&sums)[kMostSums], const RouterSlots& slots, const RouterArgs& r,
                                   const Item<4>& x, int n) {
  const Item<4> norm = fetched(slots.norm);
  sums[0] = square_of(x);
#pragma unroll
  for (int j = 0; j < kMostStreams; ++j) {
    sums[1 + j] = 0;
    if (j >= n) continue;
    const Item<4> row = r.is_bf16 ? load_item<4>(reinterpret_cast<const bf16*>(&slots.rows[j][threadIdx.x % 32]))
                                  : fetched(slots.rows[j]);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[1 + j] += x.v[i] * norm.v[i] * row.v[i];
  }
}
/// The coefficient of this lane; one lane each squashes a stream's sum.
struct OwnCoefs {
  float v[kMostStreams];
  __device__ OwnCoefs(const RouterArgs& r, int n) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < kMostStreams; ++j) v[j] = j < n && lane < r.n_coefs ? r.coefs[lane * n + j] : 0.0f;
  }
  __device__ float coefficient(const float (&sums)[kMostSums], int n, float eps) const {
    const int lane = threadIdx.x % 32;
    const float routed = lane == 0 ? sums[1] : lane == 1 ? sums[2] : lane == 2 ? sums[3] : sums[4];
    const float squashed = tanhf(routed * inverse_rms(sums[0], kDim, eps));
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kMostStreams; ++j) {
      const float of_stream = __shfl_sync(0xffffffffu, squashed, j);
      if (j < n) sum += v[j] * of_stream;
    }
    return sum;
  }
};

/// As a bf16 tensor between two kernels would leave it.
__device__ inline void round_item(Item<4>& x) {
#pragma unroll
  for (int i = 0; i < 4; ++i) x.v[i] = to_f32(__float2bfloat16_rn(x.v[i]));
}

/// One tile of a product: this warp's part of its columns, of `x` in shared memory, one row. Lanes 0 to 3 have two
/// columns of the tile each.
__device__ inline float2 tile_product(const uint4 (&w)[kLoads][32], const bf16* x) {
  Batch batch;
#pragma unroll
  for (int u = 0; u < kLoads; ++u) batch[u] = w[u][threadIdx.x % 32];
  Sums<false> sums = {};
  add_bf16<false>(sums, batch, RowFragments<false>(reinterpret_cast<const char*>(x), 0, 1), kLoads);
  return make_float2(sums[0], sums[1]);
}

__device__ inline void fetch_weights(Shared& s, const Arguments& a, int rank) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, unit = rank * kWarps + warp;
  const int gate_row = unit / kGateBatches * kTile + lane / 4, row = unit * kTile + lane / 4;
  const uint4* gate = reinterpret_cast<const uint4*>(a.gate + static_cast<int64_t>(gate_row) * kDim +
                                                     unit % kGateBatches * kBatchColumns) +
                      lane % 4;
  const uint4* projection =
      reinterpret_cast<const uint4*>(a.projection + static_cast<int64_t>(row) * kNarrow) + lane % 4;
#pragma unroll
  for (int u = 0; u < kLoads; ++u) copy_async(shared_address(&s.gate[warp][u][lane]), gate + u * 4, true);
#pragma unroll
  for (int u = 0; u < kLoads; ++u) copy_async(shared_address(&s.projection[warp][u][lane]), projection + u * 4, true);
}

/// The gate's results of this block, from the sums of its warps, to all blocks: by one warp. `given`: of its lane.
__device__ inline void send_gated(Shared& s, int rank, float given) {
  const int lane = threadIdx.x % 32, tile = lane / kTile % 2;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kGateBatches; ++w) sum += s.gate_sums[tile * kGateBatches + w][lane % kTile];
  const uint32_t bits = __bfloat16_as_ushort(__float2bfloat16_rn(gelu_of(sum) * given));
  const uint32_t pair = bits | __shfl_down_sync(0xffffffffu, bits, 1) << 16;  // of even lanes
  const int half = lane % 2 * 8;
  const uint4 eight = {__shfl_sync(0xffffffffu, pair, half), __shfl_sync(0xffffffffu, pair, half + 2),
                       __shfl_sync(0xffffffffu, pair, half + 4), __shfl_sync(0xffffffffu, pair, half + 6)};
  put(of_block(s.gated + rank * kGates + half, lane / 2), of_block(&s.gated_arrival, lane / 2), eight);
}

#endif

/// Launch bounds: registers enough for a block of the kernel before beside one of this.
__global__ void __launch_bounds__(1024) turn_kernel(const __grid_constant__ Arguments a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ uint4 shared[];
  Shared& s = *reinterpret_cast<Shared*>(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = blockIdx.x % kBlocks, n = a.n;
  const int column = rank * kColumns + lane * 4;  // of the first warp
  const int64_t t = blockIdx.x / kBlocks, row = t * kDim + column;
  const bool is_first = warp == 0;
  let_next_start();
  if (is_first) {
    fetch(s.ffn_norm, a.ffn_norm, column), fetch(s.scale, a.scale, column);
    fetch(s.update_norm, a.update_norm, column), fetch(s.input_norm, a.input_norm, column);
    fetch(s.closing, a.closing, n, column), fetch(s.opening, a.opening, n, column);
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
  if (warp < kWarps) fetch_weights(s, a, rank);
  asm volatile("cp.async.commit_group;" ::: "memory");
  const OwnCoefs closing(a.closing, n), opening(a.opening, n);
  const bool opens = a.next_predicted != nullptr;
  if (threadIdx.x == 0) {
    expect(s.of_ffn.arrival, kBlocks * 4), expect(s.of_closing.arrival, kBlocks * kMostSums * 4);
    expect(s.scaled_arrival, kDim * 2), expect(s.gated_arrival, kNarrow * 2);
    expect(s.of_update.arrival, kBlocks * 4);
    if (opens) expect(s.of_opening.arrival, kBlocks * kMostSums * 4), expect(s.of_x.arrival, kBlocks * 4);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  wait_for_previous();
  asm volatile("cp.async.wait_group 1;" ::: "memory");

  // AltUp closes.
  Item<4> out{}, ffn{}, streams[kMostStreams];
  float given = 0, square[1], sums[kMostSums];
  if (is_first) {
    ffn = load_item<4>(a.ffn + row), out = load_item<4>(a.mixed + row);
#pragma unroll
    for (int j = 0; j < kMostStreams; ++j)
      if (j < n) streams[j] = load_item<4>(a.predicted + (j * a.tokens + t) * kDim + column);
    if (lane < kGates) given = to_f32(a.given[t * kNarrow + rank * kGates + lane]);
    square[0] = square_of(ffn);
    send(s.of_ffn, rank, square);
    total(square, s.of_ffn);
    add_gained(out, ffn, fetched(s.ffn_norm), inverse_rms(square[0], kDim, a.close_eps));
    router_sums(sums, s.closing, a.closing, out, n);
    send(s.of_closing, rank, sums);
    total(sums, s.of_closing);
    const float own = closing.coefficient(sums, n, a.close_eps);
#pragma unroll
    for (int i = 0; i < 4; ++i) out.v[i] -= streams[0].v[i];
#pragma unroll
    for (int j = 0; j < kMostStreams; ++j) {
      if (j >= n) continue;
      const float gain = __shfl_sync(0xffffffffu, own, j);
#pragma unroll
      for (int i = 0; i < 4; ++i) streams[j].v[i] += (1.0f + gain) * out.v[i];
      if (j > 0) {
        round_item(streams[j]);
        continue;
      }
      Item<4> scaled{};
      add_gained(scaled, streams[0], fetched(s.scale), 1.0f);
      round_item(streams[0]);
      store_item<4>(s.own_scaled + lane * 4, scaled);
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      __syncwarp();
      if (lane < kBlocks)
        put_bulk(of_block(s.scaled + rank * kColumns, lane), of_block(&s.scaled_arrival, lane), s.own_scaled,
                 kColumns * 2);
    }
    if (opens) {
      router_sums(sums, s.opening, a.opening, streams[0], n);
      send(s.of_opening, rank, sums);
    }
  }
  if (warp == kWarps) {
    if (opens) {
      total(sums, s.of_opening);
      s.open_coefs[lane] = opening.coefficient(sums, n, a.open_eps);
    }
    __syncthreads();
    __syncthreads();
    return;
  }
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  await(s.scaled_arrival);

  // The per-layer input: gate, projection.
  const int unit = rank * kWarps + warp;
  const float2 gates = tile_product(s.gate[warp], s.scaled + unit % kGateBatches * kBatchColumns);
  if (lane < kTile / 2) s.gate_sums[warp][2 * lane] = gates.x, s.gate_sums[warp][2 * lane + 1] = gates.y;
  __syncthreads();
  if (is_first) send_gated(s, rank, given);
  await(s.gated_arrival);
  const float2 updates = tile_product(s.projection[warp], s.gated);
  if (lane < kTile / 2) {
    s.update[warp * kTile + 2 * lane] = __float2bfloat16_rn(updates.x);
    s.update[warp * kTile + 2 * lane + 1] = __float2bfloat16_rn(updates.y);
  }
  __syncthreads();

  // AltUp opens.
  if (!is_first) return;
  const Item<4> update = load_item<4>(s.update + lane * 4);
  square[0] = square_of(update);
  send(s.of_update, rank, square);
  total(square, s.of_update);
  const float inverse = inverse_rms(square[0], kDim, a.open_eps);
  const Item<4> norm = fetched(s.update_norm);
#pragma unroll
  for (int j = 0; j < kMostStreams; ++j) {
    if (j >= n) continue;
    if (j > 0) add_gained(streams[j], update, norm, inverse);
    if (a.updated != nullptr) store_item<4>(a.updated + (j * a.tokens + t) * kDim + column, streams[j]);
  }
  if (!opens) return;
  Item<4> active{}, predicted[kMostStreams];
#pragma unroll
  for (int j = 0; j < kMostStreams; ++j) {
    if (j >= n) continue;
    predicted[j] = streams[j];
#pragma unroll
    for (int k = 0; k < kMostStreams; ++k) {
      if (k >= n) continue;
      const float coef = s.open_coefs[j * n + k];
#pragma unroll
      for (int i = 0; i < 4; ++i) predicted[j].v[i] += coef * streams[k].v[i];
    }
    if (j > 0) continue;
    active = predicted[0];
    square[0] = square_of(active);
    send(s.of_x, rank, square);
  }
#pragma unroll
  for (int j = 0; j < kMostStreams; ++j)
    if (j < n) store_item<4>(a.next_predicted + (j * a.tokens + t) * kDim + column, predicted[j]);
  total(square, s.of_x);
  Item<4> x{};
  add_gained(x, active, fetched(s.input_norm), inverse_rms(square[0], kDim, a.open_eps));
  store_item<4>(a.x + row, x);
#endif
}

bool is_dense(const Weight& w, int64_t n_out, int64_t n_in) {
  return w.format == WeightFormat::bf16 && w.n_out == n_out && w.n_in == n_in &&
         reinterpret_cast<uintptr_t>(w.data) % 16 == 0;
}

}  // namespace

bool Step::takes_turn(const Turn& t) {
  const Tensor& streams = t.close.predicted;
  const bool fits = streams.dtype == DType::bf16 && streams.dim(1) <= kMostTokens && streams.dim(2) == kDim &&
                    streams.dim(0) <= kMostStreams && t.close.active == 0 && t.open.active == 0 &&
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
  const Arguments args{.mixed = t.close.mixed.as<bf16>(),
                       .ffn = t.close.ffn.as<bf16>(),
                       .predicted = t.close.predicted.as<bf16>(),
                       .ffn_norm = t.close.ffn_norm.as<float>(),
                       .scale = t.close.scale.as<float>(),
                       .closing = router_args(t.close.router),
                       .gate = static_cast<const bf16*>(t.gated.gate_weight.data),
                       .given = t.gated.up.as<bf16>(),
                       .projection = static_cast<const bf16*>(t.update.w.data),
                       .updated = t.open.updated.as<bf16>(),
                       .next_predicted = t.open.predicted.as<bf16>(),
                       .x = t.open.x.as<bf16>(),
                       .update_norm = t.open.update_norm.as<float>(),
                       .input_norm = t.open.input_norm.as<float>(),
                       .opening = opens ? router_args(t.open.router) : RouterArgs{},
                       .n = static_cast<int>(t.close.predicted.dim(0)),
                       .tokens = tokens,
                       .close_eps = t.close.eps,
                       .open_eps = t.open.eps};
  launch_clusters(kBlocks, turn_kernel, dim3(static_cast<unsigned>(tokens * kBlocks)), dim3(kThreads),
                  static_cast<int>(sizeof(Shared)), args);
}

}  // namespace saaz::cuda
