// `saaz data`: what training data looks like to the model, what is wrong with it, and how it is put right.
#include "cli/data.h"

#include <limits>

#include "cli/end_at_stop.h"
#include "cli/hub.h"
#include "cli/session.h"
#include "data/report.h"
#include "model/base_tokenizer.h"

namespace saaz {
namespace {

struct InspectFlags {
  std::vector<std::string> files;
  std::string model;
  EncodeOptions encode{2048, LossOn::assistant};
};

int inspect_data(const InspectFlags& flags, const Globals& globals) {
  const EndAtStop nothing_is_lost;
  const Tokenizer tokenizer = load_tokenizer_alone(find_model(flags.model));
  BadRows bad(std::numeric_limits<int64_t>::max());
  const std::vector<Row> rows = load_all(flags.files, bad);
  const DataReport report = inspect(tokenizer, rows, flags.encode, bad.reasons());
  if (globals.json)
    print_json(to_value(report));
  else
    print_text(to_text(report));
  return 0;
}

void declare_data_inspect(Arguments& data, const Globals& globals, Action& chosen) {
  const auto flags = std::make_shared<InspectFlags>();
  Arguments command = data.subcommand("inspect", "counts, lengths and letters of all rows", [flags, &globals, &chosen] {
    chosen = [flags, &globals] { return inspect_data(*flags, globals); };
  });
  command.positionals("files", flags->files, "JSONL, JSON or Parquet files, or folders with train.jsonl");
  command.text("--model", flags->model, Arguments::Need::required, "the base whose tokenizer counts");
  declare_encoding(command, flags->encode);
}

}  // namespace

std::vector<Row> load_all(const std::vector<std::string>& paths, BadRows& bad) {
  std::vector<Row> rows;
  for (const std::string& path : paths)
    for (const fs::path& file : find_data_files(path, Split::train)) {
      std::vector<Row> more = load_rows(file, DataFormat::automatic, bad);
      rows.insert(rows.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
    }
  return rows;
}

Action declare_data(Arguments& arguments, const Globals& globals) {
  const auto chosen = std::make_shared<Action>();
  declare_data_inspect(arguments, globals, *chosen);
  declare_data_validate(arguments, globals, *chosen);
  declare_data_normalize(arguments, globals, *chosen);
  declare_data_preview(arguments, globals, *chosen);
  return [chosen] { return (*chosen)(); };
}

}  // namespace saaz
