// RunView: a run folder as its watchers see it, kept up to date. Enters: events.jsonl and recipe.yaml of the folder, or
// the trainer_state.json that Hugging Face's Trainer wrote; nothing of a trainer's memory. Leaves: the record, and JSON
// for the pages: all of it, or what is new. Invariant: state = a function of the files; a line that is cut or no JSON
// is left out.
#pragma once

#include <filesystem>
#include <string>

#include "base/tail_file.h"
#include "report/run_record.h"

namespace saaz {

class RunView {
 public:
  /// A folder that need not hold a run yet, or a trainer_state.json.
  explicit RunView(std::filesystem::path path);

  enum class Change { none, more, anew };
  /// Reads what was added. more: what was there still holds; anew: the run was resumed from an earlier step, or its
  /// state was written again. Faults of the files are no errors here: the run stays as it was.
  Change poll();

  const RunRecord& record() const { return run_; }
  const std::string& recipe() const { return recipe_; }
  bool is_foreign() const { return is_foreign_; }

  /// Everything, for a viewer who comes. At most kMaxPoints updates: more are given as means of equal groups.
  Value state() const;
  /// What came since the last call of `news`: the same shape, with only the new rows in its lists.
  Value news();

  static constexpr size_t kMaxPoints = 3000;

 private:
  /// How many rows of each list there are.
  struct Marks {
    size_t steps = 0, evals = 0, probes = 0, samples = 0, notes = 0;
  };
  Marks marks() const;
  Value since(const Marks& from) const;
  Change poll_events();
  Change poll_foreign();
  void read_recipe();

  std::filesystem::path path_;
  TailFile events_;
  RunRecord run_;
  std::string recipe_;
  bool is_foreign_ = false, has_events_ = false;
  std::string foreign_stamp_;  // path, size and time of the state that was read
  double last_foreign_look_ = -1e9;
  Marks sent_;
};

/// Mean seconds from update to update over the last ones, pauses for validation included; NaN when it is not known.
double seconds_per_update(const RunRecord& run);

}  // namespace saaz
