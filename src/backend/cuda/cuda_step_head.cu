// Step: the head of one row where only the likeliest logits are wanted. All rows of the weight are read in 8 bits, each
// with the length of its rounding error: by Cauchy and Schwarz that bounds how far its logit may be off. Rows whose
// logit may be among the largest are read again as they are, and their logits are those that products_kernel makes, bit
// for bit: the same sums in the same order. Columns of large weights would make all codes coarse: each is divided by a
// factor, its x multiplied by it (SmoothQuant, arXiv 2211.10438, with x taken for even).
#include <cfloat>

#include "backend/cuda/cuda_step_products.cuh"

namespace saaz::cuda {

namespace {

constexpr int kColumns = 2048, kBatches = kColumns / 32 / kLoads;
constexpr int kThreads = 512, kWarps = kThreads / 32, kBlockRows = 4 * kThreads;
constexpr int kPieces = kColumns / 512;  // of 16 codes, in a lane
constexpr int kMostLargest = kThreads;
constexpr int kScratchBounds = 191;
/// Codes of x: 16 bits, as a high and a low byte of -128 to 127.
constexpr float kMostOfX = 127 * 256 + 127;
/// What else a logit may be off by, in parts of |x| |w|. Codes of x: 0.51 sqrt(kColumns) / kMostOfX, times the length
/// of w's codes, which is 1.1 |w| at most: 7.8e-4. Bits that the lanes' sums lose: 3 * 32 / (kMostOfX 127) = 2.3e-5.
/// products_kernel's sums: chains of 8 products of 16, were each of their 136 additions cut off, 1.6e-5. The rest is
/// for roundings of what bounds these.
constexpr float kOtherErrors = 1e-3f;
constexpr float kRoundedUp = 1.0001f;
/// Of the largest in a row: below, products of the scales are no longer normal numbers, and no bound is kept.
constexpr float kLeast = 1e-15f;

/// A row: its codes' scale, and what |x| is multiplied by for how far its logit may be off.
struct RowInfo {
  float scale, error;
};
struct Codes {
  uint4* codes = nullptr;    // [n_out, kColumns] bytes
  float* factors = nullptr;  // [kColumns], powers of two
  RowInfo* infos = nullptr;  // [n_out]
};

int64_t codes_bytes(const Weight& w) {
  return w.size() + kColumns * 4 + w.n_out * static_cast<int64_t>(sizeof(RowInfo));
}
Codes codes_in(void* memory, const Weight& w) {
  char* const factors = static_cast<char*>(memory) + w.size();
  return {static_cast<uint4*>(memory), reinterpret_cast<float*>(factors),
          reinterpret_cast<RowInfo*>(factors + kColumns * 4)};
}

/// The 16 columns of a lane's piece.
__device__ inline int column_of(int piece) { return piece * 512 + static_cast<int>(threadIdx.x) % 32 * 16; }

/// A column's factor: the square root of its root mean square over some of the rows. Two columns for each lane.
__global__ void __launch_bounds__(kThreads) factors_kernel(float* factors, const bf16* w, int n_out) {
  constexpr int kSampled = 4096, kMostExponent = 30;
  __shared__ float of_warp[kWarps][64];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bf16* columns = w + blockIdx.x * 64 + lane * 2;
  float squares[2] = {};
#pragma unroll 8
  for (int i = warp; i < kSampled; i += kWarps) {
    const int64_t row = static_cast<int64_t>(i) * n_out / kSampled;
    const float2 x = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(columns + row * kColumns));
    squares[0] += x.x * x.x, squares[1] += x.y * x.y;
  }
  of_warp[warp][2 * lane] = squares[0], of_warp[warp][2 * lane + 1] = squares[1];
  __syncthreads();
  if (threadIdx.x >= 64) return;
  float sum = 0;
  for (int i = 0; i < kWarps; ++i) sum += of_warp[i][threadIdx.x];
  const float exponent = sum > 0 ? rintf(log2f(sum / kSampled) / 4) : 0;
  factors[blockIdx.x * 64 + threadIdx.x] =
      ldexpf(1, static_cast<int>(fmaxf(-kMostExponent, fminf(kMostExponent, exponent))));
}

/// A warp for each row.
__global__ void __launch_bounds__(kThreads) encode_kernel(const Codes to, const bf16* w, int n_out) {
  const int row = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (row >= n_out) return;
  Vector<bf16> x[2 * kPieces];
  float most = 0;
#pragma unroll
  for (int i = 0; i < 2 * kPieces; ++i) {
    const int column = column_of(i / 2) + i % 2 * 8;
    x[i] = load_vector(w + static_cast<int64_t>(row) * kColumns + column);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      x[i].v[e] /= to.factors[column + e];
      most = fmaxf(most, fabsf(x[i].v[e]));
    }
  }
  most = warp_max(most);
  const bool is_normal = most >= kLeast;
  const float scale = is_normal ? most / 127 : 0, inverse = is_normal ? 127 / most : 0, unit = is_normal ? 1 / most : 0;
  float squares = 0, error_squares = 0;
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
    uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float value = x[2 * piece + i / 8].v[i % 8];
      const int code = max(-127, min(127, __float2int_rn(value * inverse)));
      words[i / 4] |= (static_cast<uint32_t>(code) & 255) << (i % 4 * 8);
      const float part = value * unit, error = fmaf(-scale, static_cast<float>(code), value) * unit;
      squares += part * part, error_squares += error * error;
    }
    to.codes[(static_cast<int64_t>(row) * kColumns + column_of(piece)) / 16] =
        make_uint4(words[0], words[1], words[2], words[3]);
  }
  const float length = sqrtf(warp_sum(squares)), error = sqrtf(warp_sum(error_squares));
  if (threadIdx.x % 32 != 0) return;
  // Of a row that is next to nothing no code is kept: all of it is error.
  const float parts = is_normal ? error + kOtherErrors * length : 46;  // > sqrt(kColumns)
  to.infos[row] = {scale, parts * most * kRoundedUp};
}

__device__ inline int sum_of_lanes(int x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_add_sync(0xffffffffu, x);
#else
  return x;
#endif
}

/// Two rows that are next to each other, on their way; the info of the first in even lanes, of the second in odd ones.
struct Pair {
  uint4 codes[2 * kPieces];
  float2 info;
};
__device__ inline void load_pair(Pair& to, const Codes& w, int pair, int n_pairs) {
  if (pair >= n_pairs) return;
  const uint4* codes = w.codes + static_cast<int64_t>(pair) * (2 * kColumns / 16) + threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2 * kPieces; ++i) to.codes[i] = stream_load(codes + i * 32);
  to.info = __ldg(reinterpret_cast<const float2*>(w.infos) + pair * 2 + threadIdx.x % 2);
}

/// x times the factors in 16 bits: a lane's bytes of it; what a unit is; its length, rounded up, or infinity where no
/// bound would hold.
struct RowX {
  uint4 high[kPieces], low[kPieces];
  float unit, length;
};
__device__ inline void load_x(RowX& to, const bf16* x, const float4& factors) {
  __shared__ alignas(16) uint32_t parts[2][kColumns / 4];
  __shared__ float of_warp[2][kWarps];
  constexpr int kItem = kColumns / kThreads;
  static_assert(kItem == 4);
  const int lane = threadIdx.x % 32, warp = this_warp();
  const uint2 raw = *reinterpret_cast<const uint2*>(x + threadIdx.x * kItem);
  const auto* values = reinterpret_cast<const bf16*>(&raw);
  const float of_column[kItem] = {factors.x, factors.y, factors.z, factors.w};
  float v[kItem], most = 0;
#pragma unroll
  for (int i = 0; i < kItem; ++i) {
    v[i] = to_f32(values[i]) * of_column[i];
    most = fmaxf(most, fabsf(v[i]) <= FLT_MAX ? fabsf(v[i]) : INFINITY);
  }
  most = warp_max(most);
  if (lane == 0) of_warp[0][warp] = most;
  __syncthreads();
  most = warp_max(lane < kWarps ? of_warp[0][lane] : 0.0f);
  const bool is_normal = most >= kLeast && most <= FLT_MAX;
  const float inverse = is_normal ? kMostOfX / most : 0, unit = is_normal ? 1 / most : 0;
  uint32_t high = 0, low = 0;
  float square = 0;
#pragma unroll
  for (int i = 0; i < kItem; ++i) {
    const int code = __float2int_rn(v[i] * inverse), upper = (code + 128) >> 8, lower = code - upper * 256;
    high |= (static_cast<uint32_t>(upper) & 255) << (8 * i), low |= (static_cast<uint32_t>(lower) & 255) << (8 * i);
    square += v[i] * unit * (v[i] * unit);
  }
  parts[0][threadIdx.x] = high, parts[1][threadIdx.x] = low;
  square = warp_sum(square);
  if (lane == 0) of_warp[1][warp] = square;
  __syncthreads();
  square = warp_sum(lane < kWarps ? of_warp[1][lane] : 0.0f);
  to.unit = is_normal ? most / kMostOfX : 0;
  to.length = is_normal ? most * sqrtf(square) * kRoundedUp : (most == 0 ? 0 : INFINITY);
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
    to.high[piece] = *reinterpret_cast<const uint4*>(&parts[0][column_of(piece) / 4]);
    to.low[piece] = *reinterpret_cast<const uint4*>(&parts[1][column_of(piece) / 4]);
  }
}

__device__ inline int dot(const uint4& a, const uint4& b, int sum) {
  sum = __dp4a(static_cast<int>(a.x), static_cast<int>(b.x), sum);
  sum = __dp4a(static_cast<int>(a.y), static_cast<int>(b.y), sum);
  sum = __dp4a(static_cast<int>(a.z), static_cast<int>(b.z), sum);
  return __dp4a(static_cast<int>(a.w), static_cast<int>(b.w), sum);
}

/// upper [n_out]: no logit, not yet capped, is larger. largest: of some rows each, the largest of what their logits
/// are at least; n_largest of a block. Sums of a lane are below 2^28, and a quarter of the warp's below 2^31.
__global__ void __launch_bounds__(kThreads, 1)
    bounds_kernel(float* upper, float* largest, const Codes w, const bf16* x, int n_pairs, int n_largest) {
  if constexpr (!kHasMma) return;
  __shared__ float of_warp[kWarps];
  let_next_start();
  const int lane = threadIdx.x % 32, warp = this_warp(), step = static_cast<int>(gridDim.x) * kWarps;
  int now = warp * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
  Pair even, odd;
  load_pair(even, w, now, n_pairs);
  load_pair(odd, w, now + step, n_pairs);
  const float4 factors = __ldg(reinterpret_cast<const float4*>(w.factors) + threadIdx.x);
  wait_for_previous();
  RowX row;
  load_x(row, x, factors);
  const float unit = 4 * row.unit;
  float best = -INFINITY;
  const auto consume = [&](Pair& pair) {
    int sums[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int high = 0, low = 0;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        high = dot(pair.codes[r * kPieces + i], row.high[i], high);
        low = dot(pair.codes[r * kPieces + i], row.low[i], low);
      }
      sums[r] = sum_of_lanes((high * 256 + low) >> 2);
    }
    const float logit = static_cast<float>(lane % 2 == 0 ? sums[0] : sums[1]) * (unit * pair.info.x),
                off = row.length * pair.info.y;
    best = fmaxf(best, logit - off);
    if (lane < 2) upper[2 * now + lane] = logit + off;
    load_pair(pair, w, now + 2 * step, n_pairs);
    now += step;
  };
  while (now < n_pairs) {
    consume(even);
    if (now >= n_pairs) break;
    consume(odd);
  }
  best = warp_max(best);
  if (lane == 0) of_warp[warp] = best;
  __syncthreads();
  if (static_cast<int>(threadIdx.x) >= n_largest) return;
  best = -INFINITY;
  for (int i = threadIdx.x; i < kWarps; i += n_largest) best = fmaxf(best, of_warp[i]);
  largest[blockIdx.x * n_largest + threadIdx.x] = best;
}

__device__ inline float capped(float x, float cap) { return cap > 0 ? cap * tanhf(x / cap) : x; }

struct LikeliestArguments {
  const float *upper, *largest;
  const bf16 *x, *w;
  float* logits;
  int n_out, n_largest;
  float cap;
};

/// The rows of a block whose logit may be among the largest, in `rows`; the logits of the others are -infinity.
/// Compared after the cap, where two may have become equal; tanhf may be off by two roundings.
__device__ inline int find_rows(const LikeliestArguments& args, int (&rows)[kBlockRows]) {
  __shared__ int n;
  if (threadIdx.x == 0) n = 0;
  const int first = static_cast<int>(blockIdx.x) * kBlockRows + static_cast<int>(threadIdx.x) * 4;
  const bool is_row = first < args.n_out;
  const float own = static_cast<int>(threadIdx.x) < args.n_largest ? __ldcg(args.largest + threadIdx.x) : -INFINITY;
  const float4 upper = is_row ? __ldcg(reinterpret_cast<const float4*>(args.upper + first)) : float4{};
  const float least = capped(block_kth_largest(own, kLikeliest), args.cap), margin = args.cap * 0x1p-20f;
  if (is_row) {
    *reinterpret_cast<float4*>(args.logits + first) = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    const float of_row[4] = {upper.x, upper.y, upper.z, upper.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (!(capped(of_row[i], args.cap) + margin < least)) rows[atomicAdd(&n, 1)] = first + i;  // in any order
  }
  __syncthreads();
  return n;
}

/// Eight rows at a time by eight warps, a batch of each row's columns by each.
__global__ void __launch_bounds__(kThreads, 1) likeliest_kernel(const __grid_constant__ LikeliestArguments args) {
  if constexpr (!kHasMma) return;
  constexpr int kTile = 8, kTeamWarps = kBatches, kTeams = kWarps / kTeamWarps;
  __shared__ int rows[kBlockRows];
  __shared__ alignas(16) bf16 x[kColumns];
  __shared__ float sums_of[kTeams][2][kBatches][kTile];
  const int lane = threadIdx.x % 32, warp = this_warp(), team = warp / kTeamWarps, batch = warp % kTeamWarps;
  let_next_start();
  wait_for_previous();
  reinterpret_cast<uint2*>(x)[threadIdx.x] = reinterpret_cast<const uint2*>(args.x)[threadIdx.x];
  const int n = find_rows(args, rows);
  int buffer = 0;
  for (int first = team * kTile; first < n; first += kTeams * kTile, buffer ^= 1) {
    const int row = rows[min(first + lane / 4, n - 1)];
    const uint4* values =
        reinterpret_cast<const uint4*>(args.w + static_cast<int64_t>(row) * kColumns) + batch * kLoads * 4 + lane % 4;
    Batch raw;
#pragma unroll
    for (int u = 0; u < kLoads; ++u) raw[u] = stream_load(values + u * 4);
    Sums<false> sums = {};
    const RowFragments<false> fragments(reinterpret_cast<const char*>(x + batch * kLoads * 32), 0, 1);
    add_bf16<false>(sums, raw, fragments, kLoads);
    auto& left = sums_of[team][buffer];
    if (lane < 4) left[batch][lane * 2] = sums[0], left[batch][lane * 2 + 1] = sums[1];
    group_barrier(team, kTeamWarps);
    if (batch == 0 && lane < kTile && first + lane < n) {
      float sum = 0;
#pragma unroll
      for (int b = 0; b < kBatches; ++b) sum += left[b][lane];
      args.logits[rows[first + lane]] = capped(sum, args.cap);
    }
    __syncwarp();
  }
}

}  // namespace

/// The codes of a head, made when they are asked for first; null where they would leave less than half of the card
/// free, or where its memory has a limit.
void* Step::head_codes(const Weight& w) {
  const std::lock_guard lock(backend_.recording_);
  if (const auto known = head_codes_.find(w.data); known != head_codes_.end()) return known->second;
  void*& kept = head_codes_[w.data];
  if (!backend_.leaves_half_free(codes_bytes(w))) return nullptr;
  void* memory = nullptr;
  try {
    memory = backend_.allocate(codes_bytes(w), "codes of the head");
  } catch (const Error&) {
    return nullptr;  // another process was faster
  }
  const Codes codes = codes_in(memory, w);
  const auto* values = static_cast<const bf16*>(w.data);
  const auto n_out = static_cast<int>(w.n_out);
  factors_kernel<<<kColumns / 64, kThreads, 0, backend_.stream_>>>(codes.factors, values, n_out);
  check_launch("factors_kernel");
  encode_kernel<<<static_cast<unsigned>(ceil_div(w.n_out, kWarps)), kThreads, 0, backend_.stream_>>>(codes, values,
                                                                                                     n_out);
  check_launch("encode_kernel");
  after_kernel_ = false;
  return kept = memory;
}

void Step::forget(const void* weight) {
  const auto known = head_codes_.find(weight);
  if (known == head_codes_.end()) return;
  cudaFree(known->second);
  head_codes_.erase(known);
}

bool Step::run_likeliest(const Product& head) {
  const Weight& w = head.w;
  if (head.x.rows() != 1 || w.n_in != kColumns || w.format != WeightFormat::bf16 || head.y.dtype != DType::f32 ||
      backend_.compute_capability_ < 80 || !fits_chunks(w, head.x.dtype))
    return false;
  const Task task{head.y, head.x, {}, w, {}, head.cap};
  if (arguments_of({&task, 1}, 0).group() != 1) return false;  // sums of another order
  void* memory = head_codes(w);
  if (memory == nullptr) return false;
  const auto n_out = static_cast<int>(w.n_out), n_pairs = n_out / 2;
  const auto n_blocks = static_cast<int>(std::min<int64_t>(ceil_div(n_pairs, kWarps), backend_.n_multiprocessors_));
  int n_largest = kWarps;
  while (n_largest > 1 && n_largest * n_blocks > kMostLargest) n_largest /= 2;
  check(n_largest * n_blocks <= kMostLargest, ExitCode::bug, "cuda: {} multiprocessors", n_blocks);
  auto* upper = static_cast<float*>(backend_.scratch(kScratchBounds, (w.n_out + kMostLargest) * 4));
  float* largest = upper + w.n_out;
  share_first_cache(bounds_kernel);
  share_first_cache(likeliest_kernel);
  launch(bounds_kernel, dim3(static_cast<unsigned>(n_blocks)), dim3(kThreads), 0, upper, largest, codes_in(memory, w),
         head.x.as<bf16>(), n_pairs, n_largest);
  const LikeliestArguments args{upper,        largest, head.x.as<bf16>(),    static_cast<const bf16*>(w.data),
                                head.y.f32(), n_out,   n_largest * n_blocks, head.cap};
  launch(likeliest_kernel, dim3(static_cast<unsigned>(ceil_div(w.n_out, kBlockRows))), dim3(kThreads), 0, args);
  return true;
}

void Step::head(const Product& head, LogitsWanted wanted) {
  if (wanted == LogitsWanted::likeliest && run_likeliest(head)) return;
  products({&head, 1});
}

}  // namespace saaz::cuda
