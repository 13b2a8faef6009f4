// RunFiles: what a run folder holds for other programs and for readers, kept up to date while it trains: TensorBoard's
// and W&B's files (appended at each event), charts and the model card (rewritten at each validation, save and end).
// Enters: the events. Invariant: everything is a function of events.jsonl and recipe.yaml. At the start it is made anew
// from them, so after a resume it is what an uninterrupted run would have written. None of it is worth a run: a write
// that fails is told (take_failures) and the run goes on without.
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

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
  /// Removes the trackers' files of the run in `folder` that began then (unix time), and nothing else.
  static void forget(const fs::path& folder, double start);
  /// Takes in an event that was just appended to events.jsonl.
  void add(const Value& event);
  /// What could not be written since the last call, a line for each kind of file, and each kind only once.
  std::vector<std::string> take_failures();

 private:
  /// Whether `write` came to its end.
  bool attempt(const char* what, const std::function<void()>& write);
  void start_trackers(const Value& event);
  void start_tensorboard(double time, const std::string& recipe);
  void start_wandb(double time);
  void track(const Value& event);
  void append(std::optional<AppendFile>& file, const char* what, const std::function<std::string()>& bytes_of);

  fs::path folder_;
  Trackers trackers_;
  bool is_started_ = false;
  RunRecord run_;
  WandbLog wandb_;
  std::optional<AppendFile> tensorboard_file_, wandb_file_;
  std::set<std::string> told_;
  std::vector<std::string> failures_;
};

}  // namespace saaz
