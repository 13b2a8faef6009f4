// CpuBackend: cuts each operation into tasks, by shape alone, and runs the picked kernel table on the thread pool.
// Room-private: others use make_cpu_backend (backend.h). In: f32 tensors checked by ops/. Invariant: a task's limits
// never change a bit of a result, so neither do threads or the other rows of a call.
#pragma once

#include <functional>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "base/threads.h"

namespace saaz::cpu {

/// Floats aligned to 64 bytes that only ever grow.
class Scratch {
 public:
  float* at_least(int64_t n);

 private:
  std::vector<float> memory_;
};

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options);
  std::string describe() const override;

  void* allocate(int64_t bytes, const char* what) override;
  void release(void* memory) override;
  void copy(const Tensor& to, const Tensor& from) override;
  void upload(const Tensor& to, const void* host) override;
  void download(void* host, const Tensor& from) override;
  void fill(const Tensor& t, float value) override;
  float* host_view(const Tensor& t) override { return t.f32(); }

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
  void add_scaled(const Tensor& y, const Tensor& a, float alpha, const Tensor& b, float beta) override;
  void accumulate(const Grad& dx, const Tensor& dy, float alpha) override;
  void scale_columns(const Grad& y, const Tensor& x, const Tensor& v) override;
  void tanh(const Tensor& y, const Tensor& x) override;
  void tanh_backward(const Grad& dx, const Tensor& dy, const Tensor& y) override;
  void softcap(const Tensor& logits, float cap) override;
  void geglu(const Tensor& y, const Tensor& mean_std, const Tensor& gate, const Tensor& up, float sparsity_z) override;
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

  double sum_of_squares(const Tensor& x) override;
  void adamw_f32(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const AdamWStep& step) override;
  void adamw_8bit(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const Tensor& m_absmax,
                  const Tensor& v_absmax, const AdamWStep& step) override;

 private:
  using Body = std::function<void(int64_t task, int thread)>;
  /// Runs body for each task; inline when the whole call is `work` elementary steps that no thread is worth waking for.
  void run(int64_t n_tasks, int64_t work, const Body& body);
  /// body(begin, end) over pieces of [0, n); an item costs `work_per_item` steps.
  using Range = std::function<void(int64_t begin, int64_t end, int thread)>;
  void run_ranges(int64_t n, int64_t work_per_item, const Range& body);
  /// c[m, n_in] (+)= scale * a w.
  struct LeftMatrix {
    const float* data;
    int64_t row_stride, n_stride, rows;
  };
  /// matmul_nt by one of the dot kernels; x holds its rows as the kernel takes them.
  struct DotRows {
    const void* data;
    int64_t rows, row_bytes;
  };
  void dot(void (*kernel)(const DotTask&), float* y, const DotRows& x, const Weight& w, Write write);
  /// The same for a call of any length, its rows prepared kPreparedRows at a time: prepare(n, to, x) for n rows.
  using Prepare = std::function<void(int64_t n, char* to, const float* x)>;
  void dot_prepared(void (*kernel)(const DotTask&), const Tensor& y, const Tensor& x, int64_t row_bytes,
                    const Weight& w, Write write, const Prepare& prepare);
  void llm_int8(const Tensor& y, const Tensor& x, const Weight& w, Write write);
  void outer(float* c, const LeftMatrix& a, const Weight& w, float scale, Write write);
  /// b [n, r] as b^T [r, n] in transposed_.
  Weight transpose(const Tensor& b);
  std::vector<AttentionTask> query_tasks(std::span<const AttentionSpan> spans, const AttentionShape& shape) const;
  std::vector<AttentionTask> key_tasks(std::span<const AttentionSpan> spans, const AttentionShape& shape) const;
  using AttentionKernel = void (*)(const AttentionArgs&, const AttentionTask&, float*);
  void run_attention(const std::vector<AttentionTask>& tasks, const AttentionArgs& args, AttentionKernel kernel);

  const KernelTable& kernels_;
  const DType compute_dtype_;
  const float llm_int8_threshold_;
  ThreadPool pool_;
  std::vector<Scratch> scratch_;  // one per thread
  Scratch transposed_, sums_, rounded_;
  CodeMap m_map_, v_map_;
};

/// null for an absent tensor or gradient.
inline float* data_or_null(const Tensor& t) { return t.empty() ? nullptr : t.f32(); }
inline float* data_or_null(const Grad& g) { return data_or_null(g.tensor); }

}  // namespace saaz::cpu
