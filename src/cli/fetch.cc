// `saaz fetch`: a repository of the hub into the cache. The snapshot's folder is what stdout gets.
#include "hub/fetch.h"

#include "base/check.h"
#include "cli/hub.h"

namespace saaz {
namespace {

struct FetchFlags {
  HubFlags hub;
  std::string repo;
  std::vector<std::string> include;
  bool is_dataset = false;
};

int run_fetch(const FetchFlags& flags, const Globals& globals) {
  const RepoRevision wanted = parse_repo(flags.repo, flags.is_dataset ? RepoKind::dataset : RepoKind::model);
  HubClient hub(hub_settings(flags.hub, globals));
  const FetchResult result = fetch_repository(hub, wanted, flags.include);
  log_line(globals, fmt::format("{} files of {} at {}; {} fetched, {}", result.n_files, wanted.repo.id, result.commit,
                                result.n_fetched, bytes_text(static_cast<double>(result.bytes_fetched))));
  if (globals.json)
    print_json(Value::object({{"schema_version", 1},
                              {"repo", wanted.repo.id},
                              {"kind", wanted.repo.kind_name()},
                              {"revision", wanted.revision},
                              {"commit", result.commit},
                              {"snapshot", result.snapshot.string()},
                              {"n_files", static_cast<int64_t>(result.n_files)},
                              {"n_fetched", static_cast<int64_t>(result.n_fetched)},
                              {"bytes_fetched", result.bytes_fetched}}));
  else
    print_text(result.snapshot.string() + "\n");
  return 0;
}

}  // namespace

Action declare_fetch(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<FetchFlags>();
  arguments.positional("repo", flags->repo, "owner/name, or owner/name@revision (a branch, tag or commit)");
  arguments.texts("--include", flags->include, Arguments::Need::optional,
                  "only files that match, like '*.json'; may be given again");
  arguments.toggle("--dataset", flags->is_dataset, "a dataset, not a model");
  arguments.toggle("--offline", flags->hub.offline, "from the cache alone (HF_HUB_OFFLINE)");
  declare_hub(arguments, flags->hub);
  return [flags, &globals] { return run_fetch(*flags, globals); };
}

}  // namespace saaz
