// Tensor: a typed, contiguous, row-major view of memory it does not own. Copying copies the view. The last axis is
// contiguous; "rows" are all axes but the last. `node` is the tape's slot for its gradient (autograd/tape.h), -1 when
// untracked.
#pragma once

#include <array>
#include <bit>
#include <cassert>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace saaz {

enum class DType : uint8_t { f32, bf16, f16, i32, i64, u8, i8 };

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::i64:
      return 8;
    default:
      return 1;
  }
}
const char* name_of(DType dtype);

struct Tensor {
  static constexpr int kMaxDims = 4;
  void* data = nullptr;
  int32_t node = -1;
  DType dtype = DType::f32;
  int8_t ndim = 0;
  std::array<int64_t, kMaxDims> shape{};

  Tensor() = default;
  Tensor(void* data, DType dtype, std::initializer_list<int64_t> dims)
      : data(data), dtype(dtype), ndim(static_cast<int8_t>(dims.size())) {
    assert(dims.size() <= kMaxDims);
    int i = 0;
    for (int64_t d : dims) shape[i++] = d;
  }
  bool empty() const { return ndim == 0; }
  int64_t dim(int i) const { return shape[i < 0 ? ndim + i : i]; }
  int64_t size() const {
    int64_t n = ndim == 0 ? 0 : 1;
    for (int i = 0; i < ndim; ++i) n *= shape[i];
    return n;
  }
  /// Product of all axes but the last.
  int64_t rows() const { return ndim == 0 ? 0 : dim(-1) == 0 ? 0 : size() / dim(-1); }
  int64_t bytes() const { return size() * size_of(dtype); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  float* f32() const {
    assert(dtype == DType::f32);
    return static_cast<float*>(data);
  }
  bool same_shape(const Tensor& o) const { return ndim == o.ndim && shape == o.shape; }
  /// "f32[7, 2048]"
  std::string describe() const;
};

/// Rows [begin, begin + n) of a tensor seen as [rows, last]; 2-D result, untracked.
inline Tensor row_slice(const Tensor& t, int64_t begin, int64_t n) {
  assert(begin >= 0 && begin + n <= t.rows());
  return Tensor(static_cast<char*>(t.data) + begin * t.dim(-1) * size_of(t.dtype), t.dtype, {n, t.dim(-1)});
}

inline float bf16_to_f32(uint16_t h) { return std::bit_cast<float>(static_cast<uint32_t>(h) << 16); }
/// Round to nearest even; NaN stays a quiet NaN.
inline uint16_t f32_to_bf16(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  if ((u & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(u >> 16 | 0x40);
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f);  // round to nearest even, overflow to infinity

}  // namespace saaz
