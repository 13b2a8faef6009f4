// BranchBackend: another backend whose sparse activations are seen, or decided. The threshold of a sparse activation is
// a kink: a gate near it may fall on either side, and gradients of the two sides differ by more than any rounding.
#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "forwarding_backend.h"

namespace saaz {

/// The values that sparse activations let through, in the order of a forward pass: one entry for each call, [rows,
/// dim].
struct SparseCall {
  float z = 0;               // of the threshold, in deviations
  int64_t dim = 0;           // of a row
  std::vector<float> gates;  // [rows, dim], then what each row's threshold is
  std::vector<float> mean, deviation;
  float distance(size_t i) const {  // from the threshold, in deviations
    const size_t row = i / static_cast<size_t>(dim);
    return (gates[i] - mean[row]) / deviation[row] - z;
  }
  bool passes(size_t i) const {
    const size_t row = i / static_cast<size_t>(dim);
    return gates[i] - (mean[row] + deviation[row] * z) > 0;
  }
};

/// Notes the gates of sparse activations. With `imposed`, the values that pass are those that passed there, wherever
/// the gates lie: the derivative is then that of one smooth piece. Imposing needs an inner backend on the host, and
/// Recompute::none: calls come once, and once more backward in the other order.
class BranchBackend : public ForwardingBackend {
 public:
  explicit BranchBackend(Backend& inner, const std::vector<SparseCall>* imposed = nullptr)
      : ForwardingBackend(inner), imposed_(imposed) {}
  std::vector<SparseCall> calls;

  void geglu(const Tensor& y, const Tensor& mean_std, const Tensor& gate, const Tensor& up, float z) override {
    in_.geglu(y, mean_std, gate, up, z);
    if (z == 0) return;
    calls.push_back(noted(gate, mean_std, z));
    backward_ = calls.size();
    if (imposed_ == nullptr) return;
    const SparseCall &call = calls.back(), &as = (*imposed_)[calls.size() - 1];
    for (size_t i = 0; i < call.gates.size(); ++i) {
      const double active = call.gates[i] - threshold(call, i);
      y.f32()[i] = as.passes(i) ? static_cast<float>(gelu(active).first * up.f32()[i]) : 0.0f;
    }
  }

  void geglu_backward(const Grad& dgate, const Grad& dup, const Tensor& dy, const Tensor& gate, const Tensor& up,
                      const Tensor& mean_std, float z) override {
    if (z == 0 || imposed_ == nullptr) return in_.geglu_backward(dgate, dup, dy, gate, up, mean_std, z);
    const SparseCall &call = calls[--backward_], &as = (*imposed_)[backward_];
    const auto dim = static_cast<size_t>(call.dim);
    std::vector<double> g(dim);
    for (size_t begin = 0; begin < call.gates.size(); begin += dim) {  // the formula of cpu/rows.inc.h
      const double mean = call.mean[begin / dim], deviation = call.deviation[begin / dim];
      double sum = 0;
      for (size_t i = 0; i < dim; ++i) {
        const size_t at = begin + i;
        const auto [value, slope] = gelu(call.gates[at] - threshold(call, at));
        const bool passes = as.passes(at);
        g[i] = passes ? double{dy.f32()[at]} * up.f32()[at] * slope : 0;
        sum += g[i];
        put(dup, at, passes ? dy.f32()[at] * value : 0);
      }
      for (size_t i = 0; i < dim; ++i)
        put(dgate, begin + i,
            g[i] - sum / static_cast<double>(dim) -
                z * sum * (call.gates[begin + i] - mean) / (static_cast<double>(dim) * deviation));
    }
  }

 private:
  static double threshold(const SparseCall& call, size_t i) {
    const size_t row = i / static_cast<size_t>(call.dim);
    return call.mean[row] + double{call.deviation[row]} * call.z;
  }
  static void put(const Grad& to, size_t at, double value) {
    if (!to.wanted()) return;
    float& x = to.tensor.f32()[at];
    x = static_cast<float>(to.write == Write::add ? x + value : value);
  }
  /// Value and derivative of the tanh form.
  static std::pair<double, double> gelu(double x) {
    const double c = std::sqrt(2 / M_PI), t = std::tanh(c * (x + 0.044715 * x * x * x));
    return {0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)};
  }
  SparseCall noted(const Tensor& gate, const Tensor& mean_std, float z) const {
    const auto n = static_cast<size_t>(gate.size()), rows = static_cast<size_t>(gate.rows());
    SparseCall call{.z = z, .dim = gate.dim(-1), .gates = std::vector<float>(n), .mean = {}, .deviation = {}};
    if (gate.dtype == DType::f32) {
      in_.download(call.gates.data(), gate);
    } else {
      std::vector<uint16_t> halves(n);
      in_.download(halves.data(), gate);
      for (size_t i = 0; i < n; ++i) call.gates[i] = bf16_to_f32(halves[i]);
    }
    std::vector<float> statistics(2 * rows);
    in_.download(statistics.data(), mean_std);
    for (size_t r = 0; r < rows; ++r) {
      call.mean.push_back(statistics[2 * r]);
      call.deviation.push_back(statistics[2 * r + 1]);
    }
    return call;
  }

  const std::vector<SparseCall>* imposed_;
  size_t backward_ = 0;
};

}  // namespace saaz
