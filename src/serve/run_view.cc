#include "serve/run_view.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/system.h"

namespace saaz {
namespace {

/// A Trainer writes its state at each save, so there is no need to look at it more often than this.
constexpr double kForeignSeconds = 2;
/// Updates that the time per update is taken over.
constexpr size_t kRecent = 50;

Value known(double value) { return std::isfinite(value) ? Value(value) : Value(); }

double tokens_per_s(const StepRecord& step) {
  return step.seconds > 0 ? static_cast<double>(step.n_tokens) / step.seconds : kUnknown;
}

/// A row of the steps: kStepColumns.
Value step_row(const StepRecord& step) {
  return Value::array({step.step, known(step.loss), known(step.grad_norm), known(step.learning_rate),
                       known(tokens_per_s(step)), known(step.epoch), step.time});
}
const char* const kStepColumns[] = {"step", "loss", "grad_norm", "learning_rate", "tokens_per_s", "epoch", "time"};

/// The mean of neighbours; its place is the last one's.
StepRecord mean_of(std::span<const StepRecord> group) {
  StepRecord out = group.back();
  const auto mean = [&](double StepRecord::*member) {
    double sum = 0;
    for (const StepRecord& step : group) sum += step.*member;
    return sum / static_cast<double>(group.size());
  };
  out.loss = mean(&StepRecord::loss);
  out.grad_norm = mean(&StepRecord::grad_norm);
  out.seconds = mean(&StepRecord::seconds) * static_cast<double>(group.size());
  out.n_tokens = 0;
  for (const StepRecord& step : group) out.n_tokens += step.n_tokens;
  return out;
}

Value step_rows(std::span<const StepRecord> steps, size_t max_points) {
  const size_t group = (steps.size() + max_points - 1) / std::max<size_t>(max_points, 1);
  Value rows = Value::array();
  for (size_t i = 0; i < steps.size(); i += group)
    rows.push_back(step_row(mean_of(steps.subspan(i, std::min(group, steps.size() - i)))));
  return rows;
}

Value from(const std::vector<Value>& list, size_t begin) {
  return Value::array({list.begin() + static_cast<int64_t>(std::min(begin, list.size())), list.end()});
}

}  // namespace

double seconds_per_update(const RunRecord& run) {
  const size_t n = std::min(run.steps.size(), kRecent);
  if (n < 2) return n == 1 && run.steps[0].seconds > 0 ? run.steps[0].seconds : kUnknown;
  const StepRecord &first = run.steps[run.steps.size() - n], &last = run.steps.back();
  const double seconds = last.time - first.time;
  // A pause between two sessions is no work: the updates' own times are the better guess then.
  double own = 0;
  for (size_t i = run.steps.size() - n + 1; i < run.steps.size(); ++i) own += run.steps[i].seconds;
  if (own <= 0) return kUnknown;
  return (seconds > 0 && seconds < 20 * own ? seconds : own) / static_cast<double>(n - 1);
}

RunView::RunView(fs::path path) : path_(std::move(path)), events_(path_ / "events.jsonl") {
  const fs::path folder = fs::absolute(path_).lexically_normal();
  const fs::path named = fs::is_regular_file(path_) ? folder.parent_path() : folder;
  run_.name = (named.has_filename() ? named : named.parent_path()).filename().string();
}

RunView::Change RunView::poll() {
  try {
    if (const Change change = poll_events(); change != Change::none || has_events_) return change;
    return poll_foreign();
  } catch (const std::exception&) {
    return Change::none;  // half written, or gone: the next look may find it whole
  }
}

RunView::Change RunView::poll_events() {
  const TailFile::Lines news = events_.read();
  const bool was_foreign = is_foreign_ && !news.lines.empty();
  Change change = news.lines.empty() ? Change::none : Change::more;
  if (news.is_anew || was_foreign) {
    const std::string name = run_.name;
    run_ = RunRecord();
    run_.name = name;
    is_foreign_ = false;
    sent_ = {};
    change = Change::anew;
  }
  has_events_ |= !news.lines.empty();
  for (const std::string& line : news.lines) {
    try {
      run_.add(parse_json(line, "events.jsonl"));
    } catch (const Error&) {  // a line that a crash cut short
    }
  }
  if (change != Change::none && (recipe_.empty() || change == Change::anew)) read_recipe();
  return change;
}

void RunView::read_recipe() {
  const fs::path path = path_ / "recipe.yaml";
  if (!fs::exists(path)) return;
  try {
    recipe_ = read_file(path, 1 << 20);
  } catch (const Error&) {  // shown as none
  }
}

RunView::Change RunView::poll_foreign() {
  const double now = monotonic_seconds();
  if (now - last_foreign_look_ < kForeignSeconds) return Change::none;
  last_foreign_look_ = now;
  std::error_code error;
  const fs::path state = fs::is_directory(path_, error) ? find_trainer_state(path_) : path_;
  if (state.empty() || !fs::is_regular_file(state, error)) return Change::none;
  const std::string stamp = fmt::format("{} {} {}", state.string(), fs::file_size(state, error),
                                        fs::last_write_time(state, error).time_since_epoch().count());
  if (stamp == foreign_stamp_) return Change::none;
  const std::string name = run_.name;
  run_ = read_run(state);
  run_.name = name;
  foreign_stamp_ = stamp;
  is_foreign_ = true;
  return Change::anew;
}

RunView::Marks RunView::marks() const {
  return {run_.steps.size(), run_.evals.size(), run_.probes.size(), run_.samples.size(), run_.notes.size()};
}

Value RunView::since(const Marks& begin) const {
  const std::span steps = std::span(run_.steps).subspan(std::min(begin.steps, run_.steps.size()));
  Value evals = Value::array();
  for (size_t i = begin.evals; i < run_.evals.size(); ++i)
    evals.push_back(Value::array({run_.evals[i].step, known(run_.evals[i].loss)}));
  return Value::object({{"name", run_.name},
                        {"status", name_of(run_.status)},
                        {"max_steps", run_.max_steps},
                        {"peak_bytes", run_.peak_bytes},
                        {"seconds_per_update", known(seconds_per_update(run_))},
                        {"seconds", run_.seconds()},
                        {"last_time", run_.last_time},
                        {"final_loss", known(run_.final_loss())},
                        {"n_tokens", run_.n_tokens()},
                        {"steps", step_rows(steps, kMaxPoints)},
                        {"evals", evals},
                        {"probes", from(run_.probes, begin.probes)},
                        {"samples", from(run_.samples, begin.samples)},
                        {"notes", from(run_.notes, begin.notes)}});
}

Value RunView::state() const {
  Value out = since({});
  Value columns = Value::array();
  for (const char* name : kStepColumns) columns.push_back(name);
  out.set("step_columns", columns);
  out.set("is_foreign", is_foreign_);
  out.set("start", run_.start);
  out.set("recipe", recipe_);
  return out;
}

Value RunView::news() {
  Value out = since(sent_);
  // What a run says of itself comes with its start.
  if (sent_.steps == 0) {
    out.set("start", run_.start);
    out.set("recipe", recipe_);
  }
  sent_ = marks();
  return out;
}

}  // namespace saaz
