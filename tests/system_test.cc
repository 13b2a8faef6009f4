// Files: what stands under a name while several write it, what a killed writer leaves, and what a file that cannot be
// read comes to.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "base/check.h"
#include "base/system.h"

namespace saaz {
namespace {

class Files : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("saaz-system-" + std::to_string(getpid()));
    fs::remove_all(root_);
    fs::create_directories(root_);
    path_ = root_ / "loss.svg";
  }
  void TearDown() override { fs::remove_all(root_); }

  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const fs::path& entry : list_directory(root_)) out.push_back(entry.filename().string());
    return out;
  }
  /// What another process comes to: its exit code, or 128 + the signal that killed it.
  template <class Body>
  static int in_another_process(const Body& body) {
    const pid_t child = fork();
    if (child == 0) {
      body();
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  fs::path root_, path_;
  const std::vector<std::string> only_ = {"loss.svg"};
};

TEST_F(Files, TwoWritersOfOneNameBothEndAndTheLastOnesStands) {
  const std::string longer(3 << 20, 'a'), shorter(1 << 20, 'b');
  AtomicFile first(path_);
  first.write(longer);
  {
    AtomicFile second(path_);
    second.write(shorter);
    second.commit();
  }
  EXPECT_EQ(read_file(path_), shorter);
  first.write("!");
  first.commit();
  EXPECT_EQ(read_file(path_), longer + "!");
  EXPECT_EQ(names(), only_);
}

TEST_F(Files, AnotherProcessWritesTheSameNameInBetween) {
  AtomicFile ours(path_);
  ours.write(std::string(2 << 20, 'a'));
  EXPECT_EQ(in_another_process([&] { write_file_atomically(path_, "theirs"); }), 0);
  EXPECT_EQ(read_file(path_), "theirs");
  ours.commit();
  EXPECT_EQ(read_file(path_), std::string(2 << 20, 'a'));
  EXPECT_EQ(names(), only_);
}

TEST_F(Files, ManyWritersOfOneNameNeverTearItOrStopEachOther) {
  constexpr int kWriters = 4, kTimes = 100;
  const auto text = [](int writer) {
    return std::string(static_cast<size_t>(1000 + 3000 * writer), char('a' + writer));
  };
  write_file_atomically(path_, text(0));
  std::atomic<int> n_failed{0}, n_running{kWriters};
  std::vector<std::thread> writers;
  for (int writer = 0; writer < kWriters; ++writer)
    writers.emplace_back([&, writer] {
      for (int i = 0; i < kTimes; ++i) try {
          write_file_atomically(path_, text(writer));
        } catch (const Error&) {
          ++n_failed;
        }
      --n_running;
    });
  int n_torn = 0;
  while (n_running > 0) {
    const std::string found = read_file(path_);
    n_torn += found.empty() || found != text(found[0] - 'a') ? 1 : 0;
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(n_failed, 0);
  EXPECT_EQ(n_torn, 0);
  EXPECT_EQ(names(), only_);
}

TEST_F(Files, WhatAKilledWriterLeftIsTakenOver) {
  const auto killed = [&] {
    AtomicFile file(path_);
    file.write(std::string(2 << 20, 'x'));
    raise(SIGKILL);
  };
  EXPECT_EQ(in_another_process(killed), 128 + SIGKILL);
  EXPECT_EQ(names(), std::vector<std::string>{"loss.svg.partial"});
  write_file_atomically(path_, "short");
  EXPECT_EQ(read_file(path_), "short");
  EXPECT_EQ(names(), only_);
}

TEST_F(Files, WhatAKilledSecondWriterLeftIsRemoved) {
  {
    const AtomicFile first(path_);
    EXPECT_EQ(in_another_process([&] {
                const AtomicFile second(path_);
                raise(SIGKILL);
              }),
              128 + SIGKILL);
    EXPECT_EQ(names(), (std::vector<std::string>{"loss.svg.1.partial", "loss.svg.partial"}));
  }
  write_file_atomically(path_, "short");
  EXPECT_EQ(names(), only_);
}

TEST_F(Files, AWriterThatCannotBeginLeavesNothing) {
  const fs::path other = root_ / "loss.svg.1.partial";  // a socket: nobody can open it
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  ASSERT_LT(other.string().size(), sizeof(address.sun_path));
  other.string().copy(address.sun_path, sizeof(address.sun_path) - 1);
  const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(bind(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_THROW(write_file_atomically(path_, "short"), Error);
  EXPECT_EQ(names(), std::vector<std::string>{"loss.svg.1.partial"});
  close(socket);
}

TEST_F(Files, OnlyWhatDeadWritersLeftIsRemoved) {
  std::ofstream(root_ / "dead.partial") << "x";
  fs::create_directories(root_ / "dead-folder.partial" / "below");
  AtomicFile file(path_);
  AtomicFolder folder(root_ / "merged");
  fs::create_symlink(root_ / "merged.partial", root_ / "link.partial");
  remove_unfinished(root_ / "gone.partial");
  for (const fs::path& entry : list_directory(root_)) remove_unfinished(entry);
  EXPECT_EQ(names(), (std::vector<std::string>{"loss.svg.partial", "merged.partial"}));
  file.commit();
  folder.commit();
  EXPECT_EQ(names(), (std::vector<std::string>{"loss.svg", "merged"}));
}

TEST_F(Files, HashesAreOfTheBytes) {
  for (const size_t n : {size_t{0}, size_t{1}, size_t{1} << 20, (size_t{1} << 20) + 1, size_t{3} << 20}) {
    const std::string text(n, 'q');
    std::ofstream(path_, std::ios::binary) << text;
    EXPECT_EQ(sha256_of_file(path_), sha256_hex(text)) << n;
  }
  EXPECT_THROW(sha256_of_file(root_), Error);
  EXPECT_THROW(sha256_of_file(root_ / "absent"), Error);
}

TEST_F(Files, AMappedFileThatWasTruncatedIsBadInput) {
  std::ofstream(path_) << std::string(3 << 16, 'x');
  EXPECT_EQ(in_another_process([&] {
              install_signal_handlers();
              const MappedFile file(path_);
              fs::resize_file(path_, 1 << 16);
              [[maybe_unused]] const volatile std::byte last = file.bytes()[(2 << 16)];
            }),
            static_cast<int>(ExitCode::bad_input));
}

TEST_F(Files, AMappedFileThatCannotBeReadIsAnIoError) {
  std::ofstream(path_) << std::string(3 << 16, 'x');
  // What the kernel sends when the disk fails under a page within the file.
  EXPECT_EQ(in_another_process([&] {
              install_signal_handlers();
              const MappedFile file(path_);
              siginfo_t info{};
              info.si_signo = SIGBUS;
              info.si_code = BUS_ADRERR;
              info.si_addr = const_cast<std::byte*>(file.bytes().data() + (2 << 16));
              if (syscall(SYS_rt_sigqueueinfo, getpid(), SIGBUS, &info) != 0) _exit(100);
            }),
            static_cast<int>(ExitCode::io));
}

}  // namespace
}  // namespace saaz
