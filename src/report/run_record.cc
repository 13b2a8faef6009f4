#include "report/run_record.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace saaz {

namespace {

constexpr const char *kEvents = "events.jsonl", *kRecipe = "recipe.yaml", *kState = "trainer_state.json";
constexpr uint64_t kMaxBytes = 4ull << 30;

int64_t integer_or_zero(const Value& object, std::string_view key) {
  const double value = number_or(object, key, 0);
  return std::abs(value) < 0x1p53 ? static_cast<int64_t>(value) : 0;  // not a number: false
}

/// Python writes NaN and Infinity into JSON, which JSON does not know: null in their place, outside of strings.
std::string without_non_finite(std::string_view text) {
  static constexpr std::string_view kWords[] = {"-Infinity", "Infinity", "NaN"};
  std::string out;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') in_string = !in_string;
    const auto* word = std::find_if(std::begin(kWords), std::end(kWords),
                                    [&](std::string_view w) { return !in_string && text.substr(i).starts_with(w); });
    if (word != std::end(kWords)) {
      out += "null";
      i += word->size() - 1;
      continue;
    }
    out += text[i];
    if (in_string && text[i] == '\\' && i + 1 < text.size()) out += text[++i];
  }
  return out;
}

RunRecord read_trainer_state(const fs::path& path) {
  const Value state = parse_json(without_non_finite(read_file(path, kMaxBytes)), path.string());
  const Value* log = state.find("log_history");
  check(log != nullptr && log->is_array(), ExitCode::bad_input, "{}: no list 'log_history': not a trainer state",
        printable(path.string()));
  RunRecord run;
  run.max_steps = integer_or_zero(state, "max_steps");
  for (const Value& entry : log->items()) {
    if (entry.find("loss") != nullptr)
      run.steps.push_back({.step = integer_or_zero(entry, "step"),
                           .loss = number_or(entry, "loss"),
                           .grad_norm = number_or(entry, "grad_norm"),
                           .learning_rate = number_or(entry, "learning_rate"),
                           .epoch = number_or(entry, "epoch")});
    if (entry.find("eval_loss") != nullptr)
      run.evals.push_back({.step = integer_or_zero(entry, "step"), .loss = number_or(entry, "eval_loss")});
  }
  const bool is_done = run.max_steps > 0 && integer_or_zero(state, "global_step") >= run.max_steps;
  run.status = is_done ? RunRecord::Status::finished : RunRecord::Status::stopped;
  return run;
}

RunRecord read_events(const fs::path& folder) {
  RunRecord run;
  for (const Value& event : read_json_lines(folder / kEvents)) run.add(event);
  if (const fs::path recipe = folder / kRecipe; fs::exists(recipe))
    run.recipe = parse_yaml(read_file(recipe, 1 << 20), recipe.string());
  return run;
}

/// The newest checkpoint-N of a Trainer's folder, which has no state of its own before its end.
fs::path newest_state(const fs::path& folder) {
  fs::path newest;
  int64_t newest_step = -1;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (!name.starts_with("checkpoint-") || !fs::exists(at->path() / kState)) continue;
    const int64_t step = std::atoll(name.c_str() + name.find('-') + 1);
    if (step > newest_step) newest = at->path() / kState, newest_step = step;
  }
  return newest;
}

}  // namespace

fs::path find_trainer_state(const fs::path& folder) {
  return fs::exists(folder / kState) ? folder / kState : newest_state(folder);
}

double number_or(const Value& object, std::string_view key, double otherwise) {
  const Value* value = object.find(key);
  return value != nullptr && value->is_number() ? value->as_double() : otherwise;
}

std::string text_or_empty(const Value& object, std::string_view key) {
  const Value* value = object.find(key);
  return value != nullptr && value->is_string() ? value->as_string() : "";
}

void RunRecord::add(const Value& event) {
  const std::string kind = text_or_empty(event, "event");
  peak_bytes = std::max(peak_bytes, integer_or_zero(event, "peak_rss_bytes"));
  last_time = std::max(last_time, number_or(event, "unix_time", 0));
  if (kind == "start") {
    if (start.is_null()) start = event;
    max_steps = integer_or_zero(event, "max_steps");
    status = Status::running;
  } else if (kind == "step") {
    steps.push_back({.step = integer_or_zero(event, "step"),
                     .loss = number_or(event, "loss_nats"),
                     .grad_norm = number_or(event, "grad_norm"),
                     .learning_rate = number_or(event, "learning_rate"),
                     .epoch = number_or(event, "epoch"),
                     .n_tokens = integer_or_zero(event, "n_tokens"),
                     .seconds = number_or(event, "seconds", 0),
                     .time = number_or(event, "unix_time", 0)});
  } else if (kind == "eval") {
    evals.push_back({.step = integer_or_zero(event, "step"),
                     .loss = number_or(event, "eval_loss_nats"),
                     .n_scored_tokens = integer_or_zero(event, "n_scored_tokens"),
                     .time = number_or(event, "unix_time", 0)});
  } else if (kind == "probes") {
    probes.push_back(event);
  } else if (kind == "sample") {
    samples.push_back(event);
  } else if (kind == "note" || kind == "save") {
    notes.push_back(event);
  } else if (kind == "end" || kind == "stopped") {
    status = kind == "end" ? Status::finished : Status::stopped;
  }
}

int64_t RunRecord::n_tokens() const {
  int64_t n = 0;
  for (const StepRecord& step : steps) n += step.n_tokens;
  return n;
}

double RunRecord::seconds() const {
  double sum = 0;
  for (const StepRecord& step : steps) sum += step.seconds;
  return sum;
}

double RunRecord::median_tokens_per_s() const {
  std::vector<double> speeds;
  for (const StepRecord& step : steps)
    if (step.seconds > 0) speeds.push_back(static_cast<double>(step.n_tokens) / step.seconds);
  if (speeds.empty()) return kUnknown;
  const auto middle = speeds.begin() + static_cast<int64_t>(speeds.size() / 2);
  std::nth_element(speeds.begin(), middle, speeds.end());
  return *middle;
}

double RunRecord::final_loss() const {
  const size_t n = std::max<size_t>(1, steps.size() / 10);
  if (steps.empty()) return kUnknown;
  double sum = 0;
  for (size_t i = steps.size() - n; i < steps.size(); ++i) sum += steps[i].loss;
  return sum / static_cast<double>(n);
}

const EvalRecord* RunRecord::best_eval() const {
  const auto best =
      std::min_element(evals.begin(), evals.end(), [](const auto& a, const auto& b) { return a.loss < b.loss; });
  return best == evals.end() ? nullptr : &*best;
}

std::vector<Value> read_json_lines(const fs::path& path) {
  const std::string text = read_file(path, kMaxBytes);
  std::vector<Value> out;
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1)
    out.push_back(parse_json(std::string_view(text).substr(begin, end - begin),
                             fmt::format("{}: line {}", path.string(), out.size() + 1)));
  return out;
}

bool is_run(const fs::path& folder) { return fs::exists(folder / kEvents) || !find_trainer_state(folder).empty(); }

const char* name_of(RunRecord::Status status) {
  switch (status) {
    case RunRecord::Status::finished:
      return "finished";
    case RunRecord::Status::stopped:
      return "stopped";
    case RunRecord::Status::running:
      break;
  }
  return "running";
}

RunRecord read_run(const fs::path& path) {
  const bool is_folder = fs::is_directory(path);
  const fs::path whole = fs::absolute(path), folder = (is_folder ? whole : whole.parent_path()).lexically_normal();
  RunRecord run;
  if (!is_folder) {
    run = read_trainer_state(path);
  } else if (fs::exists(path / kEvents)) {
    run = read_events(path);
  } else {
    const fs::path state = find_trainer_state(path);
    check(!state.empty(), ExitCode::bad_input, "{} is no run folder: it has neither {} nor {}",
          printable(path.string()), kEvents, kState);
    run = read_trainer_state(state);
  }
  run.name = (folder.has_filename() ? folder : folder.parent_path()).filename().string();
  return run;
}

}  // namespace saaz
