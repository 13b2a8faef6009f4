// The CUDA kernels over rows, tables and optimizers at the sizes of the real models, where threads take many items and
// rows leave registers, against the CPU's. Skipped where there is no GPU. The op tests cover every small shape and the
// gradients' formulas.
// Bounds: in the 2-norm, roundings * (2^-24 or, where bf16 is stored, 2^-8): the CPU's own bounds of kernel_rows_test,
// twice, as either side may err. Optimizers and tables promise equal bytes.
#include "cuda_testing.h"
#include "quant/blockwise.h"

namespace saaz {
namespace {

INSTANTIATE_TEST_SUITE_P(Activations, Cuda, kEachActivation, activation_name);

TEST_P(Cuda, Norms) {
  for (const int64_t dim : {256, 2048, 2049, 16384, 70000}) {
    const int64_t rows = 5;
    const Floats x = rounded_floats(rows * dim, 1), w = random_floats(dim, 2), dy = rounded_floats(rows * dim, 3);
    expect_alike(32, [&](Backend& b, Device& d) {
      const Tensor tx = d.activations(x, {rows, dim}), tw = d.f32(w, {dim}), tdy = d.activations(dy, {rows, dim});
      const Tensor y = d.activations(x, {rows, dim}), inverse = d.f32(x, {rows}), dx = d.activations(x, {rows, dim});
      b.rms_norm(y, inverse, tx, tw, 1e-6f);
      b.rms_norm_backward({dx, Write::add}, tdy, tx, tw, inverse);
      const Tensor sum = d.activations(x, {rows, dim});
      b.add_rms_norm(sum, inverse, tdy, tx, tw, 1e-6f);
      const Tensor matched = d.activations(x, {rows, dim}), db = d.activations(x, {rows, dim}),
                   dr = d.activations(x, {rows, dim});
      b.match_magnitude(matched, tdy, tx);
      b.match_magnitude_backward(overwrite(db), overwrite(dr), tx, tdy, tx);
      return std::vector{y, inverse, dx, sum, matched, db, dr};
    });
  }
}

TEST_P(Cuda, GatedActivation) {
  for (const float z : {0.0f, 1.6448534f}) {
    for (const int64_t dim : {2048, 16384, 16385, 70000}) {
      const int64_t rows = 3;
      const Floats gate = rounded_floats(rows * dim, 1, 4), up = rounded_floats(rows * dim, 2),
                   dy = rounded_floats(rows * dim, 3);
      expect_alike(64, [&](Backend& b, Device& d) {
        const Tensor tg = d.activations(gate, {rows, dim}), tu = d.activations(up, {rows, dim}),
                     tdy = d.activations(dy, {rows, dim}), saved = d.f32(gate, {rows, 2});
        const Tensor y = d.activations(dy, {rows, dim}), dgate = d.activations(dy, {rows, dim}),
                     dup = d.activations(dy, {rows, dim});
        b.geglu(y, saved, tg, tu, z);
        b.geglu_backward(overwrite(dgate), {dup, Write::add}, tdy, tg, tu, saved, z);
        return std::vector{y, dgate, dup};
      });
    }
  }
}

TEST_P(Cuda, Altup) {
  for (const auto& [n, dim] : {std::array<int64_t, 2>{4, 2048}, {4, 5000}, {3, 2048}, {8, 1027}}) {
    const int64_t t = 5, streams = n, width = dim;
    const Floats h = rounded_floats(n * t * dim, 1), c = rounded_floats(t * n * n, 2), v = rounded_floats(t * dim, 3);
    const Floats gains = rounded_floats(t * n, 4), dy = rounded_floats(n * t * dim, 5);
    expect_alike(64, [&](Backend& b, Device& d) {
      const auto tensor = [&](const Floats& x) { return d.activations(x, {streams, t, width}); };
      const Tensor th = tensor(h), tdy = tensor(dy), tc = d.activations(c, {t, streams * streams}),
                   tv = d.activations(v, {t, width}), tg = d.activations(gains, {t, streams});
      const Tensor p = tensor(h), dh = tensor(h), dc = d.activations(c, {t, streams * streams});
      b.altup_predict(p, th, tc);
      b.altup_predict_backward({dh, Write::add}, overwrite(dc), tdy, th, tc);
      const Tensor q = tensor(h), dp = tensor(h), dv = d.activations(v, {t, width}),
                   dgains = d.activations(gains, {t, streams});
      b.altup_correct(q, th, tv, tg, 1);
      b.altup_correct_backward(overwrite(dp), {dv, Write::add}, overwrite(dgains), tdy, th, tv, tg, 1);
      return std::vector{p, dh, dc, q, dp, dv, dgains};
    });
  }
}

TEST_P(Cuda, Loss) {
  for (const float cap : {0.0f, 30.0f}) {
    for (const int64_t vocabulary : {1000, 262144, 262401}) {
      const int64_t rows = 3, n = vocabulary;
      const Floats logits = random_floats(rows * n, 1, 20);
      const std::vector<int32_t> targets = {7, -1, static_cast<int32_t>(n - 1)};
      expect_alike(64, [&](Backend& b, Device& d) {
        const Tensor losses = d.f32(logits, {rows}), values = d.f32(logits, {rows, n});
        b.cross_entropy(values, losses, targets, cap, 0.5f, values);
        return std::vector{losses, values};
      });
    }
  }
}

TEST_P(Cuda, LowRankPairs) {
  // h and dh are stored, in bf16 with one rounding more; what is f32 carries that rounding on.
  const double roundings = GetParam() == DType::bf16 ? 64 + kBf16Roundoff / (2 * kEps) : 64;
  for (const auto& [t, k, n, r] : {std::array<int64_t, 4>{5, 2048, 16384, 8},
                                   {70, 16384, 2048, 8},
                                   {333, 4128, 96, 16},
                                   {300, 96, 2080, 8},
                                   {17, 40, 72, 8},
                                   {33, 2048, 256, 4}}) {
    SCOPED_TRACE(fmt::format("{} x {} to {}, rank {}", t, k, n, r));
    const int64_t rows = t, n_in = k, n_out = n, rank = r;
    const Floats x = rounded_floats(rows * n_in, 1), a = rounded_floats(rank * n_in, 2, 0.1f),
                 b = rounded_floats(n_out * rank, 3), y = rounded_floats(rows * n_out, 4),
                 dy = rounded_floats(rows * n_out, 5, 0.1f), dx = rounded_floats(rows * n_in, 6);
    expect_alike(roundings, [&](Backend& backend, Device& d) {
      const Tensor tx = d.activations(x, {rows, n_in}), ta = d.f32(a, {rank, n_in}), tb = d.f32(b, {n_out, rank}),
                   tdy = d.activations(dy, {rows, n_out});
      const Tensor first = d.activations(y, {rows, n_out}), added = d.activations(y, {rows, n_out}),
                   h = d.activations(Floats(rows * rank), {rows, rank}),
                   dh = d.activations(Floats(rows * rank), {rows, rank});
      backend.lora_forward(overwrite(first), h, tx, ta, tb, 2);
      backend.lora_forward({added, Write::add}, h, tx, ta, tb, 2);
      const Tensor da = d.f32(a, {rank, n_in}), db = d.f32(b, {n_out, rank}), to_x = d.activations(dx, {rows, n_in}),
                   onto_x = d.activations(dx, {rows, n_in});
      backend.lora_backward(overwrite(to_x), da, db, dh, tdy, tx, h, ta, tb, 2);
      backend.lora_backward({onto_x, Write::add}, da, db, dh, tdy, tx, h, ta, tb, 2);
      return std::vector{h, first, added, dh, da, db, to_x, onto_x};
    });
  }
}

TEST_P(Cuda, NarrowProducts) {
  for (const auto& [k, n] : {std::array<int64_t, 2>{2048, 4}, {2050, 3}, {4, 16}, {4, 4}, {300, 16}}) {
    const int64_t rows = 77, n_in = k, n_out = n;
    const Floats x = rounded_floats(rows * n_in, 1), w = rounded_floats(n_out * n_in, 2),
                 y = rounded_floats(rows * n_out, 3), dx = rounded_floats(rows * n_in, 4);
    expect_alike(64, [&](Backend& b, Device& d) {
      const Tensor tx = d.activations(x, {rows, n_in});
      const Weight of_f32 = dense_weight(d.f32(w, {n_out, n_in})),
                   stored = dense_weight(d.activations(w, {n_out, n_in}));
      const Tensor first = d.activations(y, {rows, n_out}), added = d.activations(y, {rows, n_out}),
                   to_x = d.activations(dx, {rows, n_in}), onto_x = d.activations(dx, {rows, n_in}),
                   dy = d.activations(y, {rows, n_out});
      b.matmul_nt(first, tx, of_f32, Write::overwrite);
      b.matmul_nt(added, tx, stored, Write::add);
      b.matmul_nn(to_x, dy, stored, Write::overwrite);
      b.matmul_nn(onto_x, dy, of_f32, Write::add);
      return std::vector{first, added, to_x, onto_x};
    });
  }
}

TEST_P(Cuda, Slices) {
  for (const int64_t size : {8, 2048 * 5, 333}) {
    const int64_t n = 3, dim = size;
    const Floats slices = rounded_floats(n * dim, 1), one = rounded_floats(dim, 2);
    // The CPU's f32 sums are exact to a rounding or two; the GPU's, in f32, as well.
    expect_alike(8, [&](Backend& b, Device& d) {
      const Tensor y = d.activations(slices, {n, 1, dim}), x = d.activations(one, {1, dim}),
                   sum = d.activations(one, {1, dim}), onto = d.activations(one, {1, dim});
      b.sum_slices(overwrite(sum), y, 0.25f);
      b.sum_slices({onto, Write::add}, y, 1);
      b.add_to_slices(y, x);
      return std::vector{y, sum, onto};
    });
  }
}

TEST_P(Cuda, RowsOfTables) {
  const int64_t n_out = 50, n_in = 8960, first = 256, dim = 2 * 256;
  // bf16 holds them in any of the formats: placing for products may round to it.
  const Floats values = rounded_floats(n_out * n_in, 1, 0.1f);
  std::vector<uint16_t> bf16(values.size()), f16(values.size());
  std::transform(values.begin(), values.end(), bf16.begin(), f32_to_bf16);
  std::transform(values.begin(), values.end(), f16.begin(), f32_to_f16);
  Floats copy = values;
  const Weight table = dense_weight(tensor(copy, {n_out, n_in}));
  const Nf4Matrix doubled = quantise_nf4(table, {.double_quant = true}, DType::bf16),
                  plain = quantise_nf4(table, {.double_quant = false}, GetParam());
  const Weight tables[] = {table, dense_weight(Tensor(bf16.data(), DType::bf16, {n_out, n_in})),
                           dense_weight(Tensor(f16.data(), DType::f16, {n_out, n_in})), doubled.view(), plain.view()};
  const std::vector<int32_t> ids = {49, 0, 7, 7, 31};
  const auto n_ids = static_cast<int64_t>(ids.size());
  Device d(*gpu_), host(*cpu_);
  for (const Weight& w : tables) {
    SCOPED_TRACE(name_of(w.format));
    const Tensor expected = host.f32(Floats(n_ids * dim), {n_ids, dim});
    cpu_->gather_rows(expected, ids, w, first, 1.5f);
    const Floats rounded = d.values(d.activations(host.values(expected), {n_ids, dim}));
    for (const auto placement : {Backend::Placement::products, Backend::Placement::rows}) {
      const Weight placed = gpu_->place(w, placement);
      const Tensor got = d.activations(Floats(n_ids * dim), {n_ids, dim});
      gpu_->gather_rows(got, ids, placed, first, 1.5f);
      EXPECT_TRUE(same_bits(d.values(got), rounded)) << "placement " << static_cast<int>(placement);
      if (placed.data != w.data) gpu_->release(const_cast<void*>(placed.data));
    }
  }
}

TEST_P(Cuda, OptimizersGiveTheBytesOfTheCpu) {
  const int64_t n = 1000003, n_blocks = (n + 255) / 256;
  const Floats p = random_floats(n, 1), g = random_floats(n, 2, 1e-3f), zeros(n), no_scales(n_blocks);
  const std::vector<uint8_t> codes(n);
  const auto run = [&](Backend& b) {
    Device d(b);
    const Tensor p32 = d.f32(p, {n}), p8 = d.f32(p, {n}), m = d.f32(zeros, {n}), v = d.f32(zeros, {n}),
                 m8 = d.bytes(codes.data(), DType::u8, {n}), v8 = d.bytes(codes.data(), DType::u8, {n}),
                 m_absmax = d.f32(no_scales, {n_blocks}), v_absmax = d.f32(no_scales, {n_blocks});
    for (int64_t t = 1; t <= 3; ++t) {
      Floats gradient = g;
      for (int64_t i = 0; i < n; ++i) gradient[i] *= static_cast<float>(i % (t + 3));
      gradient[5] = std::numeric_limits<float>::infinity();
      const AdamWStep step{.lr = 1e-3f, .weight_decay = 0.01f, .t = t, .grad_scale = 0.7f};
      const Tensor tg = d.f32(gradient, {n});
      b.adamw_f32(p32, tg, m, v, step);
      b.adamw_8bit(p8, tg, m8, v8, m_absmax, v_absmax, step);
    }
    return std::vector{d.values(p32), d.values(m), d.values(v), d.values(p8), d.values(m_absmax), d.values(v_absmax)};
  };
  const auto got = run(*gpu_), expected = run(*cpu_);
  for (size_t i = 0; i < got.size(); ++i)
    for (size_t k = 0; k < got[i].size(); ++k)
      ASSERT_TRUE(got[i][k] == expected[i][k] || (std::isnan(got[i][k]) && std::isnan(expected[i][k])))
          << "output " << i << ", element " << k << ": " << got[i][k] << " for " << expected[i][k];
}

TEST_P(Cuda, SumOfSquares) {
  for (const int64_t n : {1, 255, 16384, 16385, 3000001}) {
    const Floats x = random_floats(n, 1);
    Device d(*gpu_), host(*cpu_);
    const Tensor t = d.f32(x, {n});
    const double sum = gpu_->sum_of_squares(t), expected = cpu_->sum_of_squares(host.f32(x, {n}));
    EXPECT_EQ(sum, gpu_->sum_of_squares(t));
    // n additions at most on either side; f64.
    EXPECT_NEAR(sum, expected, 2 * static_cast<double>(n) * 0x1p-53 * expected);
  }
}

}  // namespace
}  // namespace saaz
