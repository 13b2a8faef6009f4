// Runs of `saaz_faults` on the tiny model of data/try, made so small that one takes a tenth of a second, and what must
// hold of a run folder after any fault: nothing half at a final name, every acknowledged save still there, and the same
// bytes as the uninterrupted run's in the end.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "base/system.h"

namespace saaz {

/// How a process ended: its exit code, or 128 + the signal that killed it.
struct Ended {
  int code = 0;
  bool is_struck = false;
  std::string error;                     // what it wrote to stderr
  std::vector<std::string> calls;        // of the counted class: "12 rename runs/a/checkpoint-1"
  size_t n_calls = 0;                    // of the counted class, when the process came to its end
  std::string struck_call, struck_path;  // what the fault hit: "rename", "runs/a/checkpoint-1"
  bool is_noted = false;                 // of a run: its events tell that it went on without a chart, card or tracker
};

constexpr int kKilled = 128 + 9;

/// One line that starts with "error: ", as every failure must print.
bool is_one_line(const std::string& error);

/// SAAZ_FAULTS=all tries every point, and SAAZ_FAULTS_SEED repeats a run; otherwise a sample of them.
bool tries_all();
uint64_t fault_seed();
/// SAAZ_FAULTS_PART=2/16: this process tries the second of every sixteen points, its siblings the others.
struct FaultPart {
  int index = 1, count = 1;
  int share_of(int n) const { return (n + count - 1) / count; }
};
FaultPart fault_part();

class FaultRuns : public testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;
  /// Writes train.jsonl and valid.jsonl into `root_`; the folder of the base model.
  virtual fs::path make_inputs() const;

  /// Runs the program; `fault` is SAAZ_FAULT or empty; killed after `kill_after_s` when that is not negative.
  Ended saaz(const std::vector<std::string>& arguments, const std::string& fault = "", double kill_after_s = -1) const;
  Ended train(const std::string& run, const std::vector<std::string>& more = {}, const std::string& fault = "",
              double kill_after_s = -1) const;
  Ended merge(const std::string& out, const std::string& fault = "") const;

  /// What a person does after a crash: --resume, and where there is no run, the command as it was.
  Ended train_again(const std::string& run) const;

  /// Whether the folder is absent, or holds no more than its lock.
  bool is_untouched(const std::string& run) const;
  /// The invariants of a run folder at rest after a fault.
  void expect_sound(const std::string& run, const std::string& what) const;
  /// ... and after `train_again`: the reference's files, byte for byte, and nothing else.
  void expect_finished(const std::string& run, const std::string& what) const;

  /// A run under a fault, then what a person would do, on a copy of `from` (or a new folder when that is empty).
  Ended train_through(const std::string& fault, const std::string& from = "") const;
  /// The merge's folder is complete (`expected`, from `merged_contents`) or absent, and the next merge makes it
  /// complete.
  Ended merge_through(const std::string& fault, const std::map<std::string, std::string>& expected) const;
  std::map<std::string, std::string> merged_contents() const;

  /// The end of a process whose call failed with `effect`. Closing a file that nobody needs any more may go unnoticed.
  static void expect_failure(const Ended& ended, const std::string& effect, const std::string& fault);

  /// `k` of the points 1..n, drawn by the seed.
  std::vector<long> sample(size_t n, size_t k) const;
  /// The points to try: this part's when all are asked for, or a sample.
  std::vector<long> points(size_t n, size_t k) const;
  /// A row of the table in docs/reliability.md.
  void report(const std::string& fault, size_t n_tried, const std::string& lost) const;

  fs::path root_, model_;
  int n_threads_ = 1;  // of the program
  int n_updates_ = 3;  // of a run
  mutable std::mt19937_64 random_;
};

/// Every file below a folder, by its path in it: contents.
std::map<std::string, std::string> contents(const fs::path& folder);

}  // namespace saaz
