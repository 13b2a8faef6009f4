// Backend: every kernel of the program, declared once. A backend runs them (cpu/, cuda/), or counts them (plan). Shapes
// are checked by the callers (ops/); kernels check nothing. T = tokens (rows), no batch dimension. `Write` says what a
// gradient or sum kernel does with its destination. Every output row depends on its own input rows only and on nothing
// that changes with thread count or with the other rows of the call: the same bytes alone or in a batch.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "quant/weight.h"
#include "tensor/tensor.h"

namespace saaz {

enum class Write : uint8_t { overwrite, add };

/// A gradient's destination: absent (nobody wants it), overwritten by its first writer, added to by later ones.
struct Grad {
  Tensor tensor;  // empty = not wanted
  Write write = Write::overwrite;
  bool wanted() const { return !tensor.empty(); }
};

/// One sequence of a packed batch, as attention sees it. Query row q_begin + i stands at position first_position + i;
/// the key of position p lies in row kv_begin + p % kv_capacity of the key tensor (training: kv_begin = q_begin,
/// capacity = the length).
struct AttentionSpan {
  int64_t q_begin = 0, n_queries = 0, first_position = 0;
  int64_t kv_begin = 0, kv_capacity = 1;
};
struct AttentionShape {
  int64_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  int64_t window = 0;  // key j visible to query i iff j <= i and (window == 0 or j > i - window)
  float scale = 1;
};

/// What a LoRA pair adds to a product: scaling * h b^T; h [M, r], b [N, r] f32.
struct PairPart {
  Tensor h, b;
  float scaling = 1;
};

/// The two flat moments of AdamW, one of the forms: f32, or 8-bit blockwise (blocks of 256 over each parameter).
struct AdamWStep {
  float lr = 0, beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, weight_decay = 0;
  int64_t t = 1;         // 1-based count of executed steps
  float grad_scale = 1;  // clipping factor applied to g first
};

/// What a sampler wants of a row of logits: those that are at least the best less `within`, and at least the k-th
/// largest where k > 0. within < 0: none.
struct CandidateQuery {
  int32_t k = 0;
  float within = -1;
};
/// Which logits of a row are made: all, or at least those that are among the kLikeliest largest, ties with the last of
/// them included; the others may be -infinity.
enum class LogitsWanted : uint8_t { all, likeliest };
inline constexpr int kLikeliest = 64;
struct Candidate {
  int32_t id = 0;
  float logit = 0;
};
/// What was found, by id; `complete` when that is all.
struct Candidates {
  std::vector<Candidate> found;
  bool complete = false;
};
/// A logit that a sampler changes first: times `repetition` where negative, else over it; less `minus`; plus `plus`.
struct LogitChange {
  int32_t row = 0, id = 0;
  float repetition = 1, minus = 0, plus = 0;
};

class StepKernels;  // backend/step.h

/// What a GPU's memory holds of a model: decided by a plan before weights are placed (train/counted_run.h).
struct Residence {
  bool dense_weights = false;  // NF4 weights in the activations' dtype: no dequantisation in each product
  bool tables = false;         // also tables of which only rows are read
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string describe() const = 0;  // "cpu avx2, 2 threads"
  /// A backend that only counts: tensors have no memory behind them.
  virtual bool is_plan() const { return false; }
  /// What activations and their gradients are stored in. Statistics, losses, logits, adapters and optimizer state are
  /// f32 always.
  virtual DType activation_dtype() const { return DType::f32; }
  /// Rows of logits that the head holds at once: memory is n_loss_rows * vocab * 4 bytes, and on a GPU their gradients.
  virtual int64_t n_loss_rows() const { return kLossRows; }
  static constexpr int64_t kLossRows = 128, kLossRowsForSpeed = 512;
  /// Free bytes of memory of its own (a GPU's), and all of them, as the driver counts; nothing where tensors live in
  /// the process's memory.
  virtual std::optional<int64_t> own_free_bytes() const { return std::nullopt; }
  virtual std::optional<int64_t> own_total_bytes() const { return std::nullopt; }
  /// Allocations fail from here on (resource) that would leave more than so many bytes of that memory in use; 0: none.
  virtual void limit_own_bytes(int64_t /*bytes*/) {}
  /// For weights placed from here on.
  virtual Residence residence() const { return {}; }
  virtual void set_residence(const Residence&) {}

  // Memory. Throws resource naming `what` and the bytes. Zero-filled.
  virtual void* allocate(int64_t bytes, const char* what) = 0;
  virtual void release(void* memory) = 0;
  virtual void copy(const Tensor& to, const Tensor& from) = 0;  // same size
  virtual void upload(const Tensor& to, const void* host) = 0;
  virtual void download(void* host, const Tensor& from) = 0;
  virtual void fill(const Tensor& t, float value) = 0;
  /// Where the host may read and write an f32 tensor in place; null where it must be downloaded.
  virtual float* host_view(const Tensor&) { return nullptr; }
  /// Host memory beside a backend's own, for tensors that are not needed for a while. Copies run beside the work that
  /// is queued after them; a place holds one tensor.
  virtual bool can_park() const { return false; }
  /// Copies `from` out, once what was queued before has run. It must not change until `wait_for_parked`.
  virtual void park(int /*place*/, const Tensor& /*from*/) {}
  /// Copies a place's tensor back, once what was queued before has run. Nothing may use `to` until `wait_for_parked`.
  virtual void fetch_parked(const Tensor& /*to*/, int /*place*/) {}
  /// What is queued from here on runs after all those copies.
  virtual void wait_for_parked() {}
  /// A frozen weight where this backend reads it best: `products` for matmul, `rows` for gather_rows alone (a table
  /// that may stay in host memory). Where the result's data differs from w's, it is to be given to `release`.
  enum class Placement : uint8_t { products, rows };
  virtual Weight place(const Weight& w, Placement) { return w; }

  // Products. w: [N, K] in any format.
  /// y[M,N] (+)= x[M,K] w^T
  virtual void matmul_nt(const Tensor& y, const Tensor& x, const Weight& w, Write write) = 0;
  /// dx[M,K] (+)= dy[M,N] w
  virtual void matmul_nn(const Tensor& dx, const Tensor& dy, const Weight& w, Write write) = 0;
  /// dw[R,K] (+)= scale * p[M,R]^T x[M,K]; sums over rows in order, in f32.
  virtual void matmul_tn(const Tensor& dw, const Tensor& p, const Tensor& x, float scale, Write write) = 0;
  /// LoRA forward: h[M,r] = x a^T; y[M,N] (+)= scaling * h b^T. a [r,K], b [N,r].
  virtual void lora_forward(const Grad& y, const Tensor& h, const Tensor& x, const Tensor& a, const Tensor& b,
                            float scaling) = 0;
  /// LoRA backward: da += s (b^T dy) x^T, db += s dy h^T, dx (+)= s a^T (b^T dy). `dh` [M,r] is scratch.
  virtual void lora_backward(const Grad& dx, const Tensor& da, const Tensor& db, const Tensor& dh, const Tensor& dy,
                             const Tensor& x, const Tensor& h, const Tensor& a, const Tensor& b, float scaling) = 0;

  // Rows and elements.
  /// out[t,:] = scale * table[ids[t], first_column : first_column + out.dim(-1)]. ids are host memory, checked by the
  /// caller. first_column is a multiple of the format's block.
  virtual void gather_rows(const Tensor& out, std::span<const int32_t> ids, const Weight& table, int64_t first_column,
                           float scale) = 0;
  /// y = x * inv_rms * weight, inv_rms[row] = (mean(x^2) + eps)^(-1/2). weight [dim] or empty (no gain).
  virtual void rms_norm(const Tensor& y, const Tensor& inv_rms, const Tensor& x, const Tensor& weight, float eps) = 0;
  virtual void rms_norm_backward(const Grad& dx, const Tensor& dy, const Tensor& x, const Tensor& weight,
                                 const Tensor& inv_rms) = 0;
  /// y = a + rms_norm(x). y may be a.
  virtual void add_rms_norm(const Tensor& y, const Tensor& inv_rms, const Tensor& a, const Tensor& x,
                            const Tensor& weight, float eps);
  /// y = alpha * a + beta * b (b may be empty: y = alpha * a). y may be a or b.
  virtual void add_scaled(const Tensor& y, const Tensor& a, float alpha, const Tensor& b, float beta) = 0;
  /// dx (+)= alpha * dy
  virtual void accumulate(const Grad& dx, const Tensor& dy, float alpha) = 0;
  /// y_j += x for each slice j of y [n, T, D]; x [T, D].
  virtual void add_to_slices(const Tensor& y, const Tensor& x);
  /// dx [T, D] (+)= alpha * the sum of the slices of dy [n, T, D].
  virtual void sum_slices(const Grad& dx, const Tensor& dy, float alpha);
  /// y[row,:] = x[row,:] * v[:]
  virtual void scale_columns(const Grad& y, const Tensor& x, const Tensor& v) = 0;
  /// y = tanh(x); dx (+)= dy (1 - y^2)
  virtual void tanh(const Tensor& y, const Tensor& x) = 0;
  virtual void tanh_backward(const Grad& dx, const Tensor& dy, const Tensor& y) = 0;
  /// logits = cap * tanh(logits / cap), in place.
  virtual void softcap(const Tensor& logits, float cap) = 0;

  // Gated MLP activation: y = gelu(z~) * up. sparsity_z == 0: z~ = gate. Else z~ = relu(gate - (mean + z * std)) per
  // row (population std); mean_std [rows, 2] is saved for backward. gelu is the tanh form.
  virtual void geglu(const Tensor& y, const Tensor& mean_std, const Tensor& gate, const Tensor& up,
                     float sparsity_z) = 0;
  /// dgate may lie where gate does, dup where up does.
  virtual void geglu_backward(const Grad& dgate, const Grad& dup, const Tensor& dy, const Tensor& gate,
                              const Tensor& up, const Tensor& mean_std, float sparsity_z) = 0;

  // The same, dense, with the parts of LoRA pairs that the products left out; where `joins_pairs` says that this
  // backend has it, for products [M, n_in] to [M, n_out] before and the other way after.
  virtual bool joins_pairs(int64_t /*rank*/, int64_t /*n_in*/, int64_t /*n_out*/) const { return false; }
  /// h = x a^T; x [M, K], a [r, K].
  virtual void lora_down(const Tensor& h, const Tensor& x, const Tensor& a);
  /// y = gelu(gate + its pair) * (up + its pair)
  virtual void geglu_pairs(const Tensor& y, const Tensor& gate, const Tensor& up, const PairPart& of_gate,
                           const PairPart& of_up);
  /// Gradients of gate and up from dy + dh a, dh [M, r], a [r, N]: what the pair after y adds. dgate may lie where gate
  /// does, dup where up does.
  virtual void geglu_pairs_backward(const Tensor& dgate, const Tensor& dup, const Tensor& dy, const Tensor& gate,
                                    const Tensor& up, const PairPart& of_gate, const PairPart& of_up, const Tensor& dh,
                                    const Tensor& a);

  // Attention. x [T, n_heads * head_dim]; table [n_positions, head_dim] holds cos (first half) and sin (second half) of
  // each position.
  enum class Rotation : uint8_t { forward, backward };
  /// y (+)= rotate(x) by each row's position (backward: by its inverse). positions are host memory.
  virtual void rope(const Grad& y, const Tensor& x, std::span<const int32_t> positions, const Tensor& table,
                    int64_t n_heads, Rotation rotation) = 0;
  /// out [T, H*d]; lse [T, H] = log-sum-exp of each row's scores (empty: not wanted). k, v [rows, KV*d].
  virtual void attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                         std::span<const AttentionSpan> spans, const AttentionShape& shape) = 0;
  virtual void attention_backward(const Grad& dq, const Grad& dk, const Grad& dv, const Tensor& dout, const Tensor& out,
                                  const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                                  std::span<const AttentionSpan> spans, const AttentionShape& shape) = 0;
  /// cache[rows[i], :] = x[i, :]
  virtual void scatter_rows(const Tensor& cache, std::span<const int64_t> rows, const Tensor& x) = 0;
  /// y[i, :] = x[rows[i], :]
  virtual void select_rows(const Tensor& y, const Tensor& x, std::span<const int32_t> rows) = 0;
  enum class Split : uint8_t { split, join };
  /// split: y[n, T, P] (+)= the n column blocks of x[T, n*P]. join: y[T, n*P] (+)= the slices of x[n, T, P] side by
  /// side.
  virtual void split_columns(const Grad& y, const Tensor& x, Split direction) = 0;
  /// dx (zeroed first when overwriting) [rows[i], :] += dy[i, :]; rows distinct.
  virtual void select_rows_backward(const Grad& dx, const Tensor& dy, std::span<const int32_t> rows) = 0;

  // AltUp (gemma3n.md 3). streams [N, T, D], coefs [T, N*N], gains [T, N].
  /// p_j = h_j + sum_k coefs[N j + k] h_k
  virtual void altup_predict(const Tensor& p, const Tensor& streams, const Tensor& coefs) = 0;
  virtual void altup_predict_backward(const Grad& dstreams, const Grad& dcoefs, const Tensor& dp, const Tensor& streams,
                                      const Tensor& coefs) = 0;
  /// q_j = p_j + (1 + gains_j) (v - p_active)
  virtual void altup_correct(const Tensor& q, const Tensor& p, const Tensor& v, const Tensor& gains, int active) = 0;
  virtual void altup_correct_backward(const Grad& dp, const Grad& dv, const Grad& dgains, const Tensor& dq,
                                      const Tensor& p, const Tensor& v, const Tensor& gains, int active) = 0;
  /// y = b * m / n per row, m = sqrt(mean(reference^2)), n = sqrt(max(mean(b^2), 1e-5)).
  virtual void match_magnitude(const Tensor& y, const Tensor& b, const Tensor& reference) = 0;
  virtual void match_magnitude_backward(const Grad& db, const Grad& dreference, const Tensor& dy, const Tensor& b,
                                        const Tensor& reference) = 0;

  // Loss. logits [rows, V] hold raw head outputs and are overwritten; losses[row] = -log softmax(capped)[target] in
  // nats, 0 for unscored rows (target < 0). gradient [rows, V] = d loss / d raw times `scale`, softcap's derivative
  // included, 0 for unscored rows: of the activations' dtype, logits itself where that is f32; empty: not wanted.
  // cap 0 = none.
  enum class WantGradient : uint8_t { no, yes };
  virtual void cross_entropy(const Tensor& logits, const Tensor& losses, std::span<const int32_t> targets, float cap,
                             float scale, const Tensor& gradient) = 0;

  // Generation.
  /// Kernels that do a decoding step in few launches; null: none.
  virtual StepKernels* step_kernels() { return nullptr; }
  /// For backends whose memory the host does not see: changes logits [rows, V] in place (ids distinct in a row), then
  /// finds each row's candidates. False, and nothing done, elsewhere.
  virtual bool find_candidates(const Tensor&, std::span<const LogitChange>, std::span<const CandidateQuery>,
                               std::vector<Candidates>&) {
    return false;
  }

  // Optimizer, over one flat parameter range.
  virtual double sum_of_squares(const Tensor& x) = 0;  // f64 sum in a fixed order
  /// torch's AdamW: decay first (p *= 1 - lr wd), then p -= lr mhat / (sqrt(vhat) + eps).
  virtual void adamw_f32(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const AdamWStep& step) = 0;
  /// bitsandbytes' 8-bit blockwise AdamW (formats.md 3): m, v u8 codes, absmax one f32 per 256-block; decays after the
  /// update.
  virtual void adamw_8bit(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const Tensor& m_absmax,
                          const Tensor& v_absmax, const AdamWStep& step) = 0;
};

struct BackendOptions {
  int n_threads = 0;            // 0 = all available cores
  std::string instruction_set;  // "plain", "avx2", "avx512", "avx512-bf16"; "" picks the best the machine has
  // CPU: what x and w are rounded to in matmul_nt. CUDA: the activations' dtype. Sums are f32 always. i8 (CPU only): x
  // to 8 bits in blocks of 32 against weights stored in 8 bits or fewer, NF4 excepted; other products stay f32.
  DType compute_dtype = DType::f32;  // or bf16, i8
  // > 0: int8 weights get LLM.int8() with this outlier threshold instead (quant/int8.h).
  float llm_int8_threshold = 0;
  bool cache_weights = false;  // CUDA: NF4 weights are kept as dense bf16, for speed
};
/// The CPU backend. usage when the named instruction set is not there.
std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);
/// The first NVIDIA GPU; null when this build has no CUDA or the machine no GPU that it can use.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

}  // namespace saaz
