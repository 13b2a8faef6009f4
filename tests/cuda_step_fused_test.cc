// What a decoding step does in one launch where rows are few, against the launches of its parts: the same bits. The
// parts are held against the CPU in cuda_step_test.
#include "cuda_step_testing.h"

namespace saaz {
namespace {

INSTANTIATE_TEST_SUITE_P(Activations, CudaStep, kEachActivation, activation_name);

/// Up's product is made for the columns that the gate lets through, where rows are few: the same bits.
TEST_P(CudaStep, SparseGateOfFewRows) {
  constexpr int64_t n_in = 512, most = 6;
  for (const int64_t n_out : {8192, 16384})
    for (const WeightFormat format : {WeightFormat::bf16, WeightFormat::nf4}) {
      const PlacedWeight gate(*gpu_, {format, n_out, n_in}, 1), up(*gpu_, {format, n_out, n_in}, 2);
      const Floats x = rounded_floats(most * n_in, 3);
      for (const float z : {1.6448534f, -9.0f}) {  // one in twenty; all
        Device d(*gpu_);
        const auto product = [&](int64_t rows) {
          const auto wide = [&] {
            return d.activations(Floats(static_cast<size_t>(rows * n_out), NAN), {rows, n_out});
          };
          const StepKernels::Gated g{wide(),
                                     d.activations(Floats(x.begin(), x.begin() + rows * n_in), {rows, n_in}),
                                     wide(),
                                     wide(),
                                     gate.weight,
                                     up.weight,
                                     z};
          run(rows, [&] { kernels_->gated(g); });
          return d.values(g.y);
        };
        const Floats of_many = product(most);
        const auto n_passed = std::count_if(of_many.begin(), of_many.end(), [](float y) { return y != 0; });
        if (z > 0)
          EXPECT_NEAR(static_cast<double>(n_passed), 0.05 * most * n_out, 0.02 * most * n_out);
        else
          EXPECT_GT(n_passed, most * n_out * 9 / 10);
        for (const int64_t rows : {1, 3})
          EXPECT_TRUE(same_bits(product(rows), Floats(of_many.begin(), of_many.begin() + rows * n_out))) << rows;
      }
    }
}

/// From attention to the end of the feed-forward part in one launch or few: as if each kernel had its own.
TEST_P(CudaStep, FeedForward) {
  constexpr int64_t dim = 2048, rank = 64;
  struct Case {
    WeightFormat format;
    int64_t n_hidden;  // so many that NF4 has a kernel for one row
    float sparsity_z;
  };
  constexpr auto bf16 = WeightFormat::bf16, nf4 = WeightFormat::nf4;
  const Floats gains = random_floats(3 * dim, 3);
  const auto gain = [&](int64_t i) { return Floats(gains.begin() + i * dim, gains.begin() + (i + 1) * dim); };
  const PlacedWeight laurel(*gpu_, {bf16, dim, rank}, 4);
  for (const Case& c : {Case{bf16, 16384, 0}, Case{nf4, 16384, 0}, Case{nf4, 8192, 0}, Case{nf4, 16384, 1.6448534f}}) {
    const PlacedWeight attended(*gpu_, {c.format, dim, dim}, 3), gate(*gpu_, {c.format, c.n_hidden, dim}, 1),
        up(*gpu_, {c.format, c.n_hidden, dim}, 2), down(*gpu_, {c.format, dim, c.n_hidden}, 5);
    Floats first;  // row of the result
    for (const int64_t t : {1, 2, 7}) {
      Device d(*gpu_);
      // The first rows of each, whatever t.
      const auto rows = [&](uint32_t seed, int64_t width) {
        const Floats all = rounded_floats(7 * width, seed);
        return d.activations(Floats(all.begin(), all.begin() + t * width), {t, width});
      };
      const Tensor active = rows(1, dim), attention = rows(2, dim), x = rows(3, dim), low_rank = rows(4, rank);
      const auto make = [&] {
        const auto poison = [&](int64_t width) {
          return d.activations(Floats(static_cast<size_t>(t * width), NAN), {t, width});
        };
        StepKernels::FeedForward f;
        f.attended = {poison(dim), attention, attended.weight}, f.laurel = {poison(dim), low_rank, laurel.weight};
        f.mix = {
            poison(dim),           poison(dim),           active, f.attended.y, x, f.laurel.y, d.f32(gain(0), {dim}),
            d.f32(gain(1), {dim}), d.f32(gain(2), {dim}), 1e-6f};
        f.gated = {poison(c.n_hidden), f.mix.y,   poison(c.n_hidden), poison(c.n_hidden),
                   gate.weight,        up.weight, c.sparsity_z};
        f.down = {poison(dim), f.gated.y, down.weight};
        return f;
      };
      const StepKernels::FeedForward whole = make(), parts = make();
      run(t, [&] {
        kernels_->feed_forward(whole);
        kernels_->products(std::array{parts.attended, parts.laurel});
        kernels_->mix(parts.mix);
        kernels_->gated(parts.gated);
        kernels_->products({&parts.down, 1});
      });
      const auto same = [&](const Tensor& a, const Tensor& b) { return same_bits(d.values(a), d.values(b)); };
      EXPECT_TRUE(same(whole.attended.y, parts.attended.y)) << t;
      EXPECT_TRUE(same(whole.laurel.y, parts.laurel.y)) << t;
      EXPECT_TRUE(same(whole.mix.mixed, parts.mix.mixed)) << t;
      EXPECT_TRUE(same(whole.gated.y, parts.gated.y)) << t;
      EXPECT_TRUE(same(whole.down.y, parts.down.y)) << t;
      const Floats y = d.values(whole.down.y), row(y.begin(), y.begin() + dim);
      if (first.empty()) first = row;
      EXPECT_TRUE(same_bits(first, row)) << t;
    }
  }
}

/// What reads a layer's x: NF4 beside LAuReL's first product, of one row and several.
TEST_P(CudaStep, Nf4BesideBf16) {
  constexpr int64_t dim = 2048;
  const PlacedWeight q(*gpu_, {WeightFormat::nf4, 2048, dim}, 1), laurel(*gpu_, {WeightFormat::bf16, 64, dim}, 2),
      k(*gpu_, {WeightFormat::nf4, 512, dim}, 3);
  const Floats x = rounded_floats(3 * dim, 4);
  Device d(*gpu_);
  const auto products = [&](int64_t rows) {
    const Tensor in = d.activations(Floats(x.begin(), x.begin() + rows * dim), {rows, dim});
    const auto product = [&](const PlacedWeight& w) {
      const int64_t n = w.weight.n_out;
      return StepKernels::Product{d.activations(Floats(static_cast<size_t>(rows * n), NAN), {rows, n}), in, w.weight};
    };
    const StepKernels::Product made[] = {product(q), product(laurel), product(k)};
    run(rows, [&] { kernels_->products(made); });
    std::vector<Floats> first;  // rows
    for (const StepKernels::Product& p : made) {
      const Floats y = d.values(p.y);
      first.emplace_back(y.begin(), y.begin() + p.w.n_out);
    }
    return first;
  };
  const std::vector<Floats> of_one = products(1), of_three = products(3);
  for (size_t i = 0; i < of_one.size(); ++i) EXPECT_TRUE(same_bits(of_one[i], of_three[i])) << i;
}

/// Long rows of NF4, one of x and several.
TEST_P(CudaStep, LongRowsOfNf4) {
  for (const bool double_quant : {false, true}) {
    for (const int64_t n_in : {8192, 16384}) {
      const Matrix m{WeightFormat::nf4, 256, n_in, double_quant};
      const PlacedWeight w(*gpu_, m, 1);
      const Floats x = rounded_floats(3 * n_in, 2);
      Device d(*gpu_);
      const auto product = [&](int64_t rows) {
        const Tensor y = d.activations(Floats(static_cast<size_t>(rows * m.n_out), NAN), {rows, m.n_out});
        const StepKernels::Product p{y, d.activations(Floats(x.begin(), x.begin() + rows * n_in), {rows, n_in}),
                                     w.weight};
        run(rows, [&] { kernels_->products({&p, 1}); });
        return d.values(y);
      };
      const Floats of_three = product(3);
      EXPECT_TRUE(same_bits(product(1), Floats(of_three.begin(), of_three.begin() + m.n_out))) << n_in;
    }
  }
}

/// One launch for four: the same bits, for any number of tokens, between two layers and after the last.
TEST_P(CudaStep, ATurnIsItsParts) {
  constexpr int64_t n = 4, dim = 2048, narrow = 256;
  const PlacedWeight gate(*gpu_, {WeightFormat::bf16, narrow, dim}, 1), up(*gpu_, {WeightFormat::bf16, dim, narrow}, 2);
  const Floats gains = random_floats(4 * dim, 3);
  const auto gain = [&](int64_t i) { return Floats(gains.begin() + i * dim, gains.begin() + (i + 1) * dim); };
  const Routers closing(n, dim, n), opening(n, dim, n * n);
  for (const bool bf16 : {false, true}) {
    for (const int64_t t : {1, 3, 8}) {
      for (const bool last : {false, true}) {
        Device d(*gpu_);
        const auto rows = [&](int64_t count, int64_t width, uint32_t seed) {
          return d.activations(rounded_floats(count * width, seed), {count, width});
        };
        const auto make = [&] {
          const Floats h = rounded_floats(n * t * dim, 4);
          const Tensor streams = d.activations(h, {n, t, dim}), predicted = d.activations(h, {n, t, dim});
          const Tensor scaled = rows(t, dim, 5), gated = rows(t, narrow, 6), update = rows(t, dim, 7);
          StepKernels::Turn turn{{streams, scaled, rows(t, dim, 8), rows(t, dim, 9), predicted, d.f32(gain(0), {dim}),
                                  d.f32(gain(1), {dim}), closing.on(d, bf16 && GetParam() == DType::bf16), 0, 1e-6f},
                                 {gated, scaled, rows(t, narrow, 10), rows(t, narrow, 11), gate.weight, {}},
                                 {update, gated, up.weight},
                                 {}};
          turn.open.streams = streams, turn.open.update = update, turn.open.update_norm = d.f32(gain(2), {dim});
          turn.open.eps = 1e-6f;
          if (last) {
            turn.open.updated = streams;
          } else {
            turn.open.predicted = predicted, turn.open.x = rows(t, dim, 12);
            turn.open.input_norm = d.f32(gain(3), {dim});
            turn.open.router = opening.on(d, bf16 && GetParam() == DType::bf16);
          }
          return turn;
        };
        const StepKernels::Turn whole = make(), parts = make();
        // Once: `predicted` is both read and written.
        std::unique_ptr<StepKernels::Recording> recording;
        const std::vector<int32_t> ids(static_cast<size_t>(t));
        const std::vector<AttentionSpan> spans(ids.size());
        kernels_->run(recording, {ids, {spans, spans}}, [&] {
          kernels_->turn(whole);
          kernels_->altup_close(parts.close);
          kernels_->gated(parts.gated);
          kernels_->products({&parts.update, 1});
          kernels_->altup_open(parts.open);
        });
        const auto same = [&](const Tensor& a, const Tensor& b) { return same_bits(d.values(a), d.values(b)); };
        if (last) {
          EXPECT_TRUE(same(whole.open.updated, parts.open.updated)) << t;
        } else {
          EXPECT_TRUE(same(whole.open.predicted, parts.open.predicted)) << t;
          EXPECT_TRUE(same(whole.open.x, parts.open.x)) << t;
        }
      }
    }
  }
}

}  // namespace
}  // namespace saaz
