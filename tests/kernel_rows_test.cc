// The CPU kernels over rows, attention and the optimizers: forward against f64 formulas, backward against central
// differences of those f64 formulas, and the promise of backend.h: the same bits for any number of threads, for a row
// alone or in a batch, for decoding from a ring or prefilling. Products: kernels_test.cc.
#include <cmath>
#include <functional>
#include <limits>

#include "kernel_testing.h"
#include "quant/blockwise.h"

namespace saaz {
namespace {

INSTANTIATE_TEST_SUITE_P(InstructionSets, Kernels, kEachInstructionSet, instruction_set_name);

Doubles widen(const Floats& x) { return Doubles(x.begin(), x.end()); }
double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}
double norm(const Doubles& x) { return std::sqrt(dot(x.data(), x.data(), static_cast<int64_t>(x.size()))); }

/// || ours - truth || <= roundings * eps * || truth ||: each element's error is a few roundings of values of its own
/// size.
void expect_close(const Floats& ours, const Doubles& truth, double roundings) {
  Doubles difference(truth.size());
  for (size_t i = 0; i < truth.size(); ++i) difference[i] = ours[i] - truth[i];
  EXPECT_LE(norm(difference), roundings * kEps * norm(truth));
}

/// A forward formula in f64: inputs to the output.
using Formula = std::function<Doubles(const std::vector<Doubles>&)>;

/// d <dy, formula(inputs)> / d inputs[which] by central differences; error about 1e-9 of the gradient.
Doubles numeric_gradient(const Formula& formula, std::vector<Doubles> inputs, size_t which, const Doubles& dy) {
  constexpr double kStep = 1e-5;
  Doubles gradient(inputs[which].size());
  const auto n = static_cast<int64_t>(dy.size());
  for (size_t i = 0; i < gradient.size(); ++i) {
    const double x = inputs[which][i];
    inputs[which][i] = x + kStep;
    const Doubles above = formula(inputs);
    inputs[which][i] = x - kStep;
    const Doubles below = formula(inputs);
    inputs[which][i] = x;
    gradient[i] = (dot(dy.data(), above.data(), n) - dot(dy.data(), below.data(), n)) / (2 * kStep);
  }
  return gradient;
}
// f32 noise of a gradient: some 16 roundings, and as many for terms that cancel.
constexpr double kGradientRoundings = 32;

// Formulas, rows of `dim`.

Doubles rms_norm_of(const Doubles& x, const Doubles& w, int64_t dim) {
  Doubles y(x.size());
  for (size_t at = 0; at < x.size(); at += dim) {
    const double inverse = 1 / std::sqrt(dot(&x[at], &x[at], dim) / dim + 1e-6);
    for (int64_t i = 0; i < dim; ++i) y[at + i] = x[at + i] * inverse * w[i];
  }
  return y;
}
double gelu_of(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
Doubles geglu_of(const Doubles& gate, const Doubles& up, int64_t dim, double z) {
  Doubles y(gate.size());
  for (size_t at = 0; at < gate.size(); at += dim) {
    double mean = 0, square = 0;
    for (int64_t i = 0; i < dim; ++i) mean += gate[at + i] / dim;
    for (int64_t i = 0; i < dim; ++i) square += std::pow(gate[at + i] - mean, 2) / dim;
    for (int64_t i = 0; i < dim; ++i) {
      const double raw = gate[at + i];
      y[at + i] = gelu_of(z == 0 ? raw : std::max(0.0, raw - (mean + z * std::sqrt(square)))) * up[at + i];
    }
  }
  return y;
}
Doubles match_magnitude_of(const Doubles& b, const Doubles& reference, int64_t dim) {
  Doubles y(b.size());
  for (size_t at = 0; at < b.size(); at += dim) {
    const double m = std::sqrt(dot(&reference[at], &reference[at], dim) / dim);
    const double n = std::sqrt(std::max(1e-5, dot(&b[at], &b[at], dim) / dim));
    for (int64_t i = 0; i < dim; ++i) y[at + i] = b[at + i] * m / n;
  }
  return y;
}

TEST_P(Kernels, RmsNormAndItsGradient) {
  const auto cpu = backend();
  for (const int64_t dim : {1, 2, 3, 17, 65, 256, 1100}) {
    const int64_t rows = 3;
    Floats x = random_floats(rows * dim, 1), w = random_floats(dim, 2), dy = random_floats(rows * dim, 3);
    Floats y(x.size()), inverse(rows), dx(x.size());
    const Tensor tx = tensor(x, {rows, dim}), tw = tensor(w, {dim}), ti = tensor(inverse, {rows});
    cpu->rms_norm(tensor(y, {rows, dim}), ti, tx, tw, 1e-6f);
    cpu->rms_norm_backward(overwrite(tensor(dx, {rows, dim})), tensor(dy, {rows, dim}), tx, tw, ti);
    const Formula formula = [&](const auto& in) { return rms_norm_of(in[0], widen(w), dim); };
    expect_close(y, formula({widen(x)}), 8);
    // One element: x / |x| is constant, its gradient only rounding (and the effect of epsilon).
    if (dim > 1) expect_close(dx, numeric_gradient(formula, {widen(x)}, 0, widen(dy)), kGradientRoundings);
  }
}

TEST_P(Kernels, GegluAndItsGradient) {
  const auto cpu = backend();
  for (const float z : {0.0f, 1.6448534f}) {
    for (const int64_t dim : {17, 64, 200}) {
      const int64_t rows = 3;
      Floats gate = random_floats(rows * dim, 1, 4), up = random_floats(rows * dim, 2),
             dy = random_floats(rows * dim, 3);
      for (int64_t r = 0; r < rows; ++r) gate[r * dim + 5] = 40;  // at least one survives the sparsity
      Floats y(gate.size()), saved(2 * rows), dgate(gate.size(), 1), dup(gate.size(), 1);
      const Tensor tg = tensor(gate, {rows, dim}), tu = tensor(up, {rows, dim}), ts = tensor(saved, {rows, 2});
      cpu->geglu(tensor(y, {rows, dim}), ts, tg, tu, z);
      cpu->geglu_backward({tensor(dgate, {rows, dim}), Write::add}, overwrite(tensor(dup, {rows, dim})),
                          tensor(dy, {rows, dim}), tg, tu, ts, z);
      for (float& g : dgate) g -= 1;  // what it was added to
      const Formula formula = [&](const auto& in) { return geglu_of(in[0], in[1], dim, z); };
      const std::vector<Doubles> inputs = {widen(gate), widen(up)};
      expect_close(y, formula(inputs), 16);
      expect_close(dgate, numeric_gradient(formula, inputs, 0, widen(dy)), 2 * kGradientRoundings);
      expect_close(dup, numeric_gradient(formula, inputs, 1, widen(dy)), kGradientRoundings);
    }
  }
}

TEST_P(Kernels, MatchMagnitudeAndItsGradient) {
  const auto cpu = backend();
  const int64_t rows = 2, dim = 67;
  for (const float scale : {1.0f, 1e-3f}) {  // above and below the floor
    Floats b = random_floats(rows * dim, 1, scale), reference = random_floats(rows * dim, 2);
    Floats dy = random_floats(rows * dim, 3), y(b.size()), db(b.size()), dreference(b.size());
    const Tensor tb = tensor(b, {rows, dim}), tr = tensor(reference, {rows, dim});
    cpu->match_magnitude(tensor(y, {rows, dim}), tb, tr);
    cpu->match_magnitude_backward(overwrite(tensor(db, {rows, dim})), overwrite(tensor(dreference, {rows, dim})),
                                  tensor(dy, {rows, dim}), tb, tr);
    const Formula formula = [&](const auto& in) { return match_magnitude_of(in[0], in[1], dim); };
    const std::vector<Doubles> inputs = {widen(b), widen(reference)};
    expect_close(y, formula(inputs), 8);
    expect_close(db, numeric_gradient(formula, inputs, 0, widen(dy)), kGradientRoundings);
    expect_close(dreference, numeric_gradient(formula, inputs, 1, widen(dy)), kGradientRoundings);
  }
}

TEST_P(Kernels, AltupAndItsGradients) {
  const auto cpu = backend();
  const int64_t n = 4, t = 3, d = 37;
  Floats h = random_floats(n * t * d, 1), c = random_floats(t * n * n, 2), v = random_floats(t * d, 3);
  Floats gains = random_floats(t * n, 4), dy = random_floats(n * t * d, 5), y(h.size());
  Floats dh(h.size()), dc(c.size()), dv(v.size()), dgains(gains.size());
  const Tensor th = tensor(h, {n, t, d}), tc = tensor(c, {t, n * n}), tv = tensor(v, {t, d}),
               tg = tensor(gains, {t, n});
  const Tensor ty = tensor(y, {n, t, d}), tdy = tensor(dy, {n, t, d}), tdh = tensor(dh, {n, t, d});
  const Formula predict = [&](const auto& in) {
    Doubles p = in[0];
    for (int64_t i = 0; i < n * n * t * d; ++i) {
      const int64_t j = i / (n * t * d), k = i / (t * d) % n, token = i / d % t, at = i % (t * d);
      p[j * t * d + at] += in[1][token * n * n + j * n + k] * in[0][k * t * d + at];
    }
    return p;
  };
  cpu->altup_predict(ty, th, tc);
  expect_close(y, predict({widen(h), widen(c)}), 16);
  cpu->altup_predict_backward(overwrite(tdh), overwrite(tensor(dc, {t, n * n})), tdy, th, tc);
  expect_close(dh, numeric_gradient(predict, {widen(h), widen(c)}, 0, widen(dy)), kGradientRoundings);
  expect_close(dc, numeric_gradient(predict, {widen(h), widen(c)}, 1, widen(dy)), kGradientRoundings);
  for (const int active : {0, 2}) {
    const Formula correct = [&](const auto& in) {
      Doubles q = in[0];
      for (int64_t i = 0; i < n * t * d; ++i) {
        const int64_t j = i / (t * d), token = i / d % t, at = i % (t * d);
        q[i] += (1 + in[2][token * n + j]) * (in[1][at] - in[0][active * t * d + at]);
      }
      return q;
    };
    const std::vector<Doubles> inputs = {widen(h), widen(v), widen(gains)};
    cpu->altup_correct(ty, th, tv, tg, active);
    expect_close(y, correct(inputs), 16);
    cpu->altup_correct_backward(overwrite(tdh), overwrite(tensor(dv, {t, d})), overwrite(tensor(dgains, {t, n})), tdy,
                                th, tv, tg, active);
    expect_close(dh, numeric_gradient(correct, inputs, 0, widen(dy)), kGradientRoundings);
    expect_close(dv, numeric_gradient(correct, inputs, 1, widen(dy)), kGradientRoundings);
    expect_close(dgains, numeric_gradient(correct, inputs, 2, widen(dy)), kGradientRoundings);
  }
}

TEST_P(Kernels, CrossEntropyAndItsGradient) {
  const auto cpu = backend();
  const int64_t rows = 3, n = 301;
  const std::vector<int32_t> targets = {7, -1, 300};
  for (const float cap : {0.0f, 30.0f}) {
    Floats logits = random_floats(rows * n, 1, 20), losses(rows), same_losses(rows);
    const Formula formula = [&](const auto& in) {
      Doubles loss(rows);
      for (int64_t r = 0; r < rows; ++r) {
        const auto capped = [&](int64_t i) {
          return cap == 0 ? in[0][r * n + i] : cap * std::tanh(in[0][r * n + i] / cap);
        };
        double sum = 0;
        for (int64_t i = 0; i < n; ++i) sum += std::exp(capped(i));
        loss[r] = targets[r] < 0 ? 0 : std::log(sum) - capped(targets[r]);
      }
      return loss;
    };
    const std::vector<Doubles> inputs = {widen(logits)};
    Floats untouched = logits;
    cpu->cross_entropy(tensor(untouched, {rows, n}), tensor(same_losses, {rows}), targets, cap, 0.25f, {});
    cpu->cross_entropy(tensor(logits, {rows, n}), tensor(losses, {rows}), targets, cap, 0.25f,
                       tensor(logits, {rows, n}));
    EXPECT_TRUE(same_bits(losses, same_losses));
    // A loss is a difference of logits of up to 20; so is the exponent of each probability.
    expect_close(losses, formula(inputs), 8 * 20 / norm(formula(inputs)));
    expect_close(logits, numeric_gradient(formula, inputs, 0, Doubles(rows, 0.25)), 8 * 20);
    EXPECT_EQ(logits[n], 0);
  }
}

TEST_P(Kernels, TanhSoftcapRopeAndMoves) {
  const auto cpu = backend();
  const int64_t t = 3, heads = 2, d = 10;
  Floats x = random_floats(t * heads * d, 1, 5), y(x.size()), dx(x.size()), dy = random_floats(t * heads * d, 2);
  const Tensor tx = tensor(x, {t, heads * d}), ty = tensor(y, {t, heads * d}), tdx = tensor(dx, {t, heads * d});
  cpu->tanh(ty, tx);
  cpu->tanh_backward(overwrite(tdx), tensor(dy, {t, heads * d}), ty);
  const Formula formula = [](const auto& in) {
    Doubles out = in[0];
    for (double& v : out) v = std::tanh(v);
    return out;
  };
  expect_close(y, formula({widen(x)}), 8);
  // 1 - y^2 of a saturated tanh has the absolute error of y.
  expect_close(dx, numeric_gradient(formula, {widen(x)}, 0, widen(dy)), 64);

  Floats angles = random_floats(8 * d, 3);
  const std::vector<int32_t> positions = {5, 0, 7};
  cpu->rope(overwrite(ty), tx, positions, tensor(angles, {8, d}), heads, Backend::Rotation::forward);
  Doubles rotated(x.size());
  for (int64_t i = 0; i < t * heads * d; ++i) {
    const float* angle = &angles[positions[i / (heads * d)] * d];
    const int64_t j = i % d, half = d / 2, other = j < half ? i + half : i - half;
    rotated[i] =
        static_cast<double>(x[i]) * angle[j % half] + (j < half ? -1.0 : 1.0) * x[other] * angle[half + j % half];
  }
  expect_close(y, rotated, 4);

  Floats split(x.size()), joined(x.size());
  cpu->split_columns(overwrite(tensor(split, {heads, t, d})), tx, Backend::Split::split);
  EXPECT_EQ(split[(1 * t + 2) * d + 3], x[(2 * heads + 1) * d + 3]);
  cpu->split_columns(overwrite(tensor(joined, {t, heads * d})), tensor(split, {heads, t, d}), Backend::Split::join);
  EXPECT_TRUE(same_bits(joined, x));
  const std::vector<int32_t> ids = {2, 0};
  Floats picked(2 * d), scattered(x.size(), 9);
  cpu->gather_rows(tensor(picked, {2, d}), ids, dense_weight(tx), d, 2);
  EXPECT_EQ(picked[3], 2 * x[2 * heads * d + d + 3]);
  cpu->select_rows_backward(overwrite(tensor(scattered, {t, heads * d})), row_slice(tx, 0, 2), ids);
  EXPECT_EQ(scattered[2 * heads * d + 1], x[1]);
  EXPECT_EQ(scattered[heads * d + 1], 0);
}

TEST_P(Kernels, AdamWInBothForms) {
  const auto cpu = backend();
  const int64_t n = 700, blocks = 3;
  Floats p = random_floats(n, 1), g = random_floats(n, 2, 1e-2f), m(n), v(n), m_absmax(blocks), v_absmax(blocks);
  Doubles truth = widen(p), tm(n), tv(n);
  for (int64_t t = 1; t <= 3; ++t) {
    const AdamWStep step{.lr = 1e-2f, .weight_decay = 0.1f, .t = t, .grad_scale = 0.5f};
    cpu->adamw_f32(tensor(p, {n}), tensor(g, {n}), tensor(m, {n}), tensor(v, {n}), step);
    const double b1 = step.beta1, b2 = step.beta2;
    for (int64_t i = 0; i < n; ++i) {
      const double gradient = 0.5 * g[i];
      tm[i] = b1 * tm[i] + (1 - b1) * gradient;
      tv[i] = b2 * tv[i] + (1 - b2) * gradient * gradient;
      truth[i] *= 1 - static_cast<double>(step.lr) * step.weight_decay;
      truth[i] -= step.lr * (tm[i] / (1 - std::pow(b1, t))) / (std::sqrt(tv[i] / (1 - std::pow(b2, t))) + step.eps);
    }
  }
  expect_close(p, truth, 16);

  std::vector<uint8_t> mc(n), vc(n);
  g[5] = std::numeric_limits<float>::infinity();
  std::fill(g.begin() + 256, g.begin() + 512, 0.0f);  // an all-zero block
  const Floats before = p;
  const AdamWStep step{.lr = 1e-2f, .weight_decay = 0.1f};
  cpu->adamw_8bit(tensor(p, {n}), tensor(g, {n}), {mc.data(), DType::u8, {n}}, {vc.data(), DType::u8, {n}},
                  tensor(m_absmax, {blocks}), tensor(v_absmax, {blocks}), step);
  EXPECT_EQ(p[5], before[5]);
  EXPECT_TRUE(mc[300] == 255 && vc[300] == 0 && m_absmax[1] == 0);  // 0/0 and the sign rule of formats.md 3
  float largest = 0;
  for (int64_t i = 512; i < n; ++i) largest = std::max(largest, std::fabs((1.0f - step.beta1) * g[i]));
  EXPECT_EQ(m_absmax[2], largest);
  for (int64_t i = 512; i < n; ++i) {
    const float fresh = (1.0f - step.beta1) * g[i];
    const uint8_t nearest = nearest_code(dynamic_map_signed(), fresh / largest);
    const bool other_sign = std::signbit(dynamic_map_signed()[nearest]) != std::signbit(fresh);
    EXPECT_EQ(mc[i], other_sign ? nearest + (fresh > 0 ? 1 : -1) : nearest);
    // The first step is lr * sign(g), whatever g's size; then the decay.
    const double moved = before[i] - step.lr * (g[i] > 0 ? 1.0 : -1.0);
    EXPECT_NEAR(p[i], moved * (1 - step.lr * step.weight_decay), step.lr * 1e-3);
  }
  EXPECT_NEAR(cpu->sum_of_squares(tensor(v, {n})), dot(widen(v).data(), widen(v).data(), n), 1e-12);
}

}  // namespace
}  // namespace saaz
