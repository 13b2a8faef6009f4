// The bench of the op tests. An op runs on a backend under a tape with a random cotangent; a scalar reference runs in
// double for the values and in complex<double> for the gradient: d/dx_i L = Im L(x + i h e_i) / h with h = 2^-100,
// exact to rounding, as no difference is taken. Arenas are filled with NaN first, so memory that is read before it is
// written shows. Bounds: |got - expected| <= (k eps + roundings u) |expected| in the 2-norm of the tensor. k eps, eps =
// 2^-23, is for f32 arithmetic: k in the op's row of the table. u = 2^-8 is for backends that store activations as
// bf16: inputs and cotangents are rounded to bf16 before the reference sees them, so what is left is `roundings`, the
// bf16 stores that an element passes on its way (each at most u of its size); 0 on f32 backends.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace saaz::testing {

using Complex = std::complex<double>;
using Shape = std::vector<int64_t>;
constexpr double kEps = 0x1p-23;
constexpr double kBf16Roundoff = 0x1p-8;

/// A dense row-major array of the references.
template <class S>
struct Array {
  Shape shape;
  std::vector<S> v;

  explicit Array(Shape dims) : shape(std::move(dims)) {
    size_t n = 1;
    for (const int64_t d : shape) n *= static_cast<size_t>(d);
    v.resize(n);
  }
  int64_t size() const { return static_cast<int64_t>(v.size()); }
  int64_t cols() const { return shape.back(); }
  int64_t rows() const { return size() / cols(); }
  S& operator()(int64_t row, int64_t col) { return v[static_cast<size_t>(row * cols() + col)]; }
  const S& operator()(int64_t row, int64_t col) const { return v[static_cast<size_t>(row * cols() + col)]; }
  /// Element of [N, T, D].
  S& operator()(int64_t n, int64_t t, int64_t d) { return (*this)(n * shape[1] + t, d); }
  const S& operator()(int64_t n, int64_t t, int64_t d) const { return (*this)(n * shape[1] + t, d); }
};

/// Who wants an input's gradient: the tape, nobody, or a buffer of the trainer that it is added to.
enum class Role : uint8_t { tracked, frozen, trained };

struct Input {
  Shape shape;
  Role role = Role::tracked;
};

/// The tensors of one run; `gradients[i]` is set for trained inputs only.
struct Inputs {
  std::vector<Tensor> tensors, gradients;
  const Tensor& operator[](size_t i) const { return tensors[i]; }
};

struct OpCase {
  std::string name;
  std::vector<Input> inputs;
  std::function<Tensor(Ctx&, const Inputs&)> op;
  std::function<Array<double>(const std::vector<Array<double>>&)> value;
  std::function<Array<Complex>(const std::vector<Array<Complex>>&)> complex_value;
  std::optional<float> loss_scale;  // the gradient is that of loss_scale * sum(output), whatever the seed
  bool differentiable = true;
  double gradient_floor = 0;  // the gradient is a difference of terms of this size times the cotangent's norm
};

/// `reference` is generic: called with arrays of double and of Complex.
template <class Op, class Reference>
OpCase make_case(std::string name, std::vector<Input> inputs, Op op, Reference reference) {
  return {.name = std::move(name),
          .inputs = std::move(inputs),
          .op = op,
          .value = reference,
          .complex_value = reference,
          .loss_scale = {}};
}

/// Stores of bf16 on the way to an element, where activations are bf16.
struct Bf16Roundings {
  double value = 1, gradient = 1;
};

/// One row of the table: an op, its bounds in units of eps, its cases, its roundings.
struct OpRow {
  std::string op;
  double k_value, k_gradient;
  std::vector<OpCase> cases;
  Bf16Roundings bf16 = {};
};
inline void PrintTo(const OpRow& row, std::ostream* out) { *out << row.op; }

/// Uniform in [-2, 2) without [-1/4, 1/4): values whose inverses stay moderate.
inline std::vector<float> random_values(std::mt19937_64& random, int64_t n) {
  std::vector<float> out(static_cast<size_t>(n));
  for (float& x : out) {
    const auto unit = static_cast<float>(random() >> 40) * 0x1p-24f;
    x = unit < 0.5f ? 0.25f + 3.5f * unit : -0.25f - 3.5f * (unit - 0.5f);
  }
  return out;
}

inline bool stores_bf16(const Backend& backend) { return backend.activation_dtype() == DType::bf16; }

/// Input values and cotangents of a case, the same at each call.
struct Data {
  std::vector<std::vector<float>> inputs;
  std::vector<float> cotangent;
  std::vector<std::vector<float>> branch_cotangents;  // of a second use of each input
};
inline Array<double> evaluate(const OpCase& c, const Data& data) {
  std::vector<Array<double>> arrays;
  for (size_t i = 0; i < c.inputs.size(); ++i) {
    arrays.emplace_back(c.inputs[i].shape);
    std::copy(data.inputs[i].begin(), data.inputs[i].end(), arrays.back().v.begin());
  }
  return c.value(arrays);
}
/// Rounded to what the backend stores.
inline Data make_data(const OpCase& c, const Backend& backend) {
  std::mt19937_64 random(20240607);
  const auto draw = [&](int64_t n) {
    std::vector<float> values = random_values(random, n);
    if (stores_bf16(backend))
      for (float& x : values) x = bf16_to_f32(f32_to_bf16(x));
    return values;
  };
  Data data;
  for (const Input& input : c.inputs) data.inputs.push_back(draw(Array<double>(input.shape).size()));
  const int64_t n_out = evaluate(c, data).size();
  data.cotangent = c.loss_scale ? std::vector<float>(static_cast<size_t>(n_out), *c.loss_scale) : draw(n_out);
  for (const Input& input : c.inputs) data.branch_cotangents.push_back(draw(Array<double>(input.shape).size()));
  return data;
}

/// d <cotangent, op> / d input, for each input that is not frozen (others: empty).
inline std::vector<std::vector<double>> complex_step_gradients(const OpCase& c, const Data& data) {
  constexpr double kStep = 0x1p-100;  // a power of two: dividing by it rounds nothing
  std::vector<Array<Complex>> arrays;
  for (size_t i = 0; i < c.inputs.size(); ++i) {
    arrays.emplace_back(c.inputs[i].shape);
    std::copy(data.inputs[i].begin(), data.inputs[i].end(), arrays.back().v.begin());
  }
  std::vector<std::vector<double>> gradients(c.inputs.size());
  for (size_t i = 0; c.differentiable && i < c.inputs.size(); ++i) {
    if (c.inputs[i].role == Role::frozen) continue;
    for (Complex& x : arrays[i].v) {
      x += Complex(0, kStep);
      const Array<Complex> y = c.complex_value(arrays);
      double sum = 0;
      for (size_t j = 0; j < y.v.size(); ++j) sum += data.cotangent[j] * y.v[j].imag();
      gradients[i].push_back(sum / kStep);
      x = x.real();
    }
  }
  return gradients;
}

/// An arena over NaN-filled memory of a backend, its first tensor `offset` bytes in.
class Bench {
 public:
  static constexpr int64_t kBytes = 1 << 22;
  Bench(Backend& backend, int64_t offset)
      : backend_(backend), memory_(backend.allocate(kBytes, "bench"), Free{&backend}), arena_(memory_.get(), kBytes) {
    static const std::vector<char> nans(kBytes, '\xff');  // of f32 and of bf16
    backend_.upload(Tensor(memory_.get(), DType::u8, {kBytes}), nans.data());
    arena_.allocate(offset);
  }
  Arena& arena() { return arena_; }
  Tensor tensor(const Shape& shape, const std::vector<float>& values, DType dtype) {
    Tensor t;
    t.dtype = dtype;
    t.ndim = static_cast<int8_t>(shape.size());
    std::copy(shape.begin(), shape.end(), t.shape.begin());
    t.data = arena_.allocate(t.bytes());
    if (dtype == DType::bf16) {
      std::vector<uint16_t> rounded(values.size());
      std::transform(values.begin(), values.end(), rounded.begin(), f32_to_bf16);
      backend_.upload(t, rounded.data());
    } else {
      backend_.upload(t, values.data());
    }
    return t;
  }
  /// Tracked inputs are activations; frozen and trained ones (weights, gains, adapters) are f32 on every backend.
  Tensor input(const Input& input, const std::vector<float>& values) {
    return tensor(input.shape, values, input.role == Role::tracked ? backend_.activation_dtype() : DType::f32);
  }
  std::vector<float> values_of(const Tensor& t) const {
    std::vector<float> out(static_cast<size_t>(t.size()));
    if (t.dtype == DType::bf16) {
      std::vector<uint16_t> stored(out.size());
      backend_.download(stored.data(), t);
      std::transform(stored.begin(), stored.end(), out.begin(), bf16_to_f32);
    } else if (!t.empty()) {
      backend_.download(out.data(), t);
    }
    return out;
  }

 private:
  struct Free {
    Backend* backend;
    void operator()(void* p) const { backend->release(p); }
  };
  Backend& backend_;
  std::unique_ptr<void, Free> memory_;
  Arena arena_;
};

/// A second use of every tracked input (times 1), recorded before or after the op: the op's gradient is then added to
/// or written first.
enum class Branch : uint8_t { none, before, after };

struct Settings {
  uint32_t tracked = ~0u;  // bit i: input i is tracked, if its role says so
  Branch branch = Branch::none;
  int64_t offset = 0;
};

struct Result {
  std::vector<float> value;
  std::vector<std::vector<float>> gradients;  // empty where none came
  int32_t node = Ctx::kUntracked;
};

inline Result run_case(Backend& backend, const OpCase& c, const Data& data, const Settings& settings) {
  Bench bench(backend, settings.offset);
  Tape tape(bench.arena());
  Ctx ctx{backend, bench.arena(), &tape, Tracking::record};
  Inputs in;
  for (size_t i = 0; i < c.inputs.size(); ++i) {
    const Input& input = c.inputs[i];
    Tensor t = bench.input(input, data.inputs[i]);
    if (input.role == Role::tracked && (settings.tracked >> i & 1)) {
      t.node = Ctx::kMarked;
      t = tape.leaf(t);
    }
    in.tensors.push_back(t);
    const bool trained = input.role == Role::trained;
    in.gradients.push_back(trained ? bench.input(input, std::vector<float>(data.inputs[i].size())) : Tensor{});
  }
  const auto use_again = [&] {
    for (size_t i = 0; i < c.inputs.size(); ++i) {
      if (in[i].node == Ctx::kUntracked) continue;
      const Tensor z = scale(ctx, in[i], 1);
      tape.seed(z, bench.tensor(c.inputs[i].shape, data.branch_cotangents[i], z.dtype));
    }
  };
  if (settings.branch == Branch::before) use_again();
  const Tensor y = c.op(ctx, in);
  if (settings.branch == Branch::after) use_again();
  Result result{bench.values_of(y), {}, y.node};
  Shape out_shape(y.shape.begin(), y.shape.begin() + y.ndim);
  tape.seed(y, bench.tensor(out_shape, data.cotangent, y.dtype));
  tape.backward(ctx);
  for (size_t i = 0; i < c.inputs.size(); ++i)
    result.gradients.push_back(
        bench.values_of(c.inputs[i].role == Role::trained ? in.gradients[i] : tape.gradient(in[i])));
  return result;
}

inline double norm(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x * x;
  return std::sqrt(sum);
}

/// |got - expected| / (eps max(|expected|, floor)); 0 for exact equality, infinite for a NaN or a wrong size. Nothing
/// got stands for zeros.
inline double error_in_eps(const std::vector<float>& got, const std::vector<double>& expected, double floor) {
  if (!got.empty() && got.size() != expected.size()) return std::numeric_limits<double>::infinity();
  std::vector<double> difference = expected;
  for (size_t i = 0; i < got.size(); ++i) difference[i] -= got[i];
  const double error = norm(difference);
  if (std::isnan(error)) return std::numeric_limits<double>::infinity();
  return error == 0 ? 0 : error / (kEps * std::max(norm(expected), floor));
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}
inline bool same_bits(const Result& a, const Result& b) {
  if (!same_bits(a.value, b.value) || a.gradients.size() != b.gradients.size()) return false;
  for (size_t i = 0; i < a.gradients.size(); ++i)
    if (!same_bits(a.gradients[i], b.gradients[i])) return false;
  return true;
}

}  // namespace saaz::testing
