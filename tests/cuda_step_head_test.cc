// The head of a step where the likeliest logits are enough: those that are made are the bits of all of them, and none
// is missing that is among the largest.
#include "cuda_step_testing.h"

namespace saaz {
namespace {

// So many rows that a warp takes eight of them whole on any card; the last block of 2048 is not full.
constexpr int64_t kRows = 24584, kColumns = 2048;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// A head on the GPU, in bf16.
class PlacedHead {
 public:
  PlacedHead(Backend& gpu, const Floats& values) : gpu_(gpu) {
    std::vector<uint16_t> halves(values.size());
    std::transform(values.begin(), values.end(), halves.begin(), f32_to_bf16);
    weight =
        gpu.place(dense_weight(Tensor(halves.data(), DType::bf16, {kRows, kColumns})), Backend::Placement::products);
  }
  ~PlacedHead() { gpu_.release(const_cast<void*>(weight.data)); }
  PlacedHead(const PlacedHead&) = delete;
  Weight weight;

 private:
  Backend& gpu_;
};

class CudaHead : public CudaStep {
 protected:
  /// Whether rows may be left out here.
  bool is_short() const {
    const bool has_kernels = gpu_->describe().find("sm_7") == std::string::npos;
    return GetParam() == DType::bf16 && has_kernels && *gpu_->own_free_bytes() > *gpu_->own_total_bytes() * 6 / 10;
  }
  Floats logits(const Weight& w, const Floats& x, float cap, LogitsWanted wanted) {
    Device d(*gpu_);
    const auto rows = static_cast<int64_t>(x.size()) / kColumns;
    const StepKernels::Product head{d.f32(Floats(static_cast<size_t>(rows * kRows), 7.0f), {rows, kRows}),
                                    d.activations(x, {rows, kColumns}), w, cap};
    run(rows, [&] { kernels_->head(head, wanted); });
    return d.values(head.y);
  }
  /// How many logits were made.
  int64_t expect_likeliest(const Weight& w, const Floats& x, float cap, const char* what) {
    const Floats all = logits(w, x, cap, LogitsWanted::all), likeliest = logits(w, x, cap, LogitsWanted::likeliest);
    Floats sorted = all;
    std::nth_element(sorted.begin(), sorted.begin() + kLikeliest - 1, sorted.end(), std::greater<>());
    const float least = sorted[kLikeliest - 1];
    int64_t n_made = 0, n_wrong = 0, n_missing = 0;
    for (size_t i = 0; i < all.size(); ++i) {
      const bool is_made = likeliest[i] != -kInfinity;
      n_made += is_made ? 1 : 0;
      n_wrong += is_made && std::memcmp(&likeliest[i], &all[i], 4) != 0 ? 1 : 0;
      n_missing += !is_made && !(all[i] < least) ? 1 : 0;
    }
    EXPECT_EQ(n_wrong, 0) << what;
    EXPECT_EQ(n_missing, 0) << what;
    return n_made;
  }
};
INSTANTIATE_TEST_SUITE_P(Activations, CudaHead, kEachActivation, activation_name);

TEST_P(CudaHead, TheLargestAreThere) {
  const Floats values = rounded_floats(kRows * kColumns, 1);
  const PlacedHead head(*gpu_, values);
  const bool is_short = this->is_short();
  for (const float cap : {0.0f, 30.0f, 0.5f})
    for (const uint32_t seed : {2, 3}) {
      const Floats x = rounded_floats(kColumns, seed);
      const int64_t n = expect_likeliest(head.weight, x, cap, "random");
      EXPECT_GE(n, kLikeliest);
      // The cap of 0.5 makes equals of most.
      if (is_short && cap != 0.5f) {
        EXPECT_LT(n, kRows / 8);
      }
      if (!is_short) {
        EXPECT_EQ(n, kRows);
      }
    }
  Floats spike(kColumns, 0x1p-9f);
  spike[77] = 1024;
  expect_likeliest(head.weight, spike, 0, "one large x");
  EXPECT_EQ(expect_likeliest(head.weight, Floats(kColumns), 30, "x of zeros"), kRows);
  expect_likeliest(head.weight, rounded_floats(kColumns, 4, 1e-18f), 0, "small x");
  expect_likeliest(head.weight, rounded_floats(kColumns, 4, 1e-33f), 0, "smallest x");
  expect_likeliest(head.weight, rounded_floats(kColumns, 4, 1e30f), 0, "large x");
}

TEST_P(CudaHead, OfRowsOfAllSizes) {
  Floats values = rounded_floats(kRows * kColumns, 5);
  const auto row = [&](int64_t i) { return values.begin() + i * kColumns; };
  for (int64_t i = 0; i < kRows; ++i) {
    const float scale = std::ldexp(1.0f, static_cast<int>(i % 41) - 20);
    std::transform(row(i), row(i + 1), row(i), [scale](float v) { return v * scale; });
    if (i % 5 == 0) *(row(i) + i % kColumns) *= 1000;  // its codes are coarse
    if (i % 7 == 0) std::fill(row(i), row(i + 1), 0.0f);
    if (i % 11 == 0) std::transform(row(i), row(i + 1), row(i), [](float v) { return v * 1e-35f; });
    if (i % 13 == 0) std::copy(row(0), row(1), row(i));
    *(row(i) + 99) *= 300;  // a column that is large
    *(row(i) + 1030) = 0;   // one that is not there
  }
  for (const float scale : {1.0f, 1e-3f}) {
    const PlacedHead head(*gpu_, values);  // the second where the first was, mostly
    for (const float cap : {0.0f, 30.0f})
      for (const uint32_t seed : {6, 7}) {
        Floats x = rounded_floats(kColumns, seed);
        expect_likeliest(head.weight, x, cap, "rows of all sizes");
        for (float& v : x) v = -v;
        expect_likeliest(head.weight, x, cap, "the same, turned");
      }
    for (float& v : values) v = -v * scale;
  }
}

/// x is what a row's codes are off by: its logit is as far from what the codes say as it can be. Enough others lie
/// between the two.
TEST_P(CudaHead, ARowAsFarOffAsCanBe) {
  for (const uint32_t seed : {14, 15}) {
    const Floats row = rounded_floats(kColumns, seed);
    float most = 0;
    for (const float w : row) most = std::max(most, std::fabs(w));
    const float scale = most / 127;
    Floats x(kColumns);
    double estimate = 0, logit = 0, square = 0;
    for (size_t k = 0; k < x.size(); ++k) {
      const float code = std::nearbyint(row[k] * (127 / most));
      x[k] = bf16_to_f32(f32_to_bf16(row[k] - scale * code));
      estimate += static_cast<double>(x[k]) * static_cast<double>(scale * code);
      logit += static_cast<double>(x[k]) * row[k], square += static_cast<double>(x[k]) * x[k];
    }
    ASSERT_GT(logit, estimate + 0.9 * square);
    for (const double share : {0.6, 0.8, 0.95}) {
      const auto between = static_cast<float>((estimate + share * (logit - estimate)) / square);
      Floats values(kRows * kColumns);
      // Most have columns of 1, so that all factors are, and codes that are exact.
      for (int64_t i = 0; i < kRows; ++i)
        for (size_t k = 0; k < x.size(); ++k)
          values[static_cast<size_t>(i * kColumns) + k] = i % 94 == 0 ? between * x[k] : -std::copysign(1.0f, x[k]);
      std::copy(row.begin(), row.end(), values.begin() + 1000 * kColumns);
      const PlacedHead head(*gpu_, values);
      const Floats likeliest = logits(head.weight, x, 0, LogitsWanted::likeliest);
      EXPECT_EQ(std::max_element(likeliest.begin(), likeliest.end()) - likeliest.begin(), 1000) << share;
    }
  }
}

/// x is made by the kernel before, and lost afterwards: read a moment too early it would be another.
TEST_P(CudaHead, OfAnXThatIsJustMade) {
  const PlacedHead head(*gpu_, rounded_floats(kRows * kColumns, 16));
  const Matrix square{WeightFormat::bf16, kColumns, kColumns};
  const PlacedWeight before(*gpu_, square, 17), after(*gpu_, square, 18);
  const Floats start = rounded_floats(kColumns, 19, 0.05f);
  const auto of = [&](LogitsWanted wanted) {
    Device d(*gpu_);
    const Tensor x = d.activations(Floats(kColumns, NAN), {1, kColumns}), from = d.activations(start, {1, kColumns});
    const StepKernels::Product make{x, from, before.weight}, lose{x, from, after.weight};
    const StepKernels::Product product{d.f32(Floats(kRows), {1, kRows}), x, head.weight, 30};
    run(1, [&] {
      kernels_->products({&make, 1});
      kernels_->head(product, wanted);
      kernels_->products({&lose, 1});
    });
    return d.values(product.y);
  };
  const Floats all = of(LogitsWanted::all), likeliest = of(LogitsWanted::likeliest);
  for (size_t i = 0; i < all.size(); ++i) ASSERT_TRUE(likeliest[i] == -kInfinity || likeliest[i] == all[i]) << i;
  EXPECT_EQ(*std::max_element(all.begin(), all.end()), *std::max_element(likeliest.begin(), likeliest.end()));
}

TEST_P(CudaHead, EqualsAreAllThere) {
  const Floats row = rounded_floats(kColumns, 8), x = rounded_floats(kColumns, 9);
  Floats values;
  for (int64_t i = 0; i < kRows; ++i) values.insert(values.end(), row.begin(), row.end());
  const PlacedHead head(*gpu_, values);
  EXPECT_EQ(expect_likeliest(head.weight, x, 30, "equal rows"), kRows);
}

TEST_P(CudaHead, WhatIsNotFiniteIsNotHidden) {
  const PlacedHead head(*gpu_, rounded_floats(kRows * kColumns, 10));
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity}) {
    Floats x = rounded_floats(kColumns, 11);
    x[1000] = bad;
    const Floats all = logits(head.weight, x, 30, LogitsWanted::all),
                 likeliest = logits(head.weight, x, 30, LogitsWanted::likeliest);
    for (size_t i = 0; i < all.size(); ++i)
      ASSERT_TRUE(std::isnan(all[i]) ? std::isnan(likeliest[i]) : likeliest[i] == all[i]) << i;
  }
}

TEST_P(CudaHead, OfMoreRowsAllAreMade) {
  const PlacedHead head(*gpu_, rounded_floats(kRows * kColumns, 12));
  const Floats x = rounded_floats(3 * kColumns, 13);
  EXPECT_TRUE(
      same_bits(logits(head.weight, x, 30, LogitsWanted::likeliest), logits(head.weight, x, 30, LogitsWanted::all)));
}

}  // namespace
}  // namespace saaz
