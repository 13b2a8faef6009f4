// CudaBackend: the kernels of backend.h on one NVIDIA GPU, in one stream. Activations are bf16 (or f32, for parity
// tests); sums, statistics (inv_rms, mean_std, lse, losses), logits, adapters and optimizer state are f32. No float
// atomics: the same launch gives the same bytes. Room-private: others use make_cuda_backend (backend.h). Methods queue
// work and return; upload, download and sum_of_squares wait for it.
#pragma once

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/step.h"
#include "base/threads.h"

namespace saaz::cuda {

/// Host arrays (ids, positions, rows, spans) in device memory. A ring of slots keyed by content: what a step used
/// before is found again, so a layer's arrays travel once, not once per layer.
class HostArrays {
 public:
  explicit HostArrays(cudaStream_t stream);
  ~HostArrays();
  /// Device address of a copy of the bytes, valid until kSlots other arrays have been staged.
  const void* stage(const void* host, size_t bytes);

 private:
  struct Slot;
  cudaStream_t stream_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::map<uint64_t, size_t> by_hash_;
  size_t next_ = 0;
};

/// Pinned host memory for parked tensors, and the stream of their copies.
class Parking {
 public:
  ~Parking();
  void put(int place, const Tensor& from, cudaStream_t work);
  void get(const Tensor& to, int place, cudaStream_t work);
  void wait(cudaStream_t work);

 private:
  struct Place {
    void* pinned = nullptr;
    int64_t bytes = 0;
  };
  void follow(cudaStream_t work);

  cudaStream_t copies_ = nullptr;
  cudaEvent_t queued_ = nullptr, copied_ = nullptr;
  std::map<int, Place> places_;
};

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const BackendOptions& options);
  ~CudaBackend() override;
  std::string describe() const override;
  DType activation_dtype() const override { return activations_; }
  int64_t n_loss_rows() const override { return cache_weights_ ? kLossRowsForSpeed : kLossRows; }
  Residence residence() const override;
  void set_residence(const Residence& residence) override;

  std::optional<int64_t> own_free_bytes() const override;
  std::optional<int64_t> own_total_bytes() const override;
  void limit_own_bytes(int64_t bytes) override { most_bytes_ = bytes; }
  void* allocate(int64_t bytes, const char* what) override;
  void release(void* memory) override;
  void copy(const Tensor& to, const Tensor& from) override;
  void upload(const Tensor& to, const void* host) override;
  void download(void* host, const Tensor& from) override;
  void fill(const Tensor& t, float value) override;
  bool can_park() const override { return true; }
  void park(int place, const Tensor& from) override;
  void fetch_parked(const Tensor& to, int place) override;
  void wait_for_parked() override;
  Weight place(const Weight& w, Placement placement) override;

  void matmul_nt(const Tensor& y, const Tensor& x, const Weight& w, Write write) override;
  void matmul_nn(const Tensor& dx, const Tensor& dy, const Weight& w, Write write) override;
  void matmul_tn(const Tensor& dw, const Tensor& p, const Tensor& x, float scale, Write write) override;
  void lora_forward(const Grad& y, const Tensor& h, const Tensor& x, const Tensor& a, const Tensor& b,
                    float scaling) override;
  void lora_backward(const Grad& dx, const Tensor& da, const Tensor& db, const Tensor& dh, const Tensor& dy,
                     const Tensor& x, const Tensor& h, const Tensor& a, const Tensor& b, float scaling) override;

  void gather_rows(const Tensor& out, std::span<const int32_t> ids, const Weight& table, int64_t first_column,
                   float scale) override;
  void rms_norm(const Tensor& y, const Tensor& inv_rms, const Tensor& x, const Tensor& weight, float eps) override;
  void rms_norm_backward(const Grad& dx, const Tensor& dy, const Tensor& x, const Tensor& weight,
                         const Tensor& inv_rms) override;
  void add_rms_norm(const Tensor& y, const Tensor& inv_rms, const Tensor& a, const Tensor& x, const Tensor& weight,
                    float eps) override;
  void add_to_slices(const Tensor& y, const Tensor& x) override;
  void sum_slices(const Grad& dx, const Tensor& dy, float alpha) override;
  void add_scaled(const Tensor& y, const Tensor& a, float alpha, const Tensor& b, float beta) override;
  void accumulate(const Grad& dx, const Tensor& dy, float alpha) override;
  void scale_columns(const Grad& y, const Tensor& x, const Tensor& v) override;
  void tanh(const Tensor& y, const Tensor& x) override;
  void tanh_backward(const Grad& dx, const Tensor& dy, const Tensor& y) override;
  void softcap(const Tensor& logits, float cap) override;
  void geglu(const Tensor& y, const Tensor& mean_std, const Tensor& gate, const Tensor& up, float sparsity_z) override;
  bool joins_pairs(int64_t rank, int64_t n_in, int64_t n_out) const override;
  void lora_down(const Tensor& h, const Tensor& x, const Tensor& a) override;
  void geglu_pairs(const Tensor& y, const Tensor& gate, const Tensor& up, const PairPart& of_gate,
                   const PairPart& of_up) override;
  void geglu_pairs_backward(const Tensor& dgate, const Tensor& dup, const Tensor& dy, const Tensor& gate,
                            const Tensor& up, const PairPart& of_gate, const PairPart& of_up, const Tensor& dh,
                            const Tensor& a) override;
  void geglu_backward(const Grad& dgate, const Grad& dup, const Tensor& dy, const Tensor& gate, const Tensor& up,
                      const Tensor& mean_std, float sparsity_z) override;

  void rope(const Grad& y, const Tensor& x, std::span<const int32_t> positions, const Tensor& table, int64_t n_heads,
            Rotation rotation) override;
  void attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                 std::span<const AttentionSpan> spans, const AttentionShape& shape) override;
  void attention_backward(const Grad& dq, const Grad& dk, const Grad& dv, const Tensor& dout, const Tensor& out,
                          const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                          std::span<const AttentionSpan> spans, const AttentionShape& shape) override;
  void scatter_rows(const Tensor& cache, std::span<const int64_t> rows, const Tensor& x) override;
  void select_rows(const Tensor& y, const Tensor& x, std::span<const int32_t> rows) override;
  void split_columns(const Grad& y, const Tensor& x, Split direction) override;
  void select_rows_backward(const Grad& dx, const Tensor& dy, std::span<const int32_t> rows) override;

  void altup_predict(const Tensor& p, const Tensor& streams, const Tensor& coefs) override;
  void altup_predict_backward(const Grad& dstreams, const Grad& dcoefs, const Tensor& dp, const Tensor& streams,
                              const Tensor& coefs) override;
  void altup_correct(const Tensor& q, const Tensor& p, const Tensor& v, const Tensor& gains, int active) override;
  void altup_correct_backward(const Grad& dp, const Grad& dv, const Grad& dgains, const Tensor& dq, const Tensor& p,
                              const Tensor& v, const Tensor& gains, int active) override;
  void match_magnitude(const Tensor& y, const Tensor& b, const Tensor& reference) override;
  void match_magnitude_backward(const Grad& db, const Grad& dreference, const Tensor& dy, const Tensor& b,
                                const Tensor& reference) override;

  void cross_entropy(const Tensor& logits, const Tensor& losses, std::span<const int32_t> targets, float cap,
                     float scale, const Tensor& gradient) override;

  StepKernels* step_kernels() override;
  bool find_candidates(const Tensor& logits, std::span<const LogitChange> changes,
                       std::span<const CandidateQuery> queries, std::vector<Candidates>& out) override;

  double sum_of_squares(const Tensor& x) override;
  void adamw_f32(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const AdamWStep& step) override;
  void adamw_8bit(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const Tensor& m_absmax,
                  const Tensor& v_absmax, const AdamWStep& step) override;

 private:
  /// Device copy of a host array for kernels queued next (see HostArrays).
  template <class T>
  const T* staged(std::span<const T> values) {
    return static_cast<const T*>(arrays_->stage(values.data(), values.size_bytes()));
  }
  /// Device memory for one call's intermediates, `bytes` at most of the size asked for first; it only grows. `slot`
  /// tells apart what a call needs at the same time.
  void* scratch(int slot, int64_t bytes);

  // cuda_weights.cu
  void load_constants();
  Weight place_nf4(const Weight& w);
  bool has_room_for(const Weight& table) const;
  bool leaves_half_free(int64_t bytes) const;
  /// w's values as a dense row-major [n_out, n_in] matrix of the activations' dtype: a view, or made in scratch.
  Tensor dense(const Weight& w);
  /// x in the activations' dtype: itself, or converted to scratch `slot`.
  Tensor as_activations(const Tensor& x, int slot);

  /// gather_rows of a table in device memory; `ids` (device memory) null: its rows in order.
  void gather_placed(const Tensor& out, const int32_t* ids, const Weight& table, int64_t first_column, float scale);

  template <int R>
  struct LowRank;                                                                              // cuda_lora.cu
  __nv_bfloat16* gated_factors(const PairPart& gate, const PairPart& up, const Tensor& down);  // cuda_gated_pairs.cu
  friend class Step;                                                                           // cuda_step.h

  // cuda_products.cu
  enum ScratchSlot : int { kWeightScratch, kLeftScratch, kAdapterScratch, kAdapterPartsScratch, kGatedScratch };
  /// A row-major matrix, or the transpose of one.
  struct Matrix {
    Tensor values;
    bool transposed;
  };
  /// c[m, n] (+)= alpha * a[m, k] b[k, n]
  void gemm(const Tensor& c, const Matrix& a, const Matrix& b, int64_t k, float alpha, Write write);
  /// Whether w has so few outputs that its products are bound by x: kernels of our own (cuda_narrow_products.cu).
  static bool is_narrow(const Weight& w);
  void narrow_nt(const Tensor& y, const Tensor& x, const Weight& w, Write write);
  void narrow_nn(const Tensor& dx, const Tensor& dy, const Weight& w, Write write);
  /// All axes but the last as rows.
  static Tensor flat(const Tensor& t) { return Tensor(t.data, t.dtype, {t.rows(), t.dim(-1)}); }

  int device_ = 0;
  int compute_capability_ = 0;  // 90
  int n_multiprocessors_ = 0;
  std::string name_;
  DType activations_ = DType::bf16;
  bool cache_weights_ = false;
  std::optional<bool> tables_here_;  // as a plan decided
  int64_t most_bytes_ = 0;           // in use on the card; 0: no limit
  cudaStream_t stream_ = nullptr;
  cublasHandle_t blas_ = nullptr;
  std::unique_ptr<HostArrays> arrays_;
  struct Block {
    void* data = nullptr;
    int64_t bytes = 0;
  };
  std::map<int, Block> scratch_;
  int64_t scratch_moves_ = 0;  // how often a block was replaced: what was recorded before refers to the old one
  Block blas_workspace_;
  /// Pinned memory for rows of a table that stays in host memory; free again after `copied`.
  struct Gathered {
    void* pinned = nullptr;
    int64_t bytes = 0;
    cudaEvent_t copied = nullptr;
  };
  void* pinned_rows(int64_t bytes);
  Gathered gathered_;
  Parking parking_;
  ThreadPool threads_{0};
  std::unique_ptr<StepKernels> step_;
  /// Held while a step is recorded: other threads (adapters are loaded while answers are made) must not touch the
  /// stream then.
  std::recursive_mutex recording_;
  /// Pinned memory that find_candidates leaves its results in.
  Block found_;
};

}  // namespace saaz::cuda
