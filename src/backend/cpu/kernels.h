// The table of kernels that each instruction set exports, and the plain argument structs they take. A kernel does one
// task: a range of rows, columns or elements, by pointers and sizes; the backend cuts tasks, brings scratch memory and
// threads. Kernels check nothing and allocate nothing.
// Invariant: what a kernel writes for one row depends on that row's inputs and on sizes, not on the task's limits.
#pragma once

#include <cstdint>

#include "backend/backend.h"

namespace saaz::cpu {

/// Columns of K that the dot kernel sums before it folds lanes; f32 elements of weight scratch per task.
inline constexpr int64_t kDotChunk = 1024, kDotStride = kDotChunk + 16, kDotRows = 48;
inline constexpr int64_t kDotScratch = kDotRows * kDotStride;
/// Rows of w that the outer kernel sums before it adds to the result; columns of a task at most.
inline constexpr int64_t kOuterChunk = 256, kOuterColumns = 256;
/// Rows of a that are gathered at a time: with the panels they stay in the second-level cache.
inline constexpr int64_t kOuterRows = 96, kOuterStride = kOuterChunk + 16;
inline constexpr int64_t kOuterScratch = kOuterChunk * kOuterColumns + kOuterColumns + kOuterRows * kOuterStride;

/// Activations rounded to 8 bits (round_int8.inc.h): for each block of a row the codes as 16-bit and as 8-bit integers,
/// an f32 scale, the scaled sum of the codes and two sums of 16 codes. Bytes of a block, all together.
inline constexpr int64_t kInt8Block = 32, kInt8BlockBytes = 3 * kInt8Block + 4 + 4 + 8;

/// y[m, n_begin..n_end) (+)= x w^T. y and x point at the task's first row; n_end - n_begin <= kDotRows.
struct DotTask {
  float* y;
  int64_t ldy;
  const void* x;  // dot: f32; dot_bf16: bf16; dot_int8: what round_int8 made
  int64_t m;
  const Weight* w;  // n_in = K is x's row length
  int64_t n_begin, n_end;
  Write write;
  float* scratch;  // kDotScratch
};

/// c[i, k_begin..k_end) (+)= scale * sum_n a(i, n) w[n, k], a(i, n) = a[i * row_stride + n * n_stride], for i in [0,
/// m). k_begin is a multiple of the format's block; k_end - k_begin <= kOuterColumns.
struct OuterTask {
  float* c;  // row 0, column 0
  int64_t ldc;
  const float* a;
  int64_t row_stride, n_stride, m;
  const Weight* w;  // n_in = ldc
  int64_t k_begin, k_end;
  float scale;
  Write write;
  float* scratch;  // kOuterScratch
};

struct AttentionArgs {
  const float *q, *k, *v, *out, *lse, *dout;
  float *out_to, *lse_to, *dq, *dk, *dv;  // gradients: added to; null = not wanted
  AttentionShape shape;
};
/// Queries [begin, end) of a span (indices in the span) for one kv head; or, in the key pass, positions [begin, end).
struct AttentionTask {
  const AttentionSpan* span;
  int64_t begin, end, kv_head;
};
/// Query rows (queries times heads of one kv head) that a task handles together, and keys of a task of the key pass.
inline constexpr int64_t kAttentionRows = 32, kAttentionKeys = 32;

/// AdamW in the form both kernels use, derived once per step in f64.
struct AdamWFactors {
  float beta1, beta2, one_minus_beta1, one_minus_beta2;
  float step_size, root_scale, eps, decay, grad_scale;
};
/// Midpoints of neighbouring map values: code = count of midpoints below x (blockwise.h: nearest_code).
struct CodeMap {
  float values[256], midpoints[256];  // midpoints[255] = infinity
};

struct RowShape {
  int64_t rows, dim;
};

struct KernelTable {
  const char* name;
  void (*dequantise)(const Weight& w, int64_t begin, int64_t n, float* out);
  void (*dot)(const DotTask& task);
  /// The same with both operands rounded to bf16, products exact, sums in f32 in an order that depends on K alone.
  void (*dot_bf16)(const DotTask& task);
  /// y = x rounded to bf16, to nearest even. Values under 2^-126 may become zero.
  void (*round_bf16)(int64_t n, uint16_t* y, const float* x);
  /// The same with x rounded to 8 bits in blocks of 32: integer sums a block, scaled and added in f32 along K. w is
  /// int8, q8_0, q5_0, q4_0 or a k-format, its rows whole blocks of 32.
  void (*dot_int8)(const DotTask& task);
  /// One row of k activations, k a multiple of 32: code = x * 127 / (the block's largest magnitude), to nearest even.
  void (*round_int8)(int64_t k, void* row, const float* x);
  /// Integer sum of a[i] * b[i].
  int32_t (*int8_product)(int64_t n, const int8_t* a, const int8_t* b);
  void (*outer)(const OuterTask& task);

  // Elements.
  void (*exp)(int64_t n, float* y, const float* x);
  void (*tanh)(int64_t n, float* y, const float* x);
  void (*tanh_backward)(int64_t n, float* dx, Write write, const float* dy, const float* y);
  void (*softcap)(int64_t n, float* x, float cap);
  void (*add_scaled)(int64_t n, float* y, const float* a, float alpha, const float* b, float beta);
  void (*accumulate)(int64_t n, float* dx, Write write, const float* dy, float alpha);
  double (*sum_of_squares)(int64_t n, const float* x);
  void (*adamw_f32)(int64_t n, float* p, const float* g, float* m, float* v, const AdamWFactors& f);
  /// One block of at most 256 elements.
  void (*adamw_8bit)(int64_t n, float* p, const float* g, uint8_t* m, uint8_t* v, float* m_absmax, float* v_absmax,
                     const AdamWFactors& f, const CodeMap& m_map, const CodeMap& v_map);

  // Rows.
  void (*scale_columns)(RowShape s, float* y, Write write, const float* x, const float* v);
  void (*rms_norm)(RowShape s, float* y, float* inv_rms, const float* x, const float* weight, float eps);
  void (*rms_norm_backward)(RowShape s, float* dx, Write write, const float* dy, const float* x, const float* weight,
                            const float* inv_rms);
  void (*match_magnitude)(RowShape s, float* y, const float* b, const float* reference);
  void (*match_magnitude_backward)(RowShape s, float* db, Write db_write, float* dreference, Write dreference_write,
                                   const float* dy, const float* b, const float* reference);
  void (*geglu)(RowShape s, float* y, float* mean_std, const float* gate, const float* up, float sparsity_z);
  /// scratch: one row.
  void (*geglu_backward)(RowShape s, float* dgate, Write dgate_write, float* dup, Write dup_write, const float* dy,
                         const float* gate, const float* up, const float* mean_std, float sparsity_z, float* scratch);
  /// One row of n_heads * head_dim; sine_sign -1 rotates back. y may be x.
  void (*rope)(int64_t n_heads, int64_t head_dim, float* y, Write write, const float* x, const float* cosine_sine,
               float sine_sign);
  /// Loss of one row; see Backend::cross_entropy. gradient_scale is read only with WantGradient::yes.
  float (*cross_entropy)(int64_t n, float* logits, int64_t target, float cap, float scale, Backend::WantGradient want);

  // AltUp, one token; `stride` separates the streams, coefs and gains are the token's own.
  void (*altup_predict)(int64_t n_streams, int64_t stride, int64_t dim, float* p, const float* h, const float* coefs);
  void (*altup_predict_backward)(int64_t n_streams, int64_t stride, int64_t dim, float* dh, Write dh_write,
                                 float* dcoefs, Write dcoefs_write, const float* dp, const float* h,
                                 const float* coefs);
  void (*altup_correct)(int64_t n_streams, int64_t stride, int64_t dim, float* q, const float* p, const float* v,
                        const float* gains, int active);
  void (*altup_correct_backward)(int64_t n_streams, int64_t stride, int64_t dim, float* dp, Write dp_write, float* dv,
                                 Write dv_write, float* dgains, Write dgains_write, const float* dq, const float* p,
                                 const float* v, const float* gains, int active);

  // Attention. Scratch: attention_scratch floats.
  int64_t (*attention_scratch)(const AttentionShape& shape, int64_t n_keys);
  void (*attention)(const AttentionArgs& args, const AttentionTask& task, float* scratch);
  void (*attention_backward_queries)(const AttentionArgs& args, const AttentionTask& task, float* scratch);
  void (*attention_backward_keys)(const AttentionArgs& args, const AttentionTask& task, float* scratch);
};

extern const KernelTable kPlainKernels, kAvx2Kernels, kAvx512Kernels, kAvx512Bf16Kernels;

/// "" picks the best this machine runs; a name it does not run is a usage error that lists those it does.
const KernelTable& pick_kernels(const std::string& instruction_set);
/// The tables this machine can run, slowest first.
std::vector<const KernelTable*> available_kernels();

}  // namespace saaz::cpu
