// Tape: reverse-mode differentiation over coarse ops, kept on a short leash: a tape lives for one segment (one layer),
// in an arena. An op computes its output through the backend, then records one closure of tensor views; `backward` runs
// the closures in reverse. A gradient's first writer overwrites, later ones add; the tape decides, not the op's author.
// A tensor that depends on trainable values but belongs to no live tape is "marked"; using it under a tape throws, so a
// tensor that crosses segments undeclared is an exception, not a silently missing gradient.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <memory_resource>
#include <new>
#include <type_traits>
#include <vector>

#include "backend/backend.h"
#include "tensor/arena.h"
#include "tensor/tensor.h"

namespace saaz {

class Tape;
struct AdapterRows;  // ops/ops.h

enum class Tracking : uint8_t {
  off,     // inference: nothing depends on anything
  mark,    // forward of a recomputed segment: outputs that depend on trainable values are marked
  record,  // under a tape
};

/// What an op needs: where to compute, where to allocate, and what to record.
struct Ctx {
  Backend& backend;
  Arena& arena;
  Tape* tape = nullptr;
  Tracking tracking = Tracking::off;
  const std::vector<AdapterRows>* adapter_rows = nullptr;  // generation: adapters of rows, never recorded

  /// An activation.
  Tensor empty(std::initializer_list<int64_t> dims) { return arena.tensor(backend.activation_dtype(), dims); }
  /// A statistic, loss or logit.
  Tensor empty_f32(std::initializer_list<int64_t> dims) { return arena.tensor(DType::f32, dims); }
  Tensor empty_like(const Tensor& t) {
    Tensor out = t;
    out.node = kUntracked;
    out.data = arena.allocate(t.bytes());
    return out;
  }
  /// The destination of x's gradient; not wanted when x is untracked. Every call must be followed by a write.
  Grad grad(const Tensor& x);
  /// For y = x + ...: x's gradient takes over the memory of dy, which nobody reads after y's record has run. False when
  /// x's gradient has a writer already: it must be added to.
  bool hand_on(const Tensor& x, const Tensor& dy);
  /// Declares that y depends on `inputs` (and on trainable values, when `trains`). `backward(ctx, dy)` adds to the
  /// inputs' gradients.
  template <class F>
  void record(Tensor& y, std::initializer_list<Tensor> inputs, F backward) {
    record_op(y, inputs, false, backward);
  }
  template <class F>
  void record_trainable(Tensor& y, std::initializer_list<Tensor> inputs, F backward) {
    record_op(y, inputs, true, backward);
  }

  static constexpr int32_t kUntracked = -1, kMarked = -2;

 private:
  template <class F>
  void record_op(Tensor& y, std::initializer_list<Tensor> inputs, bool trains, F backward);
};

class Tape {
 public:
  explicit Tape(Arena& arena);

  /// Makes t a leaf of this tape (only when it is marked or `always`); returns it with its slot.
  Tensor leaf(Tensor t);
  /// Gives an output (or leaf) its gradient before `backward`; the buffer is added to in place by later writers.
  void seed(const Tensor& output, const Tensor& gradient);
  /// Declares that y is the rows from `first_row` on of x: once x's gradient is there, y's is made as part of it.
  void make_part(const Tensor& y, const Tensor& x, int64_t first_row);
  /// Where an input's gradient is to be made, unless another's memory is handed on to it.
  void make_gradient_in(const Tensor& input, const Tensor& memory);
  /// Runs every recorded closure in reverse order. Gradients are allocated from the arena.
  void backward(Ctx& ctx);
  /// x's gradient after backward; empty when none reached it.
  Tensor gradient(const Tensor& x) const;

 private:
  friend struct Ctx;
  using Run = void (*)(const void* closure, Ctx& ctx, const Tensor& dy);
  struct Record {
    int32_t output;
    Run run;
    const void* closure;
  };
  struct Slot {
    Tensor shape;
    Tensor gradient;
    Tensor wanted_memory;  // of the gradient; empty: any
    int32_t whole = -1;    // the slot that this one is a part of
    int64_t first_row = 0;
  };

  int32_t add_slot(const Tensor& t);
  Slot& slot(const Tensor& t);
  const Slot& slot(const Tensor& t) const;

  Arena& arena_;
  int32_t first_node_;
  std::vector<Slot> slots_;
  std::vector<Record> records_;
  std::pmr::monotonic_buffer_resource closures_;  // host memory, whatever the arena's is
};

template <class F>
void Ctx::record_op(Tensor& y, std::initializer_list<Tensor> inputs, bool trains, F backward) {
  static_assert(std::is_trivially_destructible_v<F>, "a closure holds views only");
  y.node = kUntracked;
  if (tracking == Tracking::off) return;
  bool depends = trains;
  for (const Tensor& input : inputs) depends |= input.node != kUntracked;
  if (!depends) return;
  if (tracking == Tracking::mark) {
    y.node = kMarked;
    return;
  }
  for (const Tensor& input : inputs)
    if (input.node != kUntracked) (void)tape->slot(input);  // throws on a tensor that is not this tape's
  y.node = tape->add_slot(y);
  const F* closure = new (tape->closures_.allocate(sizeof(F), alignof(F))) F(backward);
  tape->records_.push_back(
      {y.node, [](const void* f, Ctx& ctx, const Tensor& dy) { (*static_cast<const F*>(f))(ctx, dy); }, closure});
}

}  // namespace saaz
