// Matrices in bitsandbytes' serialised form: 4-bit (NF4, FP4) and 8-bit (LLM.int8()). Enters: the tensors of a
// checkpoint, untrusted. Leaves: each quantised matrix as one Weight, a view of the files; and, for writing, the parts
// of a matrix. A matrix is quantised iff its parts are there, whatever config.json says. Source: docs/formats.md 1.6.
// Any fault is bad_input naming file and tensor.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "checkpoint/stored_tensor.h"
#include "quant/blockwise.h"
#include "quant/int8.h"

namespace saaz {

class BitsandbytesMatrices {
 public:
  /// All tensors of a checkpoint, by unique names; they must outlive the object.
  explicit BitsandbytesMatrices(std::span<const TensorEntry* const> tensors);

  struct Matrix {
    Weight weight;
    StoredDType dtype = StoredDType::bf16;  // before it was quantised; 8-bit matrices do not say: f16
  };
  /// By the name of its weight, "model.layers.0.mlp.gate_proj.weight"; nullptr when it is not quantised.
  const Matrix* find(std::string_view weight_name) const;
  /// True for what belongs to a quantised matrix beside its weight: absmax, maps, state, SCB.
  bool is_part(const std::string& name) const { return parts_.contains(name); }
  bool empty() const { return matrices_.empty(); }

 private:
  using ByName = std::unordered_map<std::string_view, const TensorEntry*>;
  void add_4bit(const ByName& tensors, const TensorEntry& state, std::string_view suffix);
  void add_8bit(const ByName& tensors, const TensorEntry& scales);
  /// The part `name` of the matrix that `owner` belongs to, of this type and number of elements.
  const TensorEntry& part(const ByName& tensors, const TensorEntry& owner, const std::string& name, StoredDType dtype,
                          int64_t n);

  std::map<std::string, Matrix, std::less<>> matrices_;
  std::unordered_set<std::string> parts_;
};

/// One tensor of a quantised matrix, as it is written.
struct BitsandbytesPart {
  TensorSpec spec;
  std::vector<std::byte> bytes;
};
/// The spec of the codes (`weight_name`, the bytes of matrix.codes), and the parts beside them. `dtype`: of the matrix
/// before it was quantised. The parts do not read the codes.
TensorSpec bitsandbytes_codes(const std::string& weight_name, const Nf4Matrix& matrix);
std::vector<BitsandbytesPart> bitsandbytes_parts(const std::string& weight_name, const Nf4Matrix& matrix,
                                                 StoredDType dtype);
TensorSpec bitsandbytes_codes(const std::string& weight_name, const Int8Matrix& matrix);
std::vector<BitsandbytesPart> bitsandbytes_parts(const std::string& weight_name, const Int8Matrix& matrix);

}  // namespace saaz
