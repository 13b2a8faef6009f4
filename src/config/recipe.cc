// Binding of a parsed recipe to the table in recipe_fields.cc: walks the document, so that nothing in it goes unread,
// and reports the first fault with its place. Invariant: a Recipe that leaves parse_recipe obeys every range of the
// table and the rules between keys below.
#include "config/recipe.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "base/check.h"
#include "base/system.h"

namespace saaz {
namespace {

using Kind = RecipeField::Kind;
using Need = RecipeField::Need;

constexpr size_t kMaxListItems = 4096;
constexpr std::string_view kVersionKey = "recipe";

/// "recipe.yaml:12:3", or where the value came from when it stands in no file.
std::string place(const std::string& source, const Value& value) {
  return value.line > 0 ? fmt::format("{}:{}:{}", source, value.line, value.column) : "--set";
}

std::string show(const Value& value) { return printable(to_json(value), 80); }

const Value* find_path(const Value& document, std::string_view path) {
  const Value* value = &document;
  while (value != nullptr && !path.empty()) {
    const size_t dot = path.find('.');
    value = value->find(path.substr(0, dot));
    path = dot == std::string_view::npos ? "" : path.substr(dot + 1);
  }
  return value;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replace});
    }
  }
  return row.back();
}

/// The names that may stand under `prefix` ("", "train.", ...), in the table's order.
std::vector<std::string> names_under(std::string_view prefix) {
  std::vector<std::string> names;
  if (prefix.empty()) names.emplace_back(kVersionKey);
  for (const RecipeField& field : recipe_fields()) {
    std::string_view path = field.path;
    if (!path.starts_with(prefix)) continue;
    path.remove_prefix(prefix.size());
    const std::string name(path.substr(0, path.find('.')));
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  return names;
}

/// The most useful thing to say about an unknown key: its right section, a near name, or what is known here.
std::string hint_for(std::string_view prefix, std::string_view key) {
  for (const RecipeField& field : recipe_fields()) {
    const std::string_view path = field.path;
    if (path.size() > key.size() && path.ends_with(key) && path[path.size() - key.size() - 1] == '.') {
      return fmt::format("did you mean '{}'?", path);
    }
  }
  const std::vector<std::string> names = names_under(prefix);
  const std::string* nearest = nullptr;
  size_t best = std::max<size_t>(2, key.size() / 3) + 1;
  for (const std::string& name : names) {
    const size_t distance = edit_distance(key, name);
    if (distance < best) best = distance, nearest = &name;
  }
  if (nearest != nullptr) return fmt::format("did you mean '{}{}'?", prefix, *nearest);
  return fmt::format("known here: {}", fmt::join(names, ", "));
}

class Binder {
 public:
  Binder(const std::string& source, Recipe& recipe) : source_(source), recipe_(recipe) {}

  void bind_section(const Value& section, const std::string& prefix) {
    for (const auto& [key, value] : section.members()) {
      if (prefix.empty() && key == kVersionKey) continue;
      const std::string path = prefix + key;
      if (const RecipeField* field = find_field(path)) {
        bind(*field, value);
        seen_.insert(path);
        continue;
      }
      const bool is_section = is_section_name(path + ".");
      check(is_section, ExitCode::usage, "{}: unknown key '{}{}'; {}", place(source_, value), prefix,
            printable(key, 60), hint_for(prefix, key));
      if (value.is_null()) continue;  // a section left empty
      check(value.is_object(), ExitCode::usage, "{}: {}: expected keys under it, found {}", place(source_, value), path,
            show(value));
      bind_section(value, path + ".");
    }
  }
  bool has(const std::string& path) const { return seen_.count(path) > 0; }

 private:
  static const RecipeField* find_field(std::string_view path) {
    for (const RecipeField& field : recipe_fields()) {
      if (path == field.path) return &field;
    }
    return nullptr;
  }
  static bool is_section_name(std::string_view prefix) {
    const auto fields = recipe_fields();
    return std::any_of(fields.begin(), fields.end(),
                       [&](const RecipeField& field) { return std::string_view(field.path).starts_with(prefix); });
  }

  [[noreturn]] void refuse(const RecipeField& field, const Value& value) const {
    fail(ExitCode::usage, "{}: {}: expected {}, found {}", place(source_, value), field.path, expected_text(field),
         show(value));
  }

  void bind(const RecipeField& field, const Value& value) const {
    if (field.kind == Kind::unbuilt) return bind_unbuilt(field, value);
    if (value.is_null()) {
      if (field.need != Need::nullable) refuse(field, value);
      return field.set(recipe_, value);
    }
    if (field.kind == Kind::choice) return field.set(recipe_, choice_index(field, value));
    if (field.kind == Kind::choices) return field.set(recipe_, list_of_choices(field, value));
    if (!fits(field, value)) refuse(field, value);
    field.set(recipe_, value);
  }

  static bool fits(const RecipeField& field, const Value& value) {
    switch (field.kind) {
      case Kind::integer:
        return value.is_integer() && in_range(field, value);
      case Kind::real:
        return value.is_number() && in_range(field, value);
      case Kind::boolean:
        return value.is_bool();
      case Kind::text:
        return is_name(value);
      case Kind::text_or_list:
        return is_name(value) || is_list_of_names(value);
      case Kind::choice:
      case Kind::choices:
      case Kind::unbuilt:
        break;
    }
    return false;
  }
  static bool in_range(const RecipeField& field, const Value& value) {
    return value.as_double() >= field.min && value.as_double() <= field.max;
  }
  static bool is_name(const Value& value) {
    return value.is_string() && !value.as_string().empty() && value.as_string().find('\0') == std::string::npos;
  }
  static bool is_list_of_names(const Value& value) {
    return value.is_array() && !value.items().empty() && value.items().size() <= kMaxListItems &&
           std::all_of(value.items().begin(), value.items().end(), is_name);
  }

  Value choice_index(const RecipeField& field, const Value& value) const {
    if (!value.is_string()) refuse(field, value);
    const std::string& word = value.as_string();
    const auto position = [&](std::string_view words) {
      for (int64_t index = 0; !words.empty(); ++index) {
        const size_t bar = words.find('|');
        if (words.substr(0, bar) == word) return index;
        words = bar == std::string_view::npos ? "" : words.substr(bar + 1);
      }
      return int64_t{-1};
    };
    check(position(field.unbuilt) < 0, ExitCode::usage, "{}: {}: {} is not built yet; expected {}",
          place(source_, value), field.path, word, expected_text(field));
    const int64_t index = position(field.words);
    if (index < 0) refuse(field, value);
    return index;
  }

  /// A word stands for a list of one; "none" stands alone.
  Value list_of_choices(const RecipeField& field, const Value& value) const {
    const Value list = value.is_array() ? value : Value::array({value});
    for (const Value& word : list.items()) {
      choice_index(field, word);
      check(word.as_string() != "none" || list.items().size() == 1, ExitCode::usage,
            "{}: {}: 'none' excludes the others", place(source_, value), field.path);
    }
    if (list.items().empty()) refuse(field, value);
    return list;
  }

  void bind_unbuilt(const RecipeField& field, const Value& value) const {
    const Value only = parse_json(field.words, field.path);
    const bool is_none = value.is_null() || (value.is_string() && value.as_string() == "none" && only.is_null());
    const bool is_same =
        only.is_number() && value.is_number() ? value.as_double() == only.as_double() : to_json(value) == to_json(only);
    check(is_none || is_same, ExitCode::usage, "{}: {}: {} is not built yet; leave the key out, or write {}",
          place(source_, value), field.path, show(value), only.is_string() ? only.as_string() : field.words);
  }

  const std::string& source_;
  Recipe& recipe_;
  std::set<std::string> seen_;
};

void check_version(const Value& document, const std::string& source) {
  const Value* version = document.find(kVersionKey);
  check(version != nullptr, ExitCode::usage, "{}:1:1: the key 'recipe' is missing; expected 'recipe: 1' (the version)",
        source);
  check(version->is_integer() && version->as_integer() == 1, ExitCode::usage,
        "{}: recipe: expected 1 (the version of the format), found {}", place(source, *version), show(*version));
}

/// The fault is reported at `b`, which is in the document.
[[noreturn]] void refuse_both(const Value& document, const std::string& source, const char* a, const char* b) {
  fail(ExitCode::usage, "{}: {} and {} exclude each other; leave one out", place(source, *find_path(document, b)), a,
       b);
}

/// HOST:PORT; whether there is such a host is found out when it is opened.
bool is_address(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return false;
  const std::string_view port = text.substr(colon + 1);
  int value = -1;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), value);
  return error == std::errc() && end == port.data() + port.size() && value >= 0 && value <= 65535;
}

void check_relations(const Binder& binder, const Recipe& recipe, const Value& document, const std::string& source) {
  for (const RecipeField& field : recipe_fields()) {
    check(field.need != Need::required || binder.has(field.path), ExitCode::usage, "{}: the key '{}' is missing: {}",
          source, field.path, field.doc);
  }
  if (binder.has("lora.target_preset") && binder.has("lora.target_modules")) {
    refuse_both(document, source, "lora.target_preset", "lora.target_modules");
  }
  const ValidationRecipe& validation = recipe.data.validation;
  if (!validation.file.empty() && validation.fraction > 0) {
    refuse_both(document, source, "data.validation.file", "data.validation.fraction");
  }
  if (recipe.train.warmup_steps > 0 && recipe.train.warmup_ratio > 0) {
    refuse_both(document, source, "train.warmup_steps", "train.warmup_ratio");
  }
  const std::string& watch = recipe.report.watch;
  if (!watch.empty() && !is_address(watch))
    fail(ExitCode::usage, "{}: report.watch: expected HOST:PORT with a port from 0 (any free one) to 65535, found {}",
         place(source, *find_path(document, "report.watch")), printable(watch, 80));
}

void fill_in(Recipe& recipe) {
  if (!recipe.lora.seed) recipe.lora.seed = recipe.train.seed;
  if (!recipe.train.data_seed) recipe.train.data_seed = recipe.train.seed;
  std::vector<std::string>& modules = recipe.lora.target_modules;
  if (recipe.lora.target_preset == TargetPreset::source) modules = {"gate_proj", "up_proj", "down_proj"};
  if (recipe.lora.target_preset == TargetPreset::source_card)
    modules = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
}

void forget_places(Value& value) {
  value.line = value.column = 0;
  if (value.is_array()) {
    for (Value& item : value.items()) forget_places(item);
  } else if (value.is_object()) {
    for (auto& [key, item] : value.members()) forget_places(item);
  }
}

Value* find_member(Value& object, std::string_view key) {
  for (auto& [name, value] : object.members()) {
    if (name == key) return &value;
  }
  return nullptr;
}

/// "org/name" or "org/name@revision", as the hub spells ids.
bool looks_like_hub_id(std::string_view text) {
  static constexpr std::string_view kBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./@";
  const size_t slash = text.find('/');
  return slash != std::string_view::npos && slash > 0 && slash + 1 < text.size() && text[0] != '.' &&
         text.find('/', slash + 1) == std::string_view::npos &&
         text.find_first_not_of(kBytes) == std::string_view::npos && !text.ends_with(".gguf") &&
         !text.ends_with(".jsonl") && !text.ends_with(".json");
}

void check_exists(const std::string& path, const Value* key, const char* name, const std::string& source) {
  std::error_code ignored;
  if (fs::exists(path, ignored)) return;
  const std::string where = key != nullptr ? place(source, *key) : source;
  const bool is_model = std::string_view(name) == "model.base";
  check(!looks_like_hub_id(path), ExitCode::bad_input,
        "{}: {}: '{}' is neither here nor fetched: 'saaz fetch {}{}' gets it", where, name, printable(path),
        printable(path), is_model ? "" : " --dataset");
  fail(ExitCode::bad_input, "{}: {}: there is no file or folder '{}' (paths are relative to the working directory)",
       where, name, printable(path));
}

void set_path(Value& document, std::string_view path, Value value) {
  const size_t dot = path.find('.');
  const std::string name(path.substr(0, dot));
  if (dot == std::string_view::npos) return document.set(name, std::move(value));
  if (document.find(name) == nullptr) document.set(name, Value::object());
  set_path(*find_member(document, name), path.substr(dot + 1), std::move(value));
}

Value word_at(std::string_view words, int64_t index) {
  for (; index > 0; --index) words.remove_prefix(words.find('|') + 1);
  return words.substr(0, words.find('|'));
}

}  // namespace

void apply_override(Value& document, std::string_view assignment) {
  const size_t equals = assignment.find('=');
  check(equals != std::string_view::npos && equals > 0, ExitCode::usage, "--set {}: expected KEY.PATH=VALUE",
        printable(assignment));
  const std::string_view path = assignment.substr(0, equals);
  Value value = parse_yaml(assignment.substr(equals + 1), fmt::format("--set {}", printable(path)));
  forget_places(value);
  if (document.is_null()) document = Value::object();
  Value* object = &document;
  for (std::string_view rest = path;;) {
    const size_t dot = rest.find('.');
    const std::string_view name = rest.substr(0, dot);
    check(!name.empty(), ExitCode::usage, "--set {}: an empty name in the key path", printable(path));
    check(object->is_object(), ExitCode::usage, "--set {}: the recipe has a value where '{}' would stand",
          printable(path), printable(name));
    if (dot == std::string_view::npos) return object->set(std::string(name), std::move(value));
    Value* next = find_member(*object, name);
    if (next == nullptr || next->is_null()) {
      object->set(std::string(name), Value::object());
      next = find_member(*object, name);
    }
    object = next;
    rest = rest.substr(dot + 1);
  }
}

Recipe parse_recipe(const Value& document, const std::string& source) {
  check(document.is_object(), ExitCode::usage, "{}:1:1: expected a recipe (key: value lines), found {}", source,
        document.kind_name());
  check_version(document, source);
  Recipe recipe;
  Binder binder(source, recipe);
  binder.bind_section(document, "");
  check_relations(binder, recipe, document, source);
  fill_in(recipe);
  return recipe;
}

void check_inputs(const Recipe& recipe, const Value& document, const std::string& source) {
  check_exists(recipe.model.base, find_path(document, "model.base"), "model.base", source);
  for (const std::string& path : recipe.data.train) {
    check_exists(path, find_path(document, "data.train"), "data.train", source);
  }
  const std::string &validation = recipe.data.validation.file, &probes = recipe.eval.probes;
  if (!validation.empty())
    check_exists(validation, find_path(document, "data.validation.file"), "data.validation.file", source);
  if (!probes.empty() && probes != kDefaultProbes)
    check_exists(probes, find_path(document, "eval.probes"), "eval.probes", source);
}

namespace {

/// The base with its revision, as the hub spells both.
std::string full_name_of_base(const Recipe& recipe, const Value& document, const std::string& source) {
  const std::string &base = recipe.model.base, &revision = recipe.model.revision;
  if (revision.empty()) return base;
  std::error_code ignored;
  const bool is_name = looks_like_hub_id(base) && base.find('@') == std::string::npos && !fs::exists(base, ignored);
  check(is_name, ExitCode::usage,
        "{}: model.revision is of a base named as on the hub, owner/name; model.base is '{}': leave the revision out",
        place(source, *find_path(document, "model.revision")), printable(base));
  return base + "@" + revision;
}

}  // namespace

Recipe load_recipe(const fs::path& path, std::span<const std::string> overrides, const FetchedNames& fetched) {
  Value document = parse_yaml(read_file(path), path.string());
  for (const std::string& assignment : overrides) apply_override(document, assignment);
  Recipe recipe = parse_recipe(document, path.string());
  recipe.model.base = full_name_of_base(recipe, document, path.string());
  recipe.model.revision.clear();
  if (fetched.model) recipe.model.base = fetched.model(recipe.model.base);
  std::vector<std::string*> data = {&recipe.data.validation.file};
  for (std::string& name : recipe.data.train) data.push_back(&name);
  for (std::string* name : data)
    if (fetched.dataset && !name->empty()) *name = fetched.dataset(*name);
  check_inputs(recipe, document, path.string());
  return recipe;
}

Value resolved(const Recipe& recipe) {
  Value out = Value::object({{std::string(kVersionKey), 1}});
  const bool is_custom = recipe.lora.target_preset == TargetPreset::custom;
  for (const RecipeField& field : recipe_fields()) {
    const std::string_view path = field.path;
    if (path == (is_custom ? "lora.target_preset" : "lora.target_modules")) continue;
    if (field.kind == Kind::unbuilt) {
      set_path(out, path, parse_json(field.words, field.path));
    } else if (field.kind == Kind::choice) {
      set_path(out, path, word_at(field.words, field.get(recipe).as_integer()));
    } else {
      const Value value = field.get(recipe);
      const bool is_unset = field.need == Need::nullable && value.is_string() && value.as_string().empty();
      set_path(out, path, is_unset ? Value() : value);
    }
  }
  return out;
}

}  // namespace saaz
