#include "cli/run_probes.h"

#include "base/check.h"
#include "base/system.h"
#include "cli/embedded.h"
#include "model/base_tokenizer.h"

namespace saaz {
namespace {

std::string probe_text(const std::string& name) {
  if (name != kDefaultProbes) return read_file(name, 1 << 20);
  for (const EmbeddedFile& file : embedded_files())
    if (file.path == "data/probes/" + name + ".txt") return std::string(file.bytes);
  fail(ExitCode::bug, "the probes '{}' are not embedded", name);
}

}  // namespace

std::shared_ptr<const Probes> probes_of(const Recipe& recipe) {
  const std::string& name = recipe.eval.probes;
  if (name.empty()) return nullptr;
  return std::make_shared<Probes>(load_base_tokenizer(open_base_model(recipe.model.base)), probe_text(name), name,
                                  recipe.model.max_seq_length);
}

}  // namespace saaz
