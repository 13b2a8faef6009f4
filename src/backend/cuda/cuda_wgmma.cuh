// Building blocks of kernels for sm_90a: products of a warpgroup (four warps) whose operands lie in shared memory,
// barriers in shared memory, and rings of tiles that one warpgroup fills while others work.
// A tile is 64 rows of kTileDim bf16 values in four panels of 64 columns, one after the other; within a panel a row is
// 128 bytes, its 16-byte chunks permuted (chunk ^ row % 8): what the hardware calls the 128-byte swizzle. A tile can be
// read with its columns as the summed dimension (scores) or with its rows (sums over keys or over queries).
#pragma once

#include <utility>

#include "backend/cuda/cuda_barrier.cuh"

namespace saaz::cuda::wgmma {

inline constexpr int kRows = 64;  // of a tile, and of a warpgroup's part of a result
inline constexpr int kPanelBytes = kRows * 128, kTileBytes = kRows * kRowBytes;
inline constexpr int kGroupThreads = 128;
inline constexpr int kColumnBlocks = kTileDim / 8;

/// Results of a warpgroup; lane l of warp w has rows 16 w + l / 4 (elements 0, 1) and 8 below (2, 3), and of the block
/// of eight columns j the columns 8 j + 2 (l % 4) and the next.
using Scores = float[kRows / 8][4];    // [64, 64]
using Sums = float[kColumnBlocks][4];  // [64, kTileDim]
using Weights = Fragment[kRows / 16];  // [64, 64] as left operand, bf16

/// The block's barrier `id` (1 .. 15), for `n_threads` of its threads.
__device__ inline void meet(int id, int n_threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}

/// This thread's stores and landed copies become visible to products (a barrier must still follow).
__device__ inline void publish_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int n>
__device__ inline void give_registers_up() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n));
}
template <int n>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n));
}

// Products run on their own from `begin_products`; after `end_products` those since the end before are one batch, and
// `wait_for_products<n>` waits until no more than the last n batches run. Until then nobody may touch their registers.

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int n>
__device__ inline void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
}
/// Keeps the compiler from moving uses of results before the wait.
template <int n>
__device__ inline void hold(float (&x)[n][4]) {
#pragma unroll
  for (auto& block : x) {
#pragma unroll
    for (float& value : block) asm volatile("" : "+f"(value)::"memory");
  }
}

// How the hardware finds a tile: a descriptor of 64 bits, whose lower half has the address / 16 and the distance of
// panels / 16 (read with its columns summed, a step of 16 columns, 32 bytes, stays within a panel), and whose upper
// half has the distance of groups of eight rows, 1024 bytes, and the swizzle. The steps are added within the
// instruction's text: the compiler would else keep a register for each.

__device__ inline uint32_t summed_over_columns(uint32_t tile) { return (tile & 0x3ffff) >> 4 | 1u << 16; }
__device__ inline uint32_t summed_over_rows(uint32_t tile) {
  return (tile & 0x3ffff) >> 4 | static_cast<uint32_t>(kPanelBytes >> 4) << 16;
}
#define SAAZ_DESCRIPTOR(name, tile, step) \
  ".reg .b64 " name                       \
  ";\n"                                   \
  ".reg .b32 " name                       \
  "_low;\n"                               \
  "add.u32 " name "_low, " tile ", " step \
  ";\n"                                   \
  "mov.b64 " name ", {" name "_low, 0x40000040};\n"
#define SAAZ_BLOCK(as, c, j) as(c[j][0]), as(c[j][1]), as(c[j][2]), as(c[j][3])
#define SAAZ_BLOCKS(as, c, j) \
  SAAZ_BLOCK(as, c, j), SAAZ_BLOCK(as, c, j + 1), SAAZ_BLOCK(as, c, j + 2), SAAZ_BLOCK(as, c, j + 3)
#define SAAZ_MULTIPLY_SCORES(add) \
  "{\n" SAAZ_DESCRIPTOR("left", "%32", "%34") SAAZ_DESCRIPTOR("right", "%33", "%34")                  \
  ".reg .pred add;\n"                                                                                 \
  "setp.ne.b32 add, " add ", 0;\n"                                                                    \
  "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"                                            \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                            \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"                    \
  "}, left, right, add, 1, 1, 0, 0;\n"                                                                \
  "}"

/// The k-th 16 columns of c = a b^T, tiles a and b. What was in c before the first is dead: it takes no registers.
template <int k>
__device__ inline void multiply(Scores& c, uint32_t a, uint32_t b) {
  constexpr int kStep = (k / 4 * kPanelBytes + k % 4 * 32) >> 4;
  if constexpr (k == 0) {
    asm volatile(SAAZ_MULTIPLY_SCORES("0")
                 : SAAZ_BLOCKS("=f", c, 0), SAAZ_BLOCKS("=f", c, 4)
                 : "r"(a), "r"(b), "n"(kStep));
  } else {
    asm volatile(SAAZ_MULTIPLY_SCORES("1")
                 : SAAZ_BLOCKS("+f", c, 0), SAAZ_BLOCKS("+f", c, 4)
                 : "r"(a), "r"(b), "n"(kStep));
  }
}
/// The k-th 16 rows of c += weights x, tile x.
template <int k>
__device__ inline void multiply(Sums& c, const Fragment& a, uint32_t x) {
  asm volatile(
      "{\n" SAAZ_DESCRIPTOR("right", "%132", "%133")
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
      "}, {%128, %129, %130, %131}, right, 1, 1, 1, 1;\n"
      "}"
      : SAAZ_BLOCKS("+f", c, 0), SAAZ_BLOCKS("+f", c, 4), SAAZ_BLOCKS("+f", c, 8), SAAZ_BLOCKS("+f", c, 12),
        SAAZ_BLOCKS("+f", c, 16), SAAZ_BLOCKS("+f", c, 20), SAAZ_BLOCKS("+f", c, 24), SAAZ_BLOCKS("+f", c, 28)
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(x), "n"(k * (2048 >> 4)));
}
#undef SAAZ_MULTIPLY_SCORES
#undef SAAZ_BLOCKS
#undef SAAZ_BLOCK
#undef SAAZ_DESCRIPTOR

/// Starts c = a b^T, tiles a (rows down) and b (rows across).
__device__ inline void start_scores(Scores& c, uint32_t a, uint32_t b) {
  const uint32_t left = summed_over_columns(a), right = summed_over_columns(b);
  begin_products();
  [&]<int... k>(std::integer_sequence<int, k...>) { (multiply<k>(c, left, right), ...); }
  (std::make_integer_sequence<int, kTileDim / 16>{});
  end_products();
}
/// Starts c += weights x, tile x.
__device__ inline void start_sums(Sums& c, const Weights& weights, uint32_t x) {
  const uint32_t right = summed_over_rows(x);
  begin_products();
  [&]<int... k>(std::integer_sequence<int, k...>) { (multiply<k>(c, weights[k], right), ...); }
  (std::make_integer_sequence<int, kRows / 16>{});
  end_products();
}

/// Rounds a result to the left operand of the next product.
__device__ inline void as_weights(Weights& weights, const Scores& s) {
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k) weights[k] = as_left_operand(s[2 * k], s[2 * k + 1]);
}

/// Starts copying a tile by n_threads threads, of which this is `thread`. row_of(r): the row's index in `from`, or -1:
/// zeros. Complete after wait_for_copies. Each lane finds the place of one of its warp's rows.
template <int n_threads, class RowOf>
__device__ inline void load_tile(uint32_t tile, const bf16* from, int thread, RowOf row_of) {
  constexpr int kWarpRows = kRows / (n_threads / 32);  // at most 32
  const int chunk = thread % 32, first = thread / 32 * kWarpRows;
  const int own = static_cast<int>(row_of(first + chunk % kWarpRows));
  const uint32_t to = tile + static_cast<uint32_t>(chunk / 8 * kPanelBytes + first * 128);
  from += chunk * kChunk;
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const int row = __shfl_sync(0xffffffffu, own, r);
    copy_async(to + static_cast<uint32_t>(r * 128 + ((chunk % 8 ^ r % 8) << 4)),
               from + static_cast<int64_t>(max(row, 0)) * kTileDim, row >= 0);
  }
}

/// kStages tiles in shared memory, filled in turn by one warpgroup and read by `n_readers` warps. Tile i of the walk
/// lies in stage i % kStages.
template <int kStages>
struct Ring {
  static constexpr int kBarrierBytes = 2 * kStages * 8;
  uint32_t tiles, barriers;  // shared addresses: kStages tiles; kStages barriers `filled`, then kStages `free`

  __device__ void init(int n_readers) const {
    for (int i = 0; i < kStages; ++i) {
      init_barrier(filled(i), kGroupThreads);
      init_barrier(free(i), n_readers);
    }
  }
  __device__ uint32_t tile(int i) const { return tiles + static_cast<uint32_t>(i % kStages * kTileBytes); }
  __device__ uint32_t filled(int i) const { return barriers + static_cast<uint32_t>(i % kStages * 8); }
  __device__ bool is_free(int i) const { return is_over(free(i), (i / kStages & 1) ^ 1); }
  __device__ void wait_until_free(int i) const { wait(free(i), (i / kStages & 1) ^ 1); }
  __device__ void wait_until_filled(int i) const { wait(filled(i), i / kStages & 1); }
  /// A reader's warp is done with tile i.
  __device__ void release(int i) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(free(i));
  }

 private:
  __device__ uint32_t free(int i) const { return filled(i) + kStages * 8; }
};

/// Fills rings, one tile after the other: while a tile travels the next is sent for.
class Filler {
 public:
  /// Copies tile i of `ring` by load(shared address), once it is free.
  template <class Ring, class Load>
  __device__ void fill(const Ring& ring, int i, Load load) {
    if (!ring.is_free(i)) {
      hand_over<0>();  // who holds the stage may wait for it
      ring.wait_until_free(i);
    }
    load(ring.tile(i));
    end_copies();
    hand_over<1>();
    travelling_ = ring.filled(i);
  }
  __device__ void finish() { hand_over<0>(); }

 private:
  /// The tile that travels, once all but the last n batches of copies are here.
  template <int n>
  __device__ void hand_over() {
    if (travelling_ == 0) return;
    wait_for_batches<n>();
    publish_to_products();
    arrive(travelling_);
    travelling_ = 0;
  }
  uint32_t travelling_ = 0;  // its barrier
};

}  // namespace saaz::cuda::wgmma
