#include "autograd/tape.h"

#include <atomic>
#include <utility>

#include "base/check.h"

namespace saaz {

namespace {
// Node numbers are unique over all tapes, so a tensor of a dead tape is recognised. Wraps after 2^30 ops of slack per
// tape.
int32_t next_first_node() {
  static std::atomic<uint32_t> generation{0};
  return static_cast<int32_t>((generation.fetch_add(1) & 0x7ff) << 20);
}
constexpr int32_t kMaxSlots = 1 << 20;
}  // namespace

Grad Ctx::grad(const Tensor& x) {
  if (x.node == kUntracked) return {};
  Tape::Slot& slot = tape->slot(x);
  if (!slot.gradient.empty()) return {slot.gradient, Write::add};
  if (slot.whole >= 0)
    if (const Tensor& whole = tape->slots_[static_cast<size_t>(slot.whole)].gradient; !whole.empty()) {
      slot.gradient = slot.shape;
      slot.gradient.node = kUntracked;
      slot.gradient.data = row_slice(whole, slot.first_row, slot.shape.rows()).data;
      return {slot.gradient, Write::add};
    }
  slot.gradient = slot.wanted_memory.empty() ? empty_like(slot.shape) : slot.wanted_memory;
  return {slot.gradient, Write::overwrite};
}

bool Ctx::hand_on(const Tensor& x, const Tensor& dy) {
  if (x.node == kUntracked) return true;
  Tensor& gradient = tape->slot(x).gradient;
  if (!gradient.empty()) return false;
  gradient = dy;
  return true;
}

Tape::Tape(Arena& arena) : arena_(arena), first_node_(next_first_node()) {}

int32_t Tape::add_slot(const Tensor& t) {
  check(static_cast<int32_t>(slots_.size()) < kMaxSlots, ExitCode::bug, "tape: more than {} tensors", kMaxSlots);
  slots_.push_back({.shape = t, .gradient = {}, .wanted_memory = {}});
  return first_node_ + static_cast<int32_t>(slots_.size()) - 1;
}

const Tape::Slot& Tape::slot(const Tensor& t) const {
  const int64_t index = static_cast<int64_t>(t.node) - first_node_;
  check(t.node >= 0 && index >= 0 && index < static_cast<int64_t>(slots_.size()), ExitCode::bug,
        "tape: tensor {} crosses a segment without being declared in its state: its gradient would be lost",
        t.describe());
  return slots_[static_cast<size_t>(index)];
}
Tape::Slot& Tape::slot(const Tensor& t) { return const_cast<Slot&>(std::as_const(*this).slot(t)); }

Tensor Tape::leaf(Tensor t) {
  if (t.node != Ctx::kUntracked) t.node = add_slot(t);
  return t;
}

void Tape::seed(const Tensor& output, const Tensor& gradient) {
  if (output.node != Ctx::kUntracked) slot(output).gradient = gradient;
}

void Tape::make_part(const Tensor& y, const Tensor& x, int64_t first_row) {
  if (y.node == Ctx::kUntracked) return;
  const int32_t whole = x.node - first_node_;
  Slot& part = slot(y);
  part.whole = whole;
  part.first_row = first_row;
}

void Tape::make_gradient_in(const Tensor& input, const Tensor& memory) {
  if (input.node != Ctx::kUntracked) slot(input).wanted_memory = memory;
}

void Tape::backward(Ctx& ctx) {
  for (auto record = records_.rbegin(); record != records_.rend(); ++record) {
    const Tensor dy = slots_[static_cast<size_t>(record->output - first_node_)].gradient;
    if (!dy.empty()) record->run(record->closure, ctx, dy);
  }
}

Tensor Tape::gradient(const Tensor& x) const { return x.node == Ctx::kUntracked ? Tensor{} : slot(x).gradient; }

}  // namespace saaz
