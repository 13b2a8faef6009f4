// `saaz merge` and `saaz verify`. Both print the certificate and exit 8 when it does not prove the merge.
#include "publish/merge.h"

#include "base/check.h"
#include "cli/cli.h"
#include "cli/end_at_stop.h"
#include "cli/hub.h"

namespace saaz {
namespace {

struct MergeFlags {
  std::string base, adapter, folder;
  MergeOptions options;
};

int print_certificate(const Certificate& certificate, const Globals& globals) {
  if (globals.json)
    print_json(certificate.to_value());
  else
    print_text(certificate.to_table());
  return static_cast<int>(certificate.passed() ? ExitCode::ok : ExitCode::verification);
}

int run_merge(const MergeFlags& flags, const Globals& globals) {
  const std::unique_ptr<Backend> backend = make_backend(globals);
  const Certificate certificate =
      merge_adapter(*backend, find_model(flags.base), flags.adapter, flags.folder, flags.options);
  log_line(globals, certificate.passed() ? "wrote " + flags.folder : "nothing was written: the merge is not proven");
  return print_certificate(certificate, globals);
}

int run_verify(MergeFlags flags, const Globals& globals) {
  const EndAtStop nothing_is_lost;
  const bool named = !flags.base.empty() && !flags.adapter.empty();
  check(named || (flags.base.empty() && flags.adapter.empty()), ExitCode::usage,
        "give --base and --adapter both, or neither to take those of the folder's certificate");
  MergeRecord record{find_model(flags.base), flags.adapter, flags.options};
  if (!named) record = read_merge_record(flags.folder);
  const std::unique_ptr<Backend> backend = make_backend(globals);
  return print_certificate(verify_merge(*backend, flags.folder, record.base, record.adapter, record.options), globals);
}

void declare_options(Arguments& arguments, MergeOptions& options) {
  arguments.choice("--merge-base", options.base, {{"w16", MergeBase::w16}, {"deq4", MergeBase::deq4}},
                   "merge into the 16-bit weights, or into the values of their NF4 form (w16)");
  arguments.choice<std::optional<StoredDType>>(
      "--dtype", options.dtype, {{"bf16", StoredDType::bf16}, {"f16", StoredDType::f16}, {"f32", StoredDType::f32}},
      "of the merged model; the base's own unless given");
}

}  // namespace

Action declare_merge(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<MergeFlags>();
  arguments.text("--base", flags->base, Arguments::Need::required,
                 "a model folder, a .gguf file, or the name of a fetched model");
  arguments.text("--adapter", flags->adapter, Arguments::Need::required, "a PEFT adapter folder");
  arguments.text("--out", flags->folder, Arguments::Need::required, "the folder to write; must not exist or be empty");
  declare_options(arguments, flags->options);
  arguments.bytes("--max-shard-size", flags->options.max_shard_bytes, "of one weight file, like 5GB");
  return [flags, &globals] { return run_merge(*flags, globals); };
}

Action declare_verify(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<MergeFlags>();
  arguments.positional("folder", flags->folder, "a merged folder");
  arguments.text("--base", flags->base, Arguments::Need::optional, "the base; by default the certificate's");
  arguments.text("--adapter", flags->adapter, Arguments::Need::optional, "the adapter; by default the certificate's");
  declare_options(arguments, flags->options);
  return [flags, &globals] { return run_verify(*flags, globals); };
}

}  // namespace saaz
