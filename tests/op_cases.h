// The table of op tests: every op of ops.h with its shapes and its bounds. Bounds k count roundings of a result (sums
// are exact to an eps or two, so k hardly grows with a shape); they sit a small factor above what the formula's chain
// of roundings can give.
#pragma once

#include "op_references.h"

namespace saaz::testing {

inline std::string describe(const Shape& shape) {
  std::string out;
  for (const int64_t d : shape) out += (out.empty() ? "" : "x") + std::to_string(d);
  return out;
}
inline Input tracked(Shape shape) { return {std::move(shape), Role::tracked}; }
inline Input frozen(Shape shape) { return {std::move(shape), Role::frozen}; }
inline Input trained(Shape shape) { return {std::move(shape), Role::trained}; }

/// A matrix input as a weight.
inline Linear plain_linear(const Tensor& w) { return {"layers.0.test", dense_weight(w), nullptr}; }

inline OpRow linear_row() {
  OpRow row{"linear", 8, 8, {}};
  for (const auto& [t, n, k] :
       {std::array<int64_t, 3>{1, 1, 1}, {2, 3, 17}, {3, 17, 2}, {17, 65, 3}, {65, 2, 17}, {3, 5, 65}})
    row.cases.push_back(make_case(
        describe({t, n, k}), {tracked({t, k}), frozen({n, k})},
        [](Ctx& ctx, const Inputs& in) { return linear(ctx, in[0], plain_linear(in[1])); },
        [](const auto& in) { return reference::matmul_nt(in[0], in[1]); }));
  return row;
}

template <class S>
Array<S> magnitudes(Array<S> a) {
  return reference::map(std::move(a), [](const S& e) { return S(std::abs(e)); });
}

template <class S>
double length(const Array<S>& a) {
  double squares = 0;
  for (const S& e : a.v) squares += std::norm(e);
  return std::sqrt(squares);
}

inline OpRow lora_row() {
  // In bf16: roundings of h and of the adapter's part, neither larger than the sum (checked), and of the sum.
  OpRow row{"linear_lora", 16, 16, {}, {3, 3}};
  static constexpr double kScale = 0x1p-5;
  for (const auto& [t, n, k, r] :
       {std::array<int64_t, 4>{1, 1, 1, 1}, {2, 3, 17, 2}, {17, 3, 2, 3}, {3, 17, 65, 1}, {65, 3, 2, 17}})
    row.cases.push_back(make_case(
        describe({t, n, k, r}), {tracked({t, k}), frozen({n, k}), trained({r, k}), trained({n, r})},
        [](Ctx& ctx, const Inputs& in) {
          const LoraPair pair{in[2], in[3], in.gradients[2], in.gradients[3], static_cast<float>(kScale)};
          Linear w = plain_linear(in[1]);
          w.lora = &pair;
          return linear(ctx, in[0], w);
        },
        [](const auto& in) {
          auto y = reference::matmul_nt(in[0], in[1]);
          const auto h = reference::matmul_nt(in[0], in[2]), update = reference::matmul_nt(h, in[3]);
          for (size_t i = 0; i < y.v.size(); ++i) y.v[i] += kScale * update.v[i];
          EXPECT_LE(kScale * length(reference::matmul_nt(magnitudes(h), magnitudes(in[3]))), length(y));
          return y;
        }));
  return row;
}

inline OpRow embed_row() {
  OpRow row{"embed", 1, 0, {}};
  const std::vector<int32_t> ids{4, 0, 4, 2};
  for (const auto& [dim, first, n] : {std::array<int64_t, 3>{1, 0, 1}, {17, 3, 2}, {65, 0, 65}, {66, 1, 65}})
    row.cases.push_back(make_case(
        describe({dim, first, n}), {frozen({5, dim})},
        [=](Ctx& ctx, const Inputs& in) { return embed(ctx, ids, dense_weight(in[0]), first, n, 1.5f); },
        [=](const auto& in) {
          auto y = in[0];
          y.shape = {4, n};
          y.v.resize(static_cast<size_t>(4 * n));
          for (int64_t t = 0; t < 4; ++t)
            for (int64_t i = 0; i < n; ++i) y(t, i) = 1.5 * in[0](ids[static_cast<size_t>(t)], first + i);
          return y;
        }));
  return row;
}

inline OpRow rms_norm_row() {
  OpRow row{"rms_norm", 4, 8, {}};
  constexpr float kNormEps = 1e-6f;
  for (const auto& [rows, cols, dim] : {std::array<int64_t, 3>{1, 1, 0},
                                        {3, 2, 0},
                                        {2, 3, 0},
                                        {17, 17, 0},
                                        {3, 65, 0},
                                        {3, 6, 2},
                                        {2, 51, 17},
                                        {2, 130, 65}}) {
    const int64_t head_dim = dim, width = dim > 0 ? dim : cols;
    row.cases.push_back(make_case(
        "gain " + describe({rows, cols, dim}), {tracked({rows, cols}), frozen({width})},
        [=](Ctx& ctx, const Inputs& in) {
          return rms_norm(ctx, in[0], {in[1], kNormEps}, head_dim);
        },
        [=](const auto& in) { return reference::rms_norm(in[0], in[1].v, width, kNormEps); }));
    row.cases.push_back(make_case(
        "plain " + describe({rows, cols, dim}), {tracked({rows, cols})},
        [=](Ctx& ctx, const Inputs& in) {
          return rms_norm(ctx, in[0], {{}, kNormEps}, head_dim);
        },
        [=](const auto& in) { return reference::rms_norm(in[0], {}, width, kNormEps); }));
    // One column: t - xhat mean(t xhat) cancels wholly; its terms are inv_rms * gain * |dy| <= 4 * 2 * |dy|.
    if (width == 1) row.cases.end()[-1].gradient_floor = row.cases.end()[-2].gradient_floor = 8;
  }
  return row;
}

inline OpRow add_rms_norm_row() {
  OpRow row{"add_rms_norm", 5, 8, {}};
  constexpr float kNormEps = 1e-6f;
  for (const Shape& shape : {Shape{1, 2}, {3, 2}, {2, 3}, {17, 17}, {3, 65}})
    row.cases.push_back(make_case(
        describe(shape), {tracked(shape), tracked(shape), frozen({shape[1]})},
        [=](Ctx& ctx, const Inputs& in) {
          return add_rms_norm(ctx, in[0], in[1], {in[2], kNormEps});
        },
        [width = shape[1]](const auto& in) {
          auto y = reference::rms_norm(in[1], in[2].v, width, kNormEps);
          for (size_t i = 0; i < y.v.size(); ++i) y.v[i] += in[0].v[i];
          return y;
        }));
  return row;
}

inline const std::vector<Shape> kShapes{{1, 1}, {2, 3}, {3, 17}, {17, 2}, {3, 65}};

/// An op of one input and an element-wise formula.
template <class Op, class Formula>
OpRow elementwise_row(const std::string& name, double k_value, double k_gradient, Bf16Roundings bf16, Op op,
                      Formula formula) {
  OpRow row{name, k_value, k_gradient, {}, bf16};
  for (const Shape& shape : kShapes)
    row.cases.push_back(make_case(
        describe(shape), {tracked(shape)}, [=](Ctx& ctx, const Inputs& in) { return op(ctx, in[0]); },
        [=](const auto& in) { return reference::map(in[0], formula); }));
  return row;
}

inline OpRow add_row() {
  OpRow row{"add", 2, 1, {}};
  for (const Shape& shape : kShapes)
    row.cases.push_back(make_case(
        describe(shape), {tracked(shape), tracked(shape)},
        [](Ctx& ctx, const Inputs& in) { return add(ctx, in[0], in[1], 0.5f); },
        [](const auto& in) {
          auto y = in[0];
          for (size_t i = 0; i < y.v.size(); ++i) y.v[i] = 0.5 * (y.v[i] + in[1].v[i]);
          return y;
        }));
  return row;
}

inline OpRow scale_columns_row() {
  OpRow row{"scale_columns", 1, 1, {}};
  for (const Shape& shape : kShapes)
    row.cases.push_back(make_case(
        describe(shape), {tracked(shape), frozen({shape[1]})},
        [](Ctx& ctx, const Inputs& in) { return scale_columns(ctx, in[0], in[1]); },
        [](const auto& in) {
          auto y = in[0];
          for (int64_t r = 0; r < y.rows(); ++r)
            for (int64_t i = 0; i < y.cols(); ++i) y(r, i) *= in[1].v[static_cast<size_t>(i)];
          return y;
        }));
  return row;
}

inline OpRow select_rows_row() {
  OpRow row{"select_rows", 0, 0, {}, {0, 0}};
  for (const std::vector<int32_t>& rows : {std::vector<int32_t>{0}, {2, 0}, {1, 2, 3, 4}, {16, 3, 5}})
    for (const int64_t cols : {1, 3, 65})
      row.cases.push_back(make_case(
          describe({static_cast<int64_t>(rows.size()), cols}), {tracked({17, cols})},
          [=](Ctx& ctx, const Inputs& in) { return select_rows(ctx, in[0], rows); },
          [=](const auto& in) {
            auto y = in[0];
            y.shape = {static_cast<int64_t>(rows.size()), cols};
            y.v.resize(rows.size() * static_cast<size_t>(cols));
            for (int64_t r = 0; r < y.rows(); ++r)
              for (int64_t i = 0; i < cols; ++i) y(r, i) = in[0](rows[static_cast<size_t>(r)], i);
            return y;
          }));
  return row;
}

inline OpRow stack_row() {
  OpRow row{"stack", 0, 0, {}, {0, 0}};
  for (const Shape& shape : kShapes)
    row.cases.push_back(make_case(
        describe(shape), {tracked(shape), tracked(shape), tracked(shape)},
        [](Ctx& ctx, const Inputs& in) { return stack(ctx, in.tensors); },
        [](const auto& in) {
          auto y = in[0];
          y.shape = {3, y.shape[0], y.shape[1]};
          for (size_t i = 1; i < in.size(); ++i) y.v.insert(y.v.end(), in[i].v.begin(), in[i].v.end());
          return y;
        }));
  return row;
}

inline OpRow split_columns_row() {
  OpRow row{"split_columns", 0, 0, {}, {0, 0}};
  for (const auto& [tokens, n, dim] :
       {std::array<int64_t, 3>{1, 1, 1}, {2, 3, 1}, {3, 2, 17}, {17, 4, 3}, {1, 3, 65}}) {
    const int64_t parts = n, width = dim;
    row.cases.push_back(make_case(
        describe({tokens, n, dim}), {tracked({tokens, n * dim})},
        [=](Ctx& ctx, const Inputs& in) { return split_columns(ctx, in[0], parts); },
        [=](const auto& in) {
          auto y = in[0];
          y.shape = {parts, in[0].rows(), width};
          for (int64_t j = 0; j < parts; ++j)
            for (int64_t t = 0; t < in[0].rows(); ++t)
              for (int64_t d = 0; d < width; ++d) y(j, t, d) = in[0](t, j * width + d);
          return y;
        }));
  }
  return row;
}

inline const std::vector<Shape> kStreams{{1, 1, 1}, {2, 3, 17}, {4, 2, 3}, {4, 17, 2}, {4, 3, 65}};

inline OpRow slice_row() {
  OpRow row{"slice", 0, 0, {}, {0, 0}};
  for (const Shape& shape : kStreams)
    for (const int64_t i : {int64_t{0}, shape[0] - 1})
      row.cases.push_back(make_case(
          describe(shape), {tracked(shape)}, [=](Ctx& ctx, const Inputs& in) { return slice(ctx, in[0], i); },
          [=](const auto& in) {
            auto y = in[0];
            y.shape = {shape[1], shape[2]};
            const auto n = static_cast<ptrdiff_t>(shape[1] * shape[2]);
            y.v.assign(in[0].v.begin() + i * n, in[0].v.begin() + (i + 1) * n);
            return y;
          }));
  return row;
}

inline OpRow geglu_row(const std::string& name, float sparsity_z) {
  // Sparse rows lose digits where gate - cut is small: up to (|gate| + |cut|) / |z| of a typical element, within 4.
  OpRow row{name, sparsity_z == 0 ? 8.0 : 32.0, sparsity_z == 0 ? 8.0 : 32.0, {}};
  for (const Shape& shape : {Shape{1, 1}, {3, 2}, {2, 3}, {3, 17}, {17, 3}, {2, 65}}) {
    row.cases.push_back(make_case(
        describe(shape), {tracked(shape), tracked(shape)},
        [=](Ctx& ctx, const Inputs& in) { return geglu(ctx, in[0], in[1], sparsity_z); },
        [=](const auto& in) { return reference::geglu(in[0], in[1], sparsity_z); }));
    row.cases.push_back(make_case(
        "in place " + describe(shape), {tracked(shape), tracked(shape)},
        [=](Ctx& ctx, const Inputs& in) {
          return geglu(ctx, scale(ctx, in[0], 1), scale(ctx, in[1], 1), sparsity_z, Operands::given);
        },
        [=](const auto& in) { return reference::geglu(in[0], in[1], sparsity_z); }));
  }
  return row;
}

inline OpRow gated_mlp_row(const std::string& name, float sparsity_z) {
  // In bf16: gate and up each round their product, h and b; the activation is up to twice as sensitive to gate, and
  // rounded; down's product, its pair's h, b and sum. Gradients pass that way back, and two of them are added.
  OpRow row{name, sparsity_z == 0 ? 32.0 : 96.0, sparsity_z == 0 ? 64.0 : 192.0, {}, {14, 28}};
  for (const auto& [t, k, f, r] : {std::array<int64_t, 4>{2, 3, 5, 2}, {3, 17, 4, 1}, {2, 32, 32, 8}})
    row.cases.push_back(make_case(
        describe({t, k, f, r}),
        {tracked({t, k}), frozen({f, k}), frozen({f, k}), frozen({k, f}), trained({r, k}), trained({f, r}),
         trained({r, k}), trained({f, r}), trained({r, f}), trained({k, r})},
        [=](Ctx& ctx, const Inputs& in) {
          std::array<LoraPair, 3> pairs;
          std::array<Linear, 3> linears;
          for (size_t i = 0; i < 3; ++i) {
            const size_t a = 4 + 2 * i;
            pairs[i] = {in[a], in[a + 1], in.gradients[a], in.gradients[a + 1], 0.125f};
            linears[i] = plain_linear(in[1 + i]);
            linears[i].lora = &pairs[i];
          }
          return gated_mlp(ctx, in[0], linears[0], linears[1], linears[2], sparsity_z);
        },
        [=](const auto& in) {
          const auto adapted = [&](const auto& x, size_t i) {
            auto y = reference::matmul_nt(x, in[1 + i]);
            const auto update = reference::matmul_nt(reference::matmul_nt(x, in[4 + 2 * i]), in[5 + 2 * i]);
            for (size_t j = 0; j < y.v.size(); ++j) y.v[j] += 0.125 * update.v[j];
            return y;
          };
          return adapted(reference::geglu(adapted(in[0], 0), adapted(in[0], 1), sparsity_z), 2);
        }));
  return row;
}

inline OpRow rope_row() {
  OpRow row{"rope", 2, 2, {}};
  for (const auto& [tokens, heads, dim] :
       {std::array<int64_t, 3>{1, 1, 2}, {3, 2, 6}, {17, 1, 2}, {2, 3, 34}, {3, 1, 130}}) {
    const int64_t n_heads = heads;
    std::vector<int32_t> positions;
    for (int64_t t = 0; t < tokens; ++t) positions.push_back(static_cast<int32_t>(t * 3 % 5));
    row.cases.push_back(make_case(
        describe({tokens, heads, dim}), {tracked({tokens, heads * dim}), frozen({5, dim})},
        [=](Ctx& ctx, const Inputs& in) { return rope(ctx, in[0], positions, in[1], n_heads); },
        [=](const auto& in) { return reference::rope(in[0], in[1], positions, n_heads); }));
  }
  return row;
}

inline AttentionSpan whole_sequence(int64_t begin, int64_t length) { return {begin, length, 0, begin, length}; }

inline OpRow attention_row() {
  // Scores of up to 10: their error grows by that in the exponential.
  // In bf16: probabilities and out; backward also out, score gradients (a difference, counted twice), and the result.
  OpRow row{"attention", 16, 32, {}, {2, 8}};
  struct Geometry {
    std::vector<int64_t> lengths;
    AttentionShape shape;
  };
  for (const Geometry& g : {Geometry{{1}, {1, 1, 1, 0, 1}}, Geometry{{3}, {2, 1, 2, 0, 1}},
                            Geometry{{1, 17, 3}, {4, 2, 3, 0, 0.25f}}, Geometry{{1, 17, 3}, {4, 2, 3, 4, 0.25f}},
                            Geometry{{17, 2}, {3, 1, 17, 1, 0.125f}}, Geometry{{65}, {2, 1, 2, 17, 0.5f}},
                            Geometry{{65}, {1, 1, 3, 0, 0.5f}}, Geometry{{2, 3}, {2, 2, 65, 2, 0.1f}}}) {
    std::vector<AttentionSpan> spans;
    int64_t rows = 0;
    for (const int64_t length : g.lengths) {
      spans.push_back(whole_sequence(rows, length));
      rows += length;
    }
    const AttentionShape shape = g.shape;
    const Input kv = tracked({rows, shape.n_kv_heads * shape.head_dim});
    row.cases.push_back(make_case(
        describe({rows, shape.n_heads, shape.n_kv_heads, shape.head_dim}) + " window " + std::to_string(shape.window),
        {tracked({rows, shape.n_heads * shape.head_dim}), kv, kv},
        [=](Ctx& ctx, const Inputs& in) { return attention(ctx, in[0], in[1], in[2], spans, shape); },
        [=](const auto& in) { return reference::attention(in[0], in[1], in[2], spans, shape); }));
    // With one key dq and dk are 0, a difference of terms of scale |v| |k| |dout|.
    if (shape.window == 1 || rows == 1)
      row.cases.back().gradient_floor = shape.scale * 4 * static_cast<double>(shape.head_dim);
  }
  return row;
}

inline OpRow altup_predict_row() {
  OpRow row{"altup_predict", 8, 8, {}};
  for (const Shape& shape : kStreams)
    row.cases.push_back(make_case(
        describe(shape), {tracked(shape), tracked({shape[1], shape[0] * shape[0]})},
        [](Ctx& ctx, const Inputs& in) { return altup_predict(ctx, in[0], in[1]); },
        [](const auto& in) { return reference::altup_predict(in[0], in[1]); }));
  return row;
}

inline OpRow altup_correct_row() {
  OpRow row{"altup_correct", 8, 8, {}};
  for (const Shape& shape : kStreams)
    for (const int64_t active : {int64_t{0}, shape[0] - 1})
      row.cases.push_back(make_case(
          describe(shape) + " active " + std::to_string(active),
          {tracked(shape), tracked({shape[1], shape[2]}), tracked({shape[1], shape[0]})},
          [=](Ctx& ctx, const Inputs& in) { return altup_correct(ctx, in[0], in[1], in[2], static_cast<int>(active)); },
          [=](const auto& in) { return reference::altup_correct(in[0], in[1], in[2], active); }));
  return row;
}

inline OpRow match_magnitude_row() {
  OpRow row{"match_magnitude", 8, 8, {}};
  for (const Shape& shape : kShapes) {
    row.cases.push_back(make_case(
        describe(shape), {tracked(shape), tracked(shape)},
        [](Ctx& ctx, const Inputs& in) { return match_magnitude(ctx, in[0], in[1]); },
        [](const auto& in) { return reference::match_magnitude(in[0], in[1]); }));
    // One column: y = +-|reference|, so dx is 0, a difference of terms of up to 8 |dy|.
    if (shape[1] == 1) row.cases.back().gradient_floor = 8;
  }
  // Below the floor: x / 1024 has a mean square under 1e-5.
  for (const Shape& shape : kShapes)
    row.cases.push_back(make_case(
        "floored " + describe(shape), {tracked(shape), tracked(shape)},
        [](Ctx& ctx, const Inputs& in) { return match_magnitude(ctx, scale(ctx, in[0], 0x1p-10f), in[1]); },
        [](const auto& in) {
          return reference::match_magnitude(reference::map(in[0], [](auto x) { return 0x1p-10 * x; }), in[1]);
        }));
  return row;
}

inline OpRow add_to_inactive_row() {
  // In bf16: the update's gradient is the last of two partial sums of three, each up to twice its size.
  OpRow row{"add_to_inactive", 1, 4, {}, {1, 4}};
  for (const Shape& shape : kStreams)
    row.cases.push_back(make_case(
        describe(shape), {tracked(shape), tracked({shape[1], shape[2]})},
        [](Ctx& ctx, const Inputs& in) { return add_to_inactive(ctx, scale(ctx, in[0], 1), in[1]); },  // in place
        [](const auto& in) {
          auto y = in[0];
          for (int64_t j = 1; j < y.shape[0]; ++j)
            for (int64_t t = 0; t < y.shape[1]; ++t)
              for (int64_t d = 0; d < y.cols(); ++d) y(j, t, d) += in[1](t, d);
          return y;
        }));
  return row;
}

inline OpRow mean_of_streams_row() {
  // In bf16: three partial sums, up to twice the result's size, and the mean.
  OpRow row{"mean_of_streams", 8, 2, {}, {8, 1}};
  for (const Shape& shape : {Shape{1, 1, 1}, {2, 3, 17}, {3, 2, 3}, {4, 17, 2}, {4, 3, 65}})
    row.cases.push_back(make_case(
        describe(shape), {tracked(shape)}, [](Ctx& ctx, const Inputs& in) { return mean_of_streams(ctx, in[0]); },
        [](const auto& in) {
          auto y = in[0];
          const auto [n, tokens, dim] = std::array<int64_t, 3>{y.shape[0], y.shape[1], y.shape[2]};
          y.shape = {tokens, dim};
          y.v.assign(static_cast<size_t>(tokens * dim), 0);
          for (int64_t j = 0; j < n; ++j)
            for (int64_t t = 0; t < tokens; ++t)
              for (int64_t d = 0; d < dim; ++d) y(t, d) += in[0](j, t, d) / static_cast<double>(n);
          return y;
        }));
  return row;
}

inline OpRow head_loss_row(const std::string& name, float cap) {
  // Logits sum up to 65 products, the largest about 30: a loss inherits their rounding. Where the cap saturates, 1 - (y
  // / cap)^2 keeps few digits of a small slope.
  // In bf16: logits are f32; their gradients are rounded for the product, whose few terms cancel, and so is dx.
  OpRow row{name, 16, 32, {}, {0, 4}};
  constexpr float kLossScale = 0.25f;
  // 130 rows take two chunks of n_loss_rows on the CPU.
  for (const auto& [t, vocab, dim] :
       {std::array<int64_t, 3>{1, 2, 1}, {2, 17, 3}, {3, 65, 17}, {17, 3, 2}, {3, 17, 65}, {130, 3, 2}}) {
    std::vector<int32_t> targets;
    for (int64_t i = 0; i < t; ++i) targets.push_back(i % 3 == 1 ? -1 : static_cast<int32_t>(i * 7 % vocab));
    OpCase c = make_case(
        describe({t, vocab, dim}), {tracked({t, dim}), frozen({vocab, dim})},
        [=](Ctx& ctx, const Inputs& in) {
          return head_loss(ctx, in[0], {dense_weight(in[1]), cap}, targets, kLossScale);
        },
        [=](const auto& in) { return reference::head_loss(in[0], in[1], cap, targets); });
    c.loss_scale = kLossScale;
    row.cases.push_back(c);
  }
  return row;
}

inline OpRow head_logits_row(const std::string& name, float cap) {
  OpRow row{name, 8, 0, {}, {0, 0}};
  for (const auto& [t, vocab, dim] :
       {std::array<int64_t, 3>{1, 1, 1}, {2, 17, 3}, {3, 65, 17}, {17, 3, 2}, {3, 2, 65}}) {
    OpCase c = make_case(
        describe({t, vocab, dim}), {tracked({t, dim}), frozen({vocab, dim})},
        [=](Ctx& ctx, const Inputs& in) {
          return head_logits(ctx, in[0], {dense_weight(in[1]), cap});
        },
        [=](const auto& in) { return reference::head_logits(in[0], in[1], cap); });
    c.differentiable = false;
    row.cases.push_back(c);
  }
  return row;
}

inline std::vector<OpRow> op_table() {
  const auto plain_scale = [](Ctx& ctx, const Tensor& x) { return scale(ctx, x, 0.3f); };
  const auto plain_tanh = [](Ctx& ctx, const Tensor& x) { return saaz::tanh(ctx, x); };
  return {linear_row(), lora_row(), embed_row(), rms_norm_row(), add_rms_norm_row(), add_row(),
          elementwise_row("scale", 1, 1, {1, 1}, plain_scale, [](auto x) { return static_cast<double>(0.3f) * x; }),
          // In bf16: 1 - y^2 takes y's rounding times 2 y^2 / (1 - y^2), 26.3 at 2, the largest input.
          elementwise_row("tanh", 4, 8, {1, 28}, plain_tanh, [](auto x) { return std::tanh(x); }), scale_columns_row(),
          select_rows_row(), stack_row(), split_columns_row(), slice_row(), geglu_row("geglu_dense", 0),
          geglu_row("geglu_sparse", 0.25f), geglu_row("geglu_sparse_95", 1.6448536f), gated_mlp_row("gated_mlp", 0),
          gated_mlp_row("gated_mlp_sparse", 0.25f), rope_row(), attention_row(), altup_predict_row(),
          altup_correct_row(), match_magnitude_row(), add_to_inactive_row(), mean_of_streams_row(),
          head_loss_row("head_loss", 0), head_loss_row("head_loss_softcap", 3), head_logits_row("head_logits", 0),
          head_logits_row("head_logits_softcap", 3)};
}

}  // namespace saaz::testing
