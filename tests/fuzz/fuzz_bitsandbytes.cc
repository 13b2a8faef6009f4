// Fuzzes the reader of bitsandbytes' serialised matrices: the state's JSON is the input's text, its first bytes choose
// which parts there are, their types and sizes. Any Error is bad_input; an accepted matrix can be dequantised from end
// to end.
#include <cstdlib>

#include "checkpoint/bitsandbytes.h"
#include "mutation.h"

namespace {

using saaz::StoredDType;

constexpr size_t kControls = 4;

const std::vector<std::string>& seeds() {
  static const std::vector<std::string> kSeeds = {
      std::string(kControls, '\0') +
          R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [3, 40], "nested_blocksize": 256, )"
          R"("nested_dtype": "float32", "nested_offset": 0.05})",
      std::string("\1\0\0\0", kControls) +
          R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [40, 3]})",
      std::string("\2\0\0\0", kControls) + "{}",
  };
  return kSeeds;
}

/// Tensors whose data lie in one aligned buffer each.
class Tensors {
 public:
  void add(const std::string& name, StoredDType dtype, size_t n_bytes, uint8_t fill) {
    std::vector<uint64_t>& words = memory_.emplace_back(n_bytes / 8 + 1);
    std::memset(words.data(), fill, n_bytes);
    add_view(name, dtype, {reinterpret_cast<const std::byte*>(words.data()), n_bytes});
  }
  void add_view(const std::string& name, StoredDType dtype, saaz::Bytes data) {
    const auto n = static_cast<int64_t>(data.size()) * 8 / saaz::bits_of(dtype);
    entries_.push_back({name, dtype, {n}, data, "input"});
  }
  saaz::TensorEntry& last() { return entries_.back(); }
  std::vector<const saaz::TensorEntry*> views() const {
    std::vector<const saaz::TensorEntry*> out;
    for (const saaz::TensorEntry& entry : entries_) out.push_back(&entry);
    return out;
  }

 private:
  std::vector<std::vector<uint64_t>> memory_;
  std::vector<saaz::TensorEntry> entries_;
};

/// 120 elements, give or take what the controls say.
Tensors tensors_of(const uint8_t* controls, saaz::Bytes state) {
  const bool single = controls[0] & 1, is_int8 = controls[0] & 2, is_fp4 = controls[0] & 4;
  const size_t more = controls[1] % 4;
  const uint8_t fill = controls[2] % 64;  // as floats: small and finite
  const auto is_left_out = [&](int part) { return controls[3] % 16 == part; };
  Tensors out;
  if (is_int8) {
    if (!is_left_out(1)) out.add("m.weight", StoredDType::i8, 120, fill);
    if (!is_left_out(1)) out.last().shape = {static_cast<int64_t>(controls[1] % 8) * 5, 24};
    if (!is_left_out(2)) out.add("m.SCB", StoredDType::f32, 20 + 4 * more, fill);
    if (!is_left_out(3)) out.add("m.weight_format", StoredDType::u8, 1, controls[2] % 3);
    return out;
  }
  if (!is_left_out(1)) out.add("m.weight", StoredDType::u8, 60 + more, fill);
  if (!is_left_out(2)) out.add("m.weight.absmax", single ? StoredDType::f32 : StoredDType::u8, single ? 8 : 2, fill);
  if (!is_left_out(3)) out.add("m.weight.quant_map", StoredDType::f32, 64, fill);
  if (!is_left_out(4) && !single) out.add("m.weight.nested_absmax", StoredDType::f32, 4, fill);
  if (!is_left_out(5) && !single) out.add("m.weight.nested_quant_map", StoredDType::f32, 1024, fill);
  out.add_view(is_fp4 ? "m.weight.quant_state.bitsandbytes__fp4" : "m.weight.quant_state.bitsandbytes__nf4",
               StoredDType::u8, state);
  return out;
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned random) {
  if (const std::string* seed = saaz::fuzz::fresh_seed(seeds(), size, random))
    return saaz::fuzz::store_seed(*seed, data, max_size);
  std::string controls(reinterpret_cast<const char*>(data), kControls);
  std::string state(reinterpret_cast<const char*>(data) + kControls, size - kControls);
  if (random % 4 == 0) {
    controls = saaz::fuzz::mutated(controls, kControls);
    controls.resize(kControls);
  } else {
    state = saaz::fuzz::mutated(std::move(state), max_size - kControls);
  }
  return saaz::fuzz::store(controls + state, data, max_size);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < kControls) return 0;
  const Tensors tensors = tensors_of(data, std::as_bytes(std::span(data + kControls, size - kControls)));
  try {
    const saaz::BitsandbytesMatrices matrices(tensors.views());
    const saaz::BitsandbytesMatrices::Matrix* matrix = matrices.find("m.weight");
    if (matrix == nullptr) return 0;
    std::vector<float> values(static_cast<size_t>(matrix->weight.size()));
    saaz::dequantise(matrix->weight, 0, matrix->weight.size(), values.data());
  } catch (const saaz::Error& error) {
    if (error.code() != saaz::ExitCode::bad_input) std::abort();
  }
  return 0;
}
