// What the tests against Hugging Face's goldens share: the folders, and a batch without its padding.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "base/system.h"
#include "checkpoint/tensor_set.h"

namespace saaz {

inline std::vector<fs::path> golden_folders() {
  std::vector<fs::path> out;
  for (const auto& entry : fs::directory_iterator(fs::path(SAAZ_SOURCE_DIR) / "tests" / "golden"))
    if (fs::exists(entry.path() / "config.json")) out.push_back(entry.path());
  std::sort(out.begin(), out.end());
  const char* more = std::getenv("SAAZ_GOLDEN_DIRS");
  std::istringstream list(more == nullptr ? "" : more);
  for (std::string folder; std::getline(list, folder, ':');)
    if (!folder.empty()) out.emplace_back(folder);
  return out;
}

inline std::string test_name(const fs::path& folder, size_t index) {
  std::string name = folder.filename().string();
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return name + "_" + std::to_string(index);
}

inline std::vector<int64_t> integers(const TensorSet& set, const std::string& name) {
  const TensorEntry& entry = set.at(name);
  std::vector<int64_t> out(entry.data.size() / sizeof(int64_t));
  std::memcpy(out.data(), entry.data.data(), entry.data.size());
  return out;
}
inline std::span<const float> floats(const TensorEntry& entry) {
  return {reinterpret_cast<const float*>(entry.data.data()), entry.data.size() / sizeof(float)};
}

/// A right- or left-padded batch [B, T] as packed tokens without the padding.
struct Unpadded {
  std::vector<int32_t> ids, targets;
  std::vector<int64_t> starts = {0}, rows;  // rows: index of each token in the padded batch
};
inline Unpadded unpad(const std::vector<int64_t>& ids, const std::vector<int64_t>& mask,
                      const std::vector<int64_t>& labels, int64_t n_rows) {
  Unpadded out;
  const auto width = static_cast<int64_t>(ids.size()) / n_rows;
  for (int64_t b = 0; b < n_rows; ++b) {
    for (int64_t t = 0; t < width; ++t) {
      const auto at = static_cast<size_t>(b * width + t);
      if (mask[at] == 0) continue;
      out.ids.push_back(static_cast<int32_t>(ids[at]));
      out.rows.push_back(b * width + t);
      const bool next = t + 1 < width && mask[at + 1] != 0 && !labels.empty() && labels[at + 1] != -100;
      out.targets.push_back(next ? static_cast<int32_t>(labels[at + 1]) : -1);
    }
    out.starts.push_back(static_cast<int64_t>(out.ids.size()));
  }
  return out;
}

}  // namespace saaz
