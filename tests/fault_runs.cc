#include "fault_runs.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <numeric>
#include <regex>
#include <sstream>

#include "base/check.h"
#include "base/value.h"
#include "train/checkpoint.h"

namespace saaz {

namespace {

const fs::path kTry = fs::path(SAAZ_SOURCE_DIR) / "data" / "try";
constexpr const char* kReference = "reference";
constexpr const char* kFinal[] = {"adapter_model.safetensors", "adapter_config.json", "trainer_state.json"};

/// Updates of one row each, a checkpoint after each.
constexpr const char* kRecipe = R"(recipe: 1
model: {{ base: {0}, max_seq_length: 64 }}
quant: {{ scheme: nf4, double_quant: true }}
lora: {{ target_modules: [q_proj], r: 1, lora_alpha: 16 }}
data: {{ train: {1}/train.jsonl, validation: {{ file: {1}/valid.jsonl }} }}
train:
  per_device_train_batch_size: 1
  gradient_accumulation_steps: 1
  learning_rate: 3.0e-3
  warmup_steps: 1
  max_steps: {2}
  seed: 3407
output: {{ dir: unset, save_steps: 1, save_total_limit: 2 }}
)";

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// The first rows of a file; with few short ones a run is over in a moment.
void copy_rows(const fs::path& from, const fs::path& to, int n) {
  std::ifstream in(from);
  std::ofstream out(to);
  std::string row;
  for (int i = 0; i < n && std::getline(in, row); ++i) out << row << "\n";
}

int wait_for(pid_t child, double kill_after_s) {
  int status = 0;
  if (kill_after_s >= 0) {
    pollfd handle{.fd = static_cast<int>(syscall(SYS_pidfd_open, child, 0)), .events = POLLIN, .revents = 0};
    poll(&handle, 1, static_cast<int>(kill_after_s * 1000));
    close(handle.fd);
    kill(child, SIGKILL);
  }
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/// The last step whose save the events acknowledge; 0 for none.
int64_t acknowledged_step(const fs::path& events) {
  int64_t step = 0;
  std::ifstream lines(events);
  for (std::string line; std::getline(lines, line) && line.ends_with('}');) {
    const Value event = parse_json(line, events.string());
    if (event.find("event")->as_string() == "save") step = event.find("step")->as_integer();
  }
  return step;
}

/// A trainer state without the figures of the clock.
std::string without_times(const std::string& state) {
  static const std::regex kTimes("\\s*\"(seconds|[a-z_]*(runtime|per_second))\": [^,\n]*,?");
  return std::regex_replace(state, kTimes, "");
}

/// What a run is for: its adapter, state and checkpoints. Left out: logs and reports, and the manifests, whose hashes
/// follow the figures of the clock. A partial file or folder anywhere is kept, and so a difference.
std::map<std::string, std::string> lasting(const fs::path& run) {
  std::map<std::string, std::string> out;
  for (const auto& [path, text] : contents(run)) {
    const std::string name = fs::path(path).filename().string();
    const bool is_final = std::find(std::begin(kFinal), std::end(kFinal), name) != std::end(kFinal);
    const bool is_saved = path.starts_with("checkpoint-") && name != "manifest.json";
    if (is_final || is_saved || path.find(".partial") != std::string::npos)
      out[path] = name == kFinal[2] ? without_times(text) : text;
  }
  return out;
}

std::string names_of(const std::map<std::string, std::string>& files) {
  std::string out;
  for (const auto& [name, text] : files) out += name + " ";
  return out;
}

}  // namespace

bool tries_all() { return variable("SAAZ_FAULTS") == "all"; }

uint64_t fault_seed() {
  static const uint64_t kSeed = [] {
    const std::string text = variable("SAAZ_FAULTS_SEED");
    return text.empty() ? std::random_device()() : std::stoull(text);
  }();
  return kSeed;
}

FaultPart fault_part() {
  const std::string text = variable("SAAZ_FAULTS_PART");
  FaultPart part;
  if (text.empty()) return part;
  const bool is_read = std::sscanf(text.c_str(), "%d/%d", &part.index, &part.count) == 2;
  check(is_read && 1 <= part.index && part.index <= part.count, ExitCode::usage,
        "SAAZ_FAULTS_PART is '{}', expected as 2/16: the second of 16 parts", text);
  return part;
}

void FaultRuns::SetUp() {
  random_.seed(fault_seed() + static_cast<uint64_t>(fault_part().index - 1));
  RecordProperty("seed", std::to_string(fault_seed()));
  root_ = fs::temp_directory_path() / ("saaz-faults-" + std::to_string(getpid()));
  fs::remove_all(root_);
  fs::create_directories(root_);
  model_ = make_inputs();
  write_file_atomically(root_ / "recipe.yaml", fmt::format(kRecipe, model_.string(), root_.string(), n_updates_));
  const Ended ended = train(kReference);
  ASSERT_EQ(ended.code, 0) << ended.error;
}

fs::path FaultRuns::make_inputs() const {
  copy_rows(kTry / "train.jsonl", root_ / "train.jsonl", 4);
  copy_rows(kTry / "valid.jsonl", root_ / "valid.jsonl", 1);
  return kTry / "model";
}

void FaultRuns::TearDown() {
  if (HasFailure()) fmt::print("seed {}\n", fault_seed());
  fs::remove_all(root_);
}

Ended FaultRuns::saaz(const std::vector<std::string>& arguments, const std::string& fault, double kill_after_s) const {
  static std::atomic<int> n_started{0};
  const std::string number = std::to_string(++n_started);
  const fs::path error = root_ / ("stderr" + number), log = root_ / ("calls" + number);
  std::vector<std::string> words = {SAAZ_FAULTS_BINARY, "--quiet"},
                           variables = {fmt::format("SAAZ_THREADS={}", n_threads_),
                                        "HF_HUB_CACHE=" + (root_ / "cache").string()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  if (!fault.empty()) variables.insert(variables.end(), {"SAAZ_FAULT=" + fault, "SAAZ_FAULT_LOG=" + log.string()});
  const auto pointers = [](std::vector<std::string>& texts) {
    std::vector<char*> out;
    for (std::string& text : texts) out.push_back(text.data());
    out.push_back(nullptr);
    return out;
  };
  posix_spawn_file_actions_t streams;
  posix_spawn_file_actions_init(&streams);
  posix_spawn_file_actions_addopen(&streams, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addopen(&streams, STDERR_FILENO, error.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  pid_t child = 0;
  const int status =
      posix_spawn(&child, words[0].c_str(), &streams, nullptr, pointers(words).data(), pointers(variables).data());
  posix_spawn_file_actions_destroy(&streams);
  check(status == 0, ExitCode::bug, "cannot start {}", words[0]);
  Ended out;
  out.code = wait_for(child, kill_after_s);
  out.error = read_file(error);
  std::ifstream calls(log);
  for (std::string line; std::getline(calls, line);) {
    std::istringstream words(line);
    std::string number, call, path;
    words >> number >> call >> path;
    if (number == "total") {
      out.n_calls = std::stoul(call);
      continue;
    }
    if (line.ends_with("struck") && !out.is_struck) {
      out.is_struck = true;
      out.struck_call = call;
      out.struck_path = path;
    }
    out.calls.push_back(line);
  }
  fs::remove(error);
  fs::remove(log);
  return out;
}

Ended FaultRuns::train(const std::string& run, const std::vector<std::string>& more, const std::string& fault,
                       double kill_after_s) const {
  std::vector<std::string> arguments = {"train", (root_ / "recipe.yaml").string(), "--set",
                                        "output.dir=" + (root_ / run).string()};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return saaz(arguments, fault, kill_after_s);
}

Ended FaultRuns::merge(const std::string& out, const std::string& fault) const {
  return saaz({"merge", "--base", model_.string(), "--adapter", (root_ / kReference).string(), "--out",
               (root_ / out).string(), "--max-shard-size", "2MB"},
              fault);
}

Ended FaultRuns::train_again(const std::string& run) const {
  const Ended resumed = train(run, {"--resume"});
  const bool is_no_run = resumed.code == 3 && resumed.error.find("start the run without --resume") != std::string::npos;
  return is_no_run ? train(run) : resumed;
}

bool FaultRuns::is_untouched(const std::string& run) const {
  const fs::path folder = root_ / run;
  if (!fs::exists(folder)) return true;
  return std::all_of(fs::directory_iterator(folder), fs::directory_iterator(),
                     [](const fs::directory_entry& entry) { return entry.path().filename() == ".lock"; });
}

void FaultRuns::expect_sound(const std::string& run, const std::string& what) const {
  const fs::path folder = root_ / run;
  if (!fs::exists(folder)) return;
  int64_t newest = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("checkpoint-") || name.ends_with(".partial")) continue;
    EXPECT_NO_THROW(newest = std::max(newest, verify_checkpoint(entry.path()).step)) << what << ": " << name;
  }
  EXPECT_GE(newest, acknowledged_step(folder / "events.jsonl")) << what << ": a save that was reported is lost";
  for (const char* name : kFinal)
    if (fs::exists(folder / name)) {
      EXPECT_EQ(without_times(read_file(folder / name)), without_times(read_file(root_ / kReference / name)))
          << what << ": " << name;
    }
  if (fs::exists(folder / kFinal[0])) {
    EXPECT_TRUE(fs::exists(folder / kFinal[1])) << what << ": an adapter without its config";
  }
}

void FaultRuns::expect_finished(const std::string& run, const std::string& what) const {
  std::map<std::string, std::string> found = lasting(root_ / run), expected = lasting(root_ / kReference);
  // A run that was stopped in the last pruning keeps a checkpoint more.
  const std::string pruned = fmt::format("checkpoint-{}", n_updates_ - 2);
  std::erase_if(found, [&](const auto& file) { return file.first.starts_with(pruned); });
  EXPECT_EQ(names_of(found), names_of(expected)) << what;
  for (const auto& [name, text] : expected) EXPECT_TRUE(found[name] == text) << what << ": " << name;
}

bool is_one_line(const std::string& error) {
  return error.starts_with("error: ") && std::count(error.begin(), error.end(), '\n') == 1;
}

void FaultRuns::expect_failure(const Ended& ended, const std::string& effect, const std::string& fault) {
  if (!ended.is_struck) return;
  if (ended.code == 0 && ended.struck_call == "close") return;
  // Figures for people that the run does not depend on.
  if (ended.code == 0 && ended.struck_path.starts_with("/proc/")) return;
  // What a run writes for readers is not worth the run. A disk that fails for ever ends it at what it cannot do
  // without.
  static const std::regex kForReaders(".*/run/(charts|runs|wandb|README\\.md|NOTICE)(/.*|\\..*)?");
  if (ended.code == 0 && ended.is_noted) return;
  if (!effect.ends_with('+') && ended.struck_call != "close") {
    EXPECT_FALSE(std::regex_match(ended.struck_path, kForReaders)) << fault << " ended the run: " << ended.error;
  }
  // A finished checkpoint that cannot be read counts as damaged: another is kept or taken in its place, or the run
  // refuses to resume when there is none.
  const bool is_checkpoint = ended.struck_path.find("/checkpoint-") != std::string::npos &&
                             ended.struck_path.find(".partial") == std::string::npos;
  if (is_checkpoint && (ended.code == 0 || ended.code == 8)) return;
  EXPECT_EQ(ended.code, effect.starts_with("EIO") ? 5 : 4)
      << fault << " at " << ended.struck_call << " of " << ended.struck_path << ": " << ended.error;
  EXPECT_TRUE(is_one_line(ended.error)) << fault << ": " << ended.error;
}

Ended FaultRuns::train_through(const std::string& fault, const std::string& from) const {
  fs::remove_all(root_ / "run");
  if (!from.empty()) fs::copy(root_ / from, root_ / "run", fs::copy_options::recursive);
  Ended ended = train("run", from.empty() ? std::vector<std::string>() : std::vector<std::string>{"--resume"}, fault);
  const fs::path events = root_ / "run" / "events.jsonl";
  ended.is_noted = fs::exists(events) && read_file(events).find("the run goes on without ") != std::string::npos;
  expect_sound("run", fault);
  // Nothing was left behind: the next run would be a first one.
  if (ended.code != 0 && from.empty() && is_untouched("run")) return ended;
  const Ended again = ended.code == 0 ? train("run", {"--resume"}) : train_again("run");
  EXPECT_EQ(again.code, 0) << fault << ": " << again.error;
  expect_finished("run", fault);
  return ended;
}

Ended FaultRuns::merge_through(const std::string& fault, const std::map<std::string, std::string>& expected) const {
  fs::remove_all(root_ / "merged");
  const Ended ended = merge("merged", fault);
  if (fs::exists(root_ / "merged")) {
    EXPECT_EQ(contents(root_ / "merged"), expected) << fault << ": a half-written merge";
  } else {
    EXPECT_NE(ended.code, 0) << fault;
    if (!fs::exists(root_ / "merged.partial")) return ended;
    const Ended again = merge("merged");
    EXPECT_EQ(again.code, 0) << fault << ": " << again.error;
    EXPECT_EQ(contents(root_ / "merged"), expected) << fault;
  }
  EXPECT_FALSE(fs::exists(root_ / "merged.partial")) << fault;
  return ended;
}

std::map<std::string, std::string> FaultRuns::merged_contents() const {
  EXPECT_EQ(merge("merged").code, 0);
  return contents(root_ / "merged");
}

std::vector<long> FaultRuns::sample(size_t n, size_t k) const {
  std::vector<long> all(n), out;
  std::iota(all.begin(), all.end(), 1);
  std::sample(all.begin(), all.end(), std::back_inserter(out), k, random_);
  return out;
}

std::vector<long> FaultRuns::points(size_t n, size_t k) const {
  if (!tries_all()) return sample(n, k);
  const FaultPart part = fault_part();
  std::vector<long> out;
  for (long at = part.index; at <= static_cast<long>(n); at += part.count) out.push_back(at);
  return out;
}

void FaultRuns::report(const std::string& fault, size_t n_tried, const std::string& lost) const {
  fmt::print("| {} | {} | {} | {} |\n", fault, n_tried, HasFailure() ? "SEE FAILURES" : lost, fault_seed());
  std::fflush(stdout);
}

std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const std::string name = fs::relative(entry.path(), folder).string();
    out[name] = entry.is_regular_file() ? read_file(entry.path()) : "";
  }
  return out;
}

}  // namespace saaz
