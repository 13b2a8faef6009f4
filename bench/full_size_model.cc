#include <cmath>
#include <random>
#include <thread>

#include "bench/full_size.h"
#include "config/model_config.h"

namespace saaz::bench {

namespace {

constexpr size_t kPoolValues = size_t{2400} << 20;  // the per-layer table has 2,349 million
constexpr float kDeviation = 0.02f;

uint16_t bf16_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/// Sums of twelve uniform values: normal enough, and quick.
void fill(uint16_t* to, size_t n, uint64_t seed) {
  std::mt19937_64 draw(seed);
  for (size_t i = 0; i < n; ++i) {
    float sum = 0;
    for (int word = 0; word < 3; ++word) {
      const uint64_t bits = draw();
      for (int part = 0; part < 4; ++part) sum += static_cast<float>(bits >> (16 * part) & 0xffff);
    }
    to[i] = bf16_of((sum / 65536.0f - 6.0f) * kDeviation);
  }
}

class RandomSource final : public WeightSource {
 public:
  explicit RandomSource(uint64_t seed) : pool_(kPoolValues) {
    const size_t n = std::max(1u, std::thread::hardware_concurrency()), share = kPoolValues / n + 1;
    std::vector<std::thread> threads;
    for (size_t t = 0; t < n; ++t)
      threads.emplace_back([&, t] {
        const size_t begin = std::min(kPoolValues, t * share), end = std::min(kPoolValues, begin + share);
        fill(pool_.data() + begin, end - begin, seed + t);
      });
    for (std::thread& thread : threads) thread.join();
  }
  std::string path() const override { return "random E4B"; }
  bool has(const std::string&) const override { return true; }
  Weight matrix(const std::string& name, int64_t n_out, int64_t n_in) const override {
    const size_t spare = kPoolValues - static_cast<size_t>(n_out * n_in);
    const size_t begin = std::hash<std::string>{}(name) % (spare + 1) / 64 * 64;
    return {.format = WeightFormat::bf16, .n_out = n_out, .n_in = n_in, .data = pool_.data() + begin};
  }
  std::vector<float> vector(const std::string&, int64_t n) const override {
    return std::vector<float>(static_cast<size_t>(n), 1.0f);
  }
  std::string module_prefix() const override { return "model.language_model."; }
  DType base_dtype() const override { return DType::bf16; }
  std::vector<SourceTensor> tensors() const override { return {}; }
  void read(const SourceTensor&, int64_t, int64_t, float*) const override {}
  Bytes raw(const SourceTensor&) const override { return {}; }

 private:
  std::vector<uint16_t> pool_;
};

}  // namespace

BaseModel random_full_size_model(uint64_t seed) {
  BaseModel base;
  base.path = "random E4B";
  base.config = default_config(Family::gemma3n);
  validate(base.config, "E4B");
  base.weights = std::make_unique<RandomSource>(seed);
  return base;
}

std::vector<int64_t> source_lengths(int64_t n, uint64_t seed) {
  // Median 232 and sigma 0.76 have mean 310.
  std::mt19937_64 draw(seed);
  std::vector<int64_t> lengths;
  while (static_cast<int64_t>(lengths.size()) < n) {
    double sum = 0;
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(draw() >> 11) * 0x1p-53;
    const double length = 232.0 * std::exp(0.76 * (sum - 6.0));
    lengths.push_back(std::clamp<int64_t>(static_cast<int64_t>(length), 16, 4000));
  }
  return lengths;
}

}  // namespace saaz::bench
