// An offline run of Weights & Biases: records (protobuf `Record`) in the frames of LevelDB's log. `wandb sync` uploads
// it. Where it lies and what has read it: docs/run-folder.md.
#pragma once

#include <string>

#include "base/value.h"

namespace saaz {

/// Makes the bytes of the file, in order; the first call of `header` begins it. Frames depend on the place in the file,
/// so one object makes one file.
class WandbLog {
 public:
  /// Run, its configuration (the recipe) and the declared x axis. `id`: 8 lower-case letters or digits.
  std::string header(const std::string& id, const std::string& name, double unix_time, const Value& recipe);
  /// The bytes one event adds: history for steps and validations, summary and exit for the end.
  std::string bytes(const Value& event);

 private:
  std::string record(int field, const std::string& message);

  uint64_t offset_ = 0, n_records_ = 0;
  int64_t n_history_ = 0;
  double began_ = 0;
};

}  // namespace saaz
