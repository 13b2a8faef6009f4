// Step: StepKernels on one NVIDIA GPU. A step is recorded as a CUDA graph. Its kernels start while the one before still
// runs (programmatic dependent launch, sm_90): what they read of weights is under way when the results they need are
// there. So each kernel lets the next one start at once, and reads no activation and writes nothing before
// `wait_for_previous`. Room-private.
#pragma once

#include "backend/cuda/cuda_common.cuh"
#include "backend/step.h"

namespace saaz::cuda {

struct ProductArguments;  // cuda_step_products.cuh
namespace nf4_row {
struct RowArguments;  // cuda_step_nf4.cuh
}

class Step final : public StepKernels {
 public:
  explicit Step(CudaBackend& backend);
  ~Step() override;

  void run(std::unique_ptr<Recording>& recording, const StepTokens& tokens,
           const std::function<void()>& queue) override;
  void cut() override;
  void embed(const Tensor& out, const Weight& table, float scale) override;
  void products(std::span<const Product> products) override;
  void gated(const Gated& g) override { gated(g, nullptr); }
  void feed_forward(const FeedForward& f) override;
  void attention(const Attention& a) override;
  void altup_start(const Tensor& streams, const Tensor& e, const Tensor& projected) override;
  void per_layer_inputs(const PerLayer& p) override;
  void altup_open(const AltUpOpen& a) override;
  void mix(const Mix& m) override;
  void altup_close(const AltUpClose& a) override;
  void turn(const Turn& t) override;
  void altup_finish(const Tensor& y, const Tensor& streams, const Tensor& projected, const Tensor& norm,
                    float eps) override;
  void head(const Product& head, LogitsWanted wanted) override;
  /// This memory is no weight any more: what was made of it goes, too.
  void forget(const void* weight);

  enum class Then : uint8_t;  // cuda_step_task.h
  struct Task;

 private:
  struct Graph;
  /// Rows of a table in host memory on their way: gathered before each run.
  struct Travelling {
    Weight table, rows;  // rows.data: device memory
    char* pinned;
    int64_t bytes;
  };
  /// The ids and spans of a step, as the kernels find them.
  struct DeviceTokens {
    int32_t* ids;
    AttentionSpan* spans[2];
  };
  void gather(const Travelling& rows) const;
  void stage(const StepTokens& tokens);
  void copy_tokens();
  void record(Graph& graph, const std::function<void()>& queue);
  void begin_recording();
  void end_recording();

  // cuda_step_tasks.cu
  void load_tables();
  /// mix: what makes g.x and is not made yet; for rows and weights of takes_mix.
  void gated(const Gated& g, const Mix* mix);
  void run_tasks(std::span<const Task> tasks);
  /// A launch of products as their kernels take it: how the work is dealt follows from the shapes.
  ProductArguments arguments_of(std::span<const Task> tasks, int group) const;
  void run_in_chunks(std::span<const Task> tasks, int group);
  void run_plain(std::span<const Task> tasks);
  /// Whether the launch was made: NF4 products of one row of x, and beside them one of bf16 at most.
  bool run_nf4_row(const ProductArguments& args);
  /// Whether one launch made it, or what goes before the gate that is sparse.
  bool run_nf4_feed_forward(const FeedForward& f);
  /// Fills in what all launches have.
  void launch_rows(nf4_row::RowArguments& args);
  void run_by_blas(const Task& task);
  /// Whether the product with a weight makes its x of a mix itself.
  bool takes_mix(const Mix& m, const Weight& w) const;
  /// Whether run_in_chunks takes the weight.
  static bool fits_chunks(const Weight& w, DType activations);
  // cuda_step_sparse.cu
  /// y from gate and up.
  void sparse_gate(const Gated& g);
  void sparse_up(const Task& up, const Gated& g);
  /// Whether one launch makes the turn.
  bool takes_turn(const Turn& t);
  // cuda_step_head.cu
  /// Whether it was done without reading all of the head.
  bool run_likeliest(const Product& head);
  void* head_codes(const Weight& w);
  void match(const Tensor& to, const Tensor& own, const Tensor& projected, const Tensor& norm, float eps);

  /// For the kernels of one stream, of which the largest decides: with one division of the first cache for all, no
  /// multiprocessor has to run empty between two of them to change it.
  template <class... P>
  static void share_first_cache(void (*kernel)(P...)) {
    constexpr int kPercentShared = 72;  // 164 KiB of 228
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, kPercentShared),
               "dividing the first cache");
  }
  /// Launches so that the kernel may start before the one queued last has ended.
  template <class... P, class... A>
  void launch(void (*kernel)(P...), dim3 grid, dim3 block, int shared_bytes, const A&... arguments) {
    launch_clusters(1, kernel, grid, block, shared_bytes, arguments...);
  }
  /// In clusters of so many blocks.
  template <class... P, class... A>
  void launch_clusters(unsigned n_blocks, void (*kernel)(P...), dim3 grid, dim3 block, int shared_bytes,
                       const A&... arguments) {
    cudaLaunchAttribute attributes[2];
    unsigned n_attributes = 0;
    if (backend_.compute_capability_ >= 90 && after_kernel_) {
      cudaLaunchAttribute& early = attributes[n_attributes++];
      early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      early.val.programmaticStreamSerializationAllowed = 1;
    }
    if (n_blocks > 1) {
      cudaLaunchAttribute& cluster = attributes[n_attributes++];
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim = {n_blocks, 1, 1};
    }
    cudaLaunchConfig_t config{};
    config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = backend_.stream_;
    config.attrs = attributes, config.numAttrs = n_attributes;
    check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), "a step's kernel");
    after_kernel_ = true;
  }

  CudaBackend& backend_;
  int64_t most_shared_ = 0;    // bytes of shared memory that a block may have
  bool after_kernel_ = false;  // the stream's last work is a kernel
  int64_t n_tokens_ = 0;
  DeviceTokens tokens_{};
  void *staged_ = nullptr, *pinned_ = nullptr;
  cudaEvent_t done_ = nullptr;                     // of the last run: the pinned memory is free
  std::vector<Travelling>* travelling_ = nullptr;  // of the run that is being queued
  std::vector<int32_t> ids_;
  Graph* recorded_ = nullptr;                // what is being recorded
  size_t n_embedded_ = 0;                    // tables in host memory that the run has come to
  float* nf4_tables_ = nullptr;              // the signed map [256], the values of NF4 [16]
  int* arrived_ = nullptr;                   // attention: parts of a row that are done
  unsigned long long* met_ = nullptr;        // blocks of feed_forward that met
  std::map<const void*, void*> head_codes_;  // by weight; null: no room
  std::optional<bool> has_clusters_;         // the card runs clusters as `turn` wants them; empty: not asked yet
};

#if defined(__CUDACC__)
/// Of a shuffle: known to be one for all lanes, so that no code is made for warps whose lanes are apart.
__device__ inline int this_warp() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 32), 0); }
__device__ inline void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// Until all that was queued before is done and seen here.
__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#endif

}  // namespace saaz::cuda
