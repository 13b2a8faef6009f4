// SIGTERM at the calls of commands that train nothing: what writes a model ends between two tensors and leaves nothing,
// or was done; what writes no file ends where it stands.
#include <algorithm>

#include "base/check.h"
#include "fault_runs.h"

namespace saaz {
namespace {

constexpr int kStopped = 128 + 15;

class Stops : public FaultRuns {
 protected:
  /// What is left of a command that writes `out`: nothing, or the whole of it.
  void expect_nothing_or_all(const Ended& ended, const fs::path& out,
                             const std::map<std::string, std::string>& expected, const std::string& what) const {
    fs::path partial = out;
    EXPECT_FALSE(fs::exists(partial += ".partial")) << what;
    EXPECT_EQ(fs::exists(out), ended.code == 0) << what;
    if (ended.code == 0) {
      EXPECT_EQ(written(out), expected) << what;
    } else {
      EXPECT_EQ(ended.code, kStopped) << what << ": " << ended.error;
      EXPECT_TRUE(is_one_line(ended.error)) << what << ": " << ended.error;
    }
  }

  /// The contents of a folder, or of a file.
  static std::map<std::string, std::string> written(const fs::path& out) {
    if (fs::is_directory(out)) return contents(out);
    return {{out.filename().string(), read_file(out)}};
  }
};

TEST_F(Stops, WhatWritesAModelLeavesNothing) {
  const std::string model = (fs::path(SAAZ_SOURCE_DIR) / "data" / "try" / "model").string(),
                    adapter = (root_ / "reference").string();
  struct Writer {
    std::vector<std::string> words;
    fs::path out;
    const char* last;  // the first file after the proof
  };
  for (const Writer& writer : {
           Writer{{"merge", "--base", model, "--adapter", adapter, "--max-shard-size", "2MB"}, "merged", "NOTICE"},
           Writer{{"quantize", "--model", model, "--to", "nf4"}, "nf4", ""},
           Writer{{"export", "gguf", "--model", model, "--type", "q8_0"}, "m.gguf", ""},
           Writer{{"export", "ollama", "--model", model}, "ollama", ""},
       }) {
    const fs::path out = root_ / writer.out;
    std::vector<std::string> words = writer.words;
    words.insert(words.end(), {"--out", out.string()});
    const Ended whole = saaz(words, "file:0:stop");
    ASSERT_EQ(whole.code, 0) << words[0] << ": " << whole.error;
    const auto expected = written(out);
    // The first tensor's file is open at these calls, so a stop must be heeded.
    const auto is_early = [&](const std::string& call) { return call.find(" open ") != std::string::npos; };
    const auto first_open = std::find_if(whole.calls.begin(), whole.calls.end(), is_early) - whole.calls.begin() + 1;
    const auto is_last = [&](const std::string& call) {
      return *writer.last != '\0' && call.find(writer.last) != std::string::npos;
    };
    const auto last = std::find_if(whole.calls.begin(), whole.calls.end(), is_last) - whole.calls.begin() + 1;
    std::vector<long> at = points(whole.n_calls, 6);
    at.push_back(1);
    at.push_back(first_open);
    size_t n_stopped = 0;
    for (const long n : at) {
      fs::remove_all(out);
      const std::string fault = fmt::format("file:{}:stop", n);
      const Ended ended = saaz(words, fault);
      EXPECT_TRUE(ended.is_struck) << words[0] << " " << fault;
      expect_nothing_or_all(ended, out, expected, words[0] + " " + fault);
      if (n <= first_open) {
        EXPECT_EQ(ended.code, kStopped) << words[0] << " " << fault;
      }
      if (words[0] == "merge") {
        EXPECT_EQ(ended.code, n < last ? kStopped : 0) << fault;
      }
      n_stopped += ended.code == kStopped;
    }
    fs::remove_all(out);
    report(fmt::format("{}: SIGTERM at each of its {} file calls ({} of these heeded)", writer.out.string(),
                       whole.n_calls, n_stopped),
           at.size(), "nothing, or all was written");
  }
}

TEST_F(Stops, WhatWritesNothingEndsWhereItStands) {
  const std::string model = (fs::path(SAAZ_SOURCE_DIR) / "data" / "try" / "model").string(),
                    data = (root_ / "train.jsonl").string(), merged = (root_ / "merged").string();
  ASSERT_EQ(merge("merged").code, 0);
  for (const std::vector<std::string>& words : {std::vector<std::string>{"verify", merged},
                                                {"eval", "--model", model, "--data", data},
                                                {"data", "validate", data, "--model", model},
                                                {"data", "inspect", data, "--model", model}}) {
    // Reads of the inputs, and the memory of the passes.
    for (const char* kind : {"read", "calloc"}) {
      const Ended whole = saaz(words, std::string(kind) + ":0:stop");
      ASSERT_EQ(whole.code, 0) << words[0] << ": " << whole.error;
      std::vector<long> at = points(whole.n_calls, 4);
      if (whole.n_calls > 0) at.push_back(static_cast<long>(whole.n_calls));
      for (const long n : at) {
        const std::string fault = fmt::format("{}:{}:stop", kind, n);
        const Ended ended = saaz(words, fault);
        EXPECT_TRUE(ended.is_struck) << words[0] << " " << fault;
        EXPECT_EQ(ended.code, kStopped) << words[0] << " " << fault << ": " << ended.error;
        EXPECT_EQ(ended.error.find("error:"), std::string::npos) << ended.error;
      }
    }
  }
}

}  // namespace
}  // namespace saaz
