// Every fault at every place: kills, errors of files and memory, flipped and missing bytes, two runs at once, changed
// inputs, numbers that are not finite. A sample by default; SAAZ_FAULTS=all tries every point (docs/reliability.md).
#include <atomic>
#include <cstring>
#include <fstream>
#include <limits>
#include <thread>

#include "base/check.h"
#include "base/value.h"
#include "fault_runs.h"
#include "train/checkpoint.h"

namespace saaz {
namespace {

class Faults : public FaultRuns {
 protected:
  std::vector<std::string> calls_of_train(const std::string& kind) const {
    const Ended ended = train("counted", {}, kind + ":0:kill");
    EXPECT_EQ(ended.code, 0) << ended.error;
    fs::remove_all(root_ / "counted");
    return ended.calls;
  }
  std::vector<std::string> calls_of_merge(const std::string& kind) const {
    const Ended ended = merge("counted", kind + ":0:kill");
    EXPECT_EQ(ended.code, 0) << ended.error;
    fs::remove_all(root_ / "counted");
    return ended.calls;
  }

  Ended serve_until_killed(const std::string& fault) const {
    constexpr double kSeconds = 10;
    return saaz({"serve", "--model", (fs::path(SAAZ_SOURCE_DIR) / "data" / "try" / "model").string(), "--port", "0"},
                fault, kSeconds);
  }
};

TEST_F(Faults, TrainKilledAtEveryFileCall) {
  size_t n = 0;
  const size_t n_calls = calls_of_train("file").size();
  ASSERT_GT(n_calls, 100u);
  for (const char* effect : {"kill", "torn"})
    for (const long at : points(n_calls, 20)) {
      EXPECT_EQ(train_through(fmt::format("file:{}:{}", at, effect)).code, kKilled);
      ++n;
    }
  report(fmt::format("train: SIGKILL before, inside and after each of its {} file calls", n_calls), n, "nothing");
}

TEST_F(Faults, ResumeKilledAtEveryFileCall) {
  // A run that stopped after its first checkpoint; the second process dies too.
  const std::vector<std::string> calls = calls_of_train("file");
  const auto second =
      std::find_if(calls.begin(), calls.end(), [](const std::string& call) { return call.ends_with("checkpoint-2"); });
  ASSERT_NE(second, calls.end());
  ASSERT_EQ(train("half", {}, fmt::format("file:{}:kill", second - calls.begin() + 1)).code, kKilled);
  fs::copy(root_ / "half", root_ / "counted", fs::copy_options::recursive);
  const size_t n_calls = train("counted", {"--resume"}, "file:0:kill").calls.size();
  size_t n = 0;
  for (const long at : points(n_calls, 20)) {
    EXPECT_EQ(train_through(fmt::format("file:{}:kill", at), "half").code, kKilled);
    ++n;
  }
  report(fmt::format("resume: SIGKILL before each of its {} file calls", n_calls), n, "nothing");
  fs::remove_all(root_ / "counted");
  fs::copy(root_ / "half", root_ / "counted", fs::copy_options::recursive);
  const size_t n_reads = train("counted", {"--resume"}, "read:0:EIO").calls.size();
  n = 0;
  for (const long at : points(n_reads, 15)) {
    const std::string fault = fmt::format("read:{}:EIO", at);
    expect_failure(train_through(fault, "half"), "EIO", fault);
    ++n;
  }
  report(fmt::format("resume: EIO at each of its {} reads", n_reads), n, "nothing");
}

TEST_F(Faults, TrainMeetsErrorsAtEveryFileCall) {
  const size_t n_calls = calls_of_train("file").size(), n_reads = calls_of_train("read").size();
  for (const char* effect : {"EIO", "EIO+", "ENOSPC", "ENOSPC+", "EDQUOT"}) {
    size_t n = 0;
    for (const long at : points(n_calls, 8)) {
      const std::string fault = fmt::format("file:{}:{}", at, effect);
      expect_failure(train_through(fault), effect, fault);
      ++n;
    }
    report(fmt::format("train: {} at each of its {} file calls", effect, n_calls), n, "nothing");
  }
  size_t n = 0;
  for (const long at : points(n_reads, 15)) {
    const std::string fault = fmt::format("read:{}:EIO", at);
    expect_failure(train_through(fault), "EIO", fault);
    ++n;
  }
  report(fmt::format("train: EIO at each of its {} reads", n_reads), n, "nothing");
  n = 0;
  for (const char* fault : {"file:1:short+", "read:1:short+"}) {
    EXPECT_EQ(train_through(fault).code, 0) << fault;
    ++n;
  }
  for (const long at : points(n_calls, 8)) {
    // Only writes and reads are interrupted by signals here.
    const Ended ended = train_through(fmt::format("file:{}:EINTR", at));
    if (ended.struck_call == "write") {
      EXPECT_EQ(ended.code, 0) << ended.error;
    }
    ++n;
  }
  report("train: every write and read short; EINTR at each file call", n, "nothing");
}

TEST_F(Faults, MergeKilledOrFailedAtEveryFileCall) {
  const auto expected = merged_contents();
  const size_t n_calls = calls_of_merge("file").size(), n_reads = calls_of_merge("read").size();
  for (const char* effect : {"kill", "torn"}) {
    size_t n = 0;
    for (const long at : points(n_calls, 10)) {
      EXPECT_EQ(merge_through(fmt::format("file:{}:{}", at, effect), expected).code, kKilled);
      ++n;
    }
    report(fmt::format("merge: {} at each of its {} file calls", effect, n_calls), n, "nothing");
  }
  for (const char* effect : {"EIO", "ENOSPC+", "EDQUOT"}) {
    size_t n = 0;
    for (const long at : points(n_calls, 5)) {
      const std::string fault = fmt::format("file:{}:{}", at, effect);
      expect_failure(merge_through(fault, expected), effect, fault);
      ++n;
    }
    report(fmt::format("merge: {} at each of its {} file calls", effect, n_calls), n, "nothing");
  }
  size_t n = 0;
  for (const long at : points(n_reads, 5)) {
    const std::string fault = fmt::format("read:{}:EIO", at);
    expect_failure(merge_through(fault, expected), "EIO", fault);
    ++n;
  }
  EXPECT_EQ(merge_through("file:1:short+", expected).code, 0);
  report(fmt::format("merge: EIO at each of its {} reads", n_reads), n, "nothing");
}

TEST_F(Faults, RandomKills) {
  const double began = monotonic_seconds();
  ASSERT_EQ(train("timed").code, 0);
  const double length = monotonic_seconds() - began;
  std::uniform_real_distribution<double> when(0, 1.2 * length);
  const int wanted = tries_all() ? fault_part().share_of(200) : 20;
  int n = 0;
  while (n < wanted) {
    fs::remove_all(root_ / "run");
    // Kill after kill on one folder until the run gets through.
    for (Ended ended = train("run", {}, "", when(random_));; ++n) {
      expect_sound("run", "random kill");
      if (ended.code == 0) break;
      ASSERT_EQ(ended.code, kKilled) << ended.error;
      const bool has_run = fs::exists(root_ / "run" / "recipe.yaml");
      ended =
          train("run", has_run ? std::vector<std::string>{"--resume"} : std::vector<std::string>(), "", when(random_));
    }
    expect_finished("run", "random kills");
  }
  report("train: SIGKILL at a random time, again and again until done", static_cast<size_t>(n), "nothing");
}

TEST_F(Faults, EveryByteAndLengthOfACheckpointCounts) {
  const fs::path folder = root_ / "reference" / "checkpoint-3";
  size_t n_flips = 0, n_cuts = 0;
  const auto is_detected = [&] {
    try {
      verify_checkpoint(folder);
      return false;
    } catch (const Error& error) {
      return error.code() == ExitCode::verification;
    }
  };
  for (const auto& [name, text] : contents(folder)) {
    const auto rewrite = [&](const std::string& bytes) { std::ofstream(folder / name, std::ios::binary) << bytes; };
    for (const long at : points(text.size(), 400)) {
      std::string damaged = text;
      damaged[static_cast<size_t>(at) - 1] ^= static_cast<char>(1 + random_() % 255);
      rewrite(damaged);
      EXPECT_TRUE(is_detected()) << name << ": byte " << at - 1 << " flipped";
      ++n_flips;
    }
    for (const long at : points(text.size(), 100)) {
      rewrite(text.substr(0, static_cast<size_t>(at) - 1));
      EXPECT_TRUE(is_detected()) << name << ": cut to " << at - 1 << " bytes";
      ++n_cuts;
    }
    fs::remove(folder / name);
    EXPECT_TRUE(is_detected()) << name << " removed";
    rewrite(text);
    EXPECT_FALSE(is_detected());
  }
  report("checkpoint: a byte of a file changed", n_flips, "all detected");
  report("checkpoint: a file cut short", n_cuts, "all detected");
}

TEST_F(Faults, ADamagedNewestCheckpointIsReportedAndTheOneBeforeTaken) {
  fs::copy(root_ / "reference", root_ / "run", fs::copy_options::recursive);
  std::fstream file(root_ / "run" / "checkpoint-3" / "optimizer.safetensors",
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-1, std::ios::end);
  file.put('\x55');
  file.close();
  const Ended ended = train("run", {"--resume"});
  EXPECT_EQ(ended.code, 0) << ended.error;
  expect_finished("run", "damaged newest checkpoint");
  EXPECT_NE(read_file(root_ / "run" / "events.jsonl").find("checkpoint-3/optimizer.safetensors is damaged"),
            std::string::npos);
  // A checkpoint under another's name.
  fs::remove_all(root_ / "run" / "checkpoint-3");
  fs::rename(root_ / "run" / "checkpoint-2", root_ / "run" / "checkpoint-3");
  EXPECT_EQ(train("run", {"--resume"}).code, 8);
}

TEST_F(Faults, AnUnreadableNewestCheckpointIsReportedAndTheOneBeforeTaken) {
  const auto copy = [&] {
    fs::remove_all(root_ / "run");
    fs::copy(root_ / "reference", root_ / "run", fs::copy_options::recursive);
    fs::remove(root_ / "run" / "adapter_model.safetensors");
  };
  copy();
  const std::vector<std::string> calls = train("run", {"--resume"}, "read:0:EIO").calls;
  // The first reads of it are of its verification: a page in the middle of the disk's, not the opening.
  const auto read = std::find_if(calls.begin(), calls.end(), [](const std::string& call) {
    return call.find(" read ") != std::string::npos && call.ends_with("checkpoint-3/optimizer.safetensors");
  });
  ASSERT_NE(read, calls.end()) << "it is not read but mapped";
  copy();
  const Ended ended = train("run", {"--resume"}, fmt::format("read:{}:EIO", read - calls.begin() + 1));
  EXPECT_TRUE(ended.is_struck);
  EXPECT_EQ(ended.code, 0) << ended.error;
  expect_finished("run", "unreadable newest checkpoint");
  const std::string events = read_file(root_ / "run" / "events.jsonl");
  EXPECT_NE(events.find("skipped: cannot read "), std::string::npos);
}

TEST_F(Faults, AChartWrittenBesideARunStopsNeither) {
  // The run's own files, taken by another writer of each name while it runs.
  fs::create_directories(root_ / "run" / "charts");
  std::atomic<bool> is_over{false};
  std::thread beside([&] {
    for (int i = 0; !is_over; ++i) write_file_atomically(root_ / "run" / "charts" / "loss.svg", std::to_string(i));
  });
  fs::copy(root_ / "reference", root_ / "run", fs::copy_options::recursive | fs::copy_options::skip_existing);
  fs::remove(root_ / "run" / "adapter_model.safetensors");
  for (int i = 0; i < 5; ++i) {
    fs::remove_all(root_ / "run" / "checkpoint-3");
    const Ended ended = train("run", {"--resume"});
    EXPECT_EQ(ended.code, 0) << ended.error;
  }
  is_over = true;
  beside.join();
  EXPECT_EQ(read_file(root_ / "run" / "events.jsonl").find("goes on without"), std::string::npos);
}

TEST_F(Faults, PruningKeepsTwoThatVerify) {
  const fs::path run = root_ / "kept";
  const auto save = [&](int64_t step) {
    save_checkpoint(run, step, 2, [](const fs::path& folder) { write_file_atomically(folder / "state", "s"); });
  };
  fs::create_directories(run);
  for (const int64_t step : {1, 2, 3}) save(step);
  EXPECT_FALSE(fs::exists(run / "checkpoint-1"));
  std::ofstream(run / "checkpoint-3" / "state") << "t";
  save(4);
  // 4 and 3 are the newest, but 3 is damaged: 2 must stay.
  EXPECT_TRUE(fs::exists(run / "checkpoint-2"));
  save(5);
  EXPECT_FALSE(fs::exists(run / "checkpoint-2"));
}

TEST_F(Faults, AThreadCannotStart) {
  const auto expected = merged_contents();
  n_threads_ = 4;
  size_t n = 0;
  const auto expect_resource = [&](const Ended& ended, const std::string& fault) {
    ++n;
    EXPECT_TRUE(ended.is_struck) << fault;
    EXPECT_EQ(ended.code, 4) << fault << ": " << ended.error;
    EXPECT_TRUE(is_one_line(ended.error)) << fault << ": " << ended.error;
  };
  const size_t n_trained = calls_of_train("thread").size(), n_merged = calls_of_merge("thread").size();
  ASSERT_GE(std::min(n_trained, n_merged), 3u);  // the caller's thread is the fourth
  for (const long at : points(n_trained, n_trained)) {
    const std::string fault = fmt::format("thread:{}:EAGAIN", at);
    expect_resource(train_through(fault), fault);
  }
  for (const long at : points(n_merged, n_merged)) {
    const std::string fault = fmt::format("thread:{}:EAGAIN", at);
    expect_resource(merge_through(fault, expected), fault);
  }
  constexpr size_t kServing = 7;  // the pool's three, the engine's, the network's and its two workers
  for (const long at : points(kServing, kServing)) {
    const std::string fault = fmt::format("thread:{}:EAGAIN", at);
    expect_resource(serve_until_killed(fault), fault);
  }
  report(fmt::format("train, merge and serve: one of their {}, {} and {} threads cannot start", n_trained, n_merged,
                     kServing),
         n, "nothing: exit 4");
}

TEST(ExitCodes, OfSystemCalls) {
  for (const int error : {ENOSPC, EDQUOT, ENOMEM, EMFILE, ENFILE, EAGAIN})
    EXPECT_EQ(exit_code_of(error), ExitCode::resource) << strerror(error);
  for (const int error : {EIO, EROFS, EACCES, ENOENT}) EXPECT_EQ(exit_code_of(error), ExitCode::io) << strerror(error);
}

TEST_F(Faults, TwoRunsOnOneFolder) {
  const int n = tries_all() ? fault_part().share_of(100) : 5;
  for (int i = 0; i < n; ++i) {
    fs::remove_all(root_ / "run");
    Ended ended[2];
    std::thread other([&] { ended[1] = train("run"); });
    ended[0] = train("run");
    other.join();
    EXPECT_EQ(std::min(ended[0].code, ended[1].code), 0) << ended[0].error << ended[1].error;
    EXPECT_EQ(std::max(ended[0].code, ended[1].code), 7) << ended[0].error << ended[1].error;
    expect_finished("run", "two at once");
  }
  report("two runs started at once on one folder", static_cast<size_t>(n), "nothing: one runs, the other exits 7");
}

TEST_F(Faults, ChangedInputsAreListedAndRefused) {
  fs::copy(fs::path(SAAZ_SOURCE_DIR) / "data" / "try" / "model", root_ / "model", fs::copy_options::recursive);
  const std::vector<std::string> base = {"--set", "model.base=" + (root_ / "model").string()};
  const auto resume = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    more.push_back("--resume");
    return train("run", more);
  };
  ASSERT_EQ(train("run", base).code, 0);
  const std::map<std::string, std::string> files = contents(root_);
  const auto run_contents = [&] {
    std::map<std::string, std::string> out = contents(root_ / "run");
    out.erase(".lock");  // holds the number of the last process
    return out;
  };
  struct Change {
    const char *file, *listed;
  };
  for (const Change& change :
       {Change{"train.jsonl", "train.jsonl: other content"}, Change{"valid.jsonl", "valid.jsonl: other content"},
        Change{"model/tokenizer.json", "tokenizer.json: other content"},
        Change{"model/model.safetensors", "model.safetensors: other content"},
        Change{"", "recipe lora.lora_alpha: 16"}}) {
    const auto before = run_contents();
    std::vector<std::string> more;
    if (*change.file == '\0') {
      more = {"--set", "lora.lora_alpha=4"};
    } else if (std::string text = files.at(change.file); text.ends_with('\n')) {
      std::ofstream(root_ / change.file) << text << "\n";
    } else {
      text[text.size() - 2] ^= 1;  // the last weight's low byte, or white space
      std::ofstream(root_ / change.file) << text;
    }
    const Ended refused = resume(more);
    EXPECT_EQ(refused.code, 8) << change.listed;
    EXPECT_NE(refused.error.find(change.listed), std::string::npos) << refused.error;
    EXPECT_EQ(run_contents(), before) << change.listed;
    more.push_back("--accept-changes");
    const Ended accepted = resume(more);
    EXPECT_EQ(accepted.code, 0) << accepted.error;
    EXPECT_NE(read_file(root_ / "run" / "events.jsonl").find(std::string("accepted changed inputs: ")),
              std::string::npos);
    if (*change.file != '\0') std::ofstream(root_ / change.file) << files.at(change.file);
    fs::remove_all(root_ / "run");
    ASSERT_EQ(train("run", base).code, 0);
  }
}

TEST_F(Faults, NumbersThatAreNotFiniteAreNeverSaved) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kHuge = 3e38f;
  struct Poison {
    const char* file;
    float value;
    int code;
  };
  size_t n = 0;
  for (const Poison& poison : {Poison{"optimizer.safetensors", kNan, 6}, Poison{"adapter_model.safetensors", kHuge, 6},
                               Poison{"adapter_model.safetensors", kNan, 3}}) {
    // A sealed checkpoint of step 2 with one poisoned number, from which step 3 is to be made.
    fs::remove_all(root_ / "run");
    fs::create_directories(root_ / "run");
    save_checkpoint(root_ / "run", 2, 2, [&](const fs::path& folder) {
      for (auto& [name, text] : contents(root_ / "reference" / "checkpoint-2")) {
        if (name == "manifest.json") continue;
        std::string bytes = text;
        if (name == poison.file) std::memcpy(&bytes[bytes.size() - sizeof(float)], &poison.value, sizeof(float));
        write_file_atomically(folder / name, bytes);
      }
    });
    const auto before = contents(root_ / "run" / "checkpoint-2");
    for (int i = 0; i < 3; ++i, ++n) {
      const Ended ended = train("run", {"--resume"});
      EXPECT_EQ(ended.code, poison.code) << ended.error;
      EXPECT_TRUE(is_one_line(ended.error)) << ended.error;
      EXPECT_EQ(contents(root_ / "run" / "checkpoint-2"), before);
      EXPECT_FALSE(fs::exists(root_ / "run" / "checkpoint-3"));
      EXPECT_FALSE(fs::exists(root_ / "run" / "adapter_model.safetensors"));
    }
  }
  report("a number of the state not finite, or too large to go on with", n, "nothing: no update, no save, exit 6");
}

}  // namespace
}  // namespace saaz
