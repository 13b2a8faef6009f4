// CpuBackend: operations over rows and elements, the loss and the optimizers: each cut into ranges of rows or elements.
#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

#include "backend/cpu/cpu_backend.h"

namespace saaz::cpu {

namespace {

// Elementary steps of an element in a kernel that takes an exponential.
constexpr int64_t kExponentialWork = 8;
constexpr int64_t kSquaresPiece = 1 << 14, kAdamWBlock = 256;

AdamWFactors common_factors(const AdamWStep& step) {
  return {.beta1 = step.beta1,
          .beta2 = step.beta2,
          .one_minus_beta1 = 1.0f - step.beta1,
          .one_minus_beta2 = 1.0f - step.beta2,
          .decay = static_cast<float>(1.0 - static_cast<double>(step.lr) * step.weight_decay),
          .grad_scale = step.grad_scale};
}
/// 1 - beta^t
double bias_correction(float beta, int64_t t) { return 1.0 - std::pow(static_cast<double>(beta), t); }

}  // namespace

void CpuBackend::gather_rows(const Tensor& out, std::span<const int32_t> ids, const Weight& table, int64_t first_column,
                             float scale) {
  const int64_t dim = out.dim(-1);
  run_ranges(static_cast<int64_t>(ids.size()), dim, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = out.f32() + i * dim;
      kernels_.dequantise(table, ids[i] * table.n_in + first_column, dim, row);
      kernels_.add_scaled(dim, row, row, scale, nullptr, 0);
    }
  });
}

void CpuBackend::rms_norm(const Tensor& y, const Tensor& inv_rms, const Tensor& x, const Tensor& weight, float eps) {
  const int64_t dim = x.dim(-1);
  run_ranges(x.rows(), 2 * dim, [&](int64_t begin, int64_t end, int) {
    float* inverse = inv_rms.empty() ? nullptr : inv_rms.f32() + begin;
    kernels_.rms_norm({end - begin, dim}, y.f32() + begin * dim, inverse, x.f32() + begin * dim, data_or_null(weight),
                      eps);
  });
}

void CpuBackend::rms_norm_backward(const Grad& dx, const Tensor& dy, const Tensor& x, const Tensor& weight,
                                   const Tensor& inv_rms) {
  if (!dx.wanted()) return;
  const int64_t dim = x.dim(-1);
  run_ranges(x.rows(), 2 * dim, [&](int64_t begin, int64_t end, int) {
    const int64_t at = begin * dim;
    kernels_.rms_norm_backward({end - begin, dim}, dx.tensor.f32() + at, dx.write, dy.f32() + at, x.f32() + at,
                               data_or_null(weight), inv_rms.f32() + begin);
  });
}

void CpuBackend::add_scaled(const Tensor& y, const Tensor& a, float alpha, const Tensor& b, float beta) {
  run_ranges(a.size(), 1, [&](int64_t begin, int64_t end, int) {
    const float* other = b.empty() ? nullptr : b.f32() + begin;
    kernels_.add_scaled(end - begin, y.f32() + begin, a.f32() + begin, alpha, other, beta);
  });
}

void CpuBackend::accumulate(const Grad& dx, const Tensor& dy, float alpha) {
  if (!dx.wanted()) return;
  run_ranges(dy.size(), 1, [&](int64_t begin, int64_t end, int) {
    kernels_.accumulate(end - begin, dx.tensor.f32() + begin, dx.write, dy.f32() + begin, alpha);
  });
}

void CpuBackend::scale_columns(const Grad& y, const Tensor& x, const Tensor& v) {
  if (!y.wanted()) return;
  const int64_t dim = x.dim(-1);
  run_ranges(x.rows(), dim, [&](int64_t begin, int64_t end, int) {
    const int64_t at = begin * dim;
    kernels_.scale_columns({end - begin, dim}, y.tensor.f32() + at, y.write, x.f32() + at, v.f32());
  });
}

void CpuBackend::tanh(const Tensor& y, const Tensor& x) {
  run_ranges(x.size(), kExponentialWork,
             [&](int64_t begin, int64_t end, int) { kernels_.tanh(end - begin, y.f32() + begin, x.f32() + begin); });
}

void CpuBackend::tanh_backward(const Grad& dx, const Tensor& dy, const Tensor& y) {
  if (!dx.wanted()) return;
  run_ranges(y.size(), 1, [&](int64_t begin, int64_t end, int) {
    kernels_.tanh_backward(end - begin, dx.tensor.f32() + begin, dx.write, dy.f32() + begin, y.f32() + begin);
  });
}

void CpuBackend::softcap(const Tensor& logits, float cap) {
  run_ranges(logits.size(), kExponentialWork,
             [&](int64_t begin, int64_t end, int) { kernels_.softcap(end - begin, logits.f32() + begin, cap); });
}

void CpuBackend::geglu(const Tensor& y, const Tensor& mean_std, const Tensor& gate, const Tensor& up,
                       float sparsity_z) {
  const int64_t dim = gate.dim(-1);
  run_ranges(gate.rows(), kExponentialWork * dim, [&](int64_t begin, int64_t end, int) {
    float* saved = mean_std.empty() ? nullptr : mean_std.f32() + 2 * begin;
    const int64_t at = begin * dim;
    kernels_.geglu({end - begin, dim}, y.f32() + at, saved, gate.f32() + at, up.f32() + at, sparsity_z);
  });
}

void CpuBackend::geglu_backward(const Grad& dgate, const Grad& dup, const Tensor& dy, const Tensor& gate,
                                const Tensor& up, const Tensor& mean_std, float sparsity_z) {
  const int64_t dim = gate.dim(-1);
  run_ranges(gate.rows(), kExponentialWork * dim, [&](int64_t begin, int64_t end, int thread) {
    const int64_t at = begin * dim;
    const float* saved = mean_std.empty() ? nullptr : mean_std.f32() + 2 * begin;
    float* dgate_at = dgate.wanted() ? dgate.tensor.f32() + at : nullptr;
    float* dup_at = dup.wanted() ? dup.tensor.f32() + at : nullptr;
    kernels_.geglu_backward({end - begin, dim}, dgate_at, dgate.write, dup_at, dup.write, dy.f32() + at,
                            gate.f32() + at, up.f32() + at, saved, sparsity_z, scratch_[thread].at_least(dim));
  });
}

void CpuBackend::scatter_rows(const Tensor& cache, std::span<const int64_t> rows, const Tensor& x) {
  assert(cache.dtype == x.dtype);
  const int64_t bytes = x.dim(-1) * size_of(x.dtype);
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto from = static_cast<int64_t>(i) * bytes;
    std::memcpy(cache.as<char>() + rows[i] * bytes, x.as<char>() + from, static_cast<size_t>(bytes));
  }
}

void CpuBackend::select_rows(const Tensor& y, const Tensor& x, std::span<const int32_t> rows) {
  assert(y.dtype == x.dtype);
  const int64_t bytes = x.dim(-1) * size_of(x.dtype);
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto to = static_cast<int64_t>(i) * bytes;
    std::memcpy(y.as<char>() + to, x.as<char>() + rows[i] * bytes, static_cast<size_t>(bytes));
  }
}

void CpuBackend::split_columns(const Grad& y, const Tensor& x, Split direction) {
  if (!y.wanted()) return;
  const Tensor& slices = direction == Split::split ? y.tensor : x;
  const int64_t n = slices.dim(0), tokens = slices.dim(1), width = slices.dim(2);
  run_ranges(tokens, n * width, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t j = 0; j < n; ++j) {
        const int64_t slice = (j * tokens + t) * width, column = (t * n + j) * width;
        const int64_t to = direction == Split::split ? slice : column, from = slice + column - to;
        kernels_.accumulate(width, y.tensor.f32() + to, y.write, x.f32() + from, 1);
      }
    }
  });
}

void CpuBackend::select_rows_backward(const Grad& dx, const Tensor& dy, std::span<const int32_t> rows) {
  if (!dx.wanted()) return;
  if (dx.write == Write::overwrite) fill(dx.tensor, 0);
  const int64_t dim = dy.dim(-1);
  for (size_t i = 0; i < rows.size(); ++i) {
    kernels_.accumulate(dim, dx.tensor.f32() + rows[i] * dim, Write::add, dy.f32() + static_cast<int64_t>(i) * dim, 1);
  }
}

void CpuBackend::altup_predict(const Tensor& p, const Tensor& streams, const Tensor& coefs) {
  const int64_t n = streams.dim(0), tokens = streams.dim(1), dim = streams.dim(2);
  run_ranges(tokens, n * n * dim, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      kernels_.altup_predict(n, tokens * dim, dim, p.f32() + t * dim, streams.f32() + t * dim, coefs.f32() + t * n * n);
    }
  });
}

void CpuBackend::altup_predict_backward(const Grad& dstreams, const Grad& dcoefs, const Tensor& dp,
                                        const Tensor& streams, const Tensor& coefs) {
  const int64_t n = streams.dim(0), tokens = streams.dim(1), dim = streams.dim(2);
  run_ranges(tokens, 2 * n * n * dim, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* dh = dstreams.wanted() ? dstreams.tensor.f32() + t * dim : nullptr;
      float* dc = dcoefs.wanted() ? dcoefs.tensor.f32() + t * n * n : nullptr;
      kernels_.altup_predict_backward(n, tokens * dim, dim, dh, dstreams.write, dc, dcoefs.write, dp.f32() + t * dim,
                                      streams.f32() + t * dim, coefs.f32() + t * n * n);
    }
  });
}

void CpuBackend::altup_correct(const Tensor& q, const Tensor& p, const Tensor& v, const Tensor& gains, int active) {
  const int64_t n = p.dim(0), tokens = p.dim(1), dim = p.dim(2);
  run_ranges(tokens, n * dim, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      kernels_.altup_correct(n, tokens * dim, dim, q.f32() + t * dim, p.f32() + t * dim, v.f32() + t * dim,
                             gains.f32() + t * n, active);
    }
  });
}

void CpuBackend::altup_correct_backward(const Grad& dp, const Grad& dv, const Grad& dgains, const Tensor& dq,
                                        const Tensor& p, const Tensor& v, const Tensor& gains, int active) {
  const int64_t n = p.dim(0), tokens = p.dim(1), dim = p.dim(2);
  run_ranges(tokens, 3 * n * dim, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* dp_at = dp.wanted() ? dp.tensor.f32() + t * dim : nullptr;
      float* dv_at = dv.wanted() ? dv.tensor.f32() + t * dim : nullptr;
      float* dgains_at = dgains.wanted() ? dgains.tensor.f32() + t * n : nullptr;
      kernels_.altup_correct_backward(n, tokens * dim, dim, dp_at, dp.write, dv_at, dv.write, dgains_at, dgains.write,
                                      dq.f32() + t * dim, p.f32() + t * dim, v.f32() + t * dim, gains.f32() + t * n,
                                      active);
    }
  });
}

void CpuBackend::match_magnitude(const Tensor& y, const Tensor& b, const Tensor& reference) {
  const int64_t dim = b.dim(-1);
  run_ranges(b.rows(), 3 * dim, [&](int64_t begin, int64_t end, int) {
    const int64_t at = begin * dim;
    kernels_.match_magnitude({end - begin, dim}, y.f32() + at, b.f32() + at, reference.f32() + at);
  });
}

void CpuBackend::match_magnitude_backward(const Grad& db, const Grad& dreference, const Tensor& dy, const Tensor& b,
                                          const Tensor& reference) {
  const int64_t dim = b.dim(-1);
  run_ranges(b.rows(), 4 * dim, [&](int64_t begin, int64_t end, int) {
    const int64_t at = begin * dim;
    float* db_at = db.wanted() ? db.tensor.f32() + at : nullptr;
    float* dreference_at = dreference.wanted() ? dreference.tensor.f32() + at : nullptr;
    kernels_.match_magnitude_backward({end - begin, dim}, db_at, db.write, dreference_at, dreference.write,
                                      dy.f32() + at, b.f32() + at, reference.f32() + at);
  });
}

void CpuBackend::cross_entropy(const Tensor& logits, const Tensor& losses, std::span<const int32_t> targets, float cap,
                               float scale, const Tensor& gradient) {
  const int64_t n = logits.dim(-1);
  const WantGradient want = gradient.empty() ? WantGradient::no : WantGradient::yes;  // in place
  run_ranges(logits.rows(), 3 * kExponentialWork * n, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      losses.f32()[r] = kernels_.cross_entropy(n, logits.f32() + r * n, targets[r], cap, scale, want);
    }
  });
}

double CpuBackend::sum_of_squares(const Tensor& x) {
  const int64_t n = x.size(), pieces = (n + kSquaresPiece - 1) / kSquaresPiece;
  std::vector<double> partial(static_cast<size_t>(pieces));
  run(pieces, n, [&](int64_t piece, int) {
    const int64_t begin = piece * kSquaresPiece;
    partial[piece] = kernels_.sum_of_squares(std::min(kSquaresPiece, n - begin), x.f32() + begin);
  });
  double total = 0;
  for (const double sum : partial) total += sum;
  return total;
}

void CpuBackend::adamw_f32(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const AdamWStep& step) {
  AdamWFactors f = common_factors(step);
  f.step_size = static_cast<float>(step.lr / bias_correction(step.beta1, step.t));
  f.root_scale = static_cast<float>(std::sqrt(bias_correction(step.beta2, step.t)));
  f.eps = step.eps;
  run_ranges(p.size(), 4, [&](int64_t begin, int64_t end, int) {
    kernels_.adamw_f32(end - begin, p.f32() + begin, g.f32() + begin, m.f32() + begin, v.f32() + begin, f);
  });
}

void CpuBackend::adamw_8bit(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const Tensor& m_absmax,
                            const Tensor& v_absmax, const AdamWStep& step) {
  AdamWFactors f = common_factors(step);
  const double root = std::sqrt(bias_correction(step.beta2, step.t));
  f.step_size = static_cast<float>(step.lr * root / bias_correction(step.beta1, step.t));
  f.eps = static_cast<float>(step.eps * root);
  const int64_t n = p.size();
  run_ranges((n + kAdamWBlock - 1) / kAdamWBlock, 32 * kAdamWBlock, [&](int64_t begin, int64_t end, int) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t at = block * kAdamWBlock;
      kernels_.adamw_8bit(std::min(kAdamWBlock, n - at), p.f32() + at, g.f32() + at, m.as<uint8_t>() + at,
                          v.as<uint8_t>() + at, m_absmax.f32() + block, v_absmax.f32() + block, f, m_map_, v_map_);
    }
  });
}

}  // namespace saaz::cpu
