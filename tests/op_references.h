// Scalar references of the ops, written from their formulas alone, one loop per index. Each is generic over arrays of
// double and of Complex. At kinks (a relu, a maximum, a floor) the branch is chosen by real parts; every other step is
// analytic, so a complex step differentiates it.
#pragma once

#include <algorithm>
#include <numbers>

#include "op_testing.h"

namespace saaz::testing::reference {

/// x[T, K] w[N, K]^T
template <class S>
Array<S> matmul_nt(const Array<S>& x, const Array<S>& w) {
  Array<S> y(Shape{x.rows(), w.rows()});
  for (int64_t t = 0; t < x.rows(); ++t)
    for (int64_t n = 0; n < w.rows(); ++n)
      for (int64_t k = 0; k < x.cols(); ++k) y(t, n) += x(t, k) * w(n, k);
  return y;
}

/// f(x_i) of each element.
template <class S, class F>
Array<S> map(Array<S> x, F f) {
  for (S& e : x.v) e = f(e);
  return x;
}

/// Rows of `dim` elements over their root mean square, times gain (empty: 1).
template <class S>
Array<S> rms_norm(Array<S> x, const std::vector<S>& gain, int64_t dim, double eps) {
  for (int64_t begin = 0; begin < x.size(); begin += dim) {
    S* row = x.v.data() + begin;
    S sum{};
    for (int64_t i = 0; i < dim; ++i) sum += row[i] * row[i];
    const S root = std::sqrt(sum / static_cast<double>(dim) + eps);
    for (int64_t i = 0; i < dim; ++i) row[i] = row[i] / root * (gain.empty() ? S(1) : gain[static_cast<size_t>(i)]);
  }
  return x;
}

template <class S>
S gelu(S x) {
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}

template <class S>
Array<S> geglu(const Array<S>& gate, const Array<S>& up, double sparsity_z) {
  Array<S> y(gate.shape);
  const auto n = static_cast<double>(gate.cols());
  for (int64_t r = 0; r < gate.rows(); ++r) {
    S mean{}, square{};
    for (int64_t i = 0; i < gate.cols(); ++i) mean += gate(r, i) / n;
    for (int64_t i = 0; i < gate.cols(); ++i) square += (gate(r, i) - mean) * (gate(r, i) - mean) / n;
    const S cut = mean + sparsity_z * std::sqrt(square);
    for (int64_t i = 0; i < gate.cols(); ++i) {
      const S excess = gate(r, i) - cut;
      const S z = sparsity_z == 0 ? gate(r, i) : std::real(excess) > 0 ? excess : S(0);
      y(r, i) = gelu(z) * up(r, i);
    }
  }
  return y;
}

/// table row p: cosines, then sines; column i turns with column i + half.
template <class S>
Array<S> rope(const Array<S>& x, const Array<S>& table, const std::vector<int32_t>& positions, int64_t n_heads) {
  Array<S> y(x.shape);
  const int64_t dim = table.cols(), half = dim / 2;
  for (int64_t t = 0; t < x.rows(); ++t)
    for (int64_t h = 0; h < n_heads; ++h)
      for (int64_t i = 0; i < half; ++i) {
        const int64_t p = positions[static_cast<size_t>(t)], a = h * dim + i, b = a + half;
        y(t, a) = x(t, a) * table(p, i) - x(t, b) * table(p, half + i);
        y(t, b) = x(t, b) * table(p, i) + x(t, a) * table(p, half + i);
      }
  return y;
}

/// Whole sequences: query i of a span sees its keys j <= i, and only the last `window` of them when window > 0.
template <class S>
Array<S> attention(const Array<S>& q, const Array<S>& k, const Array<S>& v, const std::vector<AttentionSpan>& spans,
                   const AttentionShape& s) {
  Array<S> y(q.shape);
  const int64_t group = s.n_heads / s.n_kv_heads, dim = s.head_dim;
  for (const AttentionSpan& span : spans)
    for (int64_t i = 0; i < span.n_queries; ++i)
      for (int64_t h = 0; h < s.n_heads; ++h) {
        const int64_t row = span.q_begin + i, kv = h / group * dim,
                      first = s.window > 0 ? std::max<int64_t>(0, i - s.window + 1) : 0;
        std::vector<S> weights;
        S sum{};
        for (int64_t j = first; j <= i; ++j) {
          S score{};
          for (int64_t d = 0; d < dim; ++d) score += q(row, h * dim + d) * k(span.kv_begin + j, kv + d);
          weights.push_back(std::exp(static_cast<double>(s.scale) * score));
          sum += weights.back();
        }
        for (int64_t j = first; j <= i; ++j)
          for (int64_t d = 0; d < dim; ++d)
            y(row, h * dim + d) += weights[static_cast<size_t>(j - first)] / sum * v(span.kv_begin + j, kv + d);
      }
  return y;
}

template <class S>
Array<S> altup_predict(const Array<S>& h, const Array<S>& coefs) {
  Array<S> p = h;
  const int64_t n = h.shape[0];
  for (int64_t t = 0; t < h.shape[1]; ++t)
    for (int64_t j = 0; j < n; ++j)
      for (int64_t k = 0; k < n; ++k)
        for (int64_t d = 0; d < h.cols(); ++d) p(j, t, d) += coefs(t, n * j + k) * h(k, t, d);
  return p;
}

template <class S>
Array<S> altup_correct(const Array<S>& p, const Array<S>& v, const Array<S>& gains, int64_t active) {
  Array<S> q = p;
  for (int64_t j = 0; j < p.shape[0]; ++j)
    for (int64_t t = 0; t < p.shape[1]; ++t)
      for (int64_t d = 0; d < p.cols(); ++d) q(j, t, d) += (1.0 + gains(t, j)) * (v(t, d) - p(active, t, d));
  return q;
}

template <class S>
S mean_square(const Array<S>& x, int64_t row) {
  S sum{};
  for (int64_t d = 0; d < x.cols(); ++d) sum += x(row, d) * x(row, d);
  return sum / static_cast<double>(x.cols());
}

template <class S>
Array<S> match_magnitude(const Array<S>& x, const Array<S>& target) {
  Array<S> y = x;
  for (int64_t r = 0; r < x.rows(); ++r) {
    const S square = mean_square(x, r), floored = std::real(square) > 1e-5 ? square : S(1e-5);
    for (int64_t d = 0; d < x.cols(); ++d) y(r, d) = x(r, d) * std::sqrt(mean_square(target, r)) / std::sqrt(floored);
  }
  return y;
}

template <class S>
Array<S> head_logits(const Array<S>& x, const Array<S>& w, double cap) {
  return map(matmul_nt(x, w), [cap](S logit) { return cap == 0 ? logit : cap * std::tanh(logit / cap); });
}

template <class S>
Array<S> head_loss(const Array<S>& x, const Array<S>& w, double cap, const std::vector<int32_t>& targets) {
  const Array<S> logits = head_logits(x, w, cap);
  Array<S> losses(Shape{x.rows()});
  for (int64_t t = 0; t < x.rows(); ++t) {
    const int32_t target = targets[static_cast<size_t>(t)];
    if (target < 0) continue;
    S sum{};
    for (int64_t i = 0; i < logits.cols(); ++i) sum += std::exp(logits(t, i) - logits(t, target));
    losses.v[static_cast<size_t>(t)] = std::log(sum);
  }
  return losses;
}

}  // namespace saaz::testing::reference
