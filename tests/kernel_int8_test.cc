// Products with activations rounded to 8 bits, and LLM.int8(), on every instruction set this machine runs: against f64
// formulas of the rounded operands with derived bounds, and the promise of backend.h about bits.
#include <cmath>
#include <cstring>

#include "kernel_testing.h"
#include "quant/blockwise.h"
#include "quant/int8.h"

namespace saaz {
namespace {

INSTANTIATE_TEST_SUITE_P(InstructionSets, Kernels, kEachInstructionSet, instruction_set_name);

constexpr int64_t kBlock = cpu::kInt8Block;
constexpr WeightFormat kIntegerFormats[] = {WeightFormat::int8, WeightFormat::q4_0, WeightFormat::q5_0,
                                            WeightFormat::q8_0, WeightFormat::q4_k, WeightFormat::q5_k,
                                            WeightFormat::q6_k};

/// A weight of random codes with scales near 0.02, and the same with every code zero: minus its minima.
struct RandomWeight {
  std::vector<uint8_t> bytes, without_codes;
  Floats scales;
  Weight w, minima;

  RandomWeight(WeightFormat format, int64_t n, int64_t k) {
    const BlockSize size = block_size(format);
    bytes.resize(static_cast<size_t>(n * k / size.elements * size.bytes));
    std::mt19937 draw(7);
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(draw());
    const auto set_scale = [&](size_t at) {
      const uint16_t half = f32_to_f16(0.01f + 0.02f * static_cast<float>(draw() >> 8) * 0x1p-24f);
      std::memcpy(&bytes[at], &half, sizeof half);
    };
    const bool is_k = size.elements == 256, has_minima = format == WeightFormat::q4_k || format == WeightFormat::q5_k;
    for (size_t at = 0; format != WeightFormat::int8 && at < bytes.size(); at += static_cast<size_t>(size.bytes)) {
      set_scale(at + (format == WeightFormat::q6_k ? 208 : 0));
      if (has_minima) set_scale(at + 2);
    }
    without_codes = bytes;
    for (size_t at = 0; is_k && has_minima && at < bytes.size(); at += static_cast<size_t>(size.bytes))
      std::fill_n(without_codes.begin() + static_cast<std::ptrdiff_t>(at) + 16, size.bytes - 16, uint8_t{0});
    scales = random_floats(n, 5, 2);
    for (float& s : scales) s = std::fabs(s);
    w = {.format = format, .n_out = n, .n_in = k, .data = bytes.data()};
    w.row_absmax = scales.data();
    minima = w;
    minima.data = has_minima ? without_codes.data() : nullptr;
  }
};

/// x as round_int8 sees it.
Floats rounded(const Floats& x) {
  Floats out(x.size());
  for (size_t at = 0; at < x.size(); at += kBlock) {
    float absmax = 0;
    for (int64_t i = 0; i < kBlock; ++i) absmax = std::max(absmax, std::fabs(x[at + i]));
    const float inverse = absmax > 0 ? 127.0f / absmax : 0, scale = absmax / 127.0f;
    for (int64_t i = 0; i < kBlock; ++i) out[at + i] = std::nearbyint(x[at + i] * inverse) * scale;
  }
  return out;
}

std::unique_ptr<Backend> int8_backend(const cpu::KernelTable& table, int threads, float threshold = 0) {
  return make_cpu_backend({.n_threads = threads,
                           .instruction_set = table.name,
                           .compute_dtype = DType::i8,
                           .llm_int8_threshold = threshold});
}

TEST_P(Kernels, DequantisesInt8OfAnyShape) {
  for (const int64_t k : {1, 7, 32, 65, 640}) {
    const RandomWeight random(WeightFormat::int8, 9, k);
    Floats truth(9 * k), ours(9 * k);
    dequantise(random.w, 0, 9 * k, truth.data());
    for (const int64_t begin : {int64_t{0}, k / 2, 3 * k}) {
      table().dequantise(random.w, begin, 9 * k - begin, ours.data());
      EXPECT_EQ(std::memcmp(ours.data(), truth.data() + begin, static_cast<size_t>(9 * k - begin) * 4), 0) << k;
    }
    for (int64_t i = 0; i < 9 * k; ++i)
      EXPECT_EQ(truth[i], int8_value(static_cast<int8_t>(random.bytes[i]), random.scales[i / k]));
  }
}

// Block sums are exact. Each is scaled (2 roundings) and added (1), a minimum's part likewise; scales are products
// rounded once in either; x's own scale once more.
TEST_P(Kernels, Int8ProductsSumRoundedActivations) {
  const int64_t n = 50;
  for (const WeightFormat format : kIntegerFormats)
    for (const auto& [m, k] : std::vector<std::pair<int64_t, int64_t>>{{1, 256}, {3, 2304}, {7, 1024}, {18, 1280}}) {
      SCOPED_TRACE(testing::Message() << name_of(format) << " " << m << " x " << k);
      const RandomWeight random(format, n, k);
      Floats x = random_floats(m * k, 1), y(m * n, 9.0f), dense(n * k), minima(n * k);
      std::fill_n(x.begin() + 32, 32, 0.0f);  // a block of zeros
      dequantise(random.w, 0, n * k, dense.data());
      if (random.minima.data != nullptr) dequantise(random.minima, 0, n * k, minima.data());
      const Floats xr = rounded(x);
      int8_backend(table(), 2)->matmul_nt(tensor(y, {m, n}), tensor(x, {m, k}), random.w, Write::overwrite);
      const double roundings = 2.0 * static_cast<double>(2 * k / kBlock) + 8;
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
          double sum = 0, magnitude = 0;
          for (int64_t l = 0; l < k; ++l) {
            const double w = dense[j * k + l], minimum = minima[j * k + l], value = xr[i * k + l];
            sum += w * value;
            magnitude += (std::fabs(w - minimum) + std::fabs(minimum)) * std::fabs(value);
          }
          ASSERT_LE(std::fabs(y[i * n + j] - sum), roundings * kEps * magnitude) << i << " " << j;
        }
    }
}

// numerics.md: what rounding the activations can do.
TEST_P(Kernels, Int8ProductsStayWithinTheRoundingOfActivations) {
  const int64_t m = 4, n = 40, k = 512;
  for (const WeightFormat format : kIntegerFormats) {
    SCOPED_TRACE(name_of(format));
    const RandomWeight random(format, n, k);
    Floats x = random_floats(m * k, 1), y(m * n), exact(m * n), dense(n * k);
    dequantise(random.w, 0, n * k, dense.data());
    int8_backend(table(), 2)->matmul_nt(tensor(y, {m, n}), tensor(x, {m, k}), random.w, Write::overwrite);
    backend()->matmul_nt(tensor(exact, {m, n}), tensor(x, {m, k}), random.w, Write::overwrite);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        double bound = 0;
        for (int64_t at = 0; at < k; at += kBlock) {
          float absmax = 0;
          double weights = 0;
          for (int64_t l = at; l < at + kBlock; ++l) {
            absmax = std::max(absmax, std::fabs(x[i * k + l]));
            weights += std::fabs(dense[j * k + l]);
          }
          bound += weights * absmax / 254;
        }
        ASSERT_LE(std::fabs(y[i * n + j] - exact[i * n + j]), 1.01 * bound);
      }
  }
}

// A number that is none must not become a code: every element of its row shows it, and no other row's.
TEST_P(Kernels, Int8ProductsKeepWhatIsNotFinite) {
  const int64_t n = 40, k = 512;
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
    for (const WeightFormat format : kIntegerFormats)
      for (const int64_t m : {1, 3, 9}) {
        SCOPED_TRACE(testing::Message() << name_of(format) << " " << m << " " << bad);
        const RandomWeight random(format, n, k);
        Floats x = random_floats(m * k, 1), y(m * n);
        x[(m - 1) * k + 77] = bad;
        int8_backend(table(), 1)->matmul_nt(tensor(y, {m, n}), tensor(x, {m, k}), random.w, Write::overwrite);
        for (int64_t i = 0; i < m * n; ++i) ASSERT_EQ(std::isfinite(y[i]), i < (m - 1) * n) << i;
      }
}

TEST_P(Kernels, Int8ProductsDoNotDependOnTheirCompany) {
  const int64_t m = 23, n = 70, k = 1536;
  for (const WeightFormat format : kIntegerFormats) {
    SCOPED_TRACE(name_of(format));
    const RandomWeight random(format, n, k);
    Floats x = random_floats(m * k, 1), y(m * n), again(m * n);
    const Tensor tx = tensor(x, {m, k}), ty = tensor(y, {m, n}), ta = tensor(again, {m, n});
    int8_backend(table(), 1)->matmul_nt(ty, tx, random.w, Write::overwrite);
    for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8}) {
      const auto cpu = int8_backend(table(), static_cast<int>(rows));
      for (int64_t at = 0; at < m; at += rows) {
        const int64_t count = std::min(rows, m - at);
        cpu->matmul_nt(row_slice(ta, at, count), row_slice(tx, at, count), random.w, Write::overwrite);
      }
      EXPECT_TRUE(same_bits(y, again)) << rows << " rows";
    }
    // Added to what is there, the same sums start from it.
    Floats sum(m * n, 1.0f), expected(m * n, 1.0f);
    int8_backend(table(), 2)->matmul_nt(tensor(sum, {m, n}), tx, random.w, Write::add);
    for (int64_t i = 0; i < m; ++i)
      int8_backend(table(), 1)
          ->matmul_nt(row_slice(tensor(expected, {m, n}), i, 1), row_slice(tx, i, 1), random.w, Write::add);
    EXPECT_TRUE(same_bits(sum, expected));
  }
}

// All but the plain one fuse the same products and sums, so even their bytes agree.
TEST(Int8Kernels, InstructionSetsAgree) {
  const int64_t m = 9, n = 40, k = 1280;
  for (const WeightFormat format : kIntegerFormats) {
    const RandomWeight random(format, n, k);
    Floats x = random_floats(m * k, 1), first;
    for (const cpu::KernelTable* table : cpu::available_kernels()) {
      if (std::string_view(table->name) == "plain") continue;
      Floats y(m * n);
      int8_backend(*table, 2)->matmul_nt(tensor(y, {m, n}), tensor(x, {m, k}), random.w, Write::overwrite);
      if (first.empty()) first = y;
      EXPECT_TRUE(same_bits(y, first)) << table->name << " " << name_of(format);
    }
  }
}

TEST_P(Kernels, OtherWeightsKeepF32Activations) {
  const int64_t m = 3, n = 20, k = 96;
  Floats x = random_floats(m * k, 1), values = random_floats(n * k, 2), y(m * n), exact(m * n);
  const Nf4Matrix nf4 = quantise_nf4(dense_weight(tensor(values, {n, k})), {}, DType::bf16);
  const RandomWeight odd(WeightFormat::int8, n, 90);
  for (const Weight& w : {dense_weight(tensor(values, {n, k})), nf4.view(), odd.w}) {
    const Tensor tx(x.data(), DType::f32, {m, w.n_in});
    int8_backend(table(), 2)->matmul_nt(tensor(y, {m, n}), tx, w, Write::overwrite);
    backend()->matmul_nt(tensor(exact, {m, n}), tx, w, Write::overwrite);
    EXPECT_TRUE(same_bits(y, exact)) << name_of(w.format);
  }
}

TEST_P(Kernels, LlmInt8IsItsScalarTruth) {
  const int64_t m = 4, n = 33, k = 77;
  const RandomWeight random(WeightFormat::int8, n, k);
  Floats x = random_floats(m * k, 1, 3), y(m * n), truth(m * n);
  x[5] = 7.5f;  // row 0 has outliers, one on the threshold
  x[20] = -6.0f;
  x[2 * k + 1] = 5.999f;  // rounds to 6 in f16: an outlier
  int8_backend(table(), 3, kLlmInt8Threshold)
      ->matmul_nt(tensor(y, {m, n}), tensor(x, {m, k}), random.w, Write::overwrite);
  for (int64_t i = 0; i < m; ++i)
    llm_int8_product({x.data() + i * k, static_cast<size_t>(k)}, random.w, kLlmInt8Threshold,
                     {truth.data() + i * n, static_cast<size_t>(n)});
  EXPECT_TRUE(same_bits(y, truth));
  EXPECT_EQ(quantise_llm_int8_row({x.data(), static_cast<size_t>(k)}, kLlmInt8Threshold).outliers,
            (std::vector<int32_t>{5, 20}));
  EXPECT_EQ(quantise_llm_int8_row({x.data() + 2 * k, static_cast<size_t>(k)}, kLlmInt8Threshold).outliers,
            (std::vector<int32_t>{1}));
}

}  // namespace
}  // namespace saaz
