// `saaz plan`: what a training run needs on this machine, before it starts: memory by kind, time, tokens, updates,
// disk; and the smallest change that fits when it does not.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/system.h"
#include "cli/cli.h"
#include "cli/hub.h"
#include "cli/run_probes.h"
#include "train/planner.h"

namespace saaz {
namespace {

constexpr double kTrialSeconds = 6;

struct PlanFlags {
  std::string recipe;
  std::vector<std::string> overrides;
  uint64_t max_memory = 0, max_gpu_memory = 0;
  bool counts_only = false;
};

/// All that is said.
struct Outlook {
  std::string backend;
  RunPlan plan;
  MemoryLimits limits;
  uint64_t free_disk = 0;
  std::optional<RunTime> time;
  std::optional<SmallerRun> smaller;

  bool fits_memory() const { return fits(plan, limits); }
  bool fits_disk() const { return static_cast<uint64_t>(plan.run_folder_bytes) <= free_disk; }
};

MemoryLimits limits_of(const PlanFlags& flags, const Backend& backend) {
  MemoryLimits limits{.host = static_cast<int64_t>(available_memory_bytes() + rss_bytes()),
                      .device = backend.own_total_bytes()};
  if (limits.device && flags.max_gpu_memory > 0)
    limits.device = std::min(*limits.device, static_cast<int64_t>(flags.max_gpu_memory));
  if (flags.max_memory > 0) limits.host = std::min(limits.host, static_cast<int64_t>(flags.max_memory));
  return limits;
}

/// Free bytes where the folder is, or will be made.
uint64_t free_disk_bytes(fs::path folder) {
  std::error_code error;
  for (folder = fs::absolute(folder).lexically_normal(); !fs::exists(folder, error) && folder.has_relative_path();)
    folder = folder.parent_path();
  const fs::space_info space = fs::space(folder, error);
  return error ? 0 : space.available;
}

Value parts_value(const RunPlan::Parts& parts) {
  Value out = Value::object();
  for (const auto& [name, bytes] : parts) out.set(name, bytes);
  return out;
}

Value changes_value(const std::vector<std::string>& changes) {
  Value out = Value::array();
  for (const std::string& change : changes) out.push_back(change);
  return out;
}

Value to_value(const Outlook& o) {
  const RunPlan& plan = o.plan;
  Value out = Value::object({{"schema_version", 1},
                             {"backend", o.backend},
                             {"memory_bytes", parts_value(plan.host)},
                             {"total_memory_bytes", plan.host_bytes()},
                             {"memory_limit_bytes", o.limits.host},
                             {"fits", o.fits_memory() && o.fits_disk()},
                             {"n_parameters", plan.n_parameters},
                             {"n_samples", plan.n_samples},
                             {"n_updates", plan.n_updates},
                             {"n_validations", plan.n_validations},
                             {"n_probe_rounds", plan.n_probe_rounds},
                             {"n_checkpoints", plan.n_checkpoints},
                             {"largest_micro_batch_tokens", plan.largest_micro_batch},
                             {"epoch_tokens", plan.epoch_tokens},
                             {"epoch_scored_tokens", plan.epoch_scored},
                             {"run_tokens", plan.run_tokens},
                             {"run_flops", plan.run_flops},
                             {"run_folder_bytes", plan.run_folder_bytes},
                             {"free_disk_bytes", o.free_disk},
                             {"merged_bytes", plan.merged_bytes}});
  out.set("recomputed_layers", plan.recompute.n_segments >= 1 << 30 ? Value("all") : Value(plan.recompute.n_segments));
  if (o.limits.device) {
    out.set("gpu_dense_weights", plan.residence.dense_weights);
    out.set("gpu_tables", plan.residence.tables);
    out.set("layer_inputs_on_host", plan.recompute.inputs_on_host);
    out.set("gpu_memory_bytes", parts_value(plan.device));
    out.set("total_gpu_memory_bytes", plan.device_bytes());
    out.set("gpu_memory_limit_bytes", *o.limits.device);
  }
  if (o.time)
    out.set("time", Value::object({{"load_s", o.time->load},
                                   {"update_s", o.time->update},
                                   {"validation_s", o.time->validation},
                                   {"probe_round_s", o.time->probe_round},
                                   {"total_s", o.time->total},
                                   {"tokens_per_s", o.time->tokens_per_s},
                                   {"relative_error", o.time->relative_error},
                                   {"n_trials", o.time->n_trials},
                                   {"peak_rss_bytes", o.time->peak_bytes}}));
  if (!o.fits_memory()) out.set("smallest_change", o.smaller ? changes_value(o.smaller->changes) : Value());
  return out;
}

std::string size_text(int64_t bytes) { return bytes_text(static_cast<double>(bytes)); }

/// "2 h 5 min", "3 min 20 s", "8 s"
std::string duration_text(double seconds) {
  const auto s = static_cast<int64_t>(std::llround(seconds));
  if (s >= 3600) return fmt::format("{} h {} min", s / 3600, s % 3600 / 60);
  if (s >= 60) return fmt::format("{} min {} s", s / 60, s % 60);
  return seconds < 10 ? fmt::format("{:.1f} s", seconds) : fmt::format("{} s", s);
}

std::string memory_text(const char* title, const RunPlan::Parts& parts, int64_t limit) {
  std::string out = std::string(title) + "\n";
  for (const auto& [name, bytes] : parts) out += fmt::format("  {:28} {:>12}\n", name, size_text(bytes));
  out += fmt::format("  {:28} {:>12}  (the run's peak, to 5 %)\n", "together", size_text(RunPlan::sum(parts)));
  return out + fmt::format("  {:28} {:>12}\n", "there is", size_text(limit));
}

std::string time_text(const Outlook& o) {
  if (!o.time) return "";
  const RunTime& time = *o.time;
  std::string out =
      fmt::format("time\n  about {}, give or take {:.0f} % (of {} trials; other work on the machine comes on top)\n",
                  duration_text(time.total), 100 * time.relative_error, time.n_trials);
  out += fmt::format("  load {}, {} updates of {}", duration_text(time.load), o.plan.n_updates,
                     duration_text(time.update));
  if (o.plan.n_validations > 0)
    out += fmt::format(", {} validations of {}", o.plan.n_validations, duration_text(time.validation));
  if (o.plan.n_probe_rounds > 0)
    out += fmt::format(", {} rounds of probes of at most {}", o.plan.n_probe_rounds, duration_text(time.probe_round));
  return out + fmt::format("; {:.0f} tokens/s\n", time.tokens_per_s);
}

std::string verdict_text(const Outlook& o) {
  std::string out;
  if (!o.fits_disk())
    out += fmt::format("this does not fit on the disk: free {}, or set output.save_total_limit lower\n",
                       size_text(o.plan.run_folder_bytes - static_cast<int64_t>(o.free_disk)));
  if (o.fits_memory()) return out + (out.empty() ? "this fits\n" : "");
  if (!o.smaller) return out + "this does not fit into memory, nor does any smaller run: take a smaller model\n";
  out += fmt::format("this does not fit into memory; the smallest change that does ({}):\n ",
                     size_text(o.limits.device ? o.smaller->plan.device_bytes() : o.smaller->plan.host_bytes()));
  for (const std::string& change : o.smaller->changes) out += " --set " + change;
  return out + "\n";
}

std::string recompute_text(const Recompute& recompute) {
  if (recompute == Recompute::none) return "nothing recomputed";
  if (recompute.inputs_on_host) return "every layer recomputed, layer inputs in host memory";
  if (recompute == Recompute::layer) return "every layer recomputed";
  return fmt::format("the first {} of the layers recomputed", recompute.n_segments);
}

std::string to_text(const Outlook& o) {
  const RunPlan& plan = o.plan;
  std::string out = o.backend + "\n" + memory_text("memory", plan.host, o.limits.host);
  if (o.limits.device) {
    out += memory_text("GPU memory, as its driver counts", plan.device, *o.limits.device);
    out += fmt::format("  {}, {}\n", plan.residence.dense_weights ? "weights dequantised once" : "weights as stored",
                       recompute_text(plan.recompute));
  }
  out += time_text(o);
  out += fmt::format("work\n  {} trained parameters, {} samples, {} updates\n", plan.n_parameters, plan.n_samples,
                     plan.n_updates);
  out += fmt::format("  {} tokens an epoch, {} of them scored; largest micro-batch {} tokens\n", plan.epoch_tokens,
                     plan.epoch_scored, plan.largest_micro_batch);
  out += fmt::format("  the run: {:.0f} tokens, {:.3g} FLOP\n", plan.run_tokens, plan.run_flops);
  out += fmt::format("disk\n  run folder about {}, there is {}; a merged model {}\n", size_text(plan.run_folder_bytes),
                     bytes_text(static_cast<double>(o.free_disk)), size_text(plan.merged_bytes));
  return out + verdict_text(o);
}

int run_plan(const PlanFlags& flags, const Globals& globals) {
  const Recipe recipe = load_recipe(flags.recipe, flags.overrides, fetched_names());
  const std::unique_ptr<Backend> backend = make_backend(globals, recipe.quant.compute_dtype);
  ProbeCosts costs;
  if (const auto probes = probes_of(recipe)) {
    costs.bytes = [probes](const Backend& like, const Model& model) { return probes->bytes(like, model); };
    costs.seconds = [probes](Backend& on, Model& model) { return probes->seconds(on, model); };
  }
  const MemoryLimits limits = limits_of(flags, *backend);
  const Planner planner(recipe, *backend, limits.device, costs);
  Outlook outlook{.backend = backend->describe(),
                  .plan = planner.plan(),
                  .limits = limits,
                  .free_disk = free_disk_bytes(recipe.output.dir),
                  .time = {},
                  .smaller = {}};
  if (!outlook.fits_memory()) {
    outlook.smaller = planner.smallest_change(outlook.limits);
  } else if (!flags.counts_only) {
    log_line(globals, "trying a few micro-batches (--counts-only leaves them out)");
    outlook.time = planner.measure(*backend, outlook.plan, kTrialSeconds);
    if (const int code = signal_exit_code(); code != 0) return code;
  }
  if (globals.json)
    print_json(to_value(outlook));
  else
    print_text(to_text(outlook));
  return outlook.fits_memory() && outlook.fits_disk() ? 0 : static_cast<int>(ExitCode::resource);
}

}  // namespace

Action declare_plan(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<PlanFlags>();
  arguments.positional("recipe", flags->recipe, "a recipe file");
  arguments.texts("--set", flags->overrides, Arguments::Need::optional, "key.path=value: overrides the recipe");
  arguments.bytes("--max-memory", flags->max_memory, "plan for no more memory than this, like 1500MiB");
  arguments.bytes("--max-gpu-memory", flags->max_gpu_memory, "plan for no more of the GPU's memory in use, like 6GiB");
  arguments.toggle("--counts-only", flags->counts_only, "run nothing: no figures of time");
  return [flags, &globals] { return run_plan(*flags, globals); };
}

}  // namespace saaz
