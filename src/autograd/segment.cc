#include "autograd/segment.h"

#include <algorithm>

namespace saaz {

SegmentedPass::SegmentedPass(Backend& backend, Arena& work, Arena& store, Recompute recompute, int n_segments,
                             Segment segment)
    : backend_(backend),
      work_(work),
      store_(store),
      n_recomputed_(std::min(recompute.n_segments, n_segments)),
      n_segments_(n_segments),
      segment_(std::move(segment)) {}

SegmentedPass::Taped SegmentedPass::run_taped(int segment, const State& input) {
  Taped out{std::make_unique<Tape>(work_), input, {}};
  Ctx ctx{backend_, work_, out.tape.get(), Tracking::record};
  for (Tensor& field : out.input.fields)
    if (!field.empty()) field = out.tape->leaf(field);
  out.output = out.input;
  segment_(ctx, segment, out.output);
  return out;
}

/// Copies the fields that the layer replaced into the store, so that its work memory can be released.
State SegmentedPass::keep(const State& before, const State& after) {
  State kept = after;
  for (int f = 0; f < State::kFields; ++f) {
    Tensor& field = kept.fields[f];
    if (field.empty() || field.data == before.fields[f].data) continue;
    field.data = store_.allocate(field.bytes());
    backend_.copy(field, after.fields[f]);
  }
  return kept;
}

State SegmentedPass::forward() {
  State state;
  for (int l = 0; l < n_recomputed_; ++l) {
    ArenaScope scope(work_);
    Ctx ctx{backend_, work_, nullptr, Tracking::mark};
    inputs_.push_back(state);
    segment_(ctx, l, state);
    state = keep(inputs_.back(), state);
  }
  for (int l = n_recomputed_; l < n_segments_; ++l) {
    taped_.push_back(run_taped(l, state));
    state = taped_.back().output;
  }
  return state;
}

void SegmentedPass::backward(const Tensor& d_streams) {
  std::array<Tensor, State::kFields> gradients{};
  gradients[State::streams] = d_streams;
  for (int l = n_segments_ - 1; l >= 0; --l) {
    ArenaScope scope(work_);
    Taped segment = l < n_recomputed_ ? run_taped(l, inputs_[static_cast<size_t>(l)])
                                      : std::move(taped_[static_cast<size_t>(l - n_recomputed_)]);
    for (int f = 0; f < State::kFields; ++f)
      if (!gradients[f].empty() && !segment.output.fields[f].empty())
        segment.tape->seed(segment.output.fields[f], gradients[f]);
    Ctx ctx{backend_, work_, segment.tape.get(), Tracking::record};
    segment.tape->backward(ctx);
    bool any = false;
    for (int f = 0; f < State::kFields; ++f) {
      const Tensor d_input =
          segment.input.fields[f].empty() ? Tensor{} : segment.tape->gradient(segment.input.fields[f]);
      any |= !d_input.empty();
      if (d_input.empty()) {
        gradients[f] = {};
      } else if (gradients[f].empty()) {
        gradients[f] = d_input;
        gradients[f].node = Ctx::kUntracked;
        gradients[f].data = store_.allocate(d_input.bytes());
        backend_.copy(gradients[f], d_input);
      } else if (d_input.data != gradients[f].data) {
        backend_.copy(gradients[f], d_input);
      }
    }
    if (!any) return;
  }
}

State run_without_gradients(Backend& backend, Arena& work, Arena& store, int n_segments,
                            const SegmentedPass::Segment& segment,
                            const std::function<void(int, const State&)>& after) {
  State kept;
  for (int s = 0; s < n_segments; ++s) {
    ArenaScope scope(work);
    Ctx ctx{backend, work, nullptr, Tracking::off};
    State state = kept;
    segment(ctx, s, state);
    for (int f = 0; f < State::kFields; ++f) {
      const Tensor& now = state.fields[f];
      Tensor& home = kept.fields[f];
      if (now.empty() || now.data == home.data) continue;
      void* memory = home.empty() || home.bytes() != now.bytes() ? store.allocate(now.bytes()) : home.data;
      home = now;
      home.data = memory;
      backend.copy(home, now);
    }
    if (after) after(s, kept);
  }
  return kept;
}

}  // namespace saaz
