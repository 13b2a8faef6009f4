// `saaz data inspect|preview|validate`: what training data looks like to the model.
#include <limits>

#include "base/check.h"
#include "cli/session.h"
#include "data/report.h"
#include "model/base_tokenizer.h"

namespace saaz {
namespace {

struct DataFlags {
  std::vector<std::string> files;
  std::string model;
  EncodeOptions encode{2048, LossOn::assistant};
  int64_t row = 1;
  int (*run)(const DataFlags&, const Globals&) = nullptr;
};

std::vector<Row> load_all(const std::vector<std::string>& paths, BadRows& bad) {
  std::vector<Row> rows;
  for (const std::string& path : paths)
    for (const fs::path& file : find_data_files(path, Split::train)) {
      std::vector<Row> more = load_rows(file, DataFormat::automatic, bad);
      rows.insert(rows.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
    }
  return rows;
}

int inspect_data(const DataFlags& flags, const Globals& globals) {
  const Tokenizer tokenizer = load_base_tokenizer(flags.model);
  BadRows bad(std::numeric_limits<int64_t>::max());
  const std::vector<Row> rows = load_all(flags.files, bad);
  const DataReport report = inspect(tokenizer, rows, flags.encode, bad.reasons());
  if (globals.json)
    print_json(to_value(report));
  else
    print_text(to_text(report));
  return 0;
}

int preview_data(const DataFlags& flags, const Globals& globals) {
  const Tokenizer tokenizer = load_base_tokenizer(flags.model);
  BadRows bad(0);
  const std::vector<Row> rows = load_all(flags.files, bad);
  check(flags.row <= static_cast<int64_t>(rows.size()), ExitCode::usage, "--row {}: there are only {} rows", flags.row,
        rows.size());
  const Row& row = rows[static_cast<size_t>(flags.row - 1)];
  log_line(globals, row.place());
  print_text(preview(tokenizer, row, flags.encode, globals.colours ? Colours::ansi : Colours::none));
  return 0;
}

int validate_data(const DataFlags& flags, const Globals& globals) {
  const Tokenizer tokenizer = load_base_tokenizer(flags.model);
  BadRows bad(std::numeric_limits<int64_t>::max());
  const EncodedRows encoded = encode_rows(tokenizer, load_all(flags.files, bad), flags.encode, bad);
  for (const std::string& reason : bad.reasons()) {
    if (globals.json)
      print_json(Value::object({{"error", reason}}));
    else
      print_text(reason + "\n");
  }
  log_line(globals, fmt::format("{} rows are good, {} are not", encoded.rows.size(), bad.reasons().size()));
  return static_cast<int>(bad.reasons().empty() ? ExitCode::ok : ExitCode::bad_input);
}

}  // namespace

Action declare_data(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<DataFlags>();
  DataFlags& f = *flags;
  const auto declare = [&](const char* name, const char* doc, int (*run)(const DataFlags&, const Globals&)) {
    Arguments command = arguments.subcommand(name, doc, [&f, run] { f.run = run; });
    command.positionals("files", f.files, "JSONL or JSON files, or folders with train.jsonl");
    command.text("--model", f.model, Arguments::Need::required, "the base whose tokenizer counts");
    declare_encoding(command, f.encode);
    return command;
  };
  declare("inspect", "counts, lengths and letters of all rows", inspect_data);
  Arguments preview = declare("preview", "one row as tokens, scored and masked told apart", preview_data);
  preview.integer("--row", f.row, 1, std::numeric_limits<int64_t>::max(), "which row");
  declare("validate", "read every row; list those that cannot be used", validate_data);
  return [flags, &globals] { return flags->run(*flags, globals); };
}

}  // namespace saaz
