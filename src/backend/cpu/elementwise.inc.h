// Kernels over flat ranges: sums of vectors, tanh, softcap, the optimizers' updates. An element's result depends on
// that element alone (adamw_8bit: on its block of 256). Sources: gemma3n.md 5, formats.md 3.
#pragma once

#include "backend/cpu/kernels.h"
#include "backend/cpu/math.inc.h"

namespace saaz::cpu {
namespace {

inline void put(float* to, VecF v, int64_t count, Write write) {
  store(to, write == Write::add ? load(to, count) + v : v, count);
}

void exp_range(int64_t n, float* y, const float* x) {
  for_lanes(n, [=](int64_t i, int64_t count) { store(y + i, exp(load(x + i, count)), count); });
}

void tanh_range(int64_t n, float* y, const float* x) {
  for_lanes(n, [=](int64_t i, int64_t count) { store(y + i, tanh(load(x + i, count)), count); });
}

void tanh_backward(int64_t n, float* dx, Write write, const float* dy, const float* y) {
  for_lanes(n, [=](int64_t i, int64_t count) {
    const VecF value = load(y + i, count);
    put(dx + i, load(dy + i, count) * (1.0f - value * value), count, write);
  });
}

void softcap(int64_t n, float* x, float cap) {
  for_lanes(n, [=](int64_t i, int64_t count) { store(x + i, cap * tanh(load(x + i, count) / cap), count); });
}

void add_scaled(int64_t n, float* y, const float* a, float alpha, const float* b, float beta) {
  for_lanes(n, [=](int64_t i, int64_t count) {
    VecF sum = alpha * load(a + i, count);
    if (b) sum += beta * load(b + i, count);
    store(y + i, sum, count);
  });
}

void accumulate(int64_t n, float* dx, Write write, const float* dy, float alpha) {
  for_lanes(n, [=](int64_t i, int64_t count) { put(dx + i, alpha * load(dy + i, count), count, write); });
}

double sum_of_squares(int64_t n, const float* x) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int64_t j = 0; j < 8; ++j) lanes[j] += static_cast<double>(x[i + j]) * x[i + j];
  }
  for (; i < n; ++i) lanes[0] += static_cast<double>(x[i]) * x[i];
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

/// torch's order: decay, moments, p -= step_size * m / (sqrt(v) / root_scale + eps).
void adamw_f32(int64_t n, float* p, const float* g, float* m, float* v, const AdamWFactors& f) {
  for_lanes(n, [=](int64_t i, int64_t count) {
    const VecF gradient = load(g + i, count) * f.grad_scale;
    const VecF old_m = load(m + i, count);
    const VecF new_m = old_m + f.one_minus_beta1 * (gradient - old_m);
    const VecF new_v = load(v + i, count) * f.beta2 + f.one_minus_beta2 * gradient * gradient;
    const VecF parameter = load(p + i, count) * f.decay;
    store(m + i, new_m, count);
    store(v + i, new_v, count);
    store(p + i, parameter - f.step_size * (new_m / (sqrt(new_v) / f.root_scale + f.eps)), count);
  });
}

/// Count of midpoints below x: a branch-free search; NaN gives 0.
inline int nearest_code_of(const CodeMap& map, float x) {
  int code = 0;
  for (int step = 128; step > 0; step /= 2) code += x > map.midpoints[code + step - 1] ? step : 0;
  return code;
}

inline bool is_negative(float x) { return __builtin_signbit(x) != 0; }

/// A code whose value has the other sign than m moves by one (formats.md 3).
inline uint8_t code_with_sign(const CodeMap& map, float m, float scaled) {
  int code = nearest_code_of(map, scaled);
  if (is_negative(map.values[code]) != is_negative(m)) code += m > 0.0f ? 1 : -1;
  return static_cast<uint8_t>(code);
}

/// bitsandbytes' order: the update uses the fresh f32 moments, decays after, and only then are the moments quantised
/// again.
void adamw_8bit(int64_t n, float* p, const float* g, uint8_t* m, uint8_t* v, float* m_absmax, float* v_absmax,
                const AdamWFactors& f, const CodeMap& m_map, const CodeMap& v_map) {
  constexpr int64_t kBlock = 256;
  float new_m[kBlock], new_v[kBlock];
  float m_largest = 0, v_largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float gradient = g[i] * f.grad_scale;
    if (!__builtin_isfinite(gradient)) {
      new_m[i] = new_v[i] = 0;
      continue;
    }
    new_m[i] = f.beta1 * (m_map.values[m[i]] * *m_absmax) + f.one_minus_beta1 * gradient;
    new_v[i] = f.beta2 * (v_map.values[v[i]] * *v_absmax) + f.one_minus_beta2 * gradient * gradient;
    const float magnitude = __builtin_fabsf(new_m[i]);
    m_largest = magnitude > m_largest ? magnitude : m_largest;
    v_largest = new_v[i] > v_largest ? new_v[i] : v_largest;
    const float updated = p[i] - f.step_size * (new_m[i] / (__builtin_sqrtf(new_v[i]) + f.eps));
    p[i] = updated * f.decay;
  }
  for (int64_t i = 0; i < n; ++i) {
    m[i] = code_with_sign(m_map, new_m[i], new_m[i] / m_largest);
    v[i] = static_cast<uint8_t>(nearest_code_of(v_map, new_v[i] / v_largest));
  }
  *m_absmax = m_largest;
  *v_absmax = v_largest;
}

}  // namespace
}  // namespace saaz::cpu
