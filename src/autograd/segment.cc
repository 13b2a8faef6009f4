#include "autograd/segment.h"

#include <algorithm>

#include "base/check.h"

namespace saaz {

SegmentedPass::SegmentedPass(Backend& backend, Arena& work, Arena& store, Recompute recompute, int n_segments,
                             Segment segment)
    : backend_(backend),
      work_(work),
      store_(store),
      n_recomputed_(std::min(recompute.n_segments, n_segments)),
      n_segments_(n_segments),
      segment_(std::move(segment)),
      parks_(recompute.inputs_on_host && backend.can_park()) {}

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
State SegmentedPass::keep(const State& before, const State& after, int segment) {
  State kept = after;
  for (int f = 0; f < State::kFields; ++f) {
    Tensor& field = kept.fields[f];
    if (field.empty() || field.data == before.fields[f].data) continue;
    if (parks_ && f == State::streams) {
      keep_streams(field, segment);
      continue;
    }
    field.data = store_.allocate(field.bytes());
    backend_.copy(field, after.fields[f]);
  }
  return kept;
}

/// Where the input of the segment before lay, which has been copied out.
void SegmentedPass::keep_streams(Tensor& streams, int segment) {
  Tensor& room = rooms_[static_cast<size_t>(segment % 2)];
  if (room.empty()) {
    room = streams;
    room.data = store_.allocate(streams.bytes());
  }
  check(room.same_shape(streams), ExitCode::bug, "streams {} of another shape before", streams.describe());
  backend_.wait_for_parked();
  backend_.copy(room, streams);
  streams.data = room.data;
}

/// Waits for this segment's input and sends for that of the one below it.
void SegmentedPass::fetch_input(int segment) {
  if (!parks_) return;
  backend_.wait_for_parked();
  if (segment == 0) return;
  if (const Tensor& streams = inputs_[static_cast<size_t>(segment - 1)][State::streams]; !streams.empty())
    backend_.fetch_parked(streams, segment - 1);
}

State SegmentedPass::forward() {
  State state;
  for (int l = 0; l < n_recomputed_; ++l) {
    ArenaScope scope(work_);
    Ctx ctx{backend_, work_, nullptr, Tracking::mark};
    inputs_.push_back(state);
    // The last one's input stays where it is.
    if (parks_ && l + 1 < n_recomputed_ && !state[State::streams].empty()) backend_.park(l, state[State::streams]);
    segment_(ctx, l, state);
    state = keep(inputs_.back(), state, l);
  }
  if (parks_) backend_.wait_for_parked();
  for (int l = n_recomputed_; l < n_segments_; ++l) {
    taped_.push_back(run_taped(l, state));
    state = taped_.back().output;
  }
  return state;
}

void SegmentedPass::backward(const Tensor& d_streams) {
  std::array<Tensor, State::kFields> gradients{};
  gradients[State::streams] = d_streams;
  // The streams' gradients of two neighbouring segments lie in two places that change roles: nothing is copied.
  Tensor spare = d_streams;
  spare.data = store_.allocate(d_streams.bytes());
  for (int l = n_segments_ - 1; l >= 0; --l) {
    ArenaScope scope(work_);
    if (l < n_recomputed_) fetch_input(l);
    Taped segment = l < n_recomputed_ ? run_taped(l, inputs_[static_cast<size_t>(l)])
                                      : std::move(taped_[static_cast<size_t>(l - n_recomputed_)]);
    for (int f = 0; f < State::kFields; ++f)
      if (!gradients[f].empty() && !segment.output.fields[f].empty())
        segment.tape->seed(segment.output.fields[f], gradients[f]);
    if (const Tensor& streams = segment.input[State::streams]; !streams.empty() && streams.same_shape(spare))
      segment.tape->make_gradient_in(streams, spare);
    Ctx ctx{backend_, work_, segment.tape.get(), Tracking::record};
    segment.tape->backward(ctx);
    bool any = false;
    for (int f = 0; f < State::kFields; ++f) {
      const Tensor d_input =
          segment.input.fields[f].empty() ? Tensor{} : segment.tape->gradient(segment.input.fields[f]);
      any |= !d_input.empty();
      if (d_input.empty()) {
        gradients[f] = {};
      } else if (d_input.data == spare.data) {
        std::swap(gradients[f], spare);
      } else if (gradients[f].empty()) {
        gradients[f] = d_input;
        gradients[f].node = Ctx::kUntracked;
        gradients[f].data = store_.allocate(d_input.bytes());
        backend_.copy(gradients[f], d_input);
      } else if (d_input.data != gradients[f].data) {
        backend_.copy(gradients[f], d_input);
      }
    }
    if (!any) break;
  }
  if (parks_) backend_.wait_for_parked();  // the store is given up while a copy into it may be under way
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
