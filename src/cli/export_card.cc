// `saaz export card`: what others read of a run, written again from the run folder's own figures.
#include "base/check.h"
#include "base/system.h"
#include "cli/cli.h"
#include "publish/merge.h"
#include "report/charts.h"
#include "report/model_card.h"

namespace saaz {
namespace {

struct CardFlags {
  std::string run, out;
};

int export_card(const CardFlags& flags, const Globals& globals) {
  check(is_run(flags.run), ExitCode::bad_input, "{} is no run folder: it holds no events.jsonl or trainer_state.json",
        printable(flags.run));
  const fs::path out = flags.out.empty() ? flags.run : flags.out;
  make_directories(out);
  const Value certificate = read_certificate(out);
  if (certificate.is_null()) {
    const RunRecord run = read_run(flags.run);
    write_charts(run, out / "charts");
    write_model_card(run, out);
  } else {
    write_merged_card(flags.run, certificate, out);
  }
  log_line(globals, fmt::format("wrote README.md, NOTICE and charts/ into {}", out.string()));
  return 0;
}

}  // namespace

void declare_export_card(Arguments& exports, const Globals& globals, const std::shared_ptr<Action>& chosen) {
  const auto flags = std::make_shared<CardFlags>();
  Arguments card = exports.subcommand(
      "card", "the model card of a run, in Persian and English, with its charts",
      [flags, chosen, &globals] { *chosen = [flags, &globals] { return export_card(*flags, globals); }; });
  card.positional("run", flags->run, "a run folder");
  card.text("-o,--out", flags->out, Arguments::Need::optional,
            "the folder to write, by default the run folder; a merged folder's card gets its certificate's figures");
}

}  // namespace saaz
