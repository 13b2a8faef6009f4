// The CPU products, dequantisation and elementary functions of every instruction set this machine runs: against f64
// references with derived bounds and against the scalar truth, bit for bit. Rows and attention: kernel_rows_test.cc.
#include <array>
#include <bit>
#include <cmath>

#include "base/check.h"
#include "kernel_testing.h"
#include "quant/blockwise.h"

namespace saaz {
namespace {

INSTANTIATE_TEST_SUITE_P(InstructionSets, Kernels, kEachInstructionSet, instruction_set_name);

// Dequantisation.

/// Random bytes whose f16 scales (at the given offsets) are finite.
std::vector<uint8_t> random_blocks(WeightFormat format, int64_t n) {
  const BlockSize size = block_size(format);
  std::vector<uint8_t> bytes(static_cast<size_t>(n / size.elements * size.bytes));
  std::mt19937 draw(7);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(draw());
  const int64_t scale_at = format == WeightFormat::q6_k ? 208 : 0;
  for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(size.bytes)) {
    bytes[at + scale_at + 1] &= 0xbf;
    if (size.elements == 256) bytes[at + scale_at + (scale_at ? 1 : 3)] &= 0xbf;
  }
  return bytes;
}

void expect_same_dequantised(const cpu::KernelTable& table, const Weight& w) {
  Floats truth(static_cast<size_t>(w.size())), ours(truth.size());
  dequantise(w, 0, w.size(), truth.data());
  for (int64_t r = 0; r < w.n_out; ++r) table.dequantise(w, r * w.n_in, w.n_in, ours.data() + r * w.n_in);
  EXPECT_TRUE(same_bits(ours, truth)) << name_of(w.format) << " " << w.n_out << " x " << w.n_in;
}

TEST_P(Kernels, DequantiseLikeTheScalarTruth) {
  for (const WeightFormat format : {WeightFormat::q4_0, WeightFormat::q5_0, WeightFormat::q8_0, WeightFormat::q4_k,
                                    WeightFormat::q5_k, WeightFormat::q6_k}) {
    const std::vector<uint8_t> bytes = random_blocks(format, 5 * 512);
    expect_same_dequantised(table(), {.format = format, .n_out = 5, .n_in = 512, .data = bytes.data()});
  }
  std::vector<uint16_t> halves(7 * 37);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>((i * 40503) & 0xbbff);  // finite
  for (const WeightFormat format : {WeightFormat::bf16, WeightFormat::f16}) {
    expect_same_dequantised(table(), {.format = format, .n_out = 7, .n_in = 37, .data = halves.data()});
  }
}

TEST_P(Kernels, DequantiseNf4OfAnyShape) {
  for (const int64_t n_in : {1, 2, 17, 24, 63, 64, 65, 128, 640}) {
    Floats values = random_floats(9 * n_in, 3, 0.05f);
    for (const bool double_quant : {false, true}) {
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        const Nf4Matrix matrix = quantise_nf4(dense_weight(tensor(values, {9, n_in})), {double_quant}, dtype);
        expect_same_dequantised(table(), matrix.view());
      }
    }
  }
}

// Elementary functions.

double ulps(float ours, double truth) {
  const double size = std::max(std::fabs(truth), 0x1p-126);
  return std::fabs(ours - truth) / std::ldexp(1.0, std::ilogb(size) - 23);
}

TEST_P(Kernels, ExpAndTanhWithinTheirBounds) {
  Floats x;
  for (float v = -103; v < 88.7f; v += 0.00173f) x.push_back(v);
  for (float v = 1e-30f; v < 30; v *= 1.0017f) x.insert(x.end(), {v, -v});
  Floats e(x.size()), t(x.size());
  table().exp(static_cast<int64_t>(x.size()), e.data(), x.data());
  table().tanh(static_cast<int64_t>(x.size()), t.data(), x.data());
  double worst_exp = 0, worst_tanh = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    worst_exp = std::max(worst_exp, ulps(e[i], std::exp(static_cast<double>(x[i]))));
    worst_tanh = std::max(worst_tanh, ulps(t[i], std::tanh(static_cast<double>(x[i]))));
  }
  EXPECT_LE(worst_exp, 2);
  EXPECT_LE(worst_tanh, 4);
}

TEST_P(Kernels, ExpAndTanhOfSpecialValues) {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const Floats x = {infinity, -infinity, nan, -0.0f, 1000, -1000};
  Floats e(6), t(6);
  table().exp(6, e.data(), x.data());
  table().tanh(6, t.data(), x.data());
  EXPECT_EQ(e[0], infinity);
  EXPECT_EQ(e[1], 0);
  EXPECT_TRUE(std::isnan(e[2]) && std::isnan(t[2]));
  EXPECT_EQ(e[3], 1);
  EXPECT_TRUE(t[3] == 0 && std::signbit(t[3]));
  EXPECT_EQ(t[4], 1);
  EXPECT_EQ(t[5], -1);
}

// Products.

struct Product {
  Doubles value, magnitude;  // sum of products, sum of their magnitudes
};
/// c[m, n] = sum_k a(i, k) b(k, j), by accessors.
template <class A, class B>
Product reference_product(int64_t m, int64_t n, int64_t k, A a, B b) {
  Product out{Doubles(m * n), Doubles(m * n)};
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t l = 0; l < k; ++l) {
        const double term = static_cast<double>(a(i, l)) * b(l, j);
        out.value[i * n + j] += term;
        out.magnitude[i * n + j] += std::fabs(term);
      }
    }
  }
  return out;
}
/// Each of k products and k sums rounds once; `more` roundings come after.
void expect_product(const Floats& ours, const Product& truth, int64_t k, double scale, int64_t more = 2) {
  for (size_t i = 0; i < ours.size(); ++i) {
    const double bound = static_cast<double>(2 * k + more) * kEps * std::fabs(scale) * truth.magnitude[i];
    ASSERT_LE(std::fabs(ours[i] - scale * truth.value[i]), bound) << "element " << i;
  }
}

TEST_P(Kernels, ProductsOfOddSizes) {
  const auto cpu = backend();
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {1, 65, 17}, {2, 3, 5}, {3, 50, 1030}, {5, 7, 64}, {17, 300, 65}, {65, 33, 130}, {400, 8, 3}}) {
    SCOPED_TRACE(fmt::format("{} x {} x {}", m, n, k));
    Floats x = random_floats(m * k, 1), w = random_floats(n * k, 2), dy = random_floats(m * n, 3);
    Floats y(m * n), dx(m * k), dw(n * k);
    const Weight weight = dense_weight(tensor(w, {n, k}));
    cpu->matmul_nt(tensor(y, {m, n}), tensor(x, {m, k}), weight, Write::overwrite);
    expect_product(
        y,
        reference_product(
            m, n, k, [&](auto i, auto l) { return x[i * k + l]; }, [&](auto l, auto j) { return w[j * k + l]; }),
        k, 1);
    cpu->matmul_nn(tensor(dx, {m, k}), tensor(dy, {m, n}), weight, Write::overwrite);
    expect_product(
        dx,
        reference_product(
            m, k, n, [&](auto i, auto l) { return dy[i * n + l]; }, [&](auto l, auto j) { return w[l * k + j]; }),
        n, 1);
    cpu->matmul_tn(tensor(dw, {n, k}), tensor(dy, {m, n}), tensor(x, {m, k}), 0.5f, Write::overwrite);
    expect_product(
        dw,
        reference_product(
            n, k, m, [&](auto i, auto l) { return dy[l * n + i]; }, [&](auto l, auto j) { return x[l * k + j]; }),
        m, 0.5);
  }
}

TEST_P(Kernels, ProductsAddAndReadEveryFormat) {
  const auto cpu = backend();
  const int64_t m = 5, n = 70, k = 512;
  Floats x = random_floats(m * k, 1), dy = random_floats(m * n, 2), plain = random_floats(n * k, 3);
  std::vector<std::pair<Weight, std::vector<uint8_t>>> weights;
  for (const WeightFormat format : {WeightFormat::bf16, WeightFormat::q5_0, WeightFormat::q4_k, WeightFormat::q6_k}) {
    auto& [w, bytes] =
        weights.emplace_back(Weight{.format = format, .n_out = n, .n_in = k}, random_blocks(format, n * k));
    if (format == WeightFormat::bf16) bytes.assign(bytes.size(), 0x3c);
    w.data = bytes.data();
  }
  const Nf4Matrix nf4 = quantise_nf4(dense_weight(tensor(plain, {n, k})), {}, DType::bf16);
  weights.emplace_back(nf4.view(), std::vector<uint8_t>());
  for (const auto& [w, bytes] : weights) {
    SCOPED_TRACE(name_of(w.format));
    Floats dense(n * k);
    dequantise(w, 0, n * k, dense.data());
    const Weight f32 = dense_weight(tensor(dense, {n, k}));
    Floats y(m * n, 1.5f), y_dense(m * n, 1.5f), dx(m * k, 1.5f), dx_dense(m * k, 1.5f);
    cpu->matmul_nt(tensor(y, {m, n}), tensor(x, {m, k}), w, Write::add);
    cpu->matmul_nt(tensor(y_dense, {m, n}), tensor(x, {m, k}), f32, Write::add);
    cpu->matmul_nn(tensor(dx, {m, k}), tensor(dy, {m, n}), w, Write::add);
    cpu->matmul_nn(tensor(dx_dense, {m, k}), tensor(dy, {m, n}), f32, Write::add);
    EXPECT_TRUE(same_bits(y, y_dense));
    EXPECT_TRUE(same_bits(dx, dx_dense));
    EXPECT_NE(y[0], 1.5f);
  }
}

Floats rounded_to_bf16(Floats values) {
  for (float& x : values) x = bf16_to_f32(f32_to_bf16(x));
  return values;
}

TEST_P(Kernels, RoundsToBf16LikeTheScalarTruth) {
  Floats x = random_floats(1003, 5);
  const float nan = std::nanf(""), infinity = std::numeric_limits<float>::infinity();
  x.insert(x.end(), {0.0f, -0.0f, infinity, -infinity, nan, std::bit_cast<float>(0x7f800001), 3.4e38f, 0x1.01p0f,
                     0x1.03p0f, -0x1.018p0f});
  std::vector<uint16_t> y(x.size());
  table().round_bf16(static_cast<int64_t>(x.size()), y.data(), x.data());
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i])) {
      EXPECT_TRUE(std::isnan(bf16_to_f32(y[i])));
    } else {
      EXPECT_EQ(y[i], f32_to_bf16(x[i])) << x[i];
    }
  }
}

// The operands are rounded, the products exact, the sums f32: the bound is that of f32 sums of the rounded operands.
TEST_P(Kernels, Bf16ProductsSumRoundedOperandsInF32) {
  const auto cpu = backend(2, DType::bf16);
  for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {1, 65, 17}, {2, 3, 5}, {3, 50, 1030}, {5, 7, 64}, {17, 300, 65}, {65, 33, 130}, {600, 20, 31}}) {
    SCOPED_TRACE(fmt::format("{} x {} x {}", m, n, k));
    Floats x = random_floats(m * k, 1), w = random_floats(n * k, 2), y(m * n, 2.0f);
    const Floats xr = rounded_to_bf16(x), wr = rounded_to_bf16(w);
    cpu->matmul_nt(tensor(y, {m, n}), tensor(x, {m, k}), dense_weight(tensor(w, {n, k})), Write::overwrite);
    expect_product(
        y,
        reference_product(
            m, n, k, [&](auto i, auto l) { return xr[i * k + l]; }, [&](auto l, auto j) { return wr[j * k + l]; }),
        k, 1);
  }
}

TEST_P(Kernels, Bf16ProductsReadEveryFormatAndDoNotDependOnTheirCompany) {
  const int64_t m = 37, n = 70, k = 1536;
  Floats x = random_floats(m * k, 1), plain = random_floats(n * k, 3);
  const std::vector<uint8_t> blocks = random_blocks(WeightFormat::q4_k, n * k);
  std::vector<uint16_t> halves(plain.size());
  for (size_t i = 0; i < plain.size(); ++i) halves[i] = f32_to_bf16(plain[i]);
  const Nf4Matrix nf4 = quantise_nf4(dense_weight(tensor(plain, {n, k})), {}, DType::bf16);
  const std::vector<Weight> weights = {
      {.format = WeightFormat::q4_k, .n_out = n, .n_in = k, .data = blocks.data()},
      {.format = WeightFormat::bf16, .n_out = n, .n_in = k, .data = halves.data()},
      nf4.view(),
  };
  for (const Weight& w : weights) {
    SCOPED_TRACE(name_of(w.format));
    Floats dense(n * k), y(m * n), y_dense(m * n), alone(m * n);
    dequantise(w, 0, n * k, dense.data());
    const auto two = backend(2, DType::bf16), three = backend(3, DType::bf16);
    two->matmul_nt(tensor(y, {m, n}), tensor(x, {m, k}), w, Write::overwrite);
    three->matmul_nt(tensor(y_dense, {m, n}), tensor(x, {m, k}), dense_weight(tensor(dense, {n, k})), Write::overwrite);
    EXPECT_TRUE(same_bits(y, y_dense));
    for (int64_t i = 0; i < m; ++i) {
      two->matmul_nt(Tensor(alone.data() + i * n, DType::f32, {1, n}), Tensor(x.data() + i * k, DType::f32, {1, k}), w,
                     Write::overwrite);
    }
    EXPECT_TRUE(same_bits(y, alone));
  }
}

TEST_P(Kernels, LoraIsItsFormula) {
  const auto cpu = backend();
  const int64_t m = 70, n = 130, k = 90, r = 4;
  const float s = 2;
  Floats x = random_floats(m * k, 1), a = random_floats(r * k, 2), b = random_floats(n * r, 3);
  Floats dy = random_floats(m * n, 4), h(m * r), y(m * n), dh(m * r), da(r * k), db(n * r), dx(m * k);
  const Tensor th = tensor(h, {m, r}), ta = tensor(a, {r, k}), tb = tensor(b, {n, r}), tx = tensor(x, {m, k});
  cpu->lora_forward({tensor(y, {m, n}), Write::add}, th, tx, ta, tb, s);
  expect_product(
      h,
      reference_product(
          m, r, k, [&](auto i, auto l) { return x[i * k + l]; }, [&](auto l, auto j) { return a[j * k + l]; }),
      k, 1);
  expect_product(
      y,
      reference_product(
          m, n, r, [&](auto i, auto l) { return h[i * r + l]; }, [&](auto l, auto j) { return b[j * r + l]; }),
      r, s);
  cpu->lora_backward(overwrite(tensor(dx, {m, k})), tensor(da, {r, k}), tensor(db, {n, r}), tensor(dh, {m, r}),
                     tensor(dy, {m, n}), tx, th, ta, tb, s);
  expect_product(
      dh,
      reference_product(
          m, r, n, [&](auto i, auto l) { return dy[i * n + l]; }, [&](auto l, auto j) { return b[l * r + j]; }),
      n, s);
  expect_product(
      da,
      reference_product(
          r, k, m, [&](auto i, auto l) { return dh[l * r + i]; }, [&](auto l, auto j) { return x[l * k + j]; }),
      m, 1);
  expect_product(
      db,
      reference_product(
          n, r, m, [&](auto i, auto l) { return dy[l * n + i]; }, [&](auto l, auto j) { return h[l * r + j]; }),
      m, s);
  expect_product(
      dx,
      reference_product(
          m, k, r, [&](auto i, auto l) { return dh[i * r + l]; }, [&](auto l, auto j) { return a[l * k + j]; }),
      r, 1);
}

}  // namespace
}  // namespace saaz
