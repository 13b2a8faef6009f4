// What a tensor is in a file: a name, a stored type, a shape and its bytes, as views of a mapped file. The stored types
// are all of safetensors' (docs/formats.md 9), wider than the program's DType: a merge passes through what it does not
// compute with. Invariant of a TensorEntry from a reader: data.size() matches dtype and shape, and data is aligned to
// the element size.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "quant/weight.h"

namespace saaz {

/// In the order a safetensors writer sorts by: decreasing alignment.
enum class StoredDType : uint8_t {
  u64,
  i64,
  f64,
  c64,
  f32,
  u32,
  i32,
  bf16,
  f16,
  u16,
  i16,
  f8_e5m2fnuz,
  f8_e4m3fnuz,
  f8_e8m0,
  f8_e4m3,
  f8_e5m2,
  i8,
  u8,
  f6_e3m2,
  f6_e2m3,
  f4,
  boolean
};

/// The spelling in safetensors headers: "BF16", "BOOL".
const char* name_of(StoredDType dtype);
std::optional<StoredDType> find_stored_dtype(std::string_view name);
int bits_of(StoredDType dtype);
StoredDType stored_dtype(DType dtype);
/// The computing type with the same bytes, where there is one.
std::optional<DType> dense_dtype(StoredDType dtype);

/// A tensor to be written. Dimensions >= 0.
struct TensorSpec {
  std::string name;
  StoredDType dtype = StoredDType::f32;
  std::vector<int64_t> shape;
  uint64_t bytes() const;
};

/// A tensor that was read. `data` lives as long as the file object; `file` is its path, for messages.
struct TensorEntry {
  std::string name;
  StoredDType dtype = StoredDType::f32;
  std::vector<int64_t> shape;
  Bytes data;
  std::string file;
  TensorSpec spec() const { return {name, dtype, shape}; }
};

using Metadata = std::vector<std::pair<std::string, std::string>>;  // in file order

/// Takes the next bytes of a tensor being written; a source may call it several times per tensor.
using ByteSink = std::function<void(Bytes)>;
/// Produces one tensor's bytes, all of them, in order.
using TensorSource = std::function<void(const TensorSpec&, const ByteSink&)>;

/// "[2048, 16384]", "[]"
std::string shape_text(const std::vector<int64_t>& shape);

/// The tensor as the program's view (1 to 4 dimensions, or a scalar as [1]); bad_input naming it when its type has no
/// DType. The memory is read-only.
Tensor to_tensor(const TensorEntry& entry);
/// A matrix [n_out, n_in] of F32, BF16 or F16; bad_input naming the tensor when it is anything else.
Weight to_weight(const TensorEntry& entry);

/// NaN and infinite elements of an F16, BF16, F32 or F64 tensor; 0 for other types.
int64_t count_non_finite(const TensorEntry& entry);

}  // namespace saaz
