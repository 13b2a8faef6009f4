// What the mutators of the fuzz targets share: libFuzzer's own mutation applied to a part of the input, and starting
// from seeds.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace saaz::fuzz {

/// A mutated copy of `part`, at most `max_size` bytes.
inline std::string mutated(std::string part, size_t max_size) {
  const size_t size = std::min(part.size(), max_size);
  part.resize(max_size);
  part.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(part.data()), size, max_size));
  return part;
}

/// Copies `text` into the fuzzer's buffer, cut at `max_size`; returns its size there.
inline size_t store(const std::string& text, uint8_t* data, size_t max_size) {
  const size_t size = std::min(text.size(), max_size);
  std::memcpy(data, text.data(), size);
  return size;
}

/// Copies a seed, which must be whole to be one: run the fuzzer with a -max_len that holds it.
inline size_t store_seed(const std::string& seed, uint8_t* data, size_t max_size) {
  if (seed.size() > max_size) std::abort();
  return store(seed, data, max_size);
}

/// The seed to start from, for an input too short to be one and now and then for any; nullptr: mutate the input.
inline const std::string* fresh_seed(const std::vector<std::string>& seeds, size_t size, unsigned random) {
  constexpr size_t kTooShort = 16;
  if (size >= kTooShort && random % 256 != 0) return nullptr;
  return &seeds[random / 256 % seeds.size()];
}

}  // namespace saaz::fuzz
