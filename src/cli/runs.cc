// `saaz runs ls|show|compare|chart`: run folders, ours and those of Hugging Face's Trainer.
#include <algorithm>
#include <cmath>
#include <optional>

#include "base/check.h"
#include "base/system.h"
#include "cli/cli.h"
#include "eval/evaluate.h"
#include "report/charts.h"
#include "report/run_record.h"

namespace saaz {
namespace {

struct RunsFlags {
  std::string folder = "runs", first, second, chart, out;
  int (*run)(const RunsFlags&, const Globals&) = nullptr;
};

/// For people: events do not tell whether the process still lives.
const char* words_of(RunRecord::Status status) {
  return status == RunRecord::Status::running ? "running or killed" : name_of(status);
}

int64_t last_step(const RunRecord& run) { return run.steps.empty() ? 0 : run.steps.back().step; }

/// A figure as text; "-" when it is not known.
std::string figure(double value, int decimals) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, decimals) : "-";
}

/// null in JSON when it is not known.
Value known(double value) { return std::isfinite(value) ? Value(value) : Value(); }

double last_eval(const RunRecord& run) { return run.evals.empty() ? kUnknown : run.evals.back().loss; }
double best_eval(const RunRecord& run) { return run.evals.empty() ? kUnknown : run.best_eval()->loss; }

Value summary(const RunRecord& run) {
  return Value::object({{"name", run.name},
                        {"status", name_of(run.status)},
                        {"step", last_step(run)},
                        {"max_steps", run.max_steps},
                        {"final_train_loss_nats", known(run.final_loss())},
                        {"last_eval_loss_nats", known(last_eval(run))},
                        {"best_eval_loss_nats", known(best_eval(run))},
                        {"n_tokens", run.n_tokens()},
                        {"seconds", run.seconds()},
                        {"median_tokens_per_s", known(run.median_tokens_per_s())},
                        {"peak_rss_bytes", run.peak_bytes}});
}

/// A run's line of the list.
std::string list_line(const RunRecord& run) {
  return fmt::format("{:28} {:18} {:>13} {:>9} {:>11} {:>9} {:>10}\n", without_controls(run.name), words_of(run.status),
                     fmt::format("{}/{}", last_step(run), run.max_steps), figure(run.final_loss(), 4),
                     figure(last_eval(run), 4), figure(run.median_tokens_per_s(), 0),
                     run.peak_bytes > 0 ? bytes_text(static_cast<double>(run.peak_bytes)) : "-");
}

/// The same of a folder whose files cannot be read.
void list_unreadable(const fs::path& folder, const char* reason, const Globals& globals) {
  const std::string name = folder.filename().string();
  if (globals.json)
    print_json(Value::object({{"name", printable(name)}, {"status", "unreadable"}, {"reason", reason}}));
  else
    print_text(fmt::format("{:28} {:18} {}\n", printable(name), "unreadable", without_controls(reason)));
}

/// A folder that cannot be looked into may hold one.
bool may_be_run(const fs::path& folder) {
  try {
    return is_run(folder);
  } catch (const fs::filesystem_error&) {
    return true;
  }
}

void list_run(const fs::path& folder, const Globals& globals) {
  std::optional<RunRecord> run;
  try {
    run = read_run(folder);
  } catch (const Error& error) {
    return list_unreadable(folder, error.what(), globals);
  } catch (const fs::filesystem_error& error) {
    return list_unreadable(folder, error.what(), globals);
  }
  if (globals.json)
    print_json(summary(*run));
  else
    print_text(list_line(*run));
}

int list_runs(const RunsFlags& flags, const Globals& globals) {
  check(fs::is_directory(flags.folder), ExitCode::bad_input, "{} is no folder: name the one that holds the runs",
        printable(flags.folder));
  std::vector<fs::path> folders;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(flags.folder))
    if (entry.is_directory(error) && may_be_run(entry.path())) folders.push_back(entry.path());
  std::sort(folders.begin(), folders.end());
  if (!globals.json && !folders.empty())
    print_text(fmt::format("{:28} {:18} {:>13} {:>9} {:>11} {:>9} {:>10}\n", "run", "status", "updates", "loss",
                           "validation", "tokens/s", "memory"));
  for (const fs::path& folder : folders) list_run(folder, globals);
  if (folders.empty()) log_line(globals, flags.folder + " holds no run");
  return 0;
}

int show_run(const RunsFlags& flags, const Globals& globals) {
  const RunRecord run = read_run(flags.first);
  if (globals.json) {
    Value document = summary(run);
    document.set("recipe", run.recipe);
    return print_json(document), 0;
  }
  std::string out;
  const auto line = [&](std::string_view what, const std::string& value) {
    out += without_controls(fmt::format("{:36} {}\n", what, value));
  };
  line("run", run.name);
  line("status", words_of(run.status));
  line("updates", fmt::format("{}/{}", last_step(run), run.max_steps));
  line("training loss, last tenth (nats)", figure(run.final_loss(), 4));
  for (const EvalRecord& eval : run.evals)
    line(fmt::format("validation loss after {} updates", eval.step), figure(eval.loss, 4));
  line("tokens seen", std::to_string(run.n_tokens()));
  line("speed, median (tokens/s)", figure(run.median_tokens_per_s(), 0));
  line("time in updates (s)", run.seconds() > 0 ? figure(run.seconds(), 1) : "-");
  line("peak memory", run.peak_bytes > 0 ? bytes_text(static_cast<double>(run.peak_bytes)) : "-");
  if (run.recipe.is_object()) out += "\n" + without_controls(to_yaml(run.recipe));
  print_text(out);
  return 0;
}

/// A setting that differs, as both runs have it; an absent one is empty.
struct Difference {
  std::string key, first, second;
};

void collect(const Value& node, const std::string& path, std::vector<std::pair<std::string, std::string>>& out) {
  if (node.is_object()) {
    for (const auto& [key, value] : node.members()) collect(value, path.empty() ? key : path + "." + key, out);
  } else if (!node.is_null()) {
    out.emplace_back(path, node.is_string() ? node.as_string() : to_json(node));
  }
}

std::vector<Difference> recipe_differences(const RunRecord& first, const RunRecord& second) {
  std::vector<std::pair<std::string, std::string>> a, b;
  collect(first.recipe, "", a);
  collect(second.recipe, "", b);
  const auto value_in = [](const auto& list, const std::string& key) {
    const auto at = std::find_if(list.begin(), list.end(), [&](const auto& item) { return item.first == key; });
    return at == list.end() ? std::string() : at->second;
  };
  std::vector<Difference> out;
  for (const auto& [key, value] : a)
    if (const std::string other = value_in(b, key); other != value) out.push_back({key, value, other});
  for (const auto& [key, value] : b)
    if (value_in(a, key).empty()) out.push_back({key, "", value});
  std::erase_if(out, [](const Difference& d) { return d.key == "output.dir"; });
  return out;
}

/// The last line of row_losses.jsonl; null for runs that have none.
Value last_row_losses(const fs::path& run) {
  const fs::path path = run / "row_losses.jsonl";
  if (!fs::exists(path)) return {};
  const std::vector<Value> lines = read_json_lines(path);
  return lines.empty() ? Value() : lines.back();
}

EvalResult to_result(const Value& entry) {
  EvalResult out;
  for (const Value& loss : entry.find("row_losses")->items()) out.row_losses.push_back(loss.as_double());
  for (const Value& n : entry.find("row_tokens")->items()) out.row_tokens.push_back(n.as_integer());
  out.n_rows = static_cast<int64_t>(out.row_losses.size());
  return out;
}

/// Second minus first, row by row, of the last validations, which may be of different updates.
struct PairedValidation {
  PairedDifference difference;
  int64_t first_step, second_step;
};

int64_t step_of(const Value& entry) { return static_cast<int64_t>(number_or(entry, "step", 0)); }

/// Nothing when the two were not validated on the same rows.
std::optional<PairedValidation> paired_validation(const RunsFlags& flags) {
  const Value first = last_row_losses(flags.first), second = last_row_losses(flags.second);
  const std::string rows = text_or_empty(first, "rows_sha256");
  if (rows.empty() || rows != text_or_empty(second, "rows_sha256")) return std::nullopt;
  return PairedValidation{compare(to_result(first), to_result(second)), step_of(first), step_of(second)};
}

Value to_value(const std::optional<PairedValidation>& paired) {
  if (!paired) return {};
  Value out = to_value(paired->difference);
  out.set("first_step", paired->first_step);
  out.set("second_step", paired->second_step);
  return out;
}

Value difference_document(const std::vector<Difference>& differences) {
  Value out = Value::object();
  for (const Difference& d : differences)
    out.set(d.key, Value::object({{"first", d.first.empty() ? Value() : Value(d.first)},
                                  {"second", d.second.empty() ? Value() : Value(d.second)}}));
  return out;
}

std::string comparison_text(const RunRecord& a, const RunRecord& b, const std::vector<Difference>& differences) {
  std::string out;
  const auto line = [&](std::string_view what, const std::string& first, const std::string& second) {
    out += without_controls(fmt::format("{:36} {:>24} {:>24}\n", what, first, second));
  };
  const auto memory = [](const RunRecord& run) {
    return run.peak_bytes > 0 ? bytes_text(static_cast<double>(run.peak_bytes)) : "-";
  };
  const auto seconds = [](const RunRecord& run) { return run.seconds() > 0 ? figure(run.seconds(), 1) : "-"; };
  line("", a.name, b.name);
  for (const Difference& d : differences)
    line(d.key, d.first.empty() ? "-" : d.first, d.second.empty() ? "-" : d.second);
  if (differences.empty() && a.recipe.is_object() && b.recipe.is_object()) out += "the recipes are the same\n";
  line("status", words_of(a.status), words_of(b.status));
  line("updates", fmt::format("{}/{}", last_step(a), a.max_steps), fmt::format("{}/{}", last_step(b), b.max_steps));
  line("training loss, last tenth (nats)", figure(a.final_loss(), 4), figure(b.final_loss(), 4));
  line("validation loss, last (nats)", figure(last_eval(a), 4), figure(last_eval(b), 4));
  line("validation loss, best (nats)", figure(best_eval(a), 4), figure(best_eval(b), 4));
  line("speed, median (tokens/s)", figure(a.median_tokens_per_s(), 0), figure(b.median_tokens_per_s(), 0));
  line("time in updates (s)", seconds(a), seconds(b));
  line("peak memory", memory(a), memory(b));
  return out;
}

int compare_runs(const RunsFlags& flags, const Globals& globals) {
  const RunRecord runs[] = {read_run(flags.first), read_run(flags.second)};
  const std::vector<Difference> differences = recipe_differences(runs[0], runs[1]);
  const std::optional<PairedValidation> paired = paired_validation(flags);
  if (globals.json) {
    print_json(Value::object({{"schema_version", 1},
                              {"first", summary(runs[0])},
                              {"second", summary(runs[1])},
                              {"recipe", difference_document(differences)},
                              {"paired_validation", to_value(paired)}}));
  } else {
    print_text(comparison_text(runs[0], runs[1], differences));
    if (paired)
      print_text(fmt::format("validation, second (update {}) against first (update {}): {}", paired->second_step,
                             paired->first_step, to_text(paired->difference)));
  }
  if (flags.chart.empty()) return 0;
  write_file_atomically(flags.chart, to_svg(comparison_chart(runs)));
  log_line(globals, "wrote " + flags.chart);
  return 0;
}

int chart_run(const RunsFlags& flags, const Globals& globals) {
  const RunRecord run = read_run(flags.first);
  check(!run.steps.empty(), ExitCode::bad_input, "{} has no update yet: there is nothing to draw",
        printable(flags.first));
  const fs::path path = flags.first;
  const fs::path out =
      !flags.out.empty() ? fs::path(flags.out) : (fs::is_directory(path) ? path : path.parent_path()) / "charts";
  write_charts(run, out);
  log_line(globals, fmt::format("wrote loss.svg, grad_norm.svg and learning_rate.svg into {}", out.string()));
  return 0;
}

}  // namespace

Action declare_runs(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<RunsFlags>();
  RunsFlags& f = *flags;
  Arguments list = arguments.subcommand("ls", "list the runs in a folder", [&f] { f.run = list_runs; });
  list.text("--in", f.folder, Arguments::Need::optional, "the folder that holds the run folders (runs)");
  Arguments show = arguments.subcommand("show", "one run: losses, speed, memory, recipe", [&f] { f.run = show_run; });
  show.positional("run", f.first, "a run folder, or a trainer_state.json");
  Arguments compare = arguments.subcommand("compare", "two runs side by side: recipes, losses, speed, memory",
                                           [&f] { f.run = compare_runs; });
  compare.positional("first", f.first, "a run folder, or a trainer_state.json");
  compare.positional("second", f.second, "another");
  compare.text("--chart", f.chart, Arguments::Need::optional, "an SVG file to draw both losses into");
  Arguments chart = arguments.subcommand("chart", "draw a run's loss, gradient norm and learning rate as SVG",
                                         [&f] { f.run = chart_run; });
  chart.positional("run", f.first, "a run folder, or a trainer_state.json");
  chart.text("--out", f.out, Arguments::Need::optional, "the folder to write; by default charts/ in the run folder");
  return [flags, &globals] { return flags->run(*flags, globals); };
}

}  // namespace saaz
