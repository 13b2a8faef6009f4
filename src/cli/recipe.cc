// `saaz recipe ls|show|cp|check`: the recipes in the binary, and recipe files.
#include "config/recipe.h"

#include "base/check.h"
#include "base/system.h"
#include "cli/cli.h"
#include "cli/embedded.h"
#include "cli/hub.h"

namespace saaz {
namespace {

constexpr std::string_view kFolder = "recipes/", kEnding = ".yaml";

struct RecipeFlags {
  std::string name, file;
  std::vector<std::string> overrides;
  int (*run)(const RecipeFlags&, const Globals&) = nullptr;
};

/// "gemma3-270m-fa", empty for files that are no recipe.
std::string_view recipe_name(const EmbeddedFile& file) {
  if (!file.path.starts_with(kFolder) || !file.path.ends_with(kEnding)) return {};
  return file.path.substr(kFolder.size(), file.path.size() - kFolder.size() - kEnding.size());
}

/// The recipe's first line of comment says what it is for.
std::string_view summary_of(std::string_view text) {
  if (!text.starts_with("#")) return {};
  const std::string_view line = text.substr(0, text.find('\n'));
  return line.substr(std::min(line.find_first_not_of("# "), line.size()));
}

std::string_view find_recipe(const std::string& name) {
  std::vector<std::string_view> names;
  for (const EmbeddedFile& file : embedded_files()) {
    if (recipe_name(file).empty()) continue;
    if (recipe_name(file) == name) return file.bytes;
    names.push_back(recipe_name(file));
  }
  fail(ExitCode::usage, "there is no recipe '{}'; known: {}", printable(name), fmt::join(names, ", "));
}

int list_recipes(const RecipeFlags&, const Globals& globals) {
  for (const EmbeddedFile& file : embedded_files()) {
    if (recipe_name(file).empty()) continue;
    if (globals.json)
      print_json(Value::object({{"name", recipe_name(file)}, {"summary", summary_of(file.bytes)}}));
    else
      print_text(fmt::format("{:24}  {}\n", recipe_name(file), summary_of(file.bytes)));
  }
  return 0;
}

int show_recipe(const RecipeFlags& flags, const Globals&) {
  print_text(find_recipe(flags.name));
  return 0;
}

int copy_recipe(const RecipeFlags& flags, const Globals& globals) {
  const std::string_view text = find_recipe(flags.name);
  check(!fs::exists(flags.file), ExitCode::in_use, "{} exists already: remove it or choose another name",
        printable(flags.file));
  write_file_atomically(flags.file, text);
  log_line(globals, "wrote " + flags.file);
  return 0;
}

int check_recipe(const RecipeFlags& flags, const Globals& globals) {
  const Recipe recipe = load_recipe(flags.file, flags.overrides, fetched_names());
  if (globals.json)
    print_json(resolved(recipe));
  else
    print_text(to_yaml(resolved(recipe)));
  log_line(globals, flags.file + " is a good recipe; above it stands complete");
  return 0;
}

}  // namespace

Action declare_recipe(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<RecipeFlags>();
  RecipeFlags& f = *flags;
  arguments.subcommand("ls", "list the recipes in this program", [&f] { f.run = list_recipes; });
  Arguments show = arguments.subcommand("show", "print a recipe", [&f] { f.run = show_recipe; });
  show.positional("name", f.name, "a name from 'saaz recipe ls'");
  Arguments copy = arguments.subcommand("cp", "write a recipe to a file, to be edited", [&f] { f.run = copy_recipe; });
  copy.positional("name", f.name, "a name from 'saaz recipe ls'");
  copy.positional("file", f.file, "the file to write");
  Arguments check =
      arguments.subcommand("check", "check a recipe file and print it complete", [&f] { f.run = check_recipe; });
  check.positional("file", f.file, "a recipe file");
  check.texts("--set", f.overrides, Arguments::Need::optional, "key.path=value: overrides the recipe");
  return [flags, &globals] { return flags->run(*flags, globals); };
}

}  // namespace saaz
