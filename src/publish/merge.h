// Merge and verify: writes a standalone Hugging Face folder from a base and an adapter, and proves it. The certificate
// says which modules were merged, how large the change was, how much of it survived rounding, and whether the merged
// model still computes what base + adapter computed. How the bounds are derived: docs/numerics.md.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/value.h"
#include "publish/merged_tensors.h"

namespace saaz {

/// Root-mean-square logit differences over all probe tokens and the vocabulary.
struct LogitGap {
  double merged = 0;    // base + adapter against the merged folder
  double largest = 0;   // the same, largest single difference
  double adapter = 0;   // base against base + adapter: what training did
  double noise = 0;     // merged against the same weights rounded at random: what rounding alone does
  double bound = 0;     // what merged may be
  double same_top = 0;  // share of probe tokens with the same most likely next token
  int64_t n_tokens = 0;
};

struct Certificate {
  std::string base, adapter, folder, dtype;
  MergeBase merge_base = MergeBase::w16;
  std::vector<ModuleReport> modules;
  size_t n_adapter_modules = 0;
  int64_t n_tensors = 0, n_passed_through = 0;
  LogitGap gap;
  std::vector<std::pair<std::string, std::string>> file_hashes;  // name, SHA-256
  std::vector<std::string> failures;                             // empty: proven

  bool passed() const { return failures.empty(); }
  Value to_value() const;
  std::string to_table() const;  // for people
};

/// Writes the merged folder `out` (which must not exist, or be empty: in_use) and proves it. Nothing is left at `out`
/// when writing or proof fails, or a stop signal ends them (check_stop); a failed proof is a certificate with failures.
Certificate merge_adapter(Backend& backend, const fs::path& base, const fs::path& adapter, const fs::path& out,
                          const MergeOptions& options);

/// Proves an existing folder again: every tensor recomputed from base and adapter and compared with the file, then the
/// logits. bad_input when files are missing or damaged.
Certificate verify_merge(Backend& backend, const fs::path& folder, const fs::path& base, const fs::path& adapter,
                         const MergeOptions& options);

/// The certificate a merged folder holds; null when it holds none.
Value read_certificate(const fs::path& folder);

/// The base, adapter and options that a folder's certificate names, for verify without arguments.
struct MergeRecord {
  fs::path base, adapter;
  MergeOptions options;
};
MergeRecord read_merge_record(const fs::path& folder);

// publish/side_files.cc
/// config.json (without quantization_config), generation_config.json and tokenizer files, complete for transformers and
/// llama.cpp.
void write_side_files(const BaseModel& base, StoredDType dtype, const fs::path& folder);

}  // namespace saaz
