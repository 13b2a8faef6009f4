// CpuBackend: memory, threads, and the products. Tasks are blocks of the result; their sizes come from the shapes and
// the weight's format only.
#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cassert>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "quant/blockwise.h"
#include "quant/int8.h"

namespace saaz {

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  return std::make_unique<cpu::CpuBackend>(options);
}

namespace cpu {

namespace {

constexpr int64_t kAlignment = 64;
// For fewer elementary steps waking one more thread costs more than it saves.
constexpr int64_t kWorthThreads = 1 << 16;
constexpr int64_t kProductsPerStep = 8;
constexpr int64_t kRangeWork = 1 << 15;  // steps of one task over rows or elements
constexpr int64_t kPreparedRows = 512;   // rows of x rounded at a time: the copy stays small
constexpr int64_t kFewRowsStep = 16;     // rows of w of a decoding task: whole groups of any kernel
constexpr int64_t kManyOutputs = 1 << 14;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

CodeMap code_map(const std::array<float, 256>& values) {
  CodeMap map;
  for (size_t i = 0; i < 256; ++i) {
    map.values[i] = values[i];
    map.midpoints[i] = i + 1 < 256 ? (values[i] + values[i + 1]) / 2 : std::numeric_limits<float>::infinity();
  }
  return map;
}

/// Weights whose codes are integers, in whole blocks.
bool takes_int8(const Weight& w) {
  const bool is_dense =
      w.format == WeightFormat::f32 || w.format == WeightFormat::bf16 || w.format == WeightFormat::f16;
  return !is_dense && w.format != WeightFormat::nf4 && w.n_in % kInt8Block == 0;
}

/// Columns of an outer task: whole blocks of the format, and enough tasks for narrow results.
int64_t outer_columns(const Weight& w) {
  const bool wide_blocks = block_size(w.format).elements > 64;
  if (wide_blocks || w.n_in > 4096) return kOuterColumns;
  return w.n_in > 1024 ? 128 : 64;
}

/// Rows of an outer task: w is unpacked once per task, so few and even pieces; many for a narrow result.
int64_t outer_rows(const Weight& w, int64_t m) {
  if (w.n_in < 256) return 48;
  const int64_t blocks = std::max<int64_t>(1, ceil_div(m, 512));
  return ceil_div(ceil_div(m, blocks), 6) * 6;
}

}  // namespace

float* Scratch::at_least(int64_t n) {
  constexpr int64_t kSlack = kAlignment / static_cast<int64_t>(sizeof(float));
  if (static_cast<int64_t>(memory_.size()) < n + kSlack) memory_.resize(static_cast<size_t>(n + kSlack));
  const auto address = reinterpret_cast<uintptr_t>(memory_.data());
  return reinterpret_cast<float*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

CpuBackend::CpuBackend(const BackendOptions& options)
    : kernels_(pick_kernels(options.instruction_set)),
      compute_dtype_(options.compute_dtype),
      llm_int8_threshold_(options.llm_int8_threshold),
      pool_(options.n_threads),
      scratch_(static_cast<size_t>(pool_.size())),
      m_map_(code_map(dynamic_map_signed())),
      v_map_(code_map(dynamic_map_unsigned())) {}

std::string CpuBackend::describe() const {
  return fmt::format("cpu {}, {} thread{}{}", kernels_.name, pool_.size(), pool_.size() == 1 ? "" : "s",
                     compute_dtype_ == DType::bf16 ? ", bf16 products"
                     : compute_dtype_ == DType::i8
                         ? llm_int8_threshold_ > 0 ? ", LLM.int8() products" : ", int8 products"
                         : "");
}

void* CpuBackend::allocate(int64_t bytes, const char* what) {
  assert(bytes >= 0);
  // calloc leaves fresh pages untouched until they are used; the start of its block is kept below the aligned address.
  const int64_t padding = kAlignment + static_cast<int64_t>(sizeof(void*));
  void* block = bytes > std::numeric_limits<int64_t>::max() - padding
                    ? nullptr
                    : std::calloc(1, static_cast<size_t>(bytes + padding));
  check(block != nullptr, ExitCode::resource, "{}: no memory for {} bytes; use a smaller batch, sequence or model",
        what, bytes);
  const auto first = reinterpret_cast<uintptr_t>(block) + sizeof(void*);
  char* aligned = reinterpret_cast<char*>((first + kAlignment - 1) / kAlignment * kAlignment);
  std::memcpy(aligned - sizeof(void*), &block, sizeof(void*));
  return aligned;
}

void CpuBackend::release(void* memory) {
  if (memory == nullptr) return;
  void* block;
  std::memcpy(&block, static_cast<char*>(memory) - sizeof(void*), sizeof(void*));
  std::free(block);
}

void CpuBackend::copy(const Tensor& to, const Tensor& from) {
  assert(to.bytes() == from.bytes());
  std::memmove(to.data, from.data, static_cast<size_t>(from.bytes()));
}
void CpuBackend::upload(const Tensor& to, const void* host) {
  std::memcpy(to.data, host, static_cast<size_t>(to.bytes()));
}
void CpuBackend::download(void* host, const Tensor& from) {
  std::memcpy(host, from.data, static_cast<size_t>(from.bytes()));
}

void CpuBackend::fill(const Tensor& t, float value) {
  if (value == 0) {
    std::memset(t.data, 0, static_cast<size_t>(t.bytes()));
    return;
  }
  std::fill_n(t.f32(), t.size(), value);
}

void CpuBackend::run(int64_t n_tasks, int64_t work, const Body& body) {
  pool_.run(n_tasks, body, 1 + work / kWorthThreads);
}

void CpuBackend::run_ranges(int64_t n, int64_t work_per_item, const Range& body) {
  const int64_t step = std::max<int64_t>(1, kRangeWork / std::max<int64_t>(1, work_per_item));
  run(ceil_div(n, step), n * work_per_item, [&](int64_t task, int thread) {
    const int64_t begin = task * step;
    body(begin, std::min(n, begin + step), thread);
  });
}

void CpuBackend::matmul_nt(const Tensor& y, const Tensor& x, const Weight& w, Write write) {
  const int64_t k = w.n_in;
  if (compute_dtype_ == DType::bf16) {
    return dot_prepared(kernels_.dot_bf16, y, x, 2 * k, w, write, [&](int64_t n, char* to, const float* from) {
      kernels_.round_bf16(n * k, reinterpret_cast<uint16_t*>(to), from);
    });
  }
  if (compute_dtype_ == DType::i8 && llm_int8_threshold_ > 0 && w.format == WeightFormat::int8)
    return llm_int8(y, x, w, write);
  if (compute_dtype_ == DType::i8 && takes_int8(w)) {
    const int64_t row_bytes = k / kInt8Block * kInt8BlockBytes;
    return dot_prepared(kernels_.dot_int8, y, x, row_bytes, w, write, [&](int64_t n, char* to, const float* from) {
      for (int64_t i = 0; i < n; ++i) kernels_.round_int8(k, to + i * row_bytes, from + i * k);
    });
  }
  dot(kernels_.dot, y.f32(), {x.data, x.rows(), k * size_of(DType::f32)}, w, write);
}

void CpuBackend::dot_prepared(void (*kernel)(const DotTask&), const Tensor& y, const Tensor& x, int64_t row_bytes,
                              const Weight& w, Write write, const Prepare& prepare) {
  const int64_t k = w.n_in;
  for (int64_t begin = 0; begin < x.rows(); begin += kPreparedRows) {
    const int64_t m = std::min(kPreparedRows, x.rows() - begin);
    auto* rows = reinterpret_cast<char*>(rounded_.at_least(ceil_div(m * row_bytes, 4)));
    run_ranges(m, k, [&](int64_t first, int64_t end, int) {
      prepare(end - first, rows + first * row_bytes, x.f32() + (begin + first) * k);
    });
    dot(kernel, y.f32() + begin * w.n_out, {rows, m, row_bytes}, w, write);
  }
}

void CpuBackend::dot(void (*kernel)(const DotTask&), float* y, const DotRows& x, const Weight& w, Write write) {
  const int64_t m = x.rows, n = w.n_out, k = w.n_in;
  // A few rows (decoding) want small tasks for balance, but not for a head: rows of w that are asked for ahead of a
  // task's end are another's. A narrow result is cut along its rows instead.
  const int64_t n_step = m <= 8 && n < kManyOutputs ? kFewRowsStep : kDotRows;
  const int64_t m_step = n < 10 * kDotRows ? 32 : 512;
  const int64_t n_blocks = ceil_div(n, n_step), m_blocks = ceil_div(m, m_step);
  run(n_blocks * m_blocks, m * n * k / kProductsPerStep, [&](int64_t task, int thread) {
    const int64_t n_begin = task % n_blocks * n_step, m_begin = task / n_blocks * m_step;
    kernel({.y = y + m_begin * n,
            .ldy = n,
            .x = static_cast<const char*>(x.data) + m_begin * x.row_bytes,
            .m = std::min(m_step, m - m_begin),
            .w = &w,
            .n_begin = n_begin,
            .n_end = std::min(n, n_begin + n_step),
            .write = write,
            .scratch = scratch_[thread].at_least(kDotScratch)});
  });
}

void CpuBackend::llm_int8(const Tensor& y, const Tensor& x, const Weight& w, Write write) {
  const int64_t n = w.n_out, k = w.n_in;
  const auto* codes = static_cast<const int8_t*>(w.data);
  for (int64_t m = 0; m < x.rows(); ++m) {
    const std::span<const float> row(x.f32() + m * k, static_cast<size_t>(k));
    const LlmInt8Row rounded = quantise_llm_int8_row(row, llm_int8_threshold_);
    run_ranges(n, k, [&](int64_t begin, int64_t end, int) {
      for (int64_t o = begin; o < end; ++o) {
        const int32_t sum = kernels_.int8_product(k, rounded.codes.data(), codes + o * k);
        const float value = llm_int8_value(row, rounded, sum, w, o);
        float& to = y.f32()[m * n + o];
        to = write == Write::add ? to + value : value;
      }
    });
  }
}

void CpuBackend::outer(float* c, const LeftMatrix& a, const Weight& w, float scale, Write write) {
  const int64_t k = w.n_in, columns = outer_columns(w), m_step = outer_rows(w, a.rows);
  const int64_t k_blocks = ceil_div(k, columns), m_blocks = ceil_div(a.rows, m_step);
  run(k_blocks * m_blocks, a.rows * w.n_out * k / kProductsPerStep, [&](int64_t task, int thread) {
    const int64_t k_begin = task % k_blocks * columns, m_begin = task / k_blocks * m_step;
    kernels_.outer({.c = c + m_begin * k,
                    .ldc = k,
                    .a = a.data + m_begin * a.row_stride,
                    .row_stride = a.row_stride,
                    .n_stride = a.n_stride,
                    .m = std::min(m_step, a.rows - m_begin),
                    .w = &w,
                    .k_begin = k_begin,
                    .k_end = std::min(k, k_begin + columns),
                    .scale = scale,
                    .write = write,
                    .scratch = scratch_[thread].at_least(kOuterScratch)});
  });
}

void CpuBackend::matmul_nn(const Tensor& dx, const Tensor& dy, const Weight& w, Write write) {
  outer(dx.f32(), {dy.f32(), w.n_out, 1, dy.rows()}, w, 1, write);
}

void CpuBackend::matmul_tn(const Tensor& dw, const Tensor& p, const Tensor& x, float scale, Write write) {
  const int64_t r = p.dim(-1);
  outer(dw.f32(), {p.f32(), 1, r, r}, dense_weight(Tensor(x.data, x.dtype, {x.rows(), x.dim(-1)})), scale, write);
}

Weight CpuBackend::transpose(const Tensor& b) {
  const int64_t n = b.dim(0), r = b.dim(1);
  float* to = transposed_.at_least(n * r);
  const float* from = b.f32();
  // A cache line of each row of b^T at a time: its rows lie a power of two apart, and would drive each other out.
  constexpr int64_t kLine = kAlignment / static_cast<int64_t>(sizeof(float));
  for (int64_t i = 0; i < n; i += kLine) {
    const int64_t count = std::min(kLine, n - i);
    for (int64_t j = 0; j < r; ++j) {
      for (int64_t k = 0; k < count; ++k) to[j * n + i + k] = from[(i + k) * r + j];
    }
  }
  return dense_weight(Tensor(to, DType::f32, {r, n}));
}

void CpuBackend::lora_forward(const Grad& y, const Tensor& h, const Tensor& x, const Tensor& a, const Tensor& b,
                              float scaling) {
  dot(kernels_.dot, h.f32(), {x.data, x.rows(), a.dim(1) * size_of(DType::f32)}, dense_weight(a), Write::overwrite);
  outer(y.tensor.f32(), {h.f32(), h.dim(-1), 1, h.rows()}, transpose(b), scaling, y.write);
}

void CpuBackend::lora_backward(const Grad& dx, const Tensor& da, const Tensor& db, const Tensor& dh, const Tensor& dy,
                               const Tensor& x, const Tensor& h, const Tensor& a, const Tensor& b, float scaling) {
  const int64_t n = b.dim(0), r = b.dim(1);
  outer(dh.f32(), {dy.f32(), n, 1, dy.rows()}, dense_weight(b), scaling, Write::overwrite);
  matmul_tn(da, dh, x, 1, Write::add);
  // db^T [r, n] first: its rows are long, db's are not.
  const Tensor sums(sums_.at_least(n * r), DType::f32, {r, n});
  matmul_tn(sums, h, dy, scaling, Write::overwrite);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < r; ++j) db.f32()[i * r + j] += sums.f32()[j * n + i];
  }
  if (dx.wanted()) outer(dx.tensor.f32(), {dh.f32(), r, 1, dh.rows()}, dense_weight(a), 1, dx.write);
}

}  // namespace cpu
}  // namespace saaz
