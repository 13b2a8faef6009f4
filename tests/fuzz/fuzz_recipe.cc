// Bytes as a recipe. Either an Error of kind usage comes out, or a recipe whose resolved form reads back to itself; a
// document that parses is also written as YAML and read again.
#include <cstdlib>
#include <string>
#include <vector>

#include "base/error.h"
#include "config/recipe.h"
#include "mutation.h"

namespace {

const std::vector<std::string>& seeds() {
  static const std::vector<std::string> all = {
      "recipe: 1\nmodel: {base: b, max_seq_length: 64}\ndata:\n  train: [a, b]\n  validation: {fraction: 0.1}\n"
      "output: {dir: d}\nlora: {target_modules: 'x.*', r: 4}\n",
      saaz::to_yaml(saaz::Value::object({{"recipe", 1},
                                         {"model", saaz::Value::object({{"base", "b"}})},
                                         {"data", saaz::Value::object({{"train", "t"}})},
                                         {"train", saaz::Value::object({{"learning_rate", 1e-4}, {"seed", 7}})},
                                         {"output", saaz::Value::object({{"dir", "d"}})}})),
      "recipe: 1\nquant: {scheme: nf4}\n? k\n: |\n  text\n\"q\\u0041\": [1, {a: ~}, -.5e3]\n",
  };
  return all;
}

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  const std::string* fresh = saaz::fuzz::fresh_seed(seeds(), size, seed);
  const std::string input = fresh != nullptr ? *fresh : std::string(reinterpret_cast<const char*>(data), size);
  return saaz::fuzz::store(saaz::fuzz::mutated(input, max_size), data, max_size);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const saaz::Value document = saaz::parse_yaml(text, "fuzz");
    require(saaz::to_json(saaz::parse_yaml(saaz::to_yaml(document), "again")) == saaz::to_json(document));
    const saaz::Recipe recipe = saaz::parse_recipe(document, "fuzz");
    const std::string resolved = saaz::to_yaml(saaz::resolved(recipe));
    const saaz::Recipe again = saaz::parse_recipe(saaz::parse_yaml(resolved, "resolved"), "resolved");
    require(saaz::to_yaml(saaz::resolved(again)) == resolved);
  } catch (const saaz::Error& error) {
    require(error.code() == saaz::ExitCode::usage);
    require(!std::string_view(error.what()).starts_with("resolved") &&
            !std::string_view(error.what()).starts_with("again"));
  }
  return 0;
}
