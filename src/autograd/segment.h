// Segments: forward and backward through a chain of layers whose tapes never outlive one layer.
// A State holds every tensor that crosses segments (residual streams, per-layer inputs, shared keys and values);
// nothing else may. Of a recomputed segment the forward pass keeps only the input State, and the backward pass runs it
// again under a tape; of the others the tape is kept. Both run the same code: the same gradients, bit for bit.
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

/// How many segments, from the first, are recomputed: what a memory leaves room for. The others are faster. With
/// `inputs_on_host` the recomputed segments' streams wait in host memory, where the backend's is another.
struct Recompute {
  int n_segments = 0;
  bool inputs_on_host = false;
  static const Recompute none, layer, offload;
  bool operator==(const Recompute&) const = default;
};
inline constexpr Recompute Recompute::none{0}, Recompute::layer{1 << 30}, Recompute::offload{1 << 30, true};

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
  State keep(const State& before, const State& after, int segment);
  void keep_streams(Tensor& streams, int segment);
  void fetch_input(int segment);

  Backend& backend_;
  Arena& work_;
  Arena& store_;
  int n_recomputed_;
  int n_segments_;
  Segment segment_;
  bool parks_;  // the streams of inputs_ take turns in rooms_, and wait in host memory
  std::array<Tensor, 2> rooms_;
  std::vector<State> inputs_;  // of the recomputed segments
  std::vector<Taped> taped_;   // the others
};

/// The same chain without gradients: memory of one segment and one State. `after`, when set, sees the State after each
/// segment.
State run_without_gradients(Backend& backend, Arena& work, Arena& store, int n_segments,
                            const SegmentedPass::Segment& segment,
                            const std::function<void(int segment, const State& state)>& after);

}  // namespace saaz
