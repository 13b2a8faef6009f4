// `saaz bundle export|import`: a fetched repository in one file, for machines without a network.
#include "hub/bundle.h"

#include "base/check.h"
#include "cli/hub.h"

namespace saaz {
namespace {

struct BundleFlags {
  std::string repo, tar;
  bool is_dataset = false;
  std::function<BundleResult(const BundleFlags&)> run;
};

BundleResult run_export(const BundleFlags& flags) {
  check(!fs::exists(flags.tar), ExitCode::in_use, "{} exists already: remove it or choose another name",
        printable(flags.tar));
  return export_bundle(fs::absolute(hub_cache()),
                       parse_repo(flags.repo, flags.is_dataset ? RepoKind::dataset : RepoKind::model), flags.tar);
}

BundleResult run_import(const BundleFlags& flags) { return import_bundle(fs::absolute(hub_cache()), flags.tar); }

int run_bundle(const BundleFlags& flags, const Globals& globals) {
  const BundleResult result = flags.run(flags);
  log_line(globals, fmt::format("{} at {}: {} files, {}, all verified", result.what.repo.id, result.commit,
                                result.n_files, bytes_text(static_cast<double>(result.bytes))));
  if (globals.json)
    print_json(Value::object({{"schema_version", 1},
                              {"repo", result.what.repo.id},
                              {"kind", result.what.repo.kind_name()},
                              {"revision", result.what.revision},
                              {"commit", result.commit},
                              {"bundle", flags.tar},
                              {"snapshot", result.snapshot.string()},
                              {"n_files", static_cast<int64_t>(result.n_files)},
                              {"bytes", result.bytes}}));
  else
    print_text((flags.repo.empty() ? result.snapshot.string() : flags.tar) + "\n");
  return 0;
}

}  // namespace

Action declare_bundle(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<BundleFlags>();
  Arguments writing =
      arguments.subcommand("export", "a fetched repository into one file", [flags] { flags->run = run_export; });
  writing.positional("repo", flags->repo, "owner/name, or owner/name@revision");
  writing.text("-o,--out", flags->tar, Arguments::Need::required, "the .tar to write");
  writing.toggle("--dataset", flags->is_dataset, "a dataset, not a model");
  Arguments reading =
      arguments.subcommand("import", "such a file into the cache, verified", [flags] { flags->run = run_import; });
  reading.positional("file", flags->tar, "a .tar of 'saaz bundle export'");
  return [flags, &globals] { return run_bundle(*flags, globals); };
}

}  // namespace saaz
