// The tanh form of gelu and its derivative, as cpu/math.inc.h has them.
#pragma once

#include "backend/cuda/cuda_common.cuh"

namespace saaz::cuda {
namespace {

constexpr float kGeluScale = 0.7978845608f, kGeluCubic = 0.044715f;  // sqrt(2 / pi)

/// 1 / (1 + e) and e = e^(-2u), u = c (x + 0.044715 x^3): half of 1 + tanh u without its cancellation. e is bounded so
/// that its product with 1 / (1 + e) stays finite. Activations of bf16 take the fast exponential and quotient: their
/// errors, some 2^-20, vanish in the store.
struct Logistic {
  float value, exponential;
};
template <class T>
__device__ Logistic gelu_logistic(float x) {
  const float u = kGeluScale * x * (1.0f + kGeluCubic * x * x);
  const float bounded = -2.0f * u > 80.0f ? 80.0f : -2.0f * u;  // NaN passes
  if constexpr (sizeof(T) == 2) {
    const float e = __expf(bounded);
    return {__fdividef(1.0f, 1.0f + e), e};
  } else {
    const float e = expf(bounded);
    return {1.0f / (1.0f + e), e};
  }
}
template <class T>
__device__ float gelu(float x) {
  return x * gelu_logistic<T>(x).value;
}
struct Gelu {
  float value, derivative;
};
template <class T>
__device__ Gelu gelu_with_derivative(float x) {
  const Logistic l = gelu_logistic<T>(x);
  const float slope = 2.0f * kGeluScale * (1.0f + 3.0f * kGeluCubic * x * x);
  return {x * l.value, l.value + x * l.value * (l.exponential * l.value) * slope};
}

}  // namespace
}  // namespace saaz::cuda
