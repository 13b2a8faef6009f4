// Every command that writes files for others, killed and failed at each of its file calls: what it writes is as it was,
// or whole, and the same command again makes it whole.
#include <fstream>
#include <regex>

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
  fs::path folder;  // all that it writes is below
  enum class Onto { old_files, new_names, own_beginning } onto = Onto::old_files;
  bool appears_at_once = false;  // nothing at all, or all of it, which is never replaced
};

class FaultsOfExports : public FaultRuns {
 protected:
  void SetUp() override {
    FaultRuns::SetUp();
    std::ofstream(root_ / "arabic.jsonl") << R"({"prompt": "كتاب علي", "completion": "١٢ كتاب"})"
                                          << "\n";
    std::ofstream batch(root_ / "batch.jsonl");
    for (const char* id : {"a", "b", "c"})
      batch << fmt::format(R"({{"custom_id": "{}", "method": "POST", "url": "/v1/completions", )"
                           R"("body": {{"model": "m", "prompt": "سلام", "max_tokens": 2}}}})",
                           id)
            << "\n";
    batch.close();
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
    const std::string reference = at("reference"), model = (kTry / "model").string();
    constexpr auto kNew = Command::Onto::new_names;
    return {
        {"runs chart", {"runs", "chart", reference, "--out", at("out")}, root_ / "out"},
        {"runs compare --chart", {"runs", "compare", reference, reference, "--chart", at("out/c.svg")}, root_ / "out"},
        {"export card", {"export", "card", reference, "--out", at("out")}, root_ / "out"},
        {"data preview --html",
         {"data", "preview", at("train.jsonl"), "--model", model, "--html", at("out/p.html")},
         root_ / "out"},
        {"data normalize", {"data", "normalize", at("arabic.jsonl"), "-o", at("out/n.jsonl")}, root_ / "out"},
        {"bundle export", {"bundle", "export", "org/name", "-o", at("out/b.tar")}, root_ / "out", kNew, true},
        {"bundle import", {"bundle", "import", at("carried.tar")}, root_ / "cache", kNew},
        {"quantize --to nf4",
         {"quantize", "--model", model, "--to", "nf4", "--out", at("out/q")},
         root_ / "out",
         kNew,
         true},
        {"export gguf",
         {"export", "gguf", "--model", model, "--type", "q8_0", "--out", at("out/m.gguf")},
         root_ / "out",
         kNew,
         true},
        {"export ollama", {"export", "ollama", "--model", model, "--out", at("out/o")}, root_ / "out", kNew, true},
        {"generate --batch",
         {"generate", "--model", model, "--batch", at("batch.jsonl"), "-o", at("out/b.jsonl")},
         root_ / "out",
         Command::Onto::own_beginning},
    };
  }

  using Files = std::map<std::string, std::string>;
  /// Folders and locks are no content; partial files are left out and counted.
  static Files written(const fs::path& folder, size_t* n_partial = nullptr) {
    Files out = fs::exists(folder) ? contents(folder) : Files();
    std::erase_if(out, [&](const auto& file) {
      const bool is_partial = file.first.find(".partial") != std::string::npos;
      if (is_partial && n_partial != nullptr) ++*n_partial;
      return is_partial || file.first.find("lock") != std::string::npos || fs::is_directory(folder / file.first);
    });
    static const std::regex created(R"("created": \d+)");
    for (auto& [name, text] : out)
      if (name.ends_with("b.jsonl")) text = std::regex_replace(text, created, R"("created": 0)");
    return out;
  }

  void put_old_files(const Command& command, const Files& expected) const {
    fs::remove_all(command.folder);
    fs::create_directories(command.folder);
    if (command.onto != Command::Onto::old_files) return;
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
      const bool is_old = command.onto == Command::Onto::old_files && text == kOld;
      // Its whole lines; the next run drops a cut one.
      const bool is_beginning = command.onto == Command::Onto::own_beginning && at != expected.end() &&
                                at->second.starts_with(text.substr(0, text.rfind('\n') + 1));
      EXPECT_TRUE(is_whole || is_old || is_beginning) << what << ": " << name;
    }
    const bool is_there = command.appears_at_once && !found.empty();
    if (is_there) {
      EXPECT_EQ(found, expected) << what;
    }
    // The name under which a repository is found comes last.
    if (found.contains("models--org--name/refs/main")) {
      EXPECT_EQ(found, expected) << what;
    }
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
