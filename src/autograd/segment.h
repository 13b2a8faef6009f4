// Segments: forward and backward through a chain of layers whose tapes never outlive one layer.
// A State holds every tensor that crosses segments (residual streams, per-layer inputs, shared keys and values);
// nothing else may. With recompute = layer, the forward pass keeps only each layer's input State and the backward pass
// runs the layer again under a tape; with none, every layer's tape is kept. Both run the same code: the same gradients,
// bit for bit.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "autograd/tape.h"

namespace saaz {

/// Declared cross-segment tensors. Empty fields are unused.
struct State {
  enum Field { streams, per_layer_inputs, sliding_k, sliding_v, full_k, full_v, kFields };
  std::array<Tensor, kFields> fields;
  Tensor& operator[](Field f) { return fields[f]; }
  const Tensor& operator[](Field f) const { return fields[f]; }
};

enum class Recompute : uint8_t { none, layer };

class SegmentedPass {
 public:
  using Segment = std::function<void(Ctx& ctx, int segment, State& state)>;

  /// Segment 0 starts from an empty State. `store` holds what outlives a segment, `work` one segment's tensors. All
  /// arenas and the backend outlive the pass.
  SegmentedPass(Backend& backend, Arena& work, Arena& store, Recompute recompute, int n_segments, Segment segment);

  /// Runs all segments; returns the final state (in the store, or alive in work with recompute none).
  State forward();
  /// Given the gradient of the final streams, back-propagates through all segments. Stops below the lowest one that
  /// trains.
  void backward(const Tensor& d_streams);

 private:
  struct Taped {
    std::unique_ptr<Tape> tape;
    State input, output;
  };

  Taped run_taped(int segment, const State& input);
  State keep(const State& before, const State& after);

  Backend& backend_;
  Arena& work_;
  Arena& store_;
  Recompute recompute_;
  int n_segments_;
  Segment segment_;
  std::vector<State> inputs_;  // recompute layer: input of each segment, plus the final state
  std::vector<Taped> taped_;   // recompute none
};

/// The same chain without gradients: memory of one segment and one State. `after`, when set, sees the State after each
/// segment.
State run_without_gradients(Backend& backend, Arena& work, Arena& store, int n_segments,
                            const SegmentedPass::Segment& segment,
                            const std::function<void(int segment, const State& state)>& after);

}  // namespace saaz
