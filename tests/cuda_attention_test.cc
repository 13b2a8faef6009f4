// Attention of CUDA at head_dim 256, where bf16 goes to tensor cores, against the CPU's kernels: every grouping of
// heads, windows, tiles that are cut, caches that have wrapped. Skipped where there is no GPU. Bounds are those of
// ops_test (op_cases.h): in bf16 probabilities and out are rounded on the way to out, eight times on that to a
// gradient.
#include "cuda_testing.h"

namespace saaz {
namespace {

INSTANTIATE_TEST_SUITE_P(Activations, Cuda, kEachActivation, activation_name);

constexpr int64_t kDim = 256;
constexpr double kStores = 2, kGradientStores = 8;

struct Case {
  std::vector<int64_t> lengths;
  int64_t n_heads, n_kv_heads, window;
  float scale;
};

std::vector<AttentionSpan> packed(const std::vector<int64_t>& lengths) {
  std::vector<AttentionSpan> spans;
  int64_t row = 0;
  for (const int64_t length : lengths) {
    spans.push_back({.q_begin = row, .n_queries = length, .first_position = 0, .kv_begin = row, .kv_capacity = length});
    row += length;
  }
  return spans;
}

/// Inputs on a backend, what attention makes of them, and gradients that were something before.
struct Operands {
  Tensor q, k, v, dout, out, lse, dq, dk, dv;
};

Operands make_run(Device& d, int64_t rows, int64_t n_heads, int64_t n_kv_heads) {
  const int64_t width = n_heads * kDim, kv_width = n_kv_heads * kDim;
  const auto tensor = [&](int64_t columns, uint32_t seed) {
    return d.activations(rounded_floats(rows * columns, seed), {rows, columns});
  };
  return {tensor(width, 1), tensor(kv_width, 2), tensor(kv_width, 3),
          tensor(width, 4), tensor(width, 5),    d.f32(random_floats(rows * n_heads, 6), {rows, n_heads}),
          tensor(width, 7), tensor(kv_width, 8), tensor(kv_width, 9)};
}

void queue(Backend& b, const Operands& r, std::span<const AttentionSpan> spans, const AttentionShape& shape) {
  b.attention(r.out, r.lse, r.q, r.k, r.v, spans, shape);
  b.attention_backward(overwrite(r.dq), {r.dk, Write::add}, overwrite(r.dv), r.dout, r.out, r.lse, r.q, r.k, r.v, spans,
                       shape);
}

TEST_P(Cuda, AttentionAndItsGradients) {
  for (const Case& c :
       {Case{{640, 1, 17, 300, 16}, 8, 2, 0, 0.0625f},  // Gemma 3n E4B's heads
        Case{{700, 65, 128}, 8, 2, 200, 0.0625f}, Case{{129, 64}, 2, 2, 64, 0.05f}, Case{{100, 43}, 3, 1, 0, 0.0625f},
        Case{{150}, 5, 1, 33, 0.1f}, Case{{10, 33}, 32, 1, 7, 0.0625f}, Case{{260}, 4, 1, 1, 0.0625f}}) {
    SCOPED_TRACE(testing::Message() << c.lengths[0] << ", " << c.n_heads << " heads of " << c.n_kv_heads << ", window "
                                    << c.window);
    const AttentionShape shape{c.n_heads, c.n_kv_heads, kDim, c.window, c.scale};
    const std::vector<AttentionSpan> spans = packed(c.lengths);
    const int64_t rows = spans.back().q_begin + spans.back().n_queries;
    const auto outputs = [&](auto pick) {
      return [&, pick](Backend& b, Device& d) {
        const Operands run = make_run(d, rows, c.n_heads, c.n_kv_heads);
        queue(b, run, spans, shape);
        return pick(run);
      };
    };
    expect_alike(16, outputs([](const Operands& r) { return std::vector{r.out, r.lse}; }), kStores);
    const bool one_key = c.window == 1;  // then dq is 0, a difference
    const auto gradients = [=](const Operands& r) {
      return one_key ? std::vector{r.dk, r.dv} : std::vector{r.dq, r.dk, r.dv};
    };
    expect_alike(32, outputs(gradients), kGradientStores);
  }
}

/// A part of a sequence, its keys in a cache that has wrapped, beside a step of decoding.
TEST_P(Cuda, AttentionOverACache) {
  const AttentionShape shape{8, 2, kDim, 20, 0.0625f};
  const std::vector<AttentionSpan> spans = {
      {.q_begin = 0, .n_queries = 100, .first_position = 150, .kv_begin = 0, .kv_capacity = 128},
      {.q_begin = 100, .n_queries = 1, .first_position = 300, .kv_begin = 128, .kv_capacity = 32},
      {.q_begin = 101, .n_queries = 27, .first_position = 0, .kv_begin = 160, .kv_capacity = 40}};
  expect_alike(
      16,
      [&](Backend& b, Device& d) {
        const Floats q = rounded_floats(128 * 8 * kDim, 1), k = rounded_floats(200 * 2 * kDim, 2),
                     v = rounded_floats(200 * 2 * kDim, 3);
        const Tensor out = d.activations(q, {128, 8 * kDim});
        b.attention(out, {}, d.activations(q, {128, 8 * kDim}), d.activations(k, {200, 2 * kDim}),
                    d.activations(v, {200, 2 * kDim}), spans, shape);
        return std::vector{out};
      },
      kStores);
}

/// The bits of a sequence's results are the same twice, and without the other sequences of its batch.
TEST_P(Cuda, AttentionOfASequenceIsItsOwn) {
  const AttentionShape shape{8, 2, kDim, 96, 0.0625f};
  const std::vector<AttentionSpan> all = packed({230, 9, 310});
  const auto values = [&](std::span<const AttentionSpan> spans) {
    Device d(*gpu_);
    const Operands run = make_run(d, 549, 8, 2);
    queue(*gpu_, run, spans, shape);
    std::vector<Floats> out;
    for (const Tensor& t : {run.out, run.lse, run.dq, run.dk, run.dv}) out.push_back(d.values(t));
    return out;
  };
  const std::vector<Floats> first = values(all);
  EXPECT_EQ(values(all), first);
  for (const AttentionSpan& span : all) {
    const std::vector<Floats> alone = values({&span, 1});
    for (size_t i = 0; i < first.size(); ++i) {
      const int64_t width = static_cast<int64_t>(first[i].size()) / 549;
      const auto begin = span.q_begin * width, end = begin + span.n_queries * width;
      EXPECT_TRUE(std::equal(first[i].begin() + begin, first[i].begin() + end, alone[i].begin() + begin))
          << "output " << i << " of the sequence at " << span.q_begin;
    }
  }
}

}  // namespace
}  // namespace saaz
