// Attention of Gemma 3n E4B (8 heads of 256, 2 kv heads) alone on one GPU: forward and backward, with random inputs.
//   bench_cuda_attention [REPEATS]
// Prints medians, TFLOP/s of what queries see (2 products forward, 7 backward in two passes), and times by kernel.
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "backend/backend.h"
#include "bench/full_size.h"

namespace {

using namespace saaz;

constexpr int64_t kHeads = 8, kKvHeads = 2, kDim = 256;

Tensor random_activations(Backend& backend, int64_t rows, int64_t columns, uint64_t seed) {
  std::mt19937_64 draw(seed);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values(static_cast<size_t>(rows * columns));
  for (uint16_t& x : values) x = f32_to_bf16(normal(draw));
  Tensor t(nullptr, DType::bf16, {rows, columns});
  t.data = backend.allocate(t.bytes(), "bench");
  backend.upload(t, values.data());
  return t;
}

/// Median milliseconds of f, called `repeats` times.
template <class F>
double milliseconds(int repeats, F f) {
  std::vector<double> times;
  for (int i = 0; i < repeats + 2; ++i) {
    cudaDeviceSynchronize();
    const auto begin = std::chrono::steady_clock::now();
    f();
    cudaDeviceSynchronize();
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
  }
  std::nth_element(times.begin() + 2, times.begin() + 2 + repeats / 2, times.end());
  return times[static_cast<size_t>(2 + repeats / 2)];
}

void run(Backend& backend, int64_t sequences, int64_t length, int64_t window, int repeats) {
  const int64_t rows = sequences * length;
  const AttentionShape shape{kHeads, kKvHeads, kDim, window, 1.0f / 16};
  std::vector<AttentionSpan> spans;
  for (int64_t i = 0; i < sequences; ++i) spans.push_back({i * length, length, 0, i * length, length});
  const auto tensor = [&](int64_t heads, uint64_t seed) {
    return random_activations(backend, rows, heads * kDim, seed);
  };
  const Tensor q = tensor(kHeads, 1), k = tensor(kKvHeads, 2), v = tensor(kKvHeads, 3), dout = tensor(kHeads, 4);
  const Tensor out = tensor(kHeads, 5), dq = tensor(kHeads, 6), dk = tensor(kKvHeads, 7), dv = tensor(kKvHeads, 8);
  Tensor lse(nullptr, DType::f32, {rows, kHeads});
  lse.data = backend.allocate(lse.bytes(), "bench");
  const auto forward = [&] { backend.attention(out, lse, q, k, v, spans, shape); };
  const auto backward = [&] { backend.attention_backward({dq}, {dk}, {dv}, dout, out, lse, q, k, v, spans, shape); };
  double pairs = 0;
  for (int64_t i = 0; i < length; ++i) pairs += static_cast<double>(window == 0 ? i + 1 : std::min(window, i + 1));
  const double product = 2.0 * kDim * pairs * static_cast<double>(sequences * kHeads) * 1e-9;  // GFLOP
  const double there = milliseconds(repeats, forward), back = milliseconds(repeats, backward);
  fmt::print("{} x {}, window {}: forward {:.3f} ms, {:.0f} TFLOP/s; backward {:.3f} ms, {:.0f} TFLOP/s\n", sequences,
             length, window, there, 2 * product / there, back, 7 * product / back);
  bench::KernelProfile profile;
  profile.start();
  for (int i = 0; i < repeats; ++i) forward(), backward();
  cudaDeviceSynchronize();
  profile.stop_and_print("kernels", repeats);
  for (const Tensor& t : {q, k, v, dout, out, lse, dq, dk, dv}) backend.release(t.data);
}

}  // namespace

int main(int argc, char** argv) {
  const int repeats = argc > 1 ? std::max(1, std::atoi(argv[1])) : 10;
  const auto backend = make_cuda_backend({.compute_dtype = DType::bf16});
  if (!backend) return fmt::print("no GPU\n"), 1;
  run(*backend, 2, 4000, 0, repeats);
  run(*backend, 2, 4000, 512, repeats);
  run(*backend, 8, 310, 512, repeats);
}
