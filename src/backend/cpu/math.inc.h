// exp, tanh, gelu and its derivative on vectors, in f32. exp is within 2 ulp (subnormal results included), tanh within
// 4 ulp. Polynomials: interpolation at the Chebyshev nodes of the reduced range, errors 1e-8 (exp) and 6e-10 (tanh).
// gelu is the tanh form written with the logistic function, ½(1 + tanh u) = 1 / (1 + e^(-2u)), which does not cancel.
#pragma once

#include "backend/cpu/vec.h"

namespace saaz::cpu {
namespace {

/// 2^n for n in [-126, 127].
inline VecF power_of_two(VecI n) { return from_bits((n + 127) << 23); }

inline VecF exp(VecF x) {
  constexpr float kLog2e = 1.44269504f;
  // ln 2 in two parts: the first has 15 significant bits, so n times it is exact.
  constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860677e-6f;
  constexpr float kRound = 12582912.0f;                   // 1.5 * 2^23: adding it rounds to an integer
  x = min(broadcast(89.0f), max(broadcast(-104.0f), x));  // beyond: infinity and 0; NaN passes
  const VecF shifted = x * kLog2e + kRound;
  const VecF n = shifted - kRound;
  const VecI whole = bits_of(shifted) - bits_of(broadcast(kRound));
  const VecF r = (x - n * kLn2High) - n * kLn2Low;
  VecF p = broadcast(1.39262508315e-3f);
  p = fma(p, r, broadcast(8.36323288368e-3f));
  p = fma(p, r, broadcast(4.1666554213e-2f));
  p = fma(p, r, broadcast(1.66665766661e-1f));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r * r, r) + 1.0f;
  const VecI half = whole >> 1;  // two steps: 2^128 and subnormals are not one factor
  return p * power_of_two(half) * power_of_two(whole - half);
}

inline VecF tanh(VecF x) {
  const VecF magnitude = abs(x), z = x * x;
  VecF p = broadcast(2.29274481618e-3f);
  p = fma(p, z, broadcast(-8.34394551584e-3f));
  p = fma(p, z, broadcast(2.1768918651e-2f));
  p = fma(p, z, broadcast(-5.39592595772e-2f));
  p = fma(p, z, broadcast(1.33333035569e-1f));
  p = fma(p, z, broadcast(-3.33333331721e-1f));
  const VecF near_zero = fma(p * z, x, x);
  const VecF far = 1.0f - 2.0f / (exp(2.0f * magnitude) + 1.0f);
  const VecI sign = bits_of(x) & broadcast(INT32_MIN);
  return from_bits(bits_of(magnitude < 0.625f ? near_zero : far) | sign);
}

struct Gelu {
  VecF value, derivative;
};
constexpr float kGeluScale = 0.7978845608f, kGeluCubic = 0.044715f;  // sqrt(2 / pi)

/// e^(-2u), u = c (x + 0.044715 x^3); bounded so that its product with 1 / (1 + itself) stays finite.
inline VecF gelu_exponential(VecF x) {
  const VecF u = kGeluScale * x * (1.0f + kGeluCubic * x * x);
  return exp(min(broadcast(80.0f), -2.0f * u));
}
inline VecF gelu(VecF x) { return x / (1.0f + gelu_exponential(x)); }
inline Gelu gelu_with_derivative(VecF x) {
  const VecF e = gelu_exponential(x);
  const VecF logistic = 1.0f / (1.0f + e);
  const VecF slope = 2.0f * kGeluScale * (1.0f + 3.0f * kGeluCubic * x * x);
  return {x / (1.0f + e), logistic + x * logistic * (e * logistic) * slope};
}

}  // namespace
}  // namespace saaz::cpu
