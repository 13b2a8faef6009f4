// Attention against an f64 formula, and the promises of backend.h about bits: the same for any number of threads, for a
// row alone or in a batch, for decoding from a ring cache or prefilling.
#include <cmath>
#include <functional>
#include <limits>

#include "base/error.h"
#include "kernel_testing.h"
#include "quant/blockwise.h"

namespace saaz {
namespace {

INSTANTIATE_TEST_SUITE_P(InstructionSets, Kernels, kEachInstructionSet, instruction_set_name);

struct Attended {
  Doubles out, lse;
};
/// Attention of spans whose keys lie in order, in f64.
Attended reference_attention(const Doubles& q, const Doubles& k, const Doubles& v,
                             const std::vector<AttentionSpan>& spans, const AttentionShape& s) {
  Attended result{Doubles(q.size()), Doubles(q.size() / s.head_dim)};
  const int64_t d = s.head_dim, group = s.n_heads / s.n_kv_heads;
  for (const AttentionSpan& span : spans) {
    for (int64_t i = 0; i < span.n_queries * s.n_heads; ++i) {
      const int64_t query = i / s.n_heads, head = i % s.n_heads, position = span.first_position + query;
      const int64_t row = (span.q_begin + query) * s.n_heads + head;
      const int64_t first = s.window == 0 ? 0 : std::max<int64_t>(0, position - s.window + 1);
      const auto key = [&](int64_t p) { return ((span.kv_begin + p) * s.n_kv_heads + head / group) * d; };
      Doubles weights;
      double sum = 0;
      for (int64_t p = first; p <= position; ++p) {
        double score = 0;
        for (int64_t c = 0; c < d; ++c) score += q[row * d + c] * k[key(p) + c];
        weights.push_back(std::exp(s.scale * score));
        sum += weights.back();
      }
      result.lse[row] = std::log(sum);
      for (int64_t p = first; p <= position; ++p) {
        for (int64_t c = 0; c < d; ++c) result.out[row * d + c] += weights[p - first] / sum * v[key(p) + c];
      }
    }
  }
  return result;
}

/// Bound on every element: scores are sums of d products of values up to 1, and an error of a score is one of a weight.
void expect_within(const Floats& ours, const Doubles& truth, double bound) {
  for (size_t i = 0; i < truth.size(); ++i) ASSERT_NEAR(ours[i], truth[i], bound) << i;
}

struct AttentionCase {
  int64_t heads, kv_heads, head_dim, window;
};
const AttentionCase kAttentionCases[] = {{1, 1, 2, 0}, {4, 1, 6, 5}, {4, 2, 18, 0}, {2, 2, 64, 40}, {40, 1, 4, 3}};
const std::vector<AttentionSpan> kSpans = {{.q_begin = 0, .n_queries = 70, .kv_begin = 0, .kv_capacity = 70},
                                           {.q_begin = 70, .n_queries = 3, .kv_begin = 70, .kv_capacity = 3}};
constexpr int64_t kTokens = 73;

TEST_P(Kernels, AttentionIsItsFormula) {
  const auto cpu = backend();
  for (const auto& [heads, kv_heads, d, window] : kAttentionCases) {
    SCOPED_TRACE(testing::Message() << heads << " heads of " << d << ", window " << window);
    const AttentionShape shape{heads, kv_heads, d, window, 0.7f};
    Floats q = random_floats(kTokens * heads * d, 1), k = random_floats(kTokens * kv_heads * d, 2);
    Floats v = random_floats(kTokens * kv_heads * d, 3), out(q.size()), lse(kTokens * heads);
    cpu->attention(tensor(out, {kTokens, heads * d}), tensor(lse, {kTokens, heads}), tensor(q, {kTokens, heads * d}),
                   tensor(k, {kTokens, kv_heads * d}), tensor(v, {kTokens, kv_heads * d}), kSpans, shape);
    const Attended truth =
        reference_attention({q.begin(), q.end()}, {k.begin(), k.end()}, {v.begin(), v.end()}, kSpans, shape);
    const double score_error = 2 * static_cast<double>(d + 8) * kEps * static_cast<double>(d);
    expect_within(out, truth.out, 2 * score_error + 70 * kEps);
    expect_within(lse, truth.lse, score_error + 16 * kEps);
  }
}

TEST_P(Kernels, AttentionBackwardIsTheDerivative) {
  const auto cpu = backend();
  const int64_t heads = 4, kv_heads = 2, d = 10;
  for (const int64_t window : {0, 4}) {
    const AttentionShape shape{heads, kv_heads, d, window, 0.7f};
    Floats q = random_floats(kTokens * heads * d, 1), k = random_floats(kTokens * kv_heads * d, 2);
    Floats v = random_floats(kTokens * kv_heads * d, 3), dout = random_floats(kTokens * heads * d, 4);
    Floats out(q.size()), lse(kTokens * heads), dq(q.size(), 1), dk(k.size()), dv(v.size());
    const Tensor tq = tensor(q, {kTokens, heads * d}), tk = tensor(k, {kTokens, kv_heads * d});
    const Tensor tv = tensor(v, {kTokens, kv_heads * d}), to = tensor(out, {kTokens, heads * d});
    const Tensor tl = tensor(lse, {kTokens, heads});
    cpu->attention(to, tl, tq, tk, tv, kSpans, shape);
    cpu->attention_backward({tensor(dq, {kTokens, heads * d}), Write::add},
                            overwrite(tensor(dk, {kTokens, kv_heads * d})),
                            overwrite(tensor(dv, {kTokens, kv_heads * d})), tensor(dout, {kTokens, heads * d}), to, tl,
                            tq, tk, tv, kSpans, shape);
    std::vector<Doubles> inputs = {{q.begin(), q.end()}, {k.begin(), k.end()}, {v.begin(), v.end()}};
    const auto loss = [&] {
      const Attended truth = reference_attention(inputs[0], inputs[1], inputs[2], kSpans, shape);
      double sum = 0;
      for (size_t i = 0; i < dout.size(); ++i) sum += dout[i] * truth.out[i];
      return sum;
    };
    const Floats* ours[] = {&dq, &dk, &dv};
    for (size_t which = 0; which < 3; ++which) {
      for (size_t i = 0; i < inputs[which].size(); i += 13) {  // a formula call each way: every 13th is enough
        const double x = inputs[which][i], step = 1e-5;
        inputs[which][i] = x + step;
        const double above = loss();
        inputs[which][i] = x - step;
        const double gradient = (above - loss()) / (2 * step), added = which == 0 ? 1 : 0;
        inputs[which][i] = x;
        // Sums over at most 70 queries and two heads of terms up to d.
        ASSERT_NEAR((*ours[which])[i], gradient + added, 2 * 70 * kEps * static_cast<double>(d) + 1e-7)
            << which << " " << i;
      }
    }
  }
}

TEST_P(Kernels, DecodingFromARingEqualsPrefill) {
  const auto cpu = backend();
  for (const auto& [heads, kv_heads, d, window] : kAttentionCases) {
    if (window == 0) continue;
    const AttentionShape shape{heads, kv_heads, d, window, 1};
    const int64_t width = kv_heads * d;
    Floats q = random_floats(kTokens * heads * d, 1), k = random_floats(kTokens * width, 2);
    Floats v = random_floats(kTokens * width, 3), out(q.size()), decoded(q.size());
    const Tensor tq = tensor(q, {kTokens, heads * d}), tk = tensor(k, {kTokens, width}),
                 tv = tensor(v, {kTokens, width});
    const std::vector<AttentionSpan> all = {{.n_queries = kTokens, .kv_capacity = kTokens}};
    cpu->attention(tensor(out, {kTokens, heads * d}), {}, tq, tk, tv, all, shape);
    for (const int64_t chunk : {1, 3}) {
      const int64_t capacity = window + chunk - 1;
      Floats k_ring(capacity * width), v_ring(capacity * width);
      for (int64_t p = 0; p < kTokens; p += chunk) {
        const int64_t n = std::min(chunk, kTokens - p);
        std::vector<int64_t> rows;
        for (int64_t i = 0; i < n; ++i) rows.push_back((p + i) % capacity);
        const Tensor tkr = tensor(k_ring, {capacity, width}), tvr = tensor(v_ring, {capacity, width});
        cpu->scatter_rows(tkr, rows, row_slice(tk, p, n));
        cpu->scatter_rows(tvr, rows, row_slice(tv, p, n));
        const std::vector<AttentionSpan> one = {{.n_queries = n, .first_position = p, .kv_capacity = capacity}};
        cpu->attention(row_slice(tensor(decoded, {kTokens, heads * d}), p, n), {}, row_slice(tq, p, n), tkr, tvr, one,
                       shape);
      }
      EXPECT_TRUE(same_bits(decoded, out)) << heads << " heads of " << d << ", chunk " << chunk;
    }
  }
}

/// Every kind of work on `rows` rows of fixed random inputs; the outputs that have a row per input row, in one vector
/// each.
std::vector<Floats> outputs_of(Backend& cpu, int64_t begin, int64_t rows) {
  const int64_t all = 71, n = 130, k = 1090, r = 4;
  Floats xs = random_floats(all * k, 1), dys = random_floats(all * n, 2), ws = random_floats(n * k, 3, 0.1f);
  Floats as = random_floats(r * k, 4), bs = random_floats(n * r, 5), gains = random_floats(k, 6);
  const Tensor x = row_slice(tensor(xs, {all, k}), begin, rows), dy = row_slice(tensor(dys, {all, n}), begin, rows);
  const Tensor a = tensor(as, {r, k}), b = tensor(bs, {n, r}), gain = tensor(gains, {k});
  const Weight w = dense_weight(tensor(ws, {n, k}));
  const Nf4Matrix nf4 = quantise_nf4(w, {}, DType::bf16);
  std::vector<Floats> out;
  const auto result = [&](int64_t width) {
    out.emplace_back(rows * width);
    return Tensor(out.back().data(), DType::f32, {rows, width});
  };
  cpu.matmul_nt(result(n), x, w, Write::overwrite);
  cpu.matmul_nt(result(n), x, nf4.view(), Write::overwrite);
  cpu.matmul_nn(result(k), dy, w, Write::overwrite);
  cpu.matmul_nn(result(k), dy, nf4.view(), Write::overwrite);
  const Tensor h = result(r);
  cpu.lora_forward({result(n), Write::add}, h, x, a, b, 2);
  Floats da(r * k), db(n * r);
  const Tensor dh = result(r);
  cpu.lora_backward(overwrite(result(k)), tensor(da, {r, k}), tensor(db, {n, r}), dh, dy, x, h, a, b, 2);
  const Tensor inverse = result(1);
  cpu.rms_norm(result(k), inverse, x, gain, 1e-6f);
  cpu.rms_norm_backward(overwrite(result(k)), x, x, gain, inverse);
  const Tensor saved = result(2), gate = x;
  cpu.geglu(result(k), saved, gate, x, 0.5f);
  const Tensor dgate = result(k);
  cpu.geglu_backward(overwrite(dgate), overwrite(result(k)), x, gate, x, saved, 0.5f);
  cpu.match_magnitude(result(k), x, dgate);
  const Tensor logits = result(k);
  cpu.copy(logits, x);
  const std::vector<int32_t> targets(static_cast<size_t>(rows), 3);
  cpu.cross_entropy(logits, result(1), targets, 30, 1, logits);
  cpu.tanh(result(k), x);
  cpu.add_scaled(result(k), x, 2, x, 3);
  return out;
}

TEST_P(Kernels, ARowAloneHasTheBitsOfItsBatch) {
  const auto cpu = backend();
  const std::vector<Floats> batch = outputs_of(*cpu, 0, 71);
  for (const auto& [begin, rows] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {70, 1}, {3, 2}, {5, 3}, {8, 17}, {1, 65}}) {
    const std::vector<Floats> part = outputs_of(*cpu, begin, rows);
    for (size_t i = 0; i < batch.size(); ++i) {
      const auto width = static_cast<int64_t>(batch[i].size()) / 71;
      const Floats expected(batch[i].begin() + begin * width, batch[i].begin() + (begin + rows) * width);
      EXPECT_TRUE(same_bits(part[i], expected)) << "output " << i << ", rows " << begin << " + " << rows;
    }
  }
}

/// Results that mix rows: weight gradients, attention gradients, norms, 8-bit moments.
std::vector<Floats> mixed_outputs_of(Backend& cpu) {
  const int64_t t = kTokens, heads = 4, d = 32, r = 8, k = 1100;
  const AttentionShape shape{heads, 1, d, 0, 1};
  Floats q = random_floats(t * heads * d, 1), kk = random_floats(t * d, 2), v = random_floats(t * d, 3);
  Floats x = random_floats(t * k, 4), p = random_floats(t * r, 5);
  std::vector<Floats> out = {
      Floats(q.size()), Floats(t * heads), Floats(q.size()), Floats(kk.size()), Floats(v.size()), Floats(r * k), x,
      Floats(1)};
  const Tensor tq = tensor(q, {t, heads * d}), tk = tensor(kk, {t, d}), tv = tensor(v, {t, d});
  const Tensor to = tensor(out[0], {t, heads * d}), lse = tensor(out[1], {t, heads});
  cpu.attention(to, lse, tq, tk, tv, kSpans, shape);
  cpu.attention_backward(overwrite(tensor(out[2], {t, heads * d})), overwrite(tensor(out[3], {t, d})),
                         overwrite(tensor(out[4], {t, d})), tq, to, lse, tq, tk, tv, kSpans, shape);
  cpu.matmul_tn(tensor(out[5], {r, k}), tensor(p, {t, r}), tensor(x, {t, k}), 2, Write::overwrite);
  std::vector<uint8_t> m(x.size()), s(x.size());
  Floats m_absmax(x.size() / 256 + 1), s_absmax(m_absmax.size());
  cpu.adamw_8bit(tensor(out[6], {t * k}), tensor(x, {t * k}), {m.data(), DType::u8, {t * k}},
                 {s.data(), DType::u8, {t * k}}, tensor(m_absmax, {t * k / 256 + 1}),
                 tensor(s_absmax, {t * k / 256 + 1}), {.lr = 1e-3f});
  out[7][0] = static_cast<float>(cpu.sum_of_squares(tensor(x, {t, k})));
  out.push_back(m_absmax);
  return out;
}

TEST_P(Kernels, AnyNumberOfThreadsGivesTheSameBits) {
  const auto one = backend(1);
  const std::vector<Floats> rows = outputs_of(*one, 0, 71), mixed = mixed_outputs_of(*one);
  for (const int threads : {2, 3, 8}) {
    const auto cpu = backend(threads);
    const std::vector<Floats> other_rows = outputs_of(*cpu, 0, 71), other_mixed = mixed_outputs_of(*cpu);
    for (size_t i = 0; i < rows.size(); ++i) EXPECT_TRUE(same_bits(rows[i], other_rows[i])) << threads << " rows " << i;
    for (size_t i = 0; i < mixed.size(); ++i)
      EXPECT_TRUE(same_bits(mixed[i], other_mixed[i])) << threads << " mixed " << i;
  }
}

TEST(CpuBackend, MemoryIsZeroedAndAligned) {
  const auto cpu = make_cpu_backend({.n_threads = 1, .instruction_set = "plain"});
  EXPECT_EQ(cpu->describe(), "cpu plain, 1 thread");
  for (const int64_t bytes : {0, 1, 1000, 1 << 20}) {
    auto* memory = static_cast<char*>(cpu->allocate(bytes, "test"));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 64, 0u);
    for (int64_t i = 0; i < bytes; ++i) ASSERT_EQ(memory[i], 0);
    cpu->release(memory);
  }
}

TEST(CpuBackend, RefusesWhatIsNotThere) {
  const auto code_of = [](const std::function<void()>& body) {
    try {
      body();
    } catch (const Error& error) {
      return error.code();
    }
    return ExitCode::ok;
  };
  EXPECT_EQ(code_of([] { make_cpu_backend({.n_threads = 1, .instruction_set = "mmx"}); }), ExitCode::usage);
  const auto cpu = make_cpu_backend({.n_threads = 1, .instruction_set = ""});
  EXPECT_EQ(code_of([&] { cpu->allocate(std::numeric_limits<int64_t>::max(), "activations"); }), ExitCode::resource);
}

}  // namespace
}  // namespace saaz
