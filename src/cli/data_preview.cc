// `saaz data preview`: rows as tokens, in the terminal or as a page, with the loss of each token if asked for.
#include <limits>

#include "backend/plan.h"
#include "base/check.h"
#include "cli/data.h"
#include "cli/end_at_stop.h"
#include "cli/hub.h"
#include "cli/session.h"
#include "data/preview.h"
#include "model/base_tokenizer.h"
#include "model/pass.h"

namespace saaz {
namespace {

struct PreviewFlags {
  std::vector<std::string> files;
  ModelFlags model;
  EncodeOptions encode{2048, LossOn::assistant};
  int64_t row = 1, n_rows = 20;
  std::string html;
  bool with_loss = false;
  Language language = Language::en;
};

/// The loss of every token but the first, whether it is scored or not: [ids.size()].
std::vector<float> token_losses(Session& session, const Sample& sample) {
  Sample all = sample;
  std::fill(all.scored.begin() + 1, all.scored.end(), uint8_t{1});
  const int64_t index = 0;
  const PackedBatch packed = pack(std::span(&all, 1), std::span(&index, 1));
  const Batch batch = packed_batch(packed.ids, packed.seq_starts);
  PlanBackend plan(session.backend());
  PassMemory measured;
  evaluate_pass(plan, measured, session.model(), batch, packed.targets);
  PassMemory memory(session.backend(), measured.work().peak(), measured.store().peak());
  std::vector<float> losses = evaluate_pass(session.backend(), memory, session.model(), batch, packed.targets);
  losses.insert(losses.begin(), 0.0f);
  return losses;
}

void write_page(const PreviewFlags& flags, const std::vector<Row>& rows, const Globals& globals) {
  std::optional<EndAtStop> nothing_is_written_yet(std::in_place);
  std::optional<Session> session;
  std::optional<Tokenizer> own;
  if (flags.with_loss || !flags.model.adapter.empty()) {
    session.emplace(flags.model, globals);
    session->load(flags.encode.max_seq_length);
  } else {
    own.emplace(load_tokenizer_alone(find_model(flags.model.model)));
  }
  const Tokenizer& tokenizer = session ? session->tokenizer() : *own;
  std::vector<PreviewRow> shown;
  for (size_t i = static_cast<size_t>(flags.row - 1); i < rows.size(); ++i) {
    if (static_cast<int64_t>(shown.size()) == flags.n_rows) break;
    const Row& from = rows[i];
    PreviewRow row{from.file, from.number, from.line, encode_row(tokenizer, from, flags.encode), {}};
    if (session) row.losses = token_losses(*session, row.sample);
    shown.push_back(std::move(row));
  }
  const std::string model = flags.model.model + (flags.model.adapter.empty() ? "" : " + " + flags.model.adapter);
  const std::string page = preview_page(tokenizer, shown, printable(model), flags.language);
  nothing_is_written_yet.reset();
  write_file_atomically(flags.html, page);
  log_line(globals, fmt::format("wrote {}: {} rows", flags.html, shown.size()));
}

int preview_data(const PreviewFlags& flags, const Globals& globals) {
  BadRows bad(0);
  const std::vector<Row> rows = [&] {
    const EndAtStop nothing_is_written_yet;
    return load_all(flags.files, bad);
  }();
  check(flags.row <= static_cast<int64_t>(rows.size()), ExitCode::usage, "--row {}: there are only {} rows", flags.row,
        rows.size());
  if (!flags.html.empty()) return write_page(flags, rows, globals), 0;
  check(!flags.with_loss && flags.model.adapter.empty(), ExitCode::usage,
        "--loss and --adapter colour a page: give --html FILE as well");
  const Tokenizer tokenizer = load_tokenizer_alone(find_model(flags.model.model));
  const Row& row = rows[static_cast<size_t>(flags.row - 1)];
  log_line(globals, row.place());
  print_text(preview(tokenizer, row, flags.encode, globals.colours ? Colours::ansi : Colours::none));
  return 0;
}

}  // namespace

void declare_data_preview(Arguments& data, const Globals& globals, Action& chosen) {
  const auto flags = std::make_shared<PreviewFlags>();
  Arguments command = data.subcommand(
      "preview", "rows as tokens, scored and masked told apart",
      [flags, &globals, &chosen] { chosen = [flags, &globals] { return preview_data(*flags, globals); }; });
  command.positionals("files", flags->files, "JSONL, JSON or Parquet files, or folders with train.jsonl");
  declare_model(command, flags->model);
  declare_encoding(command, flags->encode);
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  command.integer("--row", flags->row, 1, kMax, "which row, or the first of a page");
  command.text("--html", flags->html, Arguments::Need::optional, "a page to write, with --rows rows");
  command.integer("--rows", flags->n_rows, 1, kMax, "how many rows a page shows");
  command.toggle("--loss", flags->with_loss, "colour the page by the model's loss on each token (loads the weights)");
  command.choice("--lang", flags->language, {{"en", Language::en}, {"fa", Language::fa}}, "the page's own language");
}

}  // namespace saaz
