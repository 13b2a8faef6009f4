// Kernels that reduce over a row and then map it: norms, the gated activation with its sparsity, magnitude matching,
// rotary positions, AltUp's mixing, the loss. Row reductions go through row_sum (f32 lanes, f64 between pieces), so
// they hold about 1e-7 at any length. Formulas: gemma3n.md 3 and 5.
#pragma once

#include "backend/cpu/elementwise.inc.h"

namespace saaz::cpu {
namespace {

void scale_columns(RowShape s, float* y, Write write, const float* x, const float* v) {
  for (int64_t r = 0; r < s.rows; ++r) {
    const int64_t at = r * s.dim;
    for_lanes(s.dim, [=](int64_t i, int64_t count) {
      put(y + at + i, load(x + at + i, count) * load(v + i, count), count, write);
    });
  }
}

inline double mean_square(const float* x, int64_t n) {
  const double sum = row_sum(n, [=](int64_t i, int64_t count) {
    const VecF v = load(x + i, count);
    return v * v;
  });
  return sum / static_cast<double>(n);
}

inline double dot_of(const float* a, const float* b, int64_t n) {
  return row_sum(n, [=](int64_t i, int64_t count) { return load(a + i, count) * load(b + i, count); });
}

void rms_norm(RowShape s, float* y, float* inv_rms, const float* x, const float* weight, float eps) {
  for (int64_t r = 0; r < s.rows; ++r, x += s.dim, y += s.dim) {
    const auto inverse = static_cast<float>(1.0 / __builtin_sqrt(mean_square(x, s.dim) + eps));
    if (inv_rms) inv_rms[r] = inverse;
    for_lanes(s.dim, [=](int64_t i, int64_t count) {
      const VecF normed = load(x + i, count) * inverse;
      store(y + i, weight ? normed * load(weight + i, count) : normed, count);
    });
  }
}

/// dx = inv (t - xhat mean(t xhat)), t = w dy, xhat = x inv.
void rms_norm_backward(RowShape s, float* dx, Write write, const float* dy, const float* x, const float* weight,
                       const float* inv_rms) {
  for (int64_t r = 0; r < s.rows; ++r, x += s.dim, dx += s.dim, dy += s.dim) {
    const float inverse = inv_rms[r];
    const auto gained = [=](int64_t i, int64_t count) {
      const VecF gradient = load(dy + i, count);
      return weight ? gradient * load(weight + i, count) : gradient;
    };
    const double sum =
        row_sum(s.dim, [=](int64_t i, int64_t count) { return gained(i, count) * (load(x + i, count) * inverse); });
    const auto mean = static_cast<float>(sum / static_cast<double>(s.dim));
    for_lanes(s.dim, [=](int64_t i, int64_t count) {
      const VecF normed = load(x + i, count) * inverse;
      put(dx + i, inverse * (gained(i, count) - normed * mean), count, write);
    });
  }
}

constexpr double kMagnitudeFloor = 1e-5;  // on the mean square

struct Magnitudes {
  float m, n;
  bool floored;
};
inline Magnitudes magnitudes(const float* b, const float* reference, int64_t dim) {
  const double square = mean_square(b, dim);
  const bool floored = !(square > kMagnitudeFloor);
  return {static_cast<float>(__builtin_sqrt(mean_square(reference, dim))),
          static_cast<float>(__builtin_sqrt(floored ? kMagnitudeFloor : square)), floored};
}

void match_magnitude(RowShape s, float* y, const float* b, const float* reference) {
  for (int64_t r = 0; r < s.rows; ++r, y += s.dim, b += s.dim, reference += s.dim) {
    const Magnitudes f = magnitudes(b, reference, s.dim);
    for_lanes(s.dim, [=](int64_t i, int64_t count) { store(y + i, load(b + i, count) * f.m / f.n, count); });
  }
}

/// db = m/n (dy - [not floored] b <b, dy> / (D n^2)), dreference = <dy, b> / n * reference / (D m).
void match_magnitude_backward(RowShape s, float* db, Write db_write, float* dreference, Write dreference_write,
                              const float* dy, const float* b, const float* reference) {
  for (int64_t r = 0; r < s.rows; ++r) {
    const int64_t at = r * s.dim;
    const Magnitudes f = magnitudes(b + at, reference + at, s.dim);
    const double inner = dot_of(dy + at, b + at, s.dim);
    const double n = f.n, m = f.m, dim = static_cast<double>(s.dim);
    const auto ratio = static_cast<float>(m / n);
    const auto along = static_cast<float>(f.floored ? 0.0 : inner / (dim * n * n));
    const auto outer = static_cast<float>(m > 0 ? inner / (n * dim * m) : 0.0);
    for_lanes(s.dim, [=](int64_t i, int64_t count) {
      const VecF gradient = load(dy + at + i, count) - along * load(b + at + i, count);
      if (db) put(db + at + i, ratio * gradient, count, db_write);
      if (dreference) put(dreference + at + i, outer * load(reference + at + i, count), count, dreference_write);
    });
  }
}

/// Mean and population deviation of a row.
inline void mean_and_deviation(const float* x, int64_t n, float* mean_std) {
  const double count = static_cast<double>(n);
  const auto mean = static_cast<float>(row_sum(n, [=](int64_t i, int64_t c) { return load(x + i, c); }) / count);
  const double square = row_sum(n, [=](int64_t i, int64_t c) {
    const VecF centred = load(x + i, c) - mean;
    return centred * centred;
  });
  mean_std[0] = mean;
  mean_std[1] = static_cast<float>(__builtin_sqrt(square / count));
}

void geglu(RowShape s, float* y, float* mean_std, const float* gate, const float* up, float sparsity_z) {
  for (int64_t r = 0; r < s.rows; ++r, y += s.dim, gate += s.dim, up += s.dim) {
    if (sparsity_z == 0.0f) {
      for_lanes(s.dim, [=](int64_t i, int64_t count) {
        store(y + i, gelu(load(gate + i, count)) * load(up + i, count), count);
      });
      continue;
    }
    float* saved = mean_std + 2 * r;
    mean_and_deviation(gate, s.dim, saved);
    const float cut = saved[0] + saved[1] * sparsity_z;
    for_lanes(s.dim, [=](int64_t i, int64_t count) {
      const VecF active = max(VecF{}, load(gate + i, count) - cut);  // NaN passes
      store(y + i, gelu(active) * load(up + i, count), count);
    });
  }
}

/// dz = g - S/F - zeta S (z - mean) / (F std), g = dy up gelu'(z~) where z~ > 0, S = sum g. Without sparsity dz = g.
void geglu_backward(RowShape s, float* dgate, Write dgate_write, float* dup, Write dup_write, const float* dy,
                    const float* gate, const float* up, const float* mean_std, float sparsity_z, float* scratch) {
  const bool sparse = sparsity_z != 0.0f;
  for (int64_t r = 0; r < s.rows; ++r) {
    const int64_t at = r * s.dim;
    const float mean = sparse ? mean_std[2 * r] : 0.0f, deviation = sparse ? mean_std[2 * r + 1] : 0.0f;
    const float cut = mean + deviation * sparsity_z;
    for_lanes(s.dim, [=](int64_t i, int64_t count) {
      const VecF z = load(gate + at + i, count), gradient = load(dy + at + i, count), factor = load(up + at + i, count);
      const VecF active = sparse ? max(VecF{}, z - cut) : z;
      const Gelu g = gelu_with_derivative(active);
      if (dup) put(dup + at + i, gradient * g.value, count, dup_write);
      const VecF dz = gradient * factor * g.derivative;
      store(scratch + i, sparse ? (active > VecF{} ? dz : VecF{}) : dz, count);
    });
    if (!dgate) continue;
    float share = 0, slope = 0;
    if (sparse) {
      const double sum = row_sum(s.dim, [=](int64_t i, int64_t count) { return load(scratch + i, count); });
      const double dim = static_cast<double>(s.dim);
      share = static_cast<float>(sum / dim);
      slope = deviation > 0 ? static_cast<float>(sparsity_z * sum / (dim * deviation)) : 0.0f;
    }
    for_lanes(s.dim, [=](int64_t i, int64_t count) {
      VecF dz = load(scratch + i, count);
      if (sparse) dz = (dz - share) - slope * (load(gate + at + i, count) - mean);
      put(dgate + at + i, dz, count, dgate_write);
    });
  }
}

void rope(int64_t n_heads, int64_t head_dim, float* y, Write write, const float* x, const float* cosine_sine,
          float sine_sign) {
  const int64_t half = head_dim / 2;
  for (int64_t h = 0; h < n_heads; ++h, x += head_dim, y += head_dim) {
    for_lanes(half, [=](int64_t i, int64_t count) {
      const VecF cosine = load(cosine_sine + i, count), sine = sine_sign * load(cosine_sine + half + i, count);
      const VecF first = load(x + i, count), second = load(x + half + i, count);
      put(y + i, first * cosine - second * sine, count, write);
      put(y + half + i, second * cosine + first * sine, count, write);
    });
  }
}

/// Softmax pieces of a row of scores: the largest, and the sum of e^(x - largest).
inline float largest_of(const float* x, int64_t n) {
  VecF best = broadcast(-__builtin_inff());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) best = max(best, load(x + i));
  float largest = max_of_lanes(best);
  for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

float cross_entropy(int64_t n, float* logits, int64_t target, float cap, float scale, Backend::WantGradient want) {
  if (target < 0) {
    if (want == Backend::WantGradient::yes) __builtin_memset(logits, 0, static_cast<size_t>(n) * sizeof(float));
    return 0;
  }
  if (cap != 0.0f) softcap(n, logits, cap);
  const float largest = largest_of(logits, n);
  const double sum = row_sum(n, [=](int64_t i, int64_t count) { return exp(load(logits + i, count) - largest); });
  const double loss = __builtin_log(sum) + (static_cast<double>(largest) - logits[target]);
  if (want == Backend::WantGradient::no) return static_cast<float>(loss);
  const auto inverse = static_cast<float>(1.0 / sum);
  const auto slope_at = [=](VecF capped) {
    const VecF ratio = capped / cap;
    return cap == 0.0f ? broadcast(scale) : scale * (1.0f - ratio * ratio);
  };
  const VecF target_slope = slope_at(broadcast(logits[target]));
  for_lanes(n, [=](int64_t i, int64_t count) {
    const VecF capped = load(logits + i, count);
    store(logits + i, exp(capped - largest) * inverse * slope_at(capped), count);
  });
  // p - 1 from the loss: exact where p is close to 1.
  logits[target] = static_cast<float>(__builtin_expm1(-loss)) * target_slope[0];
  return static_cast<float>(loss);
}

void altup_predict(int64_t n_streams, int64_t stride, int64_t dim, float* p, const float* h, const float* coefs) {
  for (int64_t j = 0; j < n_streams; ++j) {
    const float* c = coefs + j * n_streams;
    for_lanes(dim, [=](int64_t i, int64_t count) {
      VecF sum{};
      for (int64_t k = 0; k < n_streams; ++k) sum += c[k] * load(h + k * stride + i, count);
      store(p + j * stride + i, load(h + j * stride + i, count) + sum, count);
    });
  }
}

inline void put_scalar(float* to, double value, Write write) {
  *to = write == Write::add ? *to + static_cast<float>(value) : static_cast<float>(value);
}

void altup_predict_backward(int64_t n_streams, int64_t stride, int64_t dim, float* dh, Write dh_write, float* dcoefs,
                            Write dcoefs_write, const float* dp, const float* h, const float* coefs) {
  for (int64_t k = 0; dh && k < n_streams; ++k) {
    for_lanes(dim, [=](int64_t i, int64_t count) {
      VecF sum{};
      for (int64_t j = 0; j < n_streams; ++j) sum += coefs[j * n_streams + k] * load(dp + j * stride + i, count);
      put(dh + k * stride + i, load(dp + k * stride + i, count) + sum, count, dh_write);
    });
  }
  for (int64_t j = 0; dcoefs && j < n_streams; ++j) {
    for (int64_t k = 0; k < n_streams; ++k) {
      put_scalar(dcoefs + j * n_streams + k, dot_of(dp + j * stride, h + k * stride, dim), dcoefs_write);
    }
  }
}

void altup_correct(int64_t n_streams, int64_t stride, int64_t dim, float* q, const float* p, const float* v,
                   const float* gains, int active) {
  for_lanes(dim, [=](int64_t i, int64_t count) {
    const VecF innovation = load(v + i, count) - load(p + active * stride + i, count);
    for (int64_t j = 0; j < n_streams; ++j) {
      store(q + j * stride + i, load(p + j * stride + i, count) + (1.0f + gains[j]) * innovation, count);
    }
  });
}

/// innovation = v - p_active; its gradient is sum_j (1 + gains_j) dq_j, which goes to v, and negated to p_active.
void altup_correct_backward(int64_t n_streams, int64_t stride, int64_t dim, float* dp, Write dp_write, float* dv,
                            Write dv_write, float* dgains, Write dgains_write, const float* dq, const float* p,
                            const float* v, const float* gains, int active) {
  for_lanes(dim, [=](int64_t i, int64_t count) {
    VecF dinnovation{};
    for (int64_t j = 0; j < n_streams; ++j) dinnovation += (1.0f + gains[j]) * load(dq + j * stride + i, count);
    if (dv) put(dv + i, dinnovation, count, dv_write);
    for (int64_t j = 0; dp && j < n_streams; ++j) {
      const VecF own = load(dq + j * stride + i, count);
      put(dp + j * stride + i, j == active ? own - dinnovation : own, count, dp_write);
    }
  });
  for (int64_t j = 0; dgains && j < n_streams; ++j) {
    const double inner = row_sum(dim, [=](int64_t i, int64_t count) {
      return load(dq + j * stride + i, count) * (load(v + i, count) - load(p + active * stride + i, count));
    });
    put_scalar(dgains + j, inner, dgains_write);
  }
}

}  // namespace
}  // namespace saaz::cpu
