// Names, sizes and views of stored tensors. One table says everything about a stored type; element counts are checked
// products, because shapes come from files.
#include "checkpoint/stored_tensor.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "base/check.h"

namespace saaz {

namespace {

struct DTypeInfo {
  const char* name;
  int bits;
  std::optional<DType> dense;
};

constexpr DTypeInfo kDTypes[] = {
    {"U64", 64, {}},         {"I64", 64, DType::i64}, {"F64", 64, {}},         {"C64", 64, {}},
    {"F32", 32, DType::f32}, {"U32", 32, {}},         {"I32", 32, DType::i32}, {"BF16", 16, DType::bf16},
    {"F16", 16, DType::f16}, {"U16", 16, {}},         {"I16", 16, {}},         {"F8_E5M2FNUZ", 8, {}},
    {"F8_E4M3FNUZ", 8, {}},  {"F8_E8M0", 8, {}},      {"F8_E4M3", 8, {}},      {"F8_E5M2", 8, {}},
    {"I8", 8, DType::i8},    {"U8", 8, DType::u8},    {"F6_E3M2", 6, {}},      {"F6_E2M3", 6, {}},
    {"F4", 4, {}},           {"BOOL", 8, {}},
};
static_assert(std::size(kDTypes) == static_cast<size_t>(StoredDType::boolean) + 1);

const DTypeInfo& info(StoredDType dtype) { return kDTypes[static_cast<size_t>(dtype)]; }

/// Elements whose exponent bits are all ones.
template <class Word>
int64_t count_full_exponents(Bytes data, Word exponent) {
  int64_t count = 0;
  for (size_t i = 0; i + sizeof(Word) <= data.size(); i += sizeof(Word)) {
    Word bits;
    std::memcpy(&bits, data.data() + i, sizeof bits);
    count += (bits & exponent) == exponent;
  }
  return count;
}

}  // namespace

const char* name_of(StoredDType dtype) { return info(dtype).name; }

std::optional<StoredDType> find_stored_dtype(std::string_view name) {
  const auto* found =
      std::find_if(std::begin(kDTypes), std::end(kDTypes), [&](const auto& d) { return d.name == name; });
  if (found == std::end(kDTypes)) return std::nullopt;
  return static_cast<StoredDType>(found - std::begin(kDTypes));
}

int bits_of(StoredDType dtype) { return info(dtype).bits; }

std::optional<DType> dense_dtype(StoredDType dtype) { return info(dtype).dense; }

StoredDType stored_dtype(DType dtype) {
  const auto* found =
      std::find_if(std::begin(kDTypes), std::end(kDTypes), [&](const auto& d) { return d.dense == dtype; });
  assert(found != std::end(kDTypes));
  return static_cast<StoredDType>(found - std::begin(kDTypes));
}

uint64_t TensorSpec::bytes() const {
  uint64_t bits = static_cast<uint64_t>(bits_of(dtype));
  // A zero dimension is multiplied last: the other factors must fit whatever their order.
  uint64_t zero = 1;
  for (const int64_t d : shape) {
    assert(d >= 0);
    if (d == 0) zero = 0;
    bits = checked_mul(bits, static_cast<uint64_t>(std::max<int64_t>(d, 1)), "tensor size");
  }
  bits *= zero;
  check(bits % 8 == 0, ExitCode::bad_input, "tensor '{}' {} {} does not fill whole bytes", printable(name),
        name_of(dtype), shape_text(shape));
  return bits / 8;
}

std::string shape_text(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Tensor to_tensor(const TensorEntry& entry) {
  const std::optional<DType> dtype = dense_dtype(entry.dtype);
  check(dtype.has_value(), ExitCode::bad_input, "{}: tensor '{}' has type {}, which cannot be computed with",
        entry.file, printable(entry.name), name_of(entry.dtype));
  check(entry.shape.size() <= Tensor::kMaxDims, ExitCode::bad_input, "{}: tensor '{}' {} has more than {} dimensions",
        entry.file, printable(entry.name), shape_text(entry.shape), Tensor::kMaxDims);
  Tensor tensor(const_cast<std::byte*>(entry.data.data()), *dtype, {1});
  if (entry.shape.empty()) return tensor;
  tensor.ndim = static_cast<int8_t>(entry.shape.size());
  std::copy(entry.shape.begin(), entry.shape.end(), tensor.shape.begin());
  return tensor;
}

Weight to_weight(const TensorEntry& entry) {
  const bool is_float =
      entry.dtype == StoredDType::f32 || entry.dtype == StoredDType::bf16 || entry.dtype == StoredDType::f16;
  check(is_float && entry.shape.size() == 2, ExitCode::bad_input,
        "{}: tensor '{}' is {} {}: expected a matrix of F32, BF16 or F16", entry.file, printable(entry.name),
        name_of(entry.dtype), shape_text(entry.shape));
  return dense_weight(to_tensor(entry));
}

int64_t count_non_finite(const TensorEntry& entry) {
  switch (entry.dtype) {
    case StoredDType::f16:
      return count_full_exponents<uint16_t>(entry.data, 0x7c00);
    case StoredDType::bf16:
      return count_full_exponents<uint16_t>(entry.data, 0x7f80);
    case StoredDType::f32:
      return count_full_exponents<uint32_t>(entry.data, 0x7f800000);
    case StoredDType::f64:
      return count_full_exponents<uint64_t>(entry.data, 0x7ff0000000000000);
    default:
      return 0;
  }
}

}  // namespace saaz
