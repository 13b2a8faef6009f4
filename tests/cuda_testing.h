// Shared by the tests of the CUDA kernels: arrays on a backend, and a fixture with the GPU (the tests are skipped where
// there is none) and the CPU beside it, once for each dtype of activations.
#pragma once

#include <cmath>

#include "kernel_testing.h"

namespace saaz {

inline constexpr double kBf16Roundoff = 0x1p-8;

/// One host array, where it lies on a backend, and its way there and back.
class Device {
 public:
  explicit Device(Backend& backend) : backend_(backend) {}
  ~Device() {
    for (void* p : owned_) backend_.release(p);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  Tensor bytes(const void* host, DType dtype, std::initializer_list<int64_t> dims) {
    Tensor t(nullptr, dtype, dims);
    t.data = backend_.allocate(t.bytes(), "test");
    owned_.push_back(t.data);
    backend_.upload(t, host);
    return t;
  }
  Tensor f32(const Floats& x, std::initializer_list<int64_t> dims) { return bytes(x.data(), DType::f32, dims); }
  /// As the backend stores activations.
  Tensor activations(const Floats& x, std::initializer_list<int64_t> dims) {
    if (backend_.activation_dtype() == DType::f32) return f32(x, dims);
    std::vector<uint16_t> rounded(x.size());
    std::transform(x.begin(), x.end(), rounded.begin(), f32_to_bf16);
    return bytes(rounded.data(), DType::bf16, dims);
  }
  Floats values(const Tensor& t) {
    Floats out(static_cast<size_t>(t.size()));
    if (t.dtype == DType::f32) {
      backend_.download(out.data(), t);
      return out;
    }
    std::vector<uint16_t> stored(out.size());
    backend_.download(stored.data(), t);
    std::transform(stored.begin(), stored.end(), out.begin(), bf16_to_f32);
    return out;
  }

 private:
  Backend& backend_;
  std::vector<void*> owned_;
};

/// Values that bf16 holds.
inline Floats rounded_floats(int64_t n, uint32_t seed, float scale = 1) {
  Floats out = random_floats(n, seed, scale);
  for (float& x : out) x = bf16_to_f32(f32_to_bf16(x));
  return out;
}

class Cuda : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    gpu_ = make_cuda_backend({.compute_dtype = GetParam()});
    if (!gpu_) GTEST_SKIP() << "no GPU";
    cpu_ = make_cpu_backend({.n_threads = 2});
  }
  /// outputs(backend, device): what a kernel leaves, compared output by output. stores: roundings to bf16 on the way to
  /// an output that is stored in it.
  template <class F>
  void expect_alike(double roundings, F outputs, double stores = 1) {
    Device on_gpu(*gpu_), on_cpu(*cpu_);
    const std::vector<Tensor> got = outputs(*gpu_, on_gpu), expected = outputs(*cpu_, on_cpu);
    for (size_t i = 0; i < got.size(); ++i) {
      const Floats a = on_gpu.values(got[i]), b = on_cpu.values(expected[i]);
      double difference = 0, size = 0;
      for (size_t k = 0; k < b.size(); ++k) {
        difference += std::pow(static_cast<double>(a[k]) - b[k], 2);
        size += std::pow(static_cast<double>(b[k]), 2);
      }
      const double stored = got[i].dtype == DType::bf16 ? stores * kBf16Roundoff : 0;
      EXPECT_LE(std::sqrt(difference), (2 * roundings * kEps + stored) * std::sqrt(size)) << "output " << i;
    }
  }
  std::unique_ptr<Backend> gpu_, cpu_;
};
inline const auto kEachActivation = testing::Values(DType::f32, DType::bf16);
inline std::string activation_name(const testing::TestParamInfo<DType>& info) { return name_of(info.param); }

}  // namespace saaz
