#include "report/run_files.h"

#include <cmath>
#include <ctime>
#include <utility>

#include "base/check.h"
#include "report/charts.h"
#include "report/model_card.h"
#include "report/tensorboard.h"

namespace saaz {

namespace {

constexpr const char *kTensorboard = "runs", *kWandb = "wandb", *kCharts = "charts";
// What a run goes on without.
constexpr const char *kNoTensorboard = "TensorBoard's files", *kNoWandb = "W&B's files", *kNoCharts = "new charts",
                     *kNoCard = "a new model card", *kNoTrackers = "the trackers' files";

/// strftime in UTC.
std::string date_text(double unix_time, const char* format) {
  const auto seconds = static_cast<time_t>(unix_time);
  tm parts{};
  gmtime_r(&seconds, &parts);
  char text[64];
  return {text, std::strftime(text, sizeof text, format, &parts)};
}

std::string tensorboard_name(double start) {
  return fmt::format("events.out.tfevents.{:010.0f}.saaz.0", std::floor(start));
}
std::string wandb_prefix(double start) { return fmt::format("offline-run-{}-", date_text(start, "%Y%m%d_%H%M%S")); }

std::vector<fs::path> entries_of(const fs::path& folder) {
  return fs::is_directory(folder) ? list_directory(folder) : std::vector<fs::path>();
}
void remove_if_empty(const fs::path& folder) {
  std::error_code ignored;
  if (fs::is_directory(folder, ignored) && fs::is_empty(folder, ignored)) fs::remove(folder, ignored);
}

}  // namespace

RunFiles::RunFiles(const fs::path& folder, Trackers trackers) : folder_(folder), trackers_(trackers) {
  run_.name = fs::absolute(folder / ".").lexically_normal().parent_path().filename().string();
  const fs::path events = folder / "events.jsonl";
  if (!fs::exists(events)) return;
  for (const Value& event : read_json_lines(events)) {
    run_.add(event);
    track(event);
  }
}

/// Others may keep theirs in the same folders.
void RunFiles::forget(const fs::path& folder, double start) {
  for (const fs::path& board : entries_of(folder / kTensorboard)) {
    if (!fs::is_directory(board)) continue;
    fs::remove(board / tensorboard_name(start));
    remove_if_empty(board);
  }
  for (const fs::path& run : entries_of(folder / kWandb))
    if (run.filename().string().starts_with(wandb_prefix(start))) remove_folder(run);
  for (const char* name : {kTensorboard, kWandb}) remove_if_empty(folder / name);
}

void RunFiles::add(const Value& event) {
  run_.add(event);
  track(event);
  const std::string kind = text_or_empty(event, "event");
  if (kind != "eval" && kind != "save" && kind != "end" && kind != "stopped") return;
  attempt(kNoCharts, [&] { write_charts(run_, folder_ / kCharts); });
  attempt(kNoCard, [&] { write_model_card(run_, folder_); });
}

std::vector<std::string> RunFiles::take_failures() { return std::exchange(failures_, {}); }

bool RunFiles::attempt(const char* what, const std::function<void()>& write) {
  std::string reason;
  try {
    write();
    return true;
  } catch (const Error& error) {
    if (error.code() == ExitCode::bug) throw;
    reason = error.what();
  } catch (const fs::filesystem_error& error) {
    reason = error.what();
  }
  if (told_.insert(what).second) failures_.push_back(fmt::format("the run goes on without {}: {}", what, reason));
  return false;
}

void RunFiles::start_trackers(const Value& event) {
  is_started_ = true;
  const double time = number_or(event, "unix_time", 0);
  // Those of the run before the resume; where they stay, nothing is added to them.
  if (!attempt(kNoTrackers, [&] { forget(folder_, time); })) trackers_ = {false, false};
  const fs::path recipe = folder_ / "recipe.yaml";
  const std::string text = fs::exists(recipe) ? read_file(recipe, 1 << 20) : "";
  if (!text.empty()) run_.recipe = parse_yaml(text, recipe.string());

  // One whose first bytes failed is not written on.
  if (trackers_.tensorboard && !attempt(kNoTensorboard, [&] { start_tensorboard(time, text); }))
    tensorboard_file_.reset();
  if (trackers_.wandb && !attempt(kNoWandb, [&] { start_wandb(time); })) wandb_file_.reset();
}

void RunFiles::start_tensorboard(double time, const std::string& recipe) {
  const fs::path boards = folder_ / kTensorboard / (date_text(time, "%b%d_%H-%M-%S_") + run_.name);
  make_directories(boards);
  tensorboard_file_.emplace(boards / tensorboard_name(time));
  tensorboard_file_->append(tensorboard_header(time, recipe));
}

void RunFiles::start_wandb(double time) {
  // W&B's ids are 8 letters or digits, the same each time this run's files are made.
  const std::string id = sha256_hex(fmt::format("{} {}", time, run_.name)).substr(0, 8);
  const fs::path offline = folder_ / kWandb / (wandb_prefix(time) + id);
  make_directories(offline);
  wandb_file_.emplace(offline / fmt::format("run-{}.wandb", id));
  wandb_file_->append(wandb_.header(id, run_.name, time, run_.recipe));
}

void RunFiles::track(const Value& event) {
  if (text_or_empty(event, "event") == "start" && !is_started_) return start_trackers(event);
  append(tensorboard_file_, kNoTensorboard, [&] { return tensorboard_bytes(event); });
  append(wandb_file_, kNoWandb, [&] { return wandb_.bytes(event); });
}

void RunFiles::append(std::optional<AppendFile>& file, const char* what, const std::function<std::string()>& bytes_of) {
  const auto write = [&] {
    if (const std::string bytes = bytes_of(); !bytes.empty()) file->append(bytes);
  };
  // A record cut short makes what would follow it unreadable.
  if (file && !attempt(what, write)) file.reset();
}

}  // namespace saaz
