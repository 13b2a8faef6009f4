// Every command that writes files for others, killed and failed at each of its file calls: what it writes is as it was,
// or whole, and the same command again makes it whole.
#include <fstream>

#include "base/check.h"
#include "fault_runs.h"
#include "hub/cache.h"

namespace saaz {
namespace {

const fs::path kTry = fs::path(SAAZ_SOURCE_DIR) / "data" / "try";
constexpr const char* kOld = "what stood there before\n";
const std::string kCommit(40, 'a');

struct Command {
  std::string name;
  std::vector<std::string> words;
  fs::path folder;               // all that it writes is below
  bool takes_new_names = false;  // it refuses to replace what is there
};

class FaultsOfExports : public FaultRuns {
 protected:
  void SetUp() override {
    FaultRuns::SetUp();
    std::ofstream(root_ / "arabic.jsonl") << R"({"prompt": "كتاب علي", "completion": "١٢ كتاب"})"
                                          << "\n";
    fill_cache();
    std::vector<std::string> words = {"bundle", "export", "org/name", "-o", (root_ / "carried.tar").string()};
    const Ended ended = saaz(words);
    ASSERT_EQ(ended.code, 0) << ended.error;
  }

  /// A fetched repository of two files.
  void fill_cache() const {
    const RepoCache cache(root_ / "cache", {RepoKind::model, "org/name"});
    cache.prepare();
    for (const std::string text : {"{}\n", "weights\n"}) {
      const std::string id = git_blob_id(std::as_bytes(std::span(text)));
      write_file_atomically(cache.blob(id), text);
      cache.link(kCommit, text.size() < 4 ? "config.json" : "model.safetensors", id);
    }
    cache.write_ref("main", kCommit);
  }

  std::vector<Command> commands() const {
    const auto at = [&](const char* name) { return (root_ / name).string(); };
    const std::string reference = at("reference");
    return {
        {"runs chart", {"runs", "chart", reference, "--out", at("out")}, root_ / "out"},
        {"runs compare --chart", {"runs", "compare", reference, reference, "--chart", at("out/c.svg")}, root_ / "out"},
        {"export card", {"export", "card", reference, "--out", at("out")}, root_ / "out"},
        {"data preview --html",
         {"data", "preview", at("train.jsonl"), "--model", (kTry / "model").string(), "--html", at("out/p.html")},
         root_ / "out"},
        {"data normalize", {"data", "normalize", at("arabic.jsonl"), "-o", at("out/n.jsonl")}, root_ / "out"},
        {"bundle export", {"bundle", "export", "org/name", "-o", at("out/b.tar")}, root_ / "out", true},
        {"bundle import", {"bundle", "import", at("carried.tar")}, root_ / "cache", true},
    };
  }

  using Files = std::map<std::string, std::string>;
  /// Folders and locks are no content; partial files are left out and counted.
  static Files written(const fs::path& folder, size_t* n_partial = nullptr) {
    Files out = fs::exists(folder) ? contents(folder) : Files();
    std::erase_if(out, [&](const auto& file) {
      const bool is_partial = file.first.find(".partial") != std::string::npos;
      if (is_partial && n_partial != nullptr) ++*n_partial;
      return is_partial || file.first.find(".locks") != std::string::npos || fs::is_directory(folder / file.first);
    });
    return out;
  }

  void put_old_files(const Command& command, const Files& expected) const {
    fs::remove_all(command.folder);
    fs::create_directories(command.folder);
    if (command.takes_new_names) return;
    for (const auto& [name, text] : expected) {
      fs::create_directories((command.folder / name).parent_path());
      std::ofstream(command.folder / name) << kOld;
    }
  }

  /// The command under a fault on top of old files, and then again.
  Ended run_through(const Command& command, const Files& expected, const std::string& fault) const {
    put_old_files(command, expected);
    const Ended ended = saaz(command.words, fault);
    const std::string what = command.name + " " + fault;
    Files found = written(command.folder);
    for (const auto& [name, text] : found) {
      const auto at = expected.find(name);
      const bool is_whole = at != expected.end() && text == at->second;
      EXPECT_TRUE(is_whole || (!command.takes_new_names && text == kOld)) << what << ": " << name;
    }
    // The name under which a repository is found comes last.
    if (found.contains("models--org--name/refs/main")) {
      EXPECT_EQ(found, expected) << what;
    }
    const bool is_there = command.name == "bundle export" && !found.empty();
    const Ended again = is_there ? Ended() : saaz(command.words);
    EXPECT_EQ(again.code, 0) << what << ": " << again.error;
    size_t n_partial = 0;
    EXPECT_EQ(written(command.folder, &n_partial), expected) << what;
    EXPECT_EQ(n_partial, 0u) << what;
    return ended;
  }
};

TEST_F(FaultsOfExports, KilledOrFailedAtEveryFileCall) {
  for (const Command& command : commands()) {
    fs::remove_all(command.folder);
    fs::create_directories(command.folder);
    const Ended whole = saaz(command.words, "file:0:kill");
    ASSERT_EQ(whole.code, 0) << command.name << ": " << whole.error;
    const Files expected = written(command.folder);
    ASSERT_FALSE(expected.empty()) << command.name;
    put_old_files(command, expected);
    const size_t n_calls = saaz(command.words, "file:0:kill").calls.size();
    for (const char* effect : {"kill", "torn", "EIO", "ENOSPC+", "EDQUOT"}) {
      const bool kills = *effect == 'k' || *effect == 't';
      size_t n = 0;
      for (const long at : points(n_calls, 3)) {
        const std::string fault = fmt::format("file:{}:{}", at, effect);
        const Ended ended = run_through(command, expected, fault);
        if (kills) {
          EXPECT_EQ(ended.code, kKilled) << command.name << " " << fault;
        } else {
          expect_failure(ended, effect, command.name + " " + fault);
        }
        ++n;
      }
      report(fmt::format("{}: {} at each of its {} file calls", command.name, effect, n_calls), n, "nothing");
    }
    EXPECT_EQ(run_through(command, expected, "file:1:short+").code, 0) << command.name;
  }
}

}  // namespace
}  // namespace saaz
