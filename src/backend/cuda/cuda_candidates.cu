// CudaBackend: what a sampler wants of a row of logits, so that rows stay where they are. The sampler's own way
// (infer/sampler.cc): the largest of each block of 512; the k-th largest of these bounds the k-th largest of all from
// below; only blocks that reach the bound are read again. Found values are written to host memory, by id.
#include <algorithm>
#include <limits>

#include "backend/cuda/cuda_common.cuh"

namespace saaz::cuda {

namespace {

constexpr int kBlock = 512, kThreads = 1024, kWarps = kThreads / 32, kMostBlocks = kThreads;
constexpr int kMostFound = 1024;
constexpr int kScratchBlocks = 190;

/// A row's results in host memory.
struct Found {
  int32_t n;  // may be more than there is room for
  float best;
  Candidate candidates[kMostFound];
};

__global__ void change_kernel(float* logits, const LogitChange* changes, int64_t n_changes, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n_changes) return;
  const LogitChange c = changes[i];
  float& logit = logits[c.row * n + c.id];
  float x = logit;
  if (c.repetition != 1) x = x < 0 ? __fmul_rn(x, c.repetition) : __fdiv_rn(x, c.repetition);
  if (c.minus != 0) x = __fsub_rn(x, c.minus);
  if (c.plus != 0) x = __fadd_rn(x, c.plus);
  logit = x;
}

/// A warp for each block of a row. Grid: blocks / kWarps, rows.
__global__ void __launch_bounds__(kThreads)
    largest_kernel(float* largest, const float* logits, int64_t n, int n_blocks) {
  const int block = static_cast<int>(blockIdx.x) * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (block >= n_blocks) return;
  const float* row = logits + blockIdx.y * n;
  float x = -INFINITY;
#pragma unroll
  for (int i = 0; i < kBlock / 32; ++i) {
    const int64_t at = static_cast<int64_t>(block) * kBlock + i * 32 + lane;
    if (at < n) x = fmaxf(x, row[at]);
  }
  x = warp_max(x);
  if (lane == 0) largest[static_cast<int64_t>(blockIdx.y) * n_blocks + block] = x;
}

/// The sum of `x` over the threads before this one, and over all.
__device__ int before_this(int x, int& total) {
  __shared__ int of_warp[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = x;
  for (int d = 1; d < 32; d *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, sum, d);
    if (lane >= d) sum += other;
  }
  if (lane == 31) of_warp[warp] = sum;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += of_warp[w];
    total += of_warp[w];
  }
  __syncthreads();
  return before + sum - x;
}

/// A block for each row.
__global__ void __launch_bounds__(kThreads) select_kernel(Found* found, const float* largest, const float* logits,
                                                          const CandidateQuery* queries, int64_t n, int n_blocks) {
  __shared__ int chosen[kMostBlocks], first_of[kMostBlocks];
  const int row_index = blockIdx.x, thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const CandidateQuery query = queries[row_index];
  Found& to = found[row_index];
  const float own = thread < n_blocks ? largest[static_cast<int64_t>(row_index) * n_blocks + thread] : -INFINITY;
  const float best_of_warp = warp_max(own);
  __shared__ float best_of[kWarps];
  if (lane == 0) best_of[warp] = best_of_warp;
  __syncthreads();
  const float best = warp_max(best_of[lane]);
  const float bound = query.k > 1 ? block_kth_largest(own, query.k) : query.k == 1 ? best : -INFINITY;
  const float least = query.within < 0 ? INFINITY : fmaxf(bound, best - query.within);
  int n_chosen;
  const bool is_chosen = thread < n_blocks && query.within >= 0 && own >= least && own != -INFINITY;
  const int place = before_this(is_chosen ? 1 : 0, n_chosen);
  if (is_chosen) chosen[place] = thread;
  __syncthreads();
  const float* row = logits + row_index * n;
  const auto is_found = [&](int block, int i) {
    const int64_t at = static_cast<int64_t>(block) * kBlock + i * 32 + lane;
    return at < n && row[at] >= least && row[at] != -INFINITY;
  };
  int count = 0;
  for (int c = warp; c < n_chosen; c += kWarps) {
    int of_this = 0;
    for (int i = 0; i < kBlock / 32; ++i) of_this += __popc(__ballot_sync(0xffffffffu, is_found(chosen[c], i)));
    if (lane == 0) first_of[c] = of_this;
  }
  __syncthreads();
  int n_found;
  count = thread < n_chosen ? first_of[thread] : 0;
  const int first = before_this(count, n_found);
  if (thread < n_chosen) first_of[thread] = first;
  if (thread == 0) to.n = n_found, to.best = best;
  __syncthreads();
  if (n_found > kMostFound) return;
  for (int c = warp; c < n_chosen; c += kWarps) {
    int at = first_of[c];
    for (int i = 0; i < kBlock / 32; ++i) {
      const bool is_here = is_found(chosen[c], i);
      const unsigned mask = __ballot_sync(0xffffffffu, is_here);
      const int id = chosen[c] * kBlock + i * 32 + lane;
      if (is_here) to.candidates[at + __popc(mask & ((1u << lane) - 1))] = {id, row[id]};
      at += __popc(mask);
    }
  }
}

}  // namespace

bool CudaBackend::find_candidates(const Tensor& logits, std::span<const LogitChange> changes,
                                  std::span<const CandidateQuery> queries, std::vector<Candidates>& out) {
  const int64_t rows = logits.dim(0), n = logits.dim(1), n_blocks = ceil_div(n, kBlock);
  if (n_blocks > kMostBlocks) return false;
  out.assign(static_cast<size_t>(rows), {});
  if (rows == 0) return true;
  const int64_t bytes = rows * static_cast<int64_t>(sizeof(Found));
  if (found_.bytes < bytes) {
    check_cuda(cudaStreamSynchronize(stream_), "waiting for the device");
    cudaFreeHost(found_.data);
    found_ = {};
    check_cuda(cudaMallocHost(&found_.data, static_cast<size_t>(bytes)), "pinned memory for candidates");
    found_.bytes = bytes;
  }
  if (!changes.empty()) {
    const auto count = static_cast<int64_t>(changes.size());
    change_kernel<<<static_cast<unsigned>(ceil_div(count, 256)), 256, 0, stream_>>>(logits.f32(), staged(changes),
                                                                                    count, n);
    check_launch("change_kernel");
  }
  auto* largest = static_cast<float*>(scratch(kScratchBlocks, rows * n_blocks * 4));
  const CandidateQuery* wanted = staged(queries);
  largest_kernel<<<dim3(static_cast<unsigned>(ceil_div(n_blocks, kWarps)), static_cast<unsigned>(rows)), kThreads, 0,
                   stream_>>>(largest, logits.f32(), n, static_cast<int>(n_blocks));
  check_launch("largest_kernel");
  auto* found = static_cast<Found*>(found_.data);
  select_kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream_>>>(found, largest, logits.f32(), wanted, n,
                                                                       static_cast<int>(n_blocks));
  check_launch("select_kernel");
  check_cuda(cudaStreamSynchronize(stream_), "running on the GPU");
  for (int64_t row = 0; row < rows; ++row) {
    const Found& f = found[row];
    Candidates& c = out[static_cast<size_t>(row)];
    c.complete = queries[static_cast<size_t>(row)].within >= 0 && f.n <= kMostFound;
    if (c.complete) c.found.assign(f.candidates, f.candidates + f.n);
  }
  return true;
}

}  // namespace saaz::cuda
