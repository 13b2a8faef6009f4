// `saaz data validate` and `saaz data normalize`: what is wrong with training data, and putting right what can be.
#include <limits>

#include "base/check.h"
#include "cli/data.h"
#include "cli/end_at_stop.h"
#include "cli/hub.h"
#include "cli/session.h"
#include "data/normalize_file.h"
#include "data/validate.h"
#include "model/base_tokenizer.h"

namespace saaz {
namespace {

struct ValidateFlags {
  std::vector<std::string> files;
  std::string against, model;
  EncodeOptions encode{2048, LossOn::assistant};
};

/// Rows that cannot be used are bad input; rows that the evaluation file holds as well fail a check that was asked for.
ExitCode exit_code(const Validation& validation) {
  if (!validation.bad_rows.empty()) return ExitCode::bad_input;
  return validation.overlaps.empty() ? ExitCode::ok : ExitCode::verification;
}

int validate_data(const ValidateFlags& flags, const Globals& globals) {
  const EndAtStop nothing_is_lost;
  BadRows bad(std::numeric_limits<int64_t>::max()), none(0);
  std::vector<Row> rows = load_all(flags.files, bad);
  std::vector<Row> against;
  if (!flags.against.empty())
    for (const fs::path& file : find_data_files(flags.against, Split::validation))
      for (Row& row : load_rows(file, DataFormat::automatic, none)) against.push_back(std::move(row));
  check(flags.against.empty() || !against.empty(), ExitCode::bad_input,
        "--against {}: no validation file there; name the file itself", printable(flags.against));
  Validation validation = validate(rows, against);
  validation.license = find_license(rows, rows.front().file);
  if (!flags.model.empty()) {
    const Tokenizer tokenizer = load_tokenizer_alone(find_model(flags.model));
    validation.tokens = inspect(tokenizer, rows, flags.encode, {});
    encode_rows(tokenizer, std::move(rows), flags.encode, bad);
  }
  validation.bad_rows = bad.reasons();
  if (globals.json)
    print_json(to_value(validation));
  else
    print_text(to_text(validation));
  return static_cast<int>(exit_code(validation));
}

struct NormalizeFlags {
  std::string file, out, patch, revert;
  NormalizeOptions options;
};

int normalize_data(const NormalizeFlags& flags, const Globals& globals) {
  const MappedFile mapped(flags.file);
  const std::string_view bytes(reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size());
  if (!flags.revert.empty()) {
    write_file_atomically(flags.out, revert_lines(bytes, read_file(flags.revert), flags.revert));
    log_line(globals, fmt::format("wrote {}: {} as it was before", flags.out, flags.file));
    return 0;
  }
  const NormalizedFile result = [&] {
    const EndAtStop nothing_is_written_yet;
    return normalize_lines(json_lines_of(bytes, flags.file), flags.file, flags.options);
  }();
  const std::string patch = flags.patch.empty() ? flags.out + ".patch" : flags.patch;
  // The patch first: where the file is, what undoes it is.
  write_file_atomically(patch, result.patch);
  write_file_atomically(flags.out, result.lines);
  if (globals.json)
    print_json(to_value(result));
  else
    print_text(to_text(result));
  log_line(globals, fmt::format("wrote {}; 'saaz data normalize {} --revert {} -o FILE' undoes it", flags.out,
                                flags.out, patch));
  return 0;
}

}  // namespace

void declare_data_validate(Arguments& data, const Globals& globals, Action& chosen) {
  const auto flags = std::make_shared<ValidateFlags>();
  Arguments command = data.subcommand(
      "validate", "bad rows, duplicates, overlap, spelling, encoding and licence",
      [flags, &globals, &chosen] { chosen = [flags, &globals] { return validate_data(*flags, globals); }; });
  command.positionals("files", flags->files, "JSONL, JSON or Parquet files, or folders with train.jsonl");
  command.text("--against", flags->against, Arguments::Need::optional,
               "an evaluation file; exit code 8 when a row of it is among the files' rows");
  command.text("--model", flags->model, Arguments::Need::optional, "a base: count its tokens, too");
  declare_encoding(command, flags->encode);
}

void declare_data_normalize(Arguments& data, const Globals& globals, Action& chosen) {
  const auto flags = std::make_shared<NormalizeFlags>();
  Arguments command = data.subcommand(
      "normalize", "write Persian text in one spelling, with a patch that undoes it",
      [flags, &globals, &chosen] { chosen = [flags, &globals] { return normalize_data(*flags, globals); }; });
  command.positional("file", flags->file, "a JSONL, JSON or Parquet file");
  command.text("-o,--out", flags->out, Arguments::Need::required, "the JSONL file to write");
  command.text("--patch", flags->patch, Arguments::Need::optional, "where the patch goes (OUT.patch)");
  command.text("--revert", flags->revert, Arguments::Need::optional, "a patch: write the file as it was before");
  NormalizeOptions& options = flags->options;
  command.choice("--digits", options.digits, {{"keep", Digits::keep}, {"fa", Digits::fa}, {"en", Digits::en}},
                 "Arabic digits become Persian (fa); with en both become Latin");
  command.choice("--heh-yeh", options.heh_yeh, {{"keep", HehYeh::keep}, {"hamza", HehYeh::hamza}, {"ye", HehYeh::ye}},
                 "the one form of هٔ and ۀ (hamza)");
  command.toggle("--strip-harakat", options.strip_harakat, "remove short vowel marks");
  command.toggle("--fix-affixes", options.fix_affixes, "half spaces for می, ها and تر that are written apart");
}

}  // namespace saaz
