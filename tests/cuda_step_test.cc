// The kernels of a decoding step against the CPU's, composed as the model composes them, at the real model's sizes and
// at odd ones, and what the samplers ask of logits. Both sides read the same values, rounded to bf16 where the GPU
// stores bf16. Bounds: products by element, from the sum of the terms' sizes; all else as cuda_kernels_test.
#include "cuda_step_testing.h"
#include "infer/sampler.h"

namespace saaz {
namespace {

INSTANTIATE_TEST_SUITE_P(Activations, CudaStep, kEachActivation, activation_name);

/// x w^T in f64 and the sums of its terms' sizes.
struct Sums {
  std::vector<double> value, size;
};
Sums sums_of(const Floats& x, const Floats& w, int64_t rows, int64_t n_out, int64_t n_in) {
  Sums s{std::vector<double>(static_cast<size_t>(rows * n_out)),
         std::vector<double>(static_cast<size_t>(rows * n_out))};
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t n = 0; n < n_out; ++n)
      for (int64_t k = 0; k < n_in; ++k) {
        const double term =
            static_cast<double>(x[static_cast<size_t>(r * n_in + k)]) * w[static_cast<size_t>(n * n_in + k)];
        s.value[static_cast<size_t>(r * n_out + n)] += term;
        s.size[static_cast<size_t>(r * n_out + n)] += std::fabs(term);
      }
  return s;
}

/// How far a product's sum may be off, in parts of its terms' sizes: its additions, 32 at a time on either side; for
/// bf16, codes of NF4 rounded to bf16 (or, by cuBLAS, values).
double product_bound(const Matrix& m, DType activations) {
  const double additions = 2 * (static_cast<double>(m.n_in) / 32 + 64) * kEps;
  return additions + (m.format == WeightFormat::nf4 && activations == DType::bf16 ? 0x1p-9 : 0);
}

TEST_P(CudaStep, Products) {
  const Matrix matrices[] = {{WeightFormat::bf16, 512, 2048}, {WeightFormat::bf16, 64, 2048},
                             {WeightFormat::bf16, 1032, 64},  {WeightFormat::nf4, 512, 2048},
                             {WeightFormat::nf4, 64, 16384},  {WeightFormat::nf4, 64, 768, false},
                             {WeightFormat::bf16, 40, 5024},  {WeightFormat::f32, 30, 50}};
  for (const int64_t rows : {1, 8, 11, 40}) {
    for (size_t first = 0; first < 8; first += 4) {
      Device d(*gpu_);
      std::vector<std::unique_ptr<PlacedWeight>> weights;
      std::vector<StepKernels::Product> products;
      std::vector<Floats> inputs;
      for (size_t i = first; i < first + 4; ++i) {
        const Matrix& m = matrices[i];
        weights.push_back(std::make_unique<PlacedWeight>(*gpu_, m, static_cast<uint32_t>(i)));
        inputs.push_back(rounded_floats(rows * m.n_in, static_cast<uint32_t>(10 + i)));
        const Floats poison(static_cast<size_t>(rows * m.n_out), NAN);
        const bool to_f32 = i == 1;  // as the head
        products.push_back({to_f32 ? d.f32(poison, {rows, m.n_out}) : d.activations(poison, {rows, m.n_out}),
                            d.activations(inputs.back(), {rows, m.n_in}), weights.back()->weight, to_f32 ? 30.0f : 0});
      }
      run(rows, [&] { kernels_->products(products); });
      for (size_t i = 0; i < 4; ++i) {
        const Matrix& m = matrices[first + i];
        const Floats got = d.values(products[i].y);
        const Sums expected = sums_of(inputs[i], weights[i]->values, rows, m.n_out, m.n_in);
        const double bound = product_bound(m, GetParam()), stored = products[i].cap > 0 ? 64 * kEps : store();
        int64_t n_wrong = 0;
        for (size_t k = 0; k < got.size(); ++k) {
          const double cap = products[i].cap, raw = expected.value[k];
          const double value = cap > 0 ? cap * std::tanh(raw / cap) : raw;
          n_wrong += std::fabs(got[k] - value) <= bound * expected.size[k] + stored * std::fabs(value) ? 0 : 1;
        }
        EXPECT_EQ(n_wrong, 0) << "matrix " << first + i << ", " << rows << " rows";
      }
    }
  }
}

TEST_P(CudaStep, ARowsBitsAreItsOwn) {
  const Matrix m{WeightFormat::nf4, 256, 2048};
  const PlacedWeight w(*gpu_, m, 1);
  const Floats x = rounded_floats(8 * m.n_in, 2);
  Device d(*gpu_);
  const auto product = [&](int64_t rows) {
    const Tensor y = d.activations(Floats(static_cast<size_t>(rows * m.n_out)), {rows, m.n_out});
    const StepKernels::Product p{y, d.activations(Floats(x.begin(), x.begin() + rows * m.n_in), {rows, m.n_in}),
                                 w.weight};
    run(rows, [&] { kernels_->products({&p, 1}); });
    return d.values(y);
  };
  const Floats of_eight = product(8), of_one = product(1);
  EXPECT_TRUE(same_bits(of_one, Floats(of_eight.begin(), of_eight.begin() + m.n_out)));
  EXPECT_TRUE(same_bits(of_eight, product(8)));
}

TEST_P(CudaStep, Gated) {
  const Matrix m{WeightFormat::nf4, 1024, 2048};
  const PlacedWeight gate(*gpu_, m, 1), up(*gpu_, m, 2);
  const auto gelu = [](double x) { return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); };
  for (const int64_t rows : {1, 5, 12, 20}) {
    for (const bool given : {false, true}) {
      Device d(*gpu_);
      const Floats x = rounded_floats(rows * m.n_in, 3, 0.05f), other = rounded_floats(rows * m.n_out, 4);
      const auto wide = [&](const Floats& v) { return d.activations(v, {rows, m.n_out}); };
      const Floats poison(other.size(), NAN);
      const StepKernels::Gated g{wide(poison), d.activations(x, {rows, m.n_in}),
                                 wide(poison), wide(given ? other : poison),
                                 gate.weight,  given ? Weight{} : up.weight};
      run(rows, [&] { kernels_->gated(g); });
      const Floats got = d.values(g.y);
      const Sums gates = sums_of(x, gate.values, rows, m.n_out, m.n_in);
      const Sums ups = given ? Sums{} : sums_of(x, up.values, rows, m.n_out, m.n_in);
      const double bound = product_bound(m, GetParam());
      int64_t n_wrong = 0;
      for (size_t k = 0; k < got.size(); ++k) {
        const double u = given ? static_cast<double>(other[k]) : ups.value[k], z = gates.value[k], value = gelu(z) * u;
        // gelu's slope is 1.13 at most. Beyond 16 rows gate and up are stored on the way.
        const double of_gate = bound * gates.size[k] + store() * std::fabs(z),
                     of_up = given ? 0 : bound * ups.size[k] + store() * std::fabs(u);
        const double allowed = 1.13 * of_gate * (std::fabs(u) + of_up) + std::fabs(gelu(z)) * of_up +
                               (store() + 64 * kEps) * std::fabs(value);
        n_wrong += std::fabs(got[k] - value) <= allowed ? 0 : 1;
      }
      EXPECT_EQ(n_wrong, 0) << rows << " rows, given " << given;
    }
  }
}

TEST_P(CudaStep, SparseGate) {
  for (const auto& [rows, n_out, n_in] : {std::array<int64_t, 3>{6, 16384, 64}, {2, 193, 31}}) {
    Device d(*gpu_);
    const Matrix m{WeightFormat::bf16, n_out, n_in};
    const PlacedWeight gate(*gpu_, m, 1), up(*gpu_, m, 2);
    const int64_t n = rows, width = n_out;
    const auto wide = [&] { return d.activations(Floats(static_cast<size_t>(n * width), NAN), {n, width}); };
    const StepKernels::Gated g{
        wide(),    d.activations(rounded_floats(n * n_in, 3), {n, n_in}), wide(), wide(), gate.weight, up.weight,
        1.6448534f};
    run(n, [&] { kernels_->gated(g); });
    CpuOps cpu(*cpu_);
    const Tensor expected =
        geglu(*cpu.ctx, cpu.of(d.values(g.gate), {n, width}), cpu.of(d.values(g.up), {n, width}), g.sparsity_z);
    expect_close(d.values(g.y), floats(expected), 256, "sparse gate");
  }
}

TEST_P(CudaStep, AltUp) {
  constexpr float kEpsilon = 1e-6f;
  for (const auto& [streams, dim, active_index] : {std::array<int64_t, 3>{4, 2048, 0}, {3, 49, 1}}) {
    const int64_t n = streams, t = 3, width = dim;
    const auto active = static_cast<int>(active_index);
    const Floats h = rounded_floats(n * t * dim, 1), update = rounded_floats(t * dim, 2),
                 mixed = rounded_floats(t * dim, 3), ffn = rounded_floats(t * dim, 4), gain = random_floats(dim, 5),
                 other = random_floats(dim, 6);
    const Routers opening(n, dim, n * n), closing(n, dim, n);
    Device d(*gpu_);
    CpuOps cpu(*cpu_);
    Ctx& ctx = *cpu.ctx;
    const bool bf16 = GetParam() == DType::bf16;
    const auto all = [&](const Floats& x) { return d.activations(x, {n, t, width}); };
    const auto one = [&](const Floats& x) { return d.activations(x, {t, width}); };

    const StepKernels::AltUpOpen open{all(h),
                                      all(h),
                                      one(update),
                                      all(h),
                                      one(update),
                                      d.f32(gain, {width}),
                                      d.f32(other, {width}),
                                      opening.on(d, bf16),
                                      active,
                                      kEpsilon};
    const StepKernels::AltUpClose close{all(h),
                                        one(mixed),
                                        one(mixed),
                                        one(ffn),
                                        all(h),
                                        d.f32(gain, {width}),
                                        d.f32(other, {width}),
                                        closing.on(d, bf16),
                                        active,
                                        kEpsilon};
    const StepKernels::Mix mix{one(h),
                               one(h),
                               one(update),
                               one(mixed),
                               one(ffn),
                               one(Floats(h.begin(), h.begin() + t * width)),
                               d.f32(gain, {width}),
                               d.f32(other, {width}),
                               d.f32(gain, {width}),
                               kEpsilon};
    const StepKernels::AltUpOpen last{all(h), {}, {}, all(h), one(update), open.update_norm, {}, {}, active, kEpsilon};
    const Tensor started = all(h), finished = one(update);
    const Floats projected(h.begin() + t * width, h.end());
    const Tensor others_there = d.activations(projected, {n - 1, t, width});
    run(t, [&] {
      kernels_->altup_open(open);
      kernels_->altup_open(last);
      kernels_->altup_close(close);
      kernels_->mix(mix);
      kernels_->altup_start(started, close.mixed, others_there);
      kernels_->altup_finish(finished, open.streams, others_there, open.input_norm, kEpsilon);
    });

    const Norm gained{cpu.of(gain, {width}), kEpsilon}, others{cpu.of(other, {width}), kEpsilon};
    const Tensor streams_here = cpu.of(h, {n, t, width}), ch = streams_here;
    const Tensor copied = scale(ctx, ch, 1);  // changed in place
    const Tensor updated = add_to_inactive(ctx, copied, rms_norm(ctx, cpu.of(update, {t, width}), gained, 0));
    const Tensor predicted =
        altup_predict(ctx, updated, opening.coefficients(cpu, slice(ctx, updated, active), kEpsilon));
    expect_close(d.values(open.updated), floats(updated), 64, "updated");
    EXPECT_EQ(d.values(last.updated), d.values(open.updated));
    expect_close(d.values(open.predicted), floats(predicted), 256, "predicted");
    expect_close(d.values(open.x), floats(rms_norm(ctx, slice(ctx, predicted, active), others, 0)), 256, "x");

    const Tensor out = add(ctx, cpu.of(mixed, {t, width}), rms_norm(ctx, cpu.of(ffn, {t, width}), gained, 0), 1);
    const Tensor corrected = altup_correct(ctx, ch, out, closing.coefficients(cpu, out, kEpsilon), active);
    expect_close(d.values(close.corrected), floats(corrected), 256, "corrected");
    expect_close(d.values(close.scaled), floats(scale_columns(ctx, slice(ctx, corrected, active), others.weight)), 256,
                 "scaled");

    const Tensor x = cpu.of(ffn, {t, width});
    const Tensor laurel = add(ctx, x, rms_norm(ctx, slice(ctx, ch, 0), others, 0), 1);
    const Tensor sum =
        add(ctx, add(ctx, cpu.of(update, {t, width}), rms_norm(ctx, cpu.of(mixed, {t, width}), gained, 0), 1), laurel,
            0.70710678f);
    expect_close(d.values(mix.mixed), floats(sum), 64, "mixed");
    expect_close(d.values(mix.y), floats(rms_norm(ctx, sum, gained, 0)), 128, "normed mix");

    std::vector<Tensor> rows = {cpu.of(mixed, {t, width})}, means = {slice(ctx, ch, 0)};
    for (int64_t j = 0; j + 1 < n; ++j) {
      const Tensor p = slice(ctx, cpu.of(projected, {n - 1, t, width}), j);
      rows.push_back(match_magnitude(ctx, p, rows[0]));
      means.push_back(match_magnitude(ctx, p, means[0]));
    }
    expect_close(d.values(started), floats(stack(ctx, rows)), 64, "started");
    expect_close(d.values(finished), floats(rms_norm(ctx, mean_of_streams(ctx, stack(ctx, means)), others, 0)), 128,
                 "finished");
  }
}

TEST_P(CudaStep, PerLayerInputsAndTables) {
  for (const auto& [layers, dim] : {std::array<int64_t, 2>{35, 256}, {7, 6}}) {
    const int64_t t = 3, n = layers, p = dim, n_ids = 2;  // id 2 lies beyond the table and takes row 0
    const Floats table = rounded_floats(n_ids * n * p, 1), projected = rounded_floats(t * n * p, 2),
                 gain = random_floats(p, 3);
    Floats copy = table;
    Device d(*gpu_);
    const Weight in_host_memory = dense_weight(tensor(copy, {n_ids, n * p}));
    for (const bool on_card : {false, true}) {
      const Weight w = on_card ? dense_weight(d.f32(table, {n_ids, n * p})) : in_host_memory;
      const Tensor embedded = d.activations(projected, {t, n * p}), out = d.activations(projected, {n, t, p});
      const StepKernels::PerLayer args{
          out, d.activations(projected, {t, n * p}), embedded, d.f32(gain, {p}), 1e-6f, 0.25f, 0.5f};
      run(t, [&] {
        kernels_->embed(embedded, w, 2);
        kernels_->per_layer_inputs(args);
      });
      CpuOps cpu(*cpu_);
      Ctx& ctx = *cpu.ctx;
      const std::vector<int32_t> ids = {0, 1, 0};
      const Tensor rows = embed(ctx, ids, in_host_memory, 0, n * p, 2);
      EXPECT_EQ(d.values(embedded), floats(rows)) << "powers of two are exact";
      const Tensor normed =
          rms_norm(ctx, scale(ctx, cpu.of(projected, {t, n * p}), 0.25f), {cpu.of(gain, {p}), 1e-6f}, p);
      expect_close(d.values(out), floats(split_columns(ctx, add(ctx, normed, rows, 0.5f), n)), 64, "per-layer inputs");
    }
  }
}

TEST_P(CudaStep, Attention) {
  struct Case {
    int64_t heads, kv_heads, dim, window;
    std::vector<int64_t> positions;
  };
  const Case cases[] = {{8, 2, 256, 512, {0, 63, 64, 700, 1500}},
                        {8, 2, 256, 0, {5000, 0, 127, 128}},
                        {6, 3, 10, 5, {0, 4, 5, 70}},
                        {4, 4, 64, 0, {300}}};
  for (const Case& c : cases) {
    const auto t = static_cast<int64_t>(c.positions.size());
    const int64_t capacity = c.window == 0 ? 5001 : c.window + 3, d_kv = c.kv_heads * c.dim, d_q = c.heads * c.dim;
    std::vector<AttentionSpan> spans;
    std::vector<int32_t> positions;
    for (int64_t i = 0; i < t; ++i) {
      const int64_t position = c.positions[static_cast<size_t>(i)];
      spans.push_back({.q_begin = i,
                       .n_queries = 1,
                       .first_position = position,
                       .kv_begin = i * capacity,
                       .kv_capacity = capacity});
      positions.push_back(static_cast<int32_t>(position));
    }
    const Floats q = rounded_floats(t * d_q, 1), k = rounded_floats(t * d_kv, 2), v = rounded_floats(t * d_kv, 3),
                 cache = rounded_floats(t * capacity * d_kv, 4), gain = random_floats(c.dim, 5),
                 angles = random_floats(5001 * c.dim, 6);
    Device d(*gpu_);
    CpuOps cpu(*cpu_, 1 << 25);
    Ctx& ctx = *cpu.ctx;
    const AttentionShape shape{
        .n_heads = c.heads, .n_kv_heads = c.kv_heads, .head_dim = c.dim, .window = c.window, .scale = 1.0f / 16};
    ASSERT_TRUE(StepKernels::takes_attention(shape));
    const Tensor k_cache = d.activations(cache, {t * capacity, d_kv}),
                 v_cache = d.activations(cache, {t * capacity, d_kv});
    const Tensor gains = d.f32(gain, {c.dim}), table = d.f32(angles, {5001, c.dim}), out = d.activations(q, {t, d_q});
    const StepKernels::Attention a{out,
                                   d.activations(q, {t, d_q}),
                                   d.activations(k, {t, d_kv}),
                                   d.activations(v, {t, d_kv}),
                                   k_cache,
                                   v_cache,
                                   gains,
                                   gains,
                                   table,
                                   1e-6f,
                                   1,
                                   5001,
                                   shape};
    run(
        t, [&] { kernels_->attention(a); }, spans);

    const Norm norm{cpu.of(gain, {c.dim}), 1e-6f}, plain{{}, 1e-6f};
    const Tensor here = cpu.of(angles, {5001, c.dim});
    const Tensor new_k = rope(ctx, rms_norm(ctx, cpu.of(k, {t, d_kv}), norm, c.dim), positions, here, c.kv_heads);
    const Tensor new_v = rms_norm(ctx, cpu.of(v, {t, d_kv}), plain, c.dim);
    const Tensor rotated = rope(ctx, rms_norm(ctx, cpu.of(q, {t, d_q}), norm, c.dim), positions, here, c.heads);
    // What the cache holds now: the token's row, and everything else as it was. The CPU goes on from there.
    Floats keys = d.values(k_cache), values = d.values(v_cache), stored_k, stored_v, rest_k = keys, rest_v = values,
           before = cache;
    for (int64_t i = 0; i < t; ++i) {
      const int64_t row = i * capacity + positions[static_cast<size_t>(i)] % capacity;
      const auto range = [&](Floats& x) { return x.begin() + row * d_kv; };
      stored_k.insert(stored_k.end(), range(keys), range(keys) + d_kv);
      stored_v.insert(stored_v.end(), range(values), range(values) + d_kv);
      for (Floats* x : {&rest_k, &rest_v, &before}) std::fill(range(*x), range(*x) + d_kv, 0.0f);
    }
    expect_close(stored_k, floats(new_k), 64, "key");
    expect_close(stored_v, floats(new_v), 64, "value");
    EXPECT_TRUE(same_bits(rest_k, before) && same_bits(rest_v, before)) << "other rows of the cache";
    // Scores: |q| |k| / 16 is 16 at most for rows of 256 with a norm of 16, each sum within 16 additions' errors; in
    // bf16 the exponential's own error, 2^-21 of scores that large, is far below a store.
    const Tensor expected =
        attention(ctx, rotated, cpu.of(keys, {t * capacity, d_kv}), cpu.of(values, {t * capacity, d_kv}), spans, shape);
    expect_close(d.values(out), floats(expected), 16 * 16 + 64, "attention");
  }
}

TEST_P(CudaStep, SamplersTakeWhatTheyTakeOnTheHost) {
  const int64_t rows = 4, vocab = GetParam() == DType::bf16 ? 262400 : 900;
  const auto last = static_cast<int32_t>(vocab - 1);
  Floats logits = random_floats(rows * vocab, 7, 12);
  for (size_t i = 0; i < logits.size(); i += 300) logits[i] = std::round(logits[i]);  // ties
  logits[5] = -std::numeric_limits<float>::infinity(), logits[6] = std::numeric_limits<float>::quiet_NaN();
  std::vector<SamplingOptions> all = {
      {},
      {.repetition_penalty = 1.3},
      {.temperature = 1, .top_k = 64, .top_p = 0.95},
      {.temperature = 0.7, .top_k = 1},
      {.temperature = 1.5, .top_k = 400, .repetition_penalty = 0.8, .presence_penalty = 0.5, .frequency_penalty = 0.25},
      {.temperature = 0.05, .min_p = 0.2, .logit_bias = {{17, 9.0f}, {4, -3.0f}}},
      {.temperature = 1, .top_p = 0.5}};
  const std::vector<int32_t> prompt = {4, 17, last / 9, last};
  int n_complete = 0;
  for (const SamplingOptions& options : all) {
    Device d(*gpu_);
    const Tensor there = d.f32(logits, {rows, vocab});
    std::vector<Sampler> on_host, on_gpu;
    std::vector<LogitChange> changes;
    std::vector<CandidateQuery> queries;
    for (int64_t r = 0; r < rows; ++r) {
      for (auto* samplers : {&on_host, &on_gpu}) {
        samplers->emplace_back(options, static_cast<uint64_t>(r), prompt);
        for (const int32_t id : {9, 17, 17, last / 2}) samplers->back().accept(id);
      }
      queries.push_back(on_gpu.back().query(vocab));
      if (queries.back().within >= 0) on_gpu.back().append_changes(static_cast<int32_t>(r), changes);
    }
    std::vector<Candidates> found;
    ASSERT_TRUE(gpu_->find_candidates(there, changes, queries, found));
    for (size_t r = 0; r < found.size(); ++r) {
      if (!found[r].complete) continue;
      ++n_complete;
      Floats row(logits.begin() + static_cast<int64_t>(r) * vocab,
                 logits.begin() + static_cast<int64_t>(r + 1) * vocab);
      on_host[r].adjust(row);
      for (int draw = 0; draw < 20; ++draw) EXPECT_EQ(on_gpu[r].sample(found[r]), on_host[r].sample(row));
    }
  }
  EXPECT_EQ(n_complete, rows * 6);  // all but the last, which asks for everything
}

}  // namespace
}  // namespace saaz
