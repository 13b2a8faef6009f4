// MergedTensors: the bytes of every tensor of a merged checkpoint, computed from base and adapter: W' = W + scaling * B
// A in f32, rounded once. Used to write a merge and, independently of what is on disk, to check one. Source:
// docs/formats.md 5.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/threads.h"
#include "lora/lora.h"
#include "model/weight_source.h"

namespace saaz {

/// What W is: the original 16-bit weights, or the values of their NF4 form (what QLoRA training saw).
enum class MergeBase : uint8_t { w16, deq4 };

struct MergeOptions {
  MergeBase base = MergeBase::w16;
  std::optional<StoredDType> dtype;  // of the text model's float tensors; none: the base's own (bf16 for GGUF)
  bool double_quant = true;          // of the NF4 form, for deq4
  uint64_t max_shard_bytes = 5'000'000'000;
};

/// How a merge treated one module.
struct ModuleReport {
  std::string name;
  double weight_norm = 0, delta_norm = 0;
  double survived = 0;        // <K, D> / <D, D>, K = what the file gained over the unmerged base in the same dtype
  double rounding_error = 0;  // norm(K - D)
  int64_t n_changed = 0;      // elements that differ from the unmerged base
};

class MergedTensors {
 public:
  /// All must outlive the object. Every module of the adapter must be a tensor of the base (bug otherwise).
  MergedTensors(Backend& backend, const WeightSource& base, const Adapter& adapter, const MergeOptions& options);

  /// In the base's order, with the merged dtype.
  const std::vector<SourceTensor>& tensors() const { return tensors_; }
  bool is_merged(const SourceTensor& tensor) const { return modules_.contains(tensor.canonical); }
  /// Produces the tensor's bytes in order. When it is merged, `report` (if given) is filled.
  void produce(const SourceTensor& tensor, const ByteSink& sink, ModuleReport* report) const;
  /// A bf16, f16 or f32 matrix W' with each element rounded up or down at random in proportion to its distance
  /// (seeded): the same information, other rounding errors. Shows how far rounding alone moves the logits.
  std::vector<std::byte> rounded_at_random(const SourceTensor& tensor, uint64_t seed) const;

 private:
  struct Delta {
    std::vector<float> a, b;  // [r, n_in], [n_out, r]
    int64_t r, n_in, n_out;
    float scaling;
  };
  struct Row {
    int64_t index;                       // in the tensor
    std::span<const float> weight, sum;  // W and W + D
  };
  struct Block {
    int64_t first_row, n_rows, n_in;
  };

  /// Goes through a tensor's rows, a block of them at a time: `each` is called for every row of a block, on several
  /// threads and in any order, then `after` for the block.
  void for_rows(const SourceTensor& tensor, const std::function<void(const Block&)>& before,
                const std::function<void(const Block&, const Row&)>& each,
                const std::function<void(const Block&)>& after) const;
  bool passes_through(const SourceTensor& tensor) const;

  const WeightSource& base_;
  MergeOptions options_;
  std::vector<SourceTensor> tensors_;
  std::map<std::string, Delta> modules_;  // by canonical tensor name
  std::unique_ptr<ThreadPool> threads_;
};

/// Hands `bytes` to `sink` in pieces; a stop signal ends it between two of them (check_stop).
void pass_on(Bytes bytes, const ByteSink& sink);

/// True for the linears that quantising covers (docs/formats.md 1.7).
bool is_quantised_module(const std::string& canonical);

/// f32 values in a stored float dtype (f32, bf16, f16), rounded to nearest even.
void round_to(StoredDType dtype, std::span<const float> values, std::byte* out);
void round_to(StoredDType dtype, std::span<const float> values, std::vector<std::byte>& out);

}  // namespace saaz
