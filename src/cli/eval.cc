// `saaz eval`: loss and perplexity of a base, a base with an adapter, or a merged model, on any data file.
#include "eval/evaluate.h"

#include "base/check.h"
#include "cli/end_at_stop.h"
#include "cli/session.h"

namespace saaz {
namespace {

struct EvalFlags {
  ModelFlags model;
  std::vector<std::string> data;
  EncodeOptions encode{2048, LossOn::assistant};
  bool against_base = false;
};

std::vector<Sample> load_samples(const EvalFlags& flags, const Tokenizer& tokenizer) {
  BadRows bad(0);
  std::vector<Row> rows;
  for (const std::string& path : flags.data)
    for (const fs::path& file : find_data_files(path, Split::validation)) {
      std::vector<Row> more = load_rows(file, DataFormat::automatic, bad);
      rows.insert(rows.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
    }
  check(!rows.empty(), ExitCode::bad_input, "{}: no validation file there; name the file itself",
        printable(flags.data[0]));
  return encode_rows(tokenizer, std::move(rows), flags.encode, bad).samples;
}

int run_eval(const EvalFlags& flags, const Globals& globals) {
  const EndAtStop nothing_is_lost;
  check(!flags.against_base || !flags.model.adapter.empty(), ExitCode::usage, "--against-base needs --adapter");
  Session session(flags.model, globals, Session::Purpose::figures);
  const std::vector<Sample> samples = load_samples(flags, session.tokenizer());
  session.load(flags.encode.max_seq_length);
  session.attach_adapter();
  const auto evaluate = [&] {
    return evaluate_loss(session.backend(), session.model(), samples, flags.encode.max_seq_length);
  };
  const EvalResult result = evaluate();
  Value document = to_value(result);
  std::string text = to_text(result);
  if (flags.against_base) {
    session.adapter()->detach();
    const EvalResult base = evaluate();
    const PairedDifference difference = compare(base, result);
    document.set("base", to_value(base));
    document.set("difference", to_value(difference));
    text += "\nwithout the adapter\n" + to_text(base) + "\n" + to_text(difference);
  }
  document.set("schema_version", 1);
  if (globals.json)
    print_json(document);
  else
    print_text(text);
  return 0;
}

}  // namespace

Action declare_eval(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<EvalFlags>();
  declare_model(arguments, flags->model);
  arguments.texts("--data", flags->data, Arguments::Need::required,
                  "a JSONL, JSON or Parquet file; may be given again");
  declare_encoding(arguments, flags->encode);
  arguments.toggle("--against-base", flags->against_base, "also without the adapter, and the paired difference");
  return [flags, &globals] { return run_eval(*flags, globals); };
}

}  // namespace saaz
