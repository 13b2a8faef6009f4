// Fuzzes the safetensors reader. Any Error is fine; an accepted file, written again and read again, must be the same
// tensors and metadata. The mutator changes header and data apart and keeps the length field true, or no input would
// get past it.
#include <cstdlib>
#include <random>

#include "checkpoint/safetensors.h"
#include "mutation.h"

namespace {

using saaz::fuzz::mutated;

std::string with_length(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + data;
}

const std::vector<std::string>& seeds() {
  static const std::vector<std::string> kSeeds = {
      with_length("{}      ", ""),
      with_length(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", std::string(8, '\1')),
      with_length(R"({"__metadata__":{"format":"pt","k":"v"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
                  R"("c":{"dtype":"U8","shape":[],"data_offsets":[12,13]},"d":{"dtype":"F4","shape":[0,7],)"
                  R"("data_offsets":[13,13]},"e":{"dtype":"I64","shape":[1],"data_offsets":[13,21]}})",
                  std::string(21, '\2')),
  };
  return kSeeds;
}

/// A valid file of up to 5 small tensors of any types, drawn from `random`; its header may have an odd length, as old
/// files do.
std::string generated(unsigned random) {
  std::minstd_rand draw(random);
  std::vector<saaz::TensorSpec> specs(draw() % 6);
  for (size_t i = 0; i < specs.size(); ++i) {
    specs[i].name = std::string(1 + draw() % 3, static_cast<char>('a' + draw() % 26)) + std::to_string(i);
    specs[i].dtype = static_cast<saaz::StoredDType>(draw() % (static_cast<unsigned>(saaz::StoredDType::boolean) + 1));
    specs[i].shape.resize(draw() % 4);
    for (int64_t& d : specs[i].shape) d = draw() % 5;
    if (saaz::bits_of(specs[i].dtype) < 8) specs[i].shape.push_back(4);  // whole bytes
  }
  std::string out = saaz::safetensors_header(specs, {{"k", std::to_string(draw())}}).substr(sizeof(uint64_t));
  if (draw() % 2 == 0) out.resize(out.find_last_of('}') + 1);
  std::string data;
  for (const auto& spec : specs) {
    for (uint64_t n = spec.bytes(); n > 0; --n) data += static_cast<char>(draw());
  }
  return with_length(out, data);
}

void require(bool condition) {
  if (!condition) std::abort();
}

std::string written_again(const saaz::SafetensorsFile& file) {
  std::vector<saaz::TensorSpec> specs;
  for (const auto& tensor : file.tensors()) specs.push_back(tensor.spec());
  std::string out = saaz::safetensors_header(specs, file.metadata());
  for (const auto& spec : specs) {
    for (const auto& tensor : file.tensors()) {
      if (tensor.name == spec.name) out.append(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size());
    }
  }
  return out;
}

void require_same(const saaz::SafetensorsFile& before, const saaz::SafetensorsFile& after) {
  saaz::Metadata expected = before.metadata();
  if (std::none_of(expected.begin(), expected.end(), [](const auto& m) { return m.first == "format"; }))
    expected.insert(expected.begin(), {"format", "pt"});
  require(after.metadata() == expected);
  require(after.tensors().size() == before.tensors().size());
  for (const auto& tensor : before.tensors()) {
    const auto twin = std::find_if(after.tensors().begin(), after.tensors().end(),
                                   [&](const auto& other) { return other.name == tensor.name; });
    require(twin != after.tensors().end());
    require(twin->dtype == tensor.dtype && twin->shape == tensor.shape);
    require(std::equal(twin->data.begin(), twin->data.end(), tensor.data.begin(), tensor.data.end()));
    require(saaz::count_non_finite(*twin) == saaz::count_non_finite(tensor));
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned random) {
  if (const std::string* seed = saaz::fuzz::fresh_seed(seeds(), size, random))
    return saaz::fuzz::store_seed(*seed, data, max_size);
  if (random % 8 == 1) return saaz::fuzz::store(generated(random), data, max_size);
  if (random % 16 == 0) return LLVMFuzzerMutate(data, size, max_size);
  uint64_t length = 0;
  std::memcpy(&length, data, sizeof length);
  length = std::min<uint64_t>(length, size - sizeof length);
  const char* text = reinterpret_cast<const char*>(data) + sizeof length;
  std::string header(text, length), rest(text + length, size - sizeof length - length);
  const size_t room = max_size - sizeof length;
  if (random % 4 == 0) {
    rest = mutated(std::move(rest), room - std::min(room, header.size()));
  } else {
    header = mutated(std::move(header), room - std::min(room, rest.size()));
  }
  return saaz::fuzz::store(with_length(header, rest), data, max_size);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const saaz::SafetensorsFile file(std::as_bytes(std::span(data, size)), "input");
    const std::string again = written_again(file);
    require_same(file, saaz::SafetensorsFile(std::as_bytes(std::span(again)), "again"));
  } catch (const saaz::Error& error) {
    require(error.code() == saaz::ExitCode::bad_input);
  }
  return 0;
}
