// Step: products of few rows, bound by reading the weights once. A group of warps takes a tile of a weight's rows at a
// time, its warps every so-manieth batch of their columns. A batch is what a warp has on its way in one buffer; there
// are two, filled the first time before the step's previous kernel has ended. A chunk is the columns of one load: 32 of
// bf16, 64 of NF4, one block of scales. Products are made by tensor cores, x in shared memory; columns are dealt to
// lanes so that a lane reads 16 (8) bytes in one piece, in x alike. bf16: tiles of 8 rows, the right operand, as they
// are loaded. NF4: tiles of 16 rows, the left operand, as the table of pairs gives them: a code's value rounded to
// bf16; the block's scale multiplies the block's sum in f32. How many warps make a group follows from the shapes, so
// sums have one order whatever the number of rows: along a warp's batches, then over the warps.
#include <algorithm>

#include "backend/cuda/cuda_mma.cuh"
#include "backend/cuda/cuda_step_task.h"
#include "quant/blockwise.h"

namespace saaz::cuda {

namespace {

using Then = Step::Then;

constexpr int kThreads = 256, kWarps = kThreads / 32, kLoads = 8, kBlocksOfProcessor = 2, kMostTile = 16;
constexpr int64_t kColumnsAtOnce = 4096;          // a multiple of what a block's warps read of a row at once
constexpr int64_t kMostColumns = kColumnsAtOnce;  // of an x that is always held whole
constexpr int64_t kMostRowBytes = 132 << 10, kPartRowBytes = 64 << 10;  // of x in shared memory, whole or in parts
constexpr int kCodeTableBytes = 256 * 256;  // a pair of values for each byte, once for each lane, 256 bytes apart

/// A weight as the kernel reads it.
struct Matrix {
  const void* data = nullptr;
  const uint8_t* codes = nullptr;  // of the scales
  const float* nested = nullptr;   // null: `scales` are not doubly quantised
  const float* scales = nullptr;
  float offset = 0;
};
/// One product of a launch: `n_jobs` tiles of rows.
struct Segment {
  Matrix w[2];  // the second: up of a gated product
  const bf16 *x = nullptr, *given = nullptr;
  void* y = nullptr;
  int n_in = 0, n_out = 0, first_job = 0;
  int tile = 8, n_chunks = 0, batch_chunks = kLoads, chunk_columns = 32;
  int x_at = 0, x_stride = 0;  // in shared memory, bytes
  bool is_nf4 = false;
  Then then = Then::store;
  float cap = 0;
};
struct Arguments {
  Segment segments[StepKernels::kMostProducts];
  const float* tables = nullptr;  // the signed map [256], the values of NF4 [16]
  int n_segments = 0, n_jobs = 0, n_rows = 0;
  int group = 1;         // warps
  int held_columns = 0;  // of x at once; 0: all of every x. Else one segment, and groups are whole blocks
};

__device__ inline float gelu_of(float x) {
  const float u = 0.7978845608f * x * (1.0f + 0.044715f * x * x);
  return x / (1.0f + __expf(fminf(-2.0f * u, 80.0f)));
}

/// Where a warp is in its work: a job's batches of its first and then its second matrix.
struct Cursor {
  int job, segment = 0, matrix = 0, batch;

  __device__ Cursor(const Arguments& args, int warp)
      : job(static_cast<int>(warp / args.group * gridDim.x + blockIdx.x)), batch(warp % args.group) {
    find_segment(args);
  }
  __device__ void find_segment(const Arguments& args) {
    while (segment + 1 < args.n_segments && job >= args.segments[segment + 1].first_job) ++segment;
  }
  __device__ bool ended(const Arguments& args) const { return job >= args.n_jobs; }
  /// The last round of the group: not every warp of it need have a batch left.
  __device__ bool ends_matrix(const Arguments& args, const Segment& s, int warp) const {
    return (batch - warp % args.group + args.group) * s.batch_chunks >= s.n_chunks;
  }
  __device__ void advance(const Arguments& args, int warp) {
    if (ended(args)) return;
    const Segment& s = args.segments[segment];
    if (!ends_matrix(args, s, warp)) {
      batch += args.group;
      return;
    }
    batch = warp % args.group;
    matrix ^= s.then == Then::gate_up ? 1 : 0;
    if (matrix == 1) return;
    job += static_cast<int>(gridDim.x) * (kWarps / args.group);
    if (!ended(args)) find_segment(args);
  }
};

__device__ inline uint4 stream_load(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
__device__ inline uint2 stream_load(const uint2* p) {
  uint2 v;
  asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}

/// This lane's parts of a batch. bf16: 8 values of row lane / 4 in each of 8 chunks. NF4: 16 codes (.x, .y) of row
/// lane / 4 in each of 4 chunks, then of the row 8 below. In .z the scales in the same order; or, of each row, the
/// chunks' codes, and what these are nested in.
using Batch = uint4[kLoads];
constexpr int kNf4Chunks = kLoads / 2;

__device__ inline void load_nf4(Batch& to, const Matrix& w, int64_t chunk, int64_t chunks_to_second) {
  const auto* codes = static_cast<const uint2*>(w.data) + chunk * 4 + threadIdx.x % 4;
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
    const uint2 raw = stream_load(codes + (u / kNf4Chunks * chunks_to_second + u % kNf4Chunks) * 4);
    to[u].x = raw.x, to[u].y = raw.y;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t first = chunk + half * chunks_to_second;
    if (w.nested != nullptr) {
      to[half].z = __ldg(reinterpret_cast<const uint32_t*>(w.codes + first));
      to[2 + half].z = __float_as_uint(__ldg(w.nested + first / kNestedBlock));
    } else {
      const float4 scales = __ldg(reinterpret_cast<const float4*>(w.scales + first));
      to[4 * half].z = __float_as_uint(scales.x), to[4 * half + 1].z = __float_as_uint(scales.y);
      to[4 * half + 2].z = __float_as_uint(scales.z), to[4 * half + 3].z = __float_as_uint(scales.w);
    }
  }
}

/// kFormats: what a launch's weights are, so that only that is compiled into it.
enum class Formats : uint8_t { bf16, nf4, mixed };
template <Formats kFormats>
__device__ inline bool is_nf4(const Segment& s) {
  return kFormats == Formats::nf4 || (kFormats == Formats::mixed && s.is_nf4);
}

template <Formats kFormats>
__device__ inline void load_batch(Batch& to, const Arguments& args, const Cursor& at) {
  if (at.ended(args)) return;
  const Segment& s = args.segments[at.segment];
  const Matrix& w = s.w[at.matrix];
  const int lane = threadIdx.x % 32, first = at.batch * s.batch_chunks;
  if (first >= s.n_chunks) return;
  const int64_t row = static_cast<int64_t>(at.job - s.first_job) * s.tile + lane / 4;
  const int64_t chunk = row * s.n_chunks + first;
  if (is_nf4<kFormats>(s)) {  // whole batches
    load_nf4(to, w, chunk, static_cast<int64_t>(8) * s.n_chunks);
    return;
  }
  const uint4* values = static_cast<const uint4*>(w.data) + chunk * 4 + lane % 4;
  if (first + kLoads <= s.n_chunks) {
#pragma unroll
    for (int u = 0; u < kLoads; ++u) to[u] = stream_load(values + u * 4);
  } else {
#pragma unroll
    for (int u = 0; u < kLoads; ++u)
      to[u] = first + u < s.n_chunks ? stream_load(values + u * 4) : make_uint4(0, 0, 0, 0);
  }
}

/// Shared memory of a block: the sums of its warps for two jobs, the tables of NF4, rows of x.
template <bool kWide>
struct Shared {
  static constexpr int kRows = kWide ? 16 : 8;
  using Sums = float[2][kWarps][kRows][kMostTile];  // by matrix
  static constexpr int kSumsBytes = 2 * static_cast<int>(sizeof(Sums));
  static constexpr int kMapBytes = 256 * 4;
};

/// x's fragments of a chunk, for rows lane / 4 and (wide) 8 more.
template <bool kWide>
struct RowFragments {
  const char* first;
  int stride;
  bool has_first, has_second;
  __device__ RowFragments(const char* rows, int stride, int n_rows)
      : first(rows + threadIdx.x % 32 / 4 * stride),
        stride(stride),
        has_first(threadIdx.x % 32 / 4 < n_rows),
        has_second(threadIdx.x % 32 / 4 + 8 < n_rows) {}
  __device__ uint4 a(int offset) const {
    return has_first ? *reinterpret_cast<const uint4*>(first + offset) : make_uint4(0, 0, 0, 0);
  }
  __device__ uint4 b(int offset) const {
    if (!kWide || !has_second) return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4*>(first + 8 * stride + offset);
  }
};

/// Sums of a tile in a warp. bf16: v[2 i + j] is of x's row lane / 4 + 8 i and the tile's row lane % 4 * 2 + j. NF4:
/// v[2 i + j] of the tile's row lane / 4 + 8 i and x's row lane % 4 * 2 + j; v[4 ..] of x's rows 8 and more.
template <bool kWide>
using Sums = float[kWide ? 8 : 4];

/// sums += x w^T over a batch; x begins with its first chunk and has `n` of its chunks.
template <bool kWide>
__device__ inline void add_bf16(Sums<kWide>& sums, const Batch& raw, const RowFragments<kWide>& x, int n) {
  const int lane_offset = threadIdx.x % 4 * 16;
  auto& four = *reinterpret_cast<float(*)[4]>(&sums);
#pragma unroll
  for (int u = 0; u < kLoads; ++u) {
    if (u >= n) continue;
    const uint4 a = x.a(u * 64 + lane_offset), b = x.b(u * 64 + lane_offset);
    mma(four, {a.x, b.x, a.y, b.y}, raw[u].x, raw[u].y);
    mma(four, {a.z, b.z, a.w, b.w}, raw[u].z, raw[u].w);
  }
}

/// The pair of values of byte `i` of a word of codes: that byte times 256, and the lane's column.
__device__ inline uint32_t pair_of(const char* table, uint32_t word, int i) {
  const uint32_t at = __byte_perm(word, threadIdx.x % 32 * 4, 0x5504 | i << 4);
  return *reinterpret_cast<const uint32_t*>(table + at);
}

__device__ inline float scale_of(const Batch& raw, const Matrix& w, const float* map, int half, int chunk) {
  if (w.nested == nullptr) return __uint_as_float(raw[4 * half + chunk].z);
  const uint32_t code = raw[half].z >> (8 * chunk) & 255;
  return map[code] * __uint_as_float(raw[2 + half].z) + w.offset;
}

template <bool kWide>
__device__ inline void add_nf4(Sums<kWide>& sums, const Batch& raw, const RowFragments<kWide>& x, const Matrix& w,
                               const char* table, const float* map) {
  const int lane_offset = threadIdx.x % 4 * 32;
#pragma unroll
  for (int c = 0; c < kNf4Chunks; ++c) {
    float of_block[4] = {}, of_wide[4] = {};
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const uint32_t upper = part == 0 ? raw[c].x : raw[c].y;
      const uint32_t lower = part == 0 ? raw[kNf4Chunks + c].x : raw[kNf4Chunks + c].y;
      const int offset = c * 128 + lane_offset + part * 16;
      const uint4 a = x.a(offset), b = x.b(offset);
      const Fragment first = {pair_of(table, upper, 0), pair_of(table, lower, 0), pair_of(table, upper, 1),
                              pair_of(table, lower, 1)};
      const Fragment second = {pair_of(table, upper, 2), pair_of(table, lower, 2), pair_of(table, upper, 3),
                               pair_of(table, lower, 3)};
      mma(of_block, first, a.x, a.y);
      mma(of_block, second, a.z, a.w);
      if (kWide) mma(of_wide, first, b.x, b.y), mma(of_wide, second, b.z, b.w);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float scale = scale_of(raw, w, map, half, c);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        sums[2 * half + j] += scale * of_block[2 * half + j];
        if (kWide) sums[4 + 2 * half + j] += scale * of_wide[2 * half + j];
      }
    }
  }
}

/// f(x's row, the tile's row, which of the sums) for this lane's.
template <bool kWide, class F>
__device__ inline void for_sums(bool nf4, F f) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int e = 0; e < (kWide ? 8 : 4); ++e) {
    const int by_lane = lane / 4 + e % 4 / 2 * 8, by_column = lane % 4 * 2 + e % 2;
    if (nf4)
      f(by_column + e / 4 * 8, by_lane, e);
    else if (e < (kWide ? 4 : 2))
      f(by_lane, by_column, e);
  }
}

/// The result of row `row` of x and column `n` of y.
__device__ inline void finish(const Segment& s, int64_t row, int64_t n, float value, float second) {
  const int64_t at = row * s.n_out + n;
  if (s.cap > 0) value = s.cap * tanhf(value / s.cap);
  if (s.then == Then::store_f32) {
    static_cast<float*>(s.y)[at] = value;
    return;
  }
  if (s.then == Then::gate_up) value = gelu_of(value) * second;
  if (s.then == Then::gate_given) value = gelu_of(value) * to_f32(s.given[at]);
  static_cast<bf16*>(s.y)[at] = __float2bfloat16_rn(value);
}

/// Starts copying columns [column, column + n) of a segment's x to shared memory.
__device__ inline void copy_rows(const Segment& s, char* rows, int n_rows, int column, int n) {
  for (int row = 0; row < n_rows; ++row)
    for (int i = threadIdx.x * 8; i < n; i += kThreads * 8)
      copy_async(shared_address(rows + s.x_at + row * s.x_stride + i * 2),
                 s.x + static_cast<int64_t>(row) * s.n_in + column + i, true);
}

/// A barrier of the warps of a group.
__device__ inline void group_barrier(int group, int n_warps) {
  asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "r"(n_warps * 32) : "memory");
}

template <bool kWide>
class Tables {
 public:
  using S = Shared<kWide>;
  __device__ Tables(char* shared, bool any_nf4)
      : sums(reinterpret_cast<typename S::Sums*>(shared)),
        map(reinterpret_cast<float*>(shared + S::kSumsBytes)),
        pairs(shared + S::kSumsBytes + S::kMapBytes),
        rows(any_nf4 ? pairs + kCodeTableBytes : shared + S::kSumsBytes) {}
  __device__ void fill(const float* tables) const {
    map[threadIdx.x] = tables[threadIdx.x];
    const float* values = tables + 256;
    const uint32_t pair = pack(values[threadIdx.x >> 4], values[threadIdx.x & 15]);
    for (int i = 0; i < 32; ++i) reinterpret_cast<uint32_t*>(pairs)[threadIdx.x * 64 + ((i + threadIdx.x) & 31)] = pair;
  }
  typename S::Sums* sums;  // of two jobs
  float* map;
  char *pairs, *rows;
};

/// The end of a job: its results, from the sums of all warps of the group. first_sums: of the first matrix.
template <bool kWide>
__device__ inline void finish_job(const Arguments& args, const Segment& s, bool nf4, int job, int matrix,
                                  typename Shared<kWide>::Sums& left, const Sums<kWide>& first_sums,
                                  const Sums<kWide>& sums) {
  const int64_t first_column = static_cast<int64_t>(job - s.first_job) * s.tile;
  if (args.group == 1) {
    for_sums<kWide>(nf4, [&](int row, int n, int e) {
      if (row < args.n_rows) finish(s, row, first_column + n, matrix == 1 ? first_sums[e] : sums[e], sums[e]);
    });
    return;
  }
  const int group = threadIdx.x / 32 / args.group, first_warp = group * args.group;
  group_barrier(group, args.group);
  for (int i = threadIdx.x - first_warp * 32; i < args.n_rows * s.tile; i += args.group * 32) {
    const int row = i / s.tile, n = i - row * s.tile;
    float total[2] = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w >= args.group) continue;
      total[0] += left[0][first_warp + w][row][n];
      if (matrix == 1) total[1] += left[1][first_warp + w][row][n];
    }
    finish(s, row, first_column + n, total[0], total[1]);
  }
}

template <bool kWide, Formats kFormats>
__global__ void __launch_bounds__(kThreads, kBlocksOfProcessor)
    products_kernel(const __grid_constant__ Arguments args) {
  if constexpr (!kHasMma) return;
  extern __shared__ uint4 shared[];
  const Tables<kWide> tables(reinterpret_cast<char*>(shared), kFormats != Formats::bf16);
  char* rows = tables.rows;
  const int warp = threadIdx.x / 32;
  let_next_start();
  Cursor now(args, warp), ahead = now;
  Batch even, odd;
  load_batch<kFormats>(even, args, ahead);
  ahead.advance(args, warp);
  load_batch<kFormats>(odd, args, ahead);
  ahead.advance(args, warp);
  if (kFormats != Formats::bf16) tables.fill(args.tables);
  wait_for_previous();
  if (args.held_columns == 0) {
    for (int i = 0; i < args.n_segments; ++i)
      if (i == 0 || args.segments[i].x_at != args.segments[i - 1].x_at)
        copy_rows(args.segments[i], rows, args.n_rows, 0, args.segments[i].n_in);
    wait_for_copies();
  }
  __syncthreads();

  int held = -1, buffer = 0;  // held: the column that the rows in shared memory begin with, where not all are
  Sums<kWide> sums = {}, first_sums = {};
  const auto step = [&](Batch& raw) {
    const Segment& s = args.segments[now.segment];
    const bool nf4 = is_nf4<kFormats>(s);
    const int first = now.batch * s.batch_chunks, column = first * s.chunk_columns;
    int from = 0;
    if (args.held_columns > 0) {
      from = (now.batch - warp) * s.batch_chunks * s.chunk_columns / args.held_columns * args.held_columns;
      if (from != held) {
        __syncthreads();
        copy_rows(s, rows, args.n_rows, from, min(args.held_columns, s.n_in - from));
        wait_for_copies();
        __syncthreads();
        held = from;
      }
    }
    if (first < s.n_chunks) {
      const RowFragments<kWide> x(rows + s.x_at + (column - from) * 2, s.x_stride, args.n_rows);
      if (nf4)
        add_nf4<kWide>(sums, raw, x, s.w[now.matrix], tables.pairs, tables.map);
      else
        add_bf16<kWide>(sums, raw, x, s.n_chunks - first);
    }
    load_batch<kFormats>(raw, args, ahead);
    ahead.advance(args, warp);
    if (now.ends_matrix(args, s, warp)) {
      auto& left = tables.sums[buffer];
      if (args.group > 1)
        for_sums<kWide>(nf4, [&](int row, int n, int e) { left[now.matrix][warp][row][n] = sums[e]; });
      if (now.matrix == 1 || s.then != Then::gate_up) {
        finish_job<kWide>(args, s, nf4, now.job, now.matrix, left, first_sums, sums);
        buffer ^= 1;
      }
#pragma unroll
      for (int e = 0; e < (kWide ? 8 : 4); ++e) first_sums[e] = sums[e], sums[e] = 0;
    }
    now.advance(args, warp);
  };
  while (!now.ended(args)) {
    step(even);
    if (now.ended(args)) break;
    step(odd);
  }
}

Matrix matrix_of(const Weight& w) {
  return {w.data, w.absmax_codes, w.absmax != nullptr ? nullptr : w.nested_absmax, w.absmax, w.nested_offset};
}

/// Warps of a group: enough for the whole card, of what the shapes give.
int group_of(int n_jobs, int most_batches, int64_t most_columns, int n_multiprocessors) {
  if (most_columns > kMostColumns) return kWarps;
  const int wanted = kBlocksOfProcessor * kWarps * n_multiprocessors * 7 / 10;
  int group = 1;
  while (group < kWarps && group * 2 <= most_batches && n_jobs * group < wanted) group *= 2;
  return group;
}

template <Formats kFormats>
auto kernel_of(bool wide) {
  return wide ? products_kernel<true, kFormats> : products_kernel<false, kFormats>;
}

Segment segment_of(const Step::Task& t) {
  Segment s;
  s.is_nf4 = t.w.format == WeightFormat::nf4;
  s.w[0] = matrix_of(t.w);
  if (!t.up.empty()) s.w[1] = matrix_of(t.up);
  s.x = t.x.as<bf16>(), s.y = t.y.data, s.given = t.given.as<bf16>();
  s.n_in = static_cast<int>(t.w.n_in), s.n_out = static_cast<int>(t.w.n_out);
  if (s.is_nf4) s.tile = 16, s.batch_chunks = kNf4Chunks, s.chunk_columns = 64;
  s.n_chunks = s.n_in / s.chunk_columns;
  s.x_stride = s.n_in * 2 + 16;
  s.then = t.then(), s.cap = t.cap;
  return s;
}

}  // namespace

/// group 0: as the shapes want it.
void Step::run_in_chunks(std::span<const Task> tasks, int group) {
  Arguments args;
  args.tables = nf4_tables_;
  args.n_rows = static_cast<int>(tasks[0].x.rows());
  int row_bytes = 0, most_batches = 0, n_nf4 = 0;
  int64_t most_columns = 0;
  for (const Task& t : tasks) {
    Segment& s = args.segments[args.n_segments++];
    s = segment_of(t);
    s.first_job = args.n_jobs;
    args.n_jobs += s.n_out / s.tile;
    n_nf4 += s.is_nf4 ? 1 : 0;
    most_batches = std::max(most_batches, s.n_chunks / s.batch_chunks);
    most_columns = std::max(most_columns, t.w.n_in);
    const bool is_new = args.n_segments == 1 || s.x != (&s - 1)->x;
    s.x_at = is_new ? row_bytes : (&s - 1)->x_at;
    row_bytes += is_new ? args.n_rows * s.x_stride : 0;
  }
  args.group = group > 0 ? group : group_of(args.n_jobs, most_batches, most_columns, backend_.n_multiprocessors_);
  const bool wide = args.n_rows > 8;
  const int table_bytes = (wide ? Shared<true>::kSumsBytes : Shared<false>::kSumsBytes) +
                          (n_nf4 > 0 ? Shared<true>::kMapBytes + kCodeTableBytes : 0);
  const int64_t room = most_shared_ - table_bytes, part_room = std::min(kPartRowBytes, room);
  const bool in_parts = most_columns > kMostColumns && row_bytes > part_room;
  if (tasks.size() > 1 && (in_parts || row_bytes > std::min(kMostRowBytes, room))) {
    for (const Task& t : tasks) run_in_chunks({&t, 1}, args.group);
    return;
  }
  if (in_parts) {
    args.held_columns =
        static_cast<int>(std::max(part_room / 2 / args.n_rows / kColumnsAtOnce * kColumnsAtOnce, kColumnsAtOnce));
    args.segments[0].x_stride = args.held_columns * 2 + 16;
    row_bytes = args.n_rows * args.segments[0].x_stride;
  }
  if (row_bytes > room) return run_plain(tasks);  // cards with 99 KiB a block, and many rows
  const auto kernel = n_nf4 == 0                 ? kernel_of<Formats::bf16>(wide)
                      : n_nf4 == args.n_segments ? kernel_of<Formats::nf4>(wide)
                                                 : kernel_of<Formats::mixed>(wide);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most_shared_)),
             "shared memory of a step's products");
  const int64_t blocks = std::min<int64_t>(ceil_div(static_cast<int64_t>(args.n_jobs) * args.group, kWarps),
                                           kBlocksOfProcessor * backend_.n_multiprocessors_);
  launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), table_bytes + row_bytes, args);
}

bool Step::fits_chunks(const Weight& w, DType activations) {
  const bool nf4 = w.format == WeightFormat::nf4;
  return activations == DType::bf16 && (w.format == WeightFormat::nf4 || w.format == WeightFormat::bf16) &&
         w.quant_map == nullptr && w.n_in % (nf4 ? kNf4Chunks * 64 : 32) == 0 && w.n_out % (nf4 ? 16 : 8) == 0 &&
         reinterpret_cast<uintptr_t>(w.data) % 16 == 0;
}

}  // namespace saaz::cuda
