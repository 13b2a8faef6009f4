// Times the products of every instruction set this machine runs: y = x w^T in f32 and with operands rounded to bf16,
// dx = dy w in f32. Gemma 3 270M's MLP shape. Prints GFLOP/s, the median of the repetitions.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "backend/cpu/kernels.h"
#include "quant/blockwise.h"

namespace {

using namespace saaz;

template <class F>
double median_seconds(F work) {
  std::vector<double> seconds;
  for (int i = 0; i < 15; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + 7, seconds.end());
  return seconds[7];
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 0;
  const int64_t n = 2048, k = 640;
  std::mt19937 draw(1);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> w(n * k), x(512 * k), y(512 * n), dx(512 * k);
  for (float& v : w) v = normal(draw);
  for (float& v : x) v = normal(draw);
  const Nf4Matrix nf4 = quantise_nf4(dense_weight(Tensor(w.data(), DType::f32, {n, k})), {}, DType::bf16);
  for (const cpu::KernelTable* table : cpu::available_kernels()) {
    const BackendOptions options{.n_threads = threads, .instruction_set = table->name};
    BackendOptions rounded = options;
    rounded.compute_dtype = DType::bf16;
    const auto f32 = make_cpu_backend(options), bf16 = make_cpu_backend(rounded);
    for (const int64_t m : {1, 8, 512}) {
      const Tensor tx(x.data(), DType::f32, {m, k}), ty(y.data(), DType::f32, {m, n}),
          tdx(dx.data(), DType::f32, {m, k});
      const double flops = 2e-9 * static_cast<double>(m * n * k);
      const double forward = median_seconds([&] { f32->matmul_nt(ty, tx, nf4.view(), Write::overwrite); });
      const double rounded_forward = median_seconds([&] { bf16->matmul_nt(ty, tx, nf4.view(), Write::overwrite); });
      const double backward = median_seconds([&] { f32->matmul_nn(tdx, ty, nf4.view(), Write::overwrite); });
      fmt::print("{:<24} {:>4} rows, NF4 {} x {}: x w^T f32 {:7.1f}, bf16 {:7.1f}; dy w f32 {:7.1f} GFLOP/s\n",
                 f32->describe(), m, n, k, flops / forward, flops / rounded_forward, flops / backward);
    }
  }
}
