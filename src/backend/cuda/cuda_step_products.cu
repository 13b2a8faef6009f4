// Step: products of few rows, bound by reading the weights once. A group of warps takes a tile of a weight's rows at a
// time, its warps every so-manieth batch of their columns. A batch is what a warp has on its way in one buffer; there
// are two, filled the first time before the step's previous kernel has ended. A chunk is the columns of one load: 32 of
// bf16, 64 of NF4, one block of scales. Products are made by tensor cores, x in shared memory; columns are dealt to
// lanes so that a lane reads 16 (8) bytes in one piece, in x alike. bf16: tiles of 8 rows, the right operand, as they
// are loaded. NF4: tiles of 16 rows, the left operand, as the table of pairs gives them: a code's value rounded to
// bf16; the block's scale multiplies the block's sum in f32. How many warps make a group follows from the shapes, so
// sums have one order whatever the number of rows: along a warp's batches, then over the warps.
#include <algorithm>

#include "backend/cuda/cuda_step_products.cuh"

namespace saaz::cuda {

namespace {

constexpr int kWarpsOfProcessor = 16;
constexpr int64_t kColumnsAtOnce = 4096;          // a multiple of what a block's warps read of a row at once
constexpr int64_t kMostColumns = kColumnsAtOnce;  // of an x that is always held whole
constexpr int64_t kMostRowBytes = 132 << 10, kPartRowBytes = 64 << 10;  // of x in shared memory, whole or in parts

/// Where a warp is in its work: a job's batches of its first and then its second matrix.
struct Cursor {
  int job, segment = 0, matrix = 0, batch, in_group, job_step;

  __device__ Cursor(const ProductArguments& args, int warp)
      : job((warp >> args.group_shift) * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x)),
        batch(warp & (args.group() - 1)),
        in_group(batch),
        job_step(static_cast<int>(gridDim.x) * static_cast<int>(blockDim.x / 32 >> args.group_shift)) {
    find_segment(args);
  }
  __device__ void find_segment(const ProductArguments& args) {
    while (segment + 1 < args.n_segments && job >= args.segments[segment + 1].first_job) ++segment;
  }
  __device__ bool ended(const ProductArguments& args) const { return job >= args.n_jobs; }
  /// The last round of the group: not every warp of it need have a batch left.
  __device__ bool ends_matrix(const ProductArguments& args, const Segment& s) const {
    return (batch - in_group + args.group()) * s.batch_chunks >= s.n_chunks;
  }
  __device__ void advance(const ProductArguments& args) {
    if (ended(args)) return;
    const Segment& s = args.segments[segment];
    if (!ends_matrix(args, s)) {
      batch += args.group();
      return;
    }
    batch = in_group;
    matrix ^= s.then == Then::gate_up ? 1 : 0;
    if (matrix == 1) return;
    job += job_step;
    if (!ended(args)) find_segment(args);
  }
};

/// kFormats: what a launch's weights are, so that only that is compiled into it.
enum class Formats : uint8_t { bf16, nf4, mixed };
template <Formats kFormats>
__device__ inline bool is_nf4(const Segment& s) {
  return kFormats == Formats::nf4 || (kFormats == Formats::mixed && s.is_nf4);
}

template <Formats kFormats>
__device__ inline void load_batch(Batch& to, const ProductArguments& args, const Cursor& at) {
  if (at.ended(args)) return;
  const Segment& s = args.segments[at.segment];
  const Matrix& w = s.w[at.matrix];
  const int lane = threadIdx.x % 32, first = at.batch * s.batch_chunks;
  if (first >= s.n_chunks) return;
  const int64_t row = static_cast<int64_t>(at.job - s.first_job) * s.tile + lane / 4;
  const int64_t chunk = row * s.n_chunks + first;
  if (is_nf4<kFormats>(s)) {  // whole batches
    load_nf4(to, w, chunk, chunk + static_cast<int64_t>(8) * s.n_chunks);
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
constexpr int kMapBytes = 256 * 4;
template <bool kWide, int kWarps>
struct Shared {
  static constexpr int kRows = kWide ? 16 : 8;
  using Sums = float[2][kWarps][kRows][kMostTile];  // by matrix
  static constexpr int kSumsBytes = 2 * static_cast<int>(sizeof(Sums));
};

template <bool kWide, int kWarps>
class Tables {
 public:
  using S = Shared<kWide, kWarps>;
  __device__ Tables(char* shared, bool any_nf4)
      : sums(reinterpret_cast<typename S::Sums*>(shared)),
        map(reinterpret_cast<float*>(shared + S::kSumsBytes)),
        pairs(shared + S::kSumsBytes + kMapBytes),
        rows(any_nf4 ? pairs + kCodeTableBytes : shared + S::kSumsBytes) {}
  __device__ void fill(const float* tables) const {
    if (threadIdx.x < 256) map[threadIdx.x] = tables[threadIdx.x];
    fill_pairs<kWarps * 32>(shared_address(pairs), tables + 256);
  }
  typename S::Sums* sums;  // of two jobs
  float* map;
  char *pairs, *rows;
};

/// The end of a job: its results, from the sums that all warps of the group have left.
template <bool kWide, int kWarps>
__device__ inline void finish_job(const ProductArguments& args, const Segment& s, int job, int matrix,
                                  const typename Shared<kWide, kWarps>::Sums& left) {
  const int64_t first_column = static_cast<int64_t>(job - s.first_job) * s.tile;
  const int group = static_cast<int>(threadIdx.x) / 32 >> args.group_shift, first_warp = group << args.group_shift;
  if (args.group() == 1)
    __syncwarp();
  else
    group_barrier(group, args.group());
#pragma unroll 1
  for (int i = threadIdx.x - first_warp * 32; i < args.n_rows * s.tile; i += args.group() * 32) {
    const int row = s.tile == kMostTile ? i / kMostTile : i / 8, n = i - row * s.tile;
    float total[2] = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w >= args.group()) continue;
      total[0] += left[0][first_warp + w][row][n];
      if (matrix == 1) total[1] += left[1][first_warp + w][row][n];
    }
    finish(s, row, first_column + n, total[0], total[1]);
  }
}

template <bool kWide, Formats kFormats, bool kMixes, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, kWarpsOfProcessor / kWarps)
    products_kernel(const __grid_constant__ ProductArguments args) {
  if constexpr (!kHasMma) return;
  extern __shared__ uint4 shared[];
  const Tables<kWide, kWarps> tables(reinterpret_cast<char*>(shared), kFormats != Formats::bf16);
  char* rows = tables.rows;
  const int warp = threadIdx.x / 32;
  let_next_start();
  Cursor now(args, warp), ahead = now;
  Batch even, odd;
  load_batch<kFormats>(even, args, ahead);
  ahead.advance(args);
  load_batch<kFormats>(odd, args, ahead);
  ahead.advance(args);
  if (kFormats != Formats::bf16) tables.fill(args.tables);
  if constexpr (kMixes) {
    const Segment& s = args.segments[0];
    const Mixer<kWarps> mixer(args.mix, s.n_in, rows + args.n_rows * s.x_stride);
    wait_for_previous();
    for (int row = 0; row < args.n_rows; ++row)
      mixer.make(row, reinterpret_cast<bf16*>(rows + row * s.x_stride), blockIdx.x == 0);
  } else {
    wait_for_previous();
  }
  if (!kMixes && args.held_columns == 0) {
    for (int i = 0; i < args.n_segments; ++i)
      if (i == 0 || args.segments[i].x_at != args.segments[i - 1].x_at)
        copy_rows(args.segments[i], rows, args.n_rows, 0, args.segments[i].n_in);
    wait_for_copies();
  }
  __syncthreads();

  // held: the column that the rows in shared memory begin with, where not all are.
  int held = -1, buffer = 0, from = 0;
  Sums<kWide> sums = {};
  const auto consume = [&](Batch& raw) {
    const Segment& s = args.segments[now.segment];
    const int first = now.batch * s.batch_chunks;
    if (first < s.n_chunks) {
      const RowFragments<kWide> x(rows + s.x_at + (first * s.chunk_columns - from) * 2, s.x_stride, args.n_rows);
      if (is_nf4<kFormats>(s))
        add_nf4<kWide>(sums, raw, x, s.w[now.matrix], tables.pairs, tables.map);
      else
        add_bf16<kWide>(sums, raw, x, s.n_chunks - first);
    }
    load_batch<kFormats>(raw, args, ahead);
    ahead.advance(args);
  };
  for (bool is_even = true; !now.ended(args); is_even = !is_even) {
    const Segment& s = args.segments[now.segment];
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
    if (is_even)
      consume(even);
    else
      consume(odd);
    if (now.ends_matrix(args, s)) {
      auto& left = tables.sums[buffer];
      for_sums<kWide>(is_nf4<kFormats>(s), [&](int row, int n, int e) { left[now.matrix][warp][row][n] = sums[e]; });
      if (now.matrix == 1 || s.then != Then::gate_up) {
        finish_job<kWide, kWarps>(args, s, now.job, now.matrix, left);
        buffer ^= 1;
      }
#pragma unroll
      for (int e = 0; e < (kWide ? 8 : 4); ++e) sums[e] = 0;
    }
    now.advance(args);
  }
}

/// Warps of a group: enough for the whole card, of what the shapes give.
int group_of(int n_jobs, int most_batches, int64_t most_columns, int n_multiprocessors, int block_warps) {
  if (most_columns > kMostColumns) return block_warps;
  const int wanted = kWarpsOfProcessor * n_multiprocessors * 7 / 10;
  int group = 1;
  while (group < block_warps && group * 2 <= most_batches && n_jobs * group < wanted) group *= 2;
  return group;
}

int sums_bytes(bool wide, int block_warps) {
  if (block_warps == kBlockWarps)
    return wide ? Shared<true, kBlockWarps>::kSumsBytes : Shared<false, kBlockWarps>::kSumsBytes;
  return wide ? Shared<true, kNf4BlockWarps>::kSumsBytes : Shared<false, kNf4BlockWarps>::kSumsBytes;
}
template <Formats kFormats, int kWarps = kBlockWarps>
auto kernel_of(bool wide, bool mixes) {
  if (kFormats != Formats::mixed && mixes) return products_kernel<false, kFormats, kFormats != Formats::mixed, kWarps>;
  return wide ? products_kernel<true, kFormats, false, kWarps> : products_kernel<false, kFormats, false, kWarps>;
}
MixArguments mix_arguments(const StepKernels::Mix& m) {
  return {m.mixed.as<bf16>(),
          m.y.as<bf16>(),
          m.active.as<bf16>(),
          m.attention.as<bf16>(),
          m.x.as<bf16>(),
          m.laurel.as<bf16>(),
          {m.attention_norm.as<float>(), m.laurel_norm.as<float>(), m.ffn_norm.as<float>()},
          m.eps};
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

ProductArguments Step::arguments_of(std::span<const Task> tasks, int group) const {
  ProductArguments args;
  args.tables = nf4_tables_;
  args.n_rows = static_cast<int>(tasks[0].x.rows());
  int most_batches = 0;
  for (const Task& t : tasks) {
    Segment& s = args.segments[args.n_segments++];
    s = segment_of(t);
    s.first_job = args.n_jobs;
    args.n_jobs += s.n_out / s.tile;
    args.n_nf4 += s.is_nf4 ? 1 : 0;
    most_batches = std::max(most_batches, s.n_chunks / s.batch_chunks);
    args.most_columns = std::max(args.most_columns, s.n_in);
    const bool is_new = args.n_segments == 1 || s.x != (&s - 1)->x;
    s.x_at = is_new ? args.row_bytes : (&s - 1)->x_at;
    args.row_bytes += is_new ? args.n_rows * s.x_stride : 0;
  }
  if (tasks[0].mix != nullptr) args.mix = mix_arguments(*tasks[0].mix);
  if (args.n_nf4 == args.n_segments && (group == 0 || group > kBlockWarps)) args.block_warps = kNf4BlockWarps;
  if (group == 0)
    group = group_of(args.n_jobs, most_batches, args.most_columns, backend_.n_multiprocessors_, args.block_warps);
  while (args.group() < group) ++args.group_shift;
  return args;
}

/// group 0: as the shapes want it.
void Step::run_in_chunks(std::span<const Task> tasks, int group) {
  ProductArguments args = arguments_of(tasks, group);
  const int n_nf4 = args.n_nf4, block_warps = args.block_warps;
  int row_bytes = args.row_bytes;
  const bool wide = args.n_rows > 8;
  const int table_bytes = sums_bytes(wide, block_warps) + (n_nf4 > 0 ? kMapBytes + kCodeTableBytes : 0);
  const int64_t room = most_shared_ - table_bytes, part_room = std::min(kPartRowBytes, room);
  const bool in_parts = args.most_columns > kMostColumns && row_bytes > part_room;
  if (tasks.size() > 1 && (in_parts || row_bytes > std::min(kMostRowBytes, room))) {
    for (const Task& t : tasks) run_in_chunks({&t, 1}, args.group());
    return;
  }
  if (in_parts) {
    args.held_columns =
        static_cast<int>(std::max(part_room / 2 / args.n_rows / kColumnsAtOnce * kColumnsAtOnce, kColumnsAtOnce));
    args.segments[0].x_stride = args.held_columns * 2 + 16;
    row_bytes = args.n_rows * args.segments[0].x_stride;
  }
  if (row_bytes > room) return run_plain(tasks);  // cards with 99 KiB a block, and many rows
  const bool mixes = tasks[0].mix != nullptr;
  if (mixes) row_bytes += 3 * args.segments[0].n_in * 4;
  const bool only_nf4 = block_warps == kNf4BlockWarps;
  if (n_nf4 > 0 && run_nf4_row(args)) return;
  // NF4 alone has the larger blocks, where it is not to follow groups that others have.
  const auto kernel = n_nf4 == 0 ? kernel_of<Formats::bf16>(wide, mixes)
                      : only_nf4 ? kernel_of<Formats::nf4, kNf4BlockWarps>(wide, mixes)
                                 : kernel_of<Formats::mixed>(wide, false);
  constexpr int64_t kOtherShared = 1 << 10;  // of Mixer
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(most_shared_ - (mixes ? kOtherShared : 0))),
             "shared memory of a step's products");
  const int64_t blocks = std::min<int64_t>(ceil_div(static_cast<int64_t>(args.n_jobs) * args.group(), block_warps),
                                           kWarpsOfProcessor / block_warps * backend_.n_multiprocessors_);
  launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(block_warps * 32)),
         table_bytes + row_bytes, args);
}

bool Step::takes_mix(const Mix& m, const Weight& w) const {
  constexpr int64_t kFewRows = 2;  // every block mixes all of them
  const bool vectors = takes_vectors<float>(w.n_in, {m.attention_norm.data, m.laurel_norm.data, m.ffn_norm.data}) &&
                       takes_vectors<bf16>(w.n_in, {m.attention.data, m.laurel.data, m.active.data, m.x.data});
  return m.y.rows() <= kFewRows && backend_.compute_capability_ >= 80 && fits_chunks(w, m.y.dtype) && vectors &&
         w.n_in == kMostMixed;
}

bool Step::fits_chunks(const Weight& w, DType activations) {
  const bool nf4 = w.format == WeightFormat::nf4;
  return activations == DType::bf16 && (w.format == WeightFormat::nf4 || w.format == WeightFormat::bf16) &&
         w.quant_map == nullptr && w.n_in % (nf4 ? kNf4Chunks * 64 : 32) == 0 && w.n_out % (nf4 ? 16 : 8) == 0 &&
         reinterpret_cast<uintptr_t>(w.data) % 16 == 0;
}

}  // namespace saaz::cuda
