// `saaz push`: a folder to the hub, as one commit. The commit's address is what stdout gets.
#include "hub/push.h"

#include "base/check.h"
#include "cli/hub.h"

namespace saaz {
namespace {

struct PushFlags {
  HubFlags hub;
  std::string folder, repo, revision = "main";
  PushOptions options;
  bool is_dataset = false, dry_run = false, with_logs = false;
};

void print_plan(const PushPlan& plan, const RepoRevision& to, const Globals& globals) {
  if (globals.json) {
    for (const PushFile& file : plan.files)
      print_json(Value::object({{"path", file.path}, {"size", file.size}, {"way", file.is_large ? "lfs" : "inline"}}));
    return;
  }
  uint64_t total = 0;
  for (const PushFile& file : plan.files) {
    total += file.size;
    print_text(fmt::format("{:6}  {:>12}  {}\n", file.is_large ? "lfs" : "inline",
                           bytes_text(static_cast<double>(file.size)), printable(file.path)));
  }
  print_text(fmt::format("{} files, {}, to {} at {}\n", plan.files.size(), bytes_text(static_cast<double>(total)),
                         to.repo.id, to.revision));
}

int run_push(const PushFlags& flags, const Globals& globals) {
  RepoRevision to = parse_repo(flags.repo, flags.is_dataset ? RepoKind::dataset : RepoKind::model);
  check_revision(flags.revision);
  to.revision = flags.revision;
  HubSettings settings = hub_settings(flags.hub, globals);
  const PushPlan plan = plan_push(flags.folder, settings.token, flags.with_logs ? RunLogs::go : RunLogs::stay);
  for (const std::string& path : plan.left_out) log_line(globals, "left out: " + printable(path));
  if (!plan.logs.empty())
    log_line(globals,
             fmt::format("left out, as they show training rows and paths of this machine (--with-logs sends them): {}",
                         printable(fmt::format("{}", fmt::join(plan.logs, ", ")), 1000)));
  if (flags.dry_run) {
    print_plan(plan, to, globals);
    return 0;
  }
  HubClient hub(std::move(settings));
  const PushResult result = push_folder(hub, flags.folder, plan, to, flags.options, hub_home() / "saaz-uploads");
  log_line(globals, fmt::format("{} files sent, {} were there already; {} by LFS", result.n_sent, result.n_unchanged,
                                bytes_text(static_cast<double>(result.bytes_sent))));
  if (globals.json)
    print_json(Value::object({{"schema_version", 1},
                              {"repo", to.repo.id},
                              {"revision", to.revision},
                              {"commit_url", result.commit_url},
                              {"n_sent", static_cast<int64_t>(result.n_sent)},
                              {"n_unchanged", static_cast<int64_t>(result.n_unchanged)},
                              {"bytes_sent", result.bytes_sent}}));
  else
    print_text((result.commit_url.empty() ? hub.web_address(to.repo) : result.commit_url) + "\n");
  return 0;
}

}  // namespace

Action declare_push(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<PushFlags>();
  arguments.positional("folder", flags->folder, "a merged model, an adapter, or any folder");
  arguments.positional("repo", flags->repo, "owner/name; made if it is not there");
  arguments.text("--revision", flags->revision, Arguments::Need::optional,
                 "the branch; made if it is not there (main)");
  arguments.text("--message", flags->options.message, Arguments::Need::optional, "of the commit");
  arguments.toggle("--private", flags->options.make_private, "a repository that only you see");
  arguments.toggle("--dataset", flags->is_dataset, "a dataset, not a model");
  arguments.toggle("--with-logs", flags->with_logs,
                   "also a run's events, recipe, state and trackers' files: they show training rows and paths");
  arguments.toggle("--dry-run", flags->dry_run, "list what would go and how; no network");
  declare_hub(arguments, flags->hub);
  return [flags, &globals] { return run_push(*flags, globals); };
}

}  // namespace saaz
