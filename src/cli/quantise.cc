// `saaz quantize`, and `saaz export gguf` and `export ollama`: a model in another storage format, for other programs
// and for this one.
#include "publish/quantise.h"
#include "base/check.h"
#include "cli/cli.h"
#include "cli/hub.h"
#include "publish/gguf_export.h"

namespace saaz {
namespace {

struct QuantiseFlags {
  std::string model, out;
  WeightFormat format = WeightFormat::nf4;
  bool single_quant = false;
  QuantiseOptions options;
};

void print_gguf_report(const GgufReport& report, const std::string& out, WeightFormat format, const Globals& globals) {
  for (const std::string& note : report.notes) log_line(globals, "note: " + note);
  if (globals.json) {
    Value notes = Value::array();
    for (const std::string& note : report.notes) notes.push_back(note);
    print_json(Value::object({{"schema_version", 1},
                              {"out", out},
                              {"format", name_of(format)},
                              {"n_tensors", report.n_tensors},
                              {"n_tokens", report.n_tokens},
                              {"bytes", report.bytes},
                              {"notes", std::move(notes)}}));
    return;
  }
  print_text(fmt::format("{}: {} tensors, matrices in {}, {} tokens, {}\n", out, report.n_tensors, name_of(format),
                         report.n_tokens, bytes_text(static_cast<double>(report.bytes))));
}

void print_quantise_report(const QuantiseReport& report, const QuantiseFlags& flags, const Globals& globals) {
  if (globals.json) {
    print_json(Value::object({{"schema_version", 1},
                              {"out", flags.out},
                              {"format", name_of(flags.format)},
                              {"n_quantised", report.n_quantised},
                              {"n_kept", report.n_kept},
                              {"bytes_before", report.bytes_before},
                              {"bytes_after", report.bytes_after},
                              {"relative_error", report.relative_error}}));
    return;
  }
  print_text(fmt::format(
      "{}: {} matrices in {}, {} instead of {} in 16 bits; {} tensors as they were\n"
      "relative error of the weights: {:.2f} %\n",
      flags.out, report.n_quantised, name_of(flags.format), bytes_text(static_cast<double>(report.bytes_after)),
      bytes_text(static_cast<double>(report.bytes_before)), report.n_kept, 100 * report.relative_error));
}

int run_quantise(const QuantiseFlags& flags, const Globals& globals) {
  const BaseModel base = open_base_model(find_model(flags.model));
  if (flags.format != WeightFormat::nf4 && flags.format != WeightFormat::int8) {
    check(fs::path(flags.out).extension() == ".gguf", ExitCode::usage,
          "--to {} writes a GGUF file: give --out a name that ends in .gguf", name_of(flags.format));
    print_gguf_report(export_gguf(base, flags.format, flags.out), flags.out, flags.format, globals);
    return 0;
  }
  QuantiseOptions options = flags.options;
  options.scheme = flags.format == WeightFormat::nf4 ? QuantScheme::nf4 : QuantScheme::int8;
  options.double_quant = !flags.single_quant;
  print_quantise_report(quantise_model(base, options, flags.out), flags, globals);
  return 0;
}

struct ExportFlags {
  std::string model, out;
  WeightFormat format = WeightFormat::q8_0;
};

void declare_export_flags(Arguments& arguments, ExportFlags& flags, const std::string& out_doc) {
  arguments.text("--model", flags.model, Arguments::Need::required,
                 "a model folder, a .gguf file, or the name of a fetched model");
  arguments.choice("--type", flags.format,
                   {{"f32", WeightFormat::f32},
                    {"f16", WeightFormat::f16},
                    {"bf16", WeightFormat::bf16},
                    {"q8_0", WeightFormat::q8_0},
                    {"q5_0", WeightFormat::q5_0},
                    {"q4_0", WeightFormat::q4_0}},
                   "of the matrices (q8_0)");
  arguments.text("--out", flags.out, Arguments::Need::required, out_doc);
}

using ExportFunction = GgufReport (*)(const BaseModel& base, WeightFormat format, const fs::path& out);

struct ExportCommand {
  ExportFlags flags;
  ExportFunction write = nullptr;  // of the subcommand that was named
};

int run_export(const ExportCommand& command, const Globals& globals) {
  const ExportFlags& flags = command.flags;
  const BaseModel base = open_base_model(find_model(flags.model));
  print_gguf_report(command.write(base, flags.format, flags.out), flags.out, flags.format, globals);
  return 0;
}

}  // namespace

Action declare_quantize(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<QuantiseFlags>();
  arguments.text("--model", flags->model, Arguments::Need::required,
                 "a model folder, a .gguf file, or the name of a fetched model");
  arguments.choice("--to", flags->format,
                   {{"nf4", WeightFormat::nf4},
                    {"int8", WeightFormat::int8},
                    {"q8_0", WeightFormat::q8_0},
                    {"q5_0", WeightFormat::q5_0},
                    {"q4_0", WeightFormat::q4_0}},
                   "nf4, int8: a folder as bitsandbytes writes it; q8_0, q5_0, q4_0: a GGUF file (nf4)");
  arguments.text("--out", flags->out, Arguments::Need::required, "the folder or .gguf file to write");
  arguments.toggle("--no-double-quant", flags->single_quant, "nf4: scales in f32 instead of 8 bits");
  arguments.bytes("--max-shard-size", flags->options.max_shard_bytes, "of one weight file, like 5GB");
  return [flags, &globals] { return run_quantise(*flags, globals); };
}

Action declare_export(Arguments& arguments, const Globals& globals) {
  const auto command = std::make_shared<ExportCommand>();
  Arguments gguf = arguments.subcommand("gguf", "one GGUF file for llama.cpp and its kin",
                                        [command] { command->write = export_gguf; });
  declare_export_flags(gguf, command->flags, "the .gguf file to write");
  Arguments ollama = arguments.subcommand("ollama", "a folder for 'ollama create NAME -f Modelfile'",
                                          [command] { command->write = export_ollama; });
  declare_export_flags(ollama, command->flags, "the folder to write; must not exist or be empty");
  const auto card = std::make_shared<Action>();
  declare_export_card(arguments, globals, card);
  return [command, card, &globals] { return *card ? (*card)() : run_export(*command, globals); };
}

}  // namespace saaz
