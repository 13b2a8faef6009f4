// A terminal that goes away under a training run: its writes fail and SIGHUP comes, the step is finished and saved.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "base/system.h"

namespace saaz {
namespace {

/// Starts the program as the leader of a session on the terminal `name`, all three streams on it.
pid_t start_on_terminal(const std::string& name, std::vector<std::string> arguments) {
  std::vector<char*> words;
  for (std::string& word : arguments) words.push_back(word.data());
  words.push_back(nullptr);
  const pid_t child = fork();
  if (child != 0) return child;
  setsid();
  const int terminal = open(name.c_str(), O_RDWR);  // of a session without one: it gets this one
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) dup2(terminal, stream);
  execv(words[0], words.data());
  _exit(127);
}

TEST(LostTerminal, TheRunIsSavedAndEndsWithTheSignal) {
  const fs::path root = fs::path(testing::TempDir()) / ("lost-terminal-" + std::to_string(getpid()));
  const std::string given = std::string(SAAZ_SOURCE_DIR) + "/data/try/", run = (root / "run").string();
  fs::create_directories(root);
  const int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  ASSERT_GE(master, 0);
  ASSERT_EQ(grantpt(master), 0);
  ASSERT_EQ(unlockpt(master), 0);
  const pid_t child = start_on_terminal(
      ptsname(master), {SAAZ_PROGRAM, "train", given + "recipe.yaml", "--set", "model.base=" + given + "model", "--set",
                        "data.train=" + given + "train.jsonl", "--set", "data.validation.file=" + given + "valid.jsonl",
                        "--set", "eval.every_steps=0", "--set", "output.save_steps=0", "--set",
                        "train.max_steps=100000", "--set", "output.dir=" + run});
  ASSERT_GT(child, 0);
  std::string shown;
  char piece[4096];
  while (shown.find("step    3/") == std::string::npos) {
    const ssize_t n = read(master, piece, sizeof piece);
    ASSERT_GT(n, 0) << "the program ended: " << shown;
    shown.append(piece, static_cast<size_t>(n));
  }
  close(master);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 129);
  size_t n_checkpoints = 0;
  for (const fs::path& entry : list_directory(run))
    n_checkpoints += entry.filename().string().starts_with("checkpoint-") && fs::exists(entry / "manifest.json");
  EXPECT_EQ(n_checkpoints, 1u);
  EXPECT_NE(read_file(fs::path(run) / "events.jsonl").find("\"stopped\""), std::string::npos);
  fs::remove_all(root);
}

}  // namespace
}  // namespace saaz
