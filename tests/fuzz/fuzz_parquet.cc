// Bytes as a Parquet file. Either an Error of kind bad_input comes out, or rows; nothing is allocated that the bytes do
// not justify. Pages and metadata are mutated apart, and the trailer is put right again, so that mutations reach the
// decoders instead of ending at the first check.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/error.h"
#include "data/conversation.h"
#include "mutation.h"

namespace {

constexpr size_t kMagicBytes = 4, kTrailerBytes = 8, kMaxSeedBytes = 512;

const std::vector<std::string>& seeds() {
  static const std::vector<std::string> all = [] {
    std::vector<std::string> out;
    for (const auto& entry : std::filesystem::directory_iterator(SAAZ_SOURCE_DIR "/tests/golden/parquet")) {
      if (entry.path().extension() != ".parquet" || entry.file_size() > kMaxSeedBytes) continue;
      std::ifstream file(entry.path(), std::ios::binary);
      out.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    std::sort(out.begin(), out.end());
    return out;
  }();
  return all;
}

/// The size of the metadata in a file with a whole trailer, else 0.
size_t metadata_size(const std::string& file) {
  uint32_t n = 0;
  if (file.size() < kMagicBytes + kTrailerBytes) return 0;
  std::memcpy(&n, file.data() + file.size() - kTrailerBytes, sizeof(n));
  return n <= file.size() - kMagicBytes - kTrailerBytes ? n : 0;
}

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  const std::string* fresh = saaz::fuzz::fresh_seed(seeds(), size, seed);
  const std::string input = fresh != nullptr ? *fresh : std::string(reinterpret_cast<const char*>(data), size);
  const size_t n_metadata = metadata_size(input);
  if (n_metadata == 0) return saaz::fuzz::store(saaz::fuzz::mutated(input, max_size), data, max_size);
  const size_t start = input.size() - kTrailerBytes - n_metadata;
  std::string pages = input.substr(0, start), metadata = input.substr(start, n_metadata);
  std::string& part = seed / 2 % 2 == 0 ? pages : metadata;
  const size_t n_others = input.size() - part.size();
  if (n_others < max_size) part = saaz::fuzz::mutated(part, max_size - n_others);
  const auto n = static_cast<uint32_t>(metadata.size());
  const std::string trailer = std::string(reinterpret_cast<const char*>(&n), sizeof(n)) + "PAR1";
  return saaz::fuzz::store(pages + metadata + trailer, data, max_size);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  saaz::BadRows bad(1000);
  try {
    const std::string_view bytes(reinterpret_cast<const char*>(data), size);
    for (const saaz::Row& row : saaz::parse_rows(bytes, "fuzz.parquet", saaz::DataFormat::automatic, bad))
      require(row.number >= 1 && (row.is_text() || row.messages.size() >= 1));
  } catch (const saaz::Error& error) {
    require(error.code() == saaz::ExitCode::bad_input);
  }
  return 0;
}
