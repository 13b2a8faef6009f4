// Fuzzes the GGUF reader. Any Error is fine. In an accepted file every key is read through every accessor and every
// small tensor is dequantised, so that a view which leaves the file is found. The mutator mostly keeps the magic and
// the version.
#include <cstdlib>

#include "checkpoint/gguf.h"
#include "mutation.h"

namespace {

template <class T>
void append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void append_text(std::string& out, const std::string& text) {
  append<uint64_t>(out, text.size());
  out += text;
}

std::string start(uint64_t n_tensors, uint64_t n_values) {
  std::string out = "GGUF";
  append<uint32_t>(out, 3);
  append(out, n_tensors);
  append(out, n_values);
  return out;
}

void append_tensor(std::string& out, const std::string& name, uint64_t n_in, saaz::WeightFormat format, uint64_t at) {
  append_text(out, name);
  append<uint32_t>(out, 2);
  append(out, n_in);
  append<uint64_t>(out, 1);
  append(out, saaz::ggml_type(format));
  append(out, at);
}

/// One value of every metadata type, an array of texts and one of numbers.
std::string metadata_seed() {
  std::string out = start(0, 14);
  for (uint32_t type = 0; type <= static_cast<uint32_t>(saaz::GgufType::f64); ++type) {
    append_text(out, std::string(1, static_cast<char>('a' + type)));
    append(out, type);
    if (type == static_cast<uint32_t>(saaz::GgufType::text)) {
      append_text(out, "x");
    } else if (type == static_cast<uint32_t>(saaz::GgufType::array)) {
      append(out, static_cast<uint32_t>(saaz::GgufType::text));
      append<uint64_t>(out, 2);
      append_text(out, "<s>");
      append_text(out, "");
    } else {
      out.append(saaz::size_of(static_cast<saaz::GgufType>(type)), '\1');
    }
  }
  append_text(out, "general.alignment");
  append(out, static_cast<uint32_t>(saaz::GgufType::u32));
  append<uint32_t>(out, 32);
  return out;
}

/// One block of every tensor type.
std::string tensor_seed() {
  using saaz::WeightFormat;
  static constexpr WeightFormat kFormats[] = {WeightFormat::f32,  WeightFormat::bf16, WeightFormat::f16,
                                              WeightFormat::q4_0, WeightFormat::q5_0, WeightFormat::q8_0,
                                              WeightFormat::q4_k, WeightFormat::q5_k, WeightFormat::q6_k};
  std::string out = start(std::size(kFormats), 0), data;
  for (const WeightFormat format : kFormats) {
    const saaz::BlockSize block = saaz::block_size(format);
    append_tensor(out, saaz::name_of(format), static_cast<uint64_t>(block.elements), format, data.size());
    data.append(static_cast<size_t>(block.bytes), '\x3c');
    data.resize((data.size() + 31) / 32 * 32);
  }
  out.resize((out.size() + 31) / 32 * 32);
  return out + data;
}

const std::vector<std::string>& seeds() {
  static const std::vector<std::string> kSeeds = {metadata_seed(), tensor_seed()};
  return kSeeds;
}

template <class Action>
void allow_error(const Action& action) {
  try {
    action();
  } catch (const saaz::Error& error) {
    if (error.code() != saaz::ExitCode::bad_input) std::abort();
  }
}

void read_everything(const saaz::GgufFile& file) {
  for (const std::string_view key : file.keys()) {
    allow_error([&] { file.integer(key); });
    allow_error([&] { file.real(key); });
    allow_error([&] { file.boolean(key); });
    allow_error([&] { file.integers(key); });
    allow_error([&] { file.reals(key); });
    allow_error([&] {
      for (const std::string_view text : file.texts(key)) static_cast<void>(std::string(text));
    });
  }
  for (const saaz::GgufTensor& tensor : file.tensors()) allow_error([&] { file.values(tensor.name); });
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned random) {
  if (const std::string* seed = saaz::fuzz::fresh_seed(seeds(), size, random))
    return saaz::fuzz::store_seed(*seed, data, max_size);
  const size_t mutated_size = LLVMFuzzerMutate(data, size, max_size);
  if (random % 16 != 0) saaz::fuzz::store(start(0, 0).substr(0, 8), data, mutated_size);
  return mutated_size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  allow_error([&] { read_everything(saaz::GgufFile(std::as_bytes(std::span(data, size)), "input")); });
  return 0;
}
