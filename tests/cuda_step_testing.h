// Shared by the tests of a decoding step's kernels: the fixture, memory for ops on the CPU, weights on both sides.
#pragma once

#include "backend/step.h"
#include "cuda_testing.h"
#include "ops/ops.h"
#include "quant/blockwise.h"

namespace saaz {

class CudaStep : public Cuda {
 protected:
  void SetUp() override {
    Cuda::SetUp();
    if (gpu_) kernels_ = gpu_->step_kernels();
  }
  /// Three times: queued, recorded, repeated.
  void run(int64_t n, const std::function<void()>& queue, std::vector<AttentionSpan> spans = {}) {
    if (spans.empty()) spans.resize(static_cast<size_t>(n));
    std::vector<int32_t> ids(static_cast<size_t>(n));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
    std::unique_ptr<StepKernels::Recording> recording;
    for (int i = 0; i < 3; ++i) kernels_->run(recording, {ids, {spans, spans}}, queue);
    gpu_->release(gpu_->allocate(1, "wait"));
  }
  double store() const { return GetParam() == DType::bf16 ? kBf16Roundoff : 0; }
  void expect_close(const Floats& got, const Floats& expected, double roundings, const char* what) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      difference += std::pow(static_cast<double>(got[i]) - expected[i], 2);
      size += std::pow(static_cast<double>(expected[i]), 2);
    }
    EXPECT_LE(std::sqrt(difference), (2 * roundings * kEps + store()) * std::sqrt(size)) << what;
  }
  StepKernels* kernels_ = nullptr;
};

/// Memory for ops on the CPU.
struct CpuOps {
  explicit CpuOps(Backend& cpu, size_t n_floats = 1 << 22)
      : memory(n_floats), arena(memory.data(), static_cast<int64_t>(memory.size() * 4)) {
    ctx.emplace(Ctx{cpu, arena});
  }
  Tensor of(const Floats& x, std::initializer_list<int64_t> dims) {
    Tensor t = arena.tensor(DType::f32, dims);
    std::copy(x.begin(), x.end(), t.f32());
    return t;
  }
  std::vector<float> memory;
  Arena arena;
  std::optional<Ctx> ctx;
};
inline Floats floats(const Tensor& t) { return Floats(t.f32(), t.f32() + t.size()); }

struct Matrix {
  WeightFormat format;
  int64_t n_out, n_in;
  bool double_quant = true;
};

/// A random weight in a format: its exact values, and where it lies on the GPU.
class PlacedWeight {
 public:
  PlacedWeight(Backend& gpu, const Matrix& m, uint32_t seed)
      : gpu_(gpu), values(rounded_floats(m.n_out * m.n_in, seed)) {
    const Weight dense = dense_weight(tensor(values, {m.n_out, m.n_in}));
    Nf4Matrix nf4;
    Weight w = dense;
    std::vector<uint16_t> halves(values.size());
    if (m.format == WeightFormat::nf4) {
      nf4 = quantise_nf4(dense, {.double_quant = m.double_quant}, DType::f32);
      w = nf4.view();
      dequantise(w, 0, w.size(), values.data());
    } else if (m.format == WeightFormat::bf16) {
      std::transform(values.begin(), values.end(), halves.begin(), f32_to_bf16);
      w = dense_weight(Tensor(halves.data(), DType::bf16, {m.n_out, m.n_in}));
    }
    weight = gpu.place(w, Backend::Placement::products);
  }
  ~PlacedWeight() { gpu_.release(const_cast<void*>(weight.data)); }
  PlacedWeight(const PlacedWeight&) = delete;

 private:
  Backend& gpu_;

 public:
  Floats values;
  Weight weight;
};

/// A router's weights on both sides.
struct Routers {
  Floats norm, router, coefs;
  int64_t n, dim, n_coefs;
  Routers(int64_t n, int64_t dim, int64_t n_coefs)
      : norm(random_floats(dim, 51, 1.0f / static_cast<float>(dim))),
        router(rounded_floats(n * dim, 52)),
        coefs(random_floats(n_coefs * n, 53)),
        n(n),
        dim(dim),
        n_coefs(n_coefs) {}
  StepKernels::Router on(Device& d, bool bf16) const {
    const Tensor r = bf16 ? d.activations(router, {n, dim}) : d.f32(router, {n, dim});
    return {d.f32(norm, {dim}), dense_weight(r), dense_weight(d.f32(coefs, {n_coefs, n}))};
  }
  Tensor coefficients(CpuOps& cpu, const Tensor& x, float eps) const {
    Ctx& ctx = *cpu.ctx;
    const Linear route{"router", dense_weight(cpu.of(router, {n, dim}))},
        mix{"coefs", dense_weight(cpu.of(coefs, {n_coefs, n}))};
    const Tensor normed = rms_norm(ctx, x, {cpu.of(norm, {dim}), eps}, 0);
    return linear(ctx, saaz::tanh(ctx, linear(ctx, normed, route)), mix);
  }
};

}  // namespace saaz
