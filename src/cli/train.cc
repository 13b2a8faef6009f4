// `saaz train`: a recipe in, a run folder out. Every train.logging_steps-th update is logged for people on stderr; with
// --json every event goes to stdout.
#include <utility>

#include "base/check.h"
#include "base/system.h"
#include "cli/cli.h"
#include "cli/hub.h"
#include "cli/run_probes.h"
#include "cli/watch.h"
#include "train/trainer.h"

namespace saaz {

namespace {

double number(const Value& event, const char* key) {
  const Value* value = event.find(key);
  return value != nullptr && value->is_number() ? value->as_double() : 0;
}

/// One event as a line for people; empty for events that say nothing to them.
std::string event_line(const Value& event) {
  const std::string& kind = event.find("event")->as_string();
  if (kind == "start")
    return fmt::format("training {} parameters in {} modules on {:.0f} samples, {:.0f} steps, {}",
                       number(event, "n_parameters"), number(event, "n_modules"), number(event, "n_samples"),
                       number(event, "max_steps"), event.find("backend")->as_string());
  if (kind == "step") {
    const double left = (number(event, "max_steps") - number(event, "step")) * number(event, "seconds");
    return fmt::format(
        "step {:>4.0f}/{:.0f}  loss {:.4f}  gradient norm {:.3f}  lr {:.2e}  {:.0f} tokens/s  about {:.0f} s left",
        number(event, "step"), number(event, "max_steps"), number(event, "loss_nats"), number(event, "grad_norm"),
        number(event, "learning_rate"), number(event, "tokens_per_s"), left);
  }
  if (kind == "eval")
    return fmt::format("step {:>4.0f}  validation loss {:.4f}, perplexity {:.2f} ({:.0f} tokens)",
                       number(event, "step"), number(event, "eval_loss_nats"), number(event, "eval_perplexity"),
                       number(event, "n_scored_tokens"));
  if (kind == "probes") {
    const Value* health = event.find("health");
    const auto percent = [&](const char* key) {
      const Value* rate = health == nullptr ? nullptr : health->find(key);
      return rate != nullptr && rate->is_number() ? fmt::format("{:.0f} %", 100 * rate->as_double()) : "-";
    };
    return fmt::format(
        "step {:>4.0f}  probes answered in {:.1f} s: half spaces right {}, foreign letters {}, repetition {}",
        number(event, "step"), number(event, "runtime_s"), percent("half_space_accuracy"), percent("foreign_rate"),
        percent("repetition"));
  }
  if (kind == "save") return "saved " + event.find("folder")->as_string();
  if (kind == "note") return "note: " + event.find("text")->as_string();
  if (kind == "stopped") return "stopped by a signal; the run is saved and --resume continues it";
  if (kind == "end") return fmt::format("finished, peak memory {}", bytes_text(number(event, "peak_rss_bytes")));
  return "";
}

}  // namespace

int run_train(const TrainFlags& flags, const Globals& globals) {
  const Recipe recipe = load_recipe(flags.recipe, flags.overrides, fetched_names());
  const std::string& address = flags.watch.empty() ? recipe.report.watch : flags.watch;
  std::unique_ptr<Dashboard> dashboard;
  if (!address.empty()) dashboard = open_dashboard({recipe.output.dir}, {address, flags.allow_anonymous}, globals);
  const std::unique_ptr<Backend> backend = make_backend(globals, recipe.quant.compute_dtype);
  TrainOptions options;
  if (const auto probes = probes_of(recipe)) {
    options.answer_probes = [probes](Backend& on, Model& model) { return probes->answer(on, model); };
    options.probe_bytes = [probes](const Backend& like, const Model& model) { return probes->bytes(like, model); };
  }
  options.accept_changes = flags.accept_changes;
  options.max_memory_bytes = static_cast<int64_t>(flags.max_memory);
  options.max_gpu_memory_bytes = static_cast<int64_t>(flags.max_gpu_memory);
  if (!flags.resume.empty()) {
    options.start = TrainOptions::Start::resume;
    if (flags.resume != "newest") options.checkpoint = flags.resume;
  }
  bool has_begun = false;
  options.on_event = [&](const Value& event) {
    if (globals.json) print_event(event);
    if (event.find("event")->as_string() == "step") {
      const bool is_first = !std::exchange(has_begun, true);
      const int64_t step = event.find("step")->as_integer(), last = event.find("max_steps")->as_integer();
      if (!is_first && step % recipe.train.logging_steps != 0 && step != last) return;
    }
    if (const std::string line = event_line(event); !line.empty()) log_line(globals, without_controls(line));
  };
  const TrainOutcome outcome = train(*backend, recipe, options);
  if (outcome.signal != 0) return signal_exit_code();
  log_line(globals, fmt::format("the adapter is in {}; next: {} merge --base {} --adapter {} --out {}-merged",
                                outcome.run.string(), globals.program, recipe.model.base, outcome.run.string(),
                                outcome.run.string()));
  return 0;
}

}  // namespace saaz
