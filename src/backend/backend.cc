// What a backend that has nothing better does in several kernels.
#include "backend/backend.h"

#include "base/check.h"

namespace saaz {

void Backend::add_rms_norm(const Tensor& y, const Tensor& inv_rms, const Tensor& a, const Tensor& x,
                           const Tensor& weight, float eps) {
  rms_norm(y, inv_rms, x, weight, eps);
  add_scaled(y, a, 1, y, 1);
}

void Backend::add_to_slices(const Tensor& y, const Tensor& x) {
  const int64_t n_rows = x.rows();
  for (int64_t row = 0; row < y.rows(); row += n_rows) {
    const Tensor slice = row_slice(y, row, n_rows);
    add_scaled(slice, slice, 1, x, 1);
  }
}

void Backend::sum_slices(const Grad& dx, const Tensor& dy, float alpha) {
  if (!dx.wanted()) return;
  if (dy.rows() == 0 && dx.write == Write::overwrite) fill(dx.tensor, 0);
  const int64_t n_rows = dx.tensor.rows();
  for (int64_t row = 0; row < dy.rows(); row += n_rows)
    accumulate({dx.tensor, row == 0 ? dx.write : Write::add}, row_slice(dy, row, n_rows), alpha);
}

namespace {
[[noreturn]] void without_pairs() { fail(ExitCode::bug, "this backend joins no pairs"); }
}  // namespace

void Backend::lora_down(const Tensor&, const Tensor&, const Tensor&) { without_pairs(); }
void Backend::geglu_pairs(const Tensor&, const Tensor&, const Tensor&, const PairPart&, const PairPart&) {
  without_pairs();
}
void Backend::geglu_pairs_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                   const PairPart&, const PairPart&, const Tensor&, const Tensor&) {
  without_pairs();
}

}  // namespace saaz
