// Shared by the kernel tests: random f32 buffers, views of them, and a fixture that runs once per instruction set.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "backend/cpu/kernels.h"

namespace saaz {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
constexpr double kEps = 0x1p-24;  // unit roundoff of f32

/// Uniform in [-scale, scale).
inline Floats random_floats(int64_t n, uint32_t seed, float scale = 1) {
  std::mt19937 draw(seed);
  Floats out(static_cast<size_t>(n));
  for (float& x : out) x = scale * (static_cast<float>(draw() >> 8) * 0x1p-23f - 1);
  return out;
}
inline Tensor tensor(Floats& x, std::initializer_list<int64_t> dims) { return {x.data(), DType::f32, dims}; }
inline Grad overwrite(const Tensor& t) { return {t, Write::overwrite}; }
inline bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class Kernels : public testing::TestWithParam<const cpu::KernelTable*> {
 protected:
  const cpu::KernelTable& table() const { return *GetParam(); }
  std::unique_ptr<Backend> backend(int threads = 2, DType compute_dtype = DType::f32) const {
    return make_cpu_backend(
        {.n_threads = threads, .instruction_set = GetParam()->name, .compute_dtype = compute_dtype});
  }
};
inline const auto kEachInstructionSet = testing::ValuesIn(cpu::available_kernels());
inline std::string instruction_set_name(const testing::TestParamInfo<const cpu::KernelTable*>& info) {
  std::string name = info.param->name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

}  // namespace saaz
