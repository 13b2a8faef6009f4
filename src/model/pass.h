// Whole passes over a packed batch: the training pass (loss and adapter gradients) and the evaluation pass (losses
// only). Both run the same model code; arenas come from the caller, sized by running the pass on a PlanBackend first.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "backend/step.h"
#include "model/model.h"

namespace saaz {

/// Bytes of activations that passes need: of one segment, and of what crosses segments.
struct PassBytes {
  int64_t work = 0, store = 0;
  int64_t total() const { return work + store; }
  /// The larger of each.
  void cover(const PassBytes& other);
};

/// Activation memory of passes: `work` for one segment, `store` for what crosses segments. Owned backend memory, or
/// measuring.
class PassMemory {
 public:
  /// Measures: for a PlanBackend.
  PassMemory();
  PassMemory(Backend& backend, int64_t work_bytes, int64_t store_bytes);
  PassMemory(Backend& backend, PassBytes bytes) : PassMemory(backend, bytes.work, bytes.store) {}
  ~PassMemory();
  PassMemory(const PassMemory&) = delete;
  PassMemory& operator=(const PassMemory&) = delete;
  Arena& work() { return work_; }
  Arena& store() { return store_; }
  PassBytes peak() const { return {work_.peak(), store_.peak()}; }
  /// What a backend recorded of steps in this memory.
  struct StepKey {
    const void *model, *weights, *cache;
    int64_t cache_bytes, n_rows;
    LogitsWanted wanted;
    auto operator<=>(const StepKey&) const = default;
  };
  std::unique_ptr<StepKernels::Recording>& recording(const StepKey& key) { return recordings_[key]; }

 private:
  Backend* backend_ = nullptr;
  void* memory_[2] = {};
  Arena work_, store_;
  std::map<StepKey, std::unique_ptr<StepKernels::Recording>> recordings_;
};

/// Targets of a packed batch: the id each token must predict, or -1.
using Targets = std::span<const int32_t>;

/// Forward and backward of one micro-batch. Adds the gradient of scale * (sum of losses) to the attached adapter's
/// gradients. Returns the losses in nats of the scored tokens, in order.
std::vector<float> train_pass(Backend& backend, PassMemory& memory, const Model& model, const Batch& batch,
                              Targets targets, Recompute recompute, float scale);

/// The same losses without gradients.
std::vector<float> evaluate_pass(Backend& backend, PassMemory& memory, const Model& model, const Batch& batch,
                                 Targets targets);

/// Softcapped logits [n, vocab_size] of some token rows, where the backend left them, until its next pass.
class Logits {
 public:
  Logits(Backend& backend, const Tensor& values, std::vector<float>& staging)
      : backend_(backend), values_(values), staging_(staging) {}
  const Tensor& values() const { return values_; }
  /// Row i in host memory, to be read and changed until another one is asked for.
  std::span<float> row(int64_t i);

 private:
  Backend& backend_;
  Tensor values_;
  std::vector<float>& staging_;
};

/// Computes the logits of the given token rows and lets `use` see them. Not called without rows, or on a plan.
/// `staging` holds what comes to host memory, where the backend's memory is not the host's.
using UseLogits = std::function<void(Logits& logits)>;
void logits_pass(Backend& backend, PassMemory& memory, const Model& model, const Batch& batch, KvCache* cache,
                 std::span<const int32_t> rows, LogitsWanted wanted, std::vector<float>& staging, const UseLogits& use);
/// All of them, as a copy.
std::vector<float> logits_pass(Backend& backend, PassMemory& memory, const Model& model, const Batch& batch,
                               KvCache* cache, std::span<const int32_t> rows);

}  // namespace saaz
