#include "tensor/arena.h"

#include "base/check.h"

namespace saaz {

void* Arena::allocate(int64_t bytes) {
  const int64_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  check(rounded <= capacity_ - used_, ExitCode::resource,
        "activation memory: {} bytes wanted with {} of {} in use; use a smaller max_seq_length or batch, or recompute: "
        "layer",
        rounded, used_, capacity_);
  void* out = base_ + used_;
  used_ += rounded;
  if (used_ > peak_) peak_ = used_;
  return out;
}

}  // namespace saaz
