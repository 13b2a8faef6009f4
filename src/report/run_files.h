// RunFiles: what a run folder holds for other programs and for readers, kept up to date while it trains: TensorBoard's
// and W&B's files (appended at each event), charts and the model card (rewritten at each validation, save and end).
// Enters: the events. Invariant: everything is a function of events.jsonl and recipe.yaml. At the start it is made anew
// from them, so after a resume it is what an uninterrupted run would have written.
#pragma once

#include <optional>

#include "report/run_record.h"
#include "report/wandb.h"

namespace saaz {

/// Whose files are kept.
struct Trackers {
  bool tensorboard = true, wandb = true;
};

class RunFiles {
 public:
  /// Of the run in `folder`, whose events.jsonl (if any) was already cut to the step the run goes on from.
  RunFiles(const fs::path& folder, Trackers trackers);
  /// Removes what it wrote for the run in `folder` that events.jsonl tells of, and nothing else.
  static void forget(const fs::path& folder);
  /// Takes in an event that was just appended to events.jsonl.
  void add(const Value& event);

 private:
  void start_trackers(const Value& event);
  void start_tensorboard(double time, const std::string& recipe);
  void start_wandb(double time);
  void track(const Value& event);

  fs::path folder_;
  Trackers trackers_;
  bool is_started_ = false;
  RunRecord run_;
  WandbLog wandb_;
  std::optional<AppendFile> tensorboard_file_, wandb_file_;
};

}  // namespace saaz
