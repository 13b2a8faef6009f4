// Bytes as a JSON schema. Either an Error of kind bad_input comes out, or a grammar; a text that the grammar takes,
// drawn byte by byte, is JSON and valid under the schema, by a validator that knows nothing of grammars.
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/unicode.h"
#include "infer/grammar.h"
#include "mutation.h"

namespace {

using saaz::Value;

const std::vector<std::string>& seeds() {
  static const std::vector<std::string> all = {
      R"({"type":"object","required":["a"],"properties":{"a":{"type":"string","minLength":1,"maxLength":3},"b":{"type":["integer","null"]}}})",
      R"({"type":"array","items":{"enum":["a","ب",3,null,[1.5],{"k":true}]},"minItems":1,"maxItems":4})",
      R"({"anyOf":[{"$ref":"#/$defs/n"},{"const":"x"},{"type":"number"}],"$defs":{"n":{"type":"array","items":{"$ref":"#/$defs/n"}}}})",
      R"({"type":"object","properties":{"next":{"oneOf":[{"$ref":"#"},{"type":"null"}]},"v":{}},"additionalProperties":false})",
      R"({"type":["string","array","object"],"maxLength":2,"items":{"type":"boolean"},"properties":{"p":true},"required":["p"]})",
      R"({"allOf":[{"type":"integer"}],"title":"t","format":"f"})",
  };
  return all;
}

void require(bool condition) {
  if (!condition) std::abort();
}

bool is_of_type(const Value& value, const std::string& type) {
  if (type == "integer") return value.is_integer();
  if (type == "number") return value.is_number();
  if (type == "boolean") return value.is_bool();
  if (type == "null") return value.is_null();
  return type == "string" ? value.is_string() : type == "array" ? value.is_array() : value.is_object();
}

int64_t length_of(std::string_view text) {
  int64_t n = 0;
  for (size_t i = 0; i < text.size(); ++n) i += saaz::decode_utf8(text.substr(i)).length;
  return n;
}

/// What the standard says of the keywords that a grammar holds.
class Validator {
 public:
  explicit Validator(const Value& root) : root_(root) {}

  bool valid(const Value& value, const Value& schema) const {
    if (schema.is_bool()) return schema.as_bool();
    if (const Value* ref = schema.find("$ref"); ref != nullptr) return valid(value, target(ref->as_string()));
    if (const Value* only = schema.find("const"); only != nullptr && to_json(*only) != to_json(value)) return false;
    if (const Value* values = schema.find("enum"); values != nullptr)
      if (!any(values->items(), [&](const Value& one) { return to_json(one) == to_json(value); })) return false;
    if (const Value* type = schema.find("type"); type != nullptr) {
      const std::vector<Value> types = type->is_array() ? type->items() : std::vector<Value>{*type};
      if (!any(types, [&](const Value& one) { return is_of_type(value, one.as_string()); })) return false;
    }
    for (const char* key : {"anyOf", "oneOf", "allOf"})  // of oneOf: at least one, as the grammar promises
      if (const Value* some = schema.find(key); some != nullptr)
        if (!any(some->items(), [&](const Value& one) { return valid(value, one); })) return false;
    return valid_parts(value, schema);
  }

 private:
  template <class Test>
  static bool any(const std::vector<Value>& items, const Test& test) {
    return std::any_of(items.begin(), items.end(), test);
  }

  static bool counts(int64_t n, const Value& schema, const char* least, const char* most) {
    const Value *from = schema.find(least), *to = schema.find(most);
    return (from == nullptr || n >= from->as_integer()) && (to == nullptr || n <= to->as_integer());
  }

  bool valid_parts(const Value& value, const Value& schema) const {
    if (value.is_string()) return counts(length_of(value.as_string()), schema, "minLength", "maxLength");
    if (value.is_array()) {
      if (!counts(static_cast<int64_t>(value.items().size()), schema, "minItems", "maxItems")) return false;
      const Value* items = schema.find("items");
      return items == nullptr || !any(value.items(), [&](const Value& one) { return !valid(one, *items); });
    }
    if (!value.is_object()) return true;
    if (const Value* required = schema.find("required"); required != nullptr)
      if (any(required->items(), [&](const Value& name) { return value.find(name.as_string()) == nullptr; }))
        return false;
    const Value *properties = schema.find("properties"), *additional = schema.find("additionalProperties");
    const bool is_closed = additional != nullptr && additional->is_bool() && !additional->as_bool();
    return std::all_of(value.members().begin(), value.members().end(), [&](const Value::Member& member) {
      const Value* one = properties == nullptr ? nullptr : properties->find(member.first);
      return one == nullptr ? !is_closed : valid(member.second, *one);
    });
  }

  const Value& target(const std::string& path) const {
    if (path == "#") return root_;
    for (const char* home : {"$defs", "definitions"})
      if (const std::string prefix = std::string("#/") + home + "/"; path.starts_with(prefix))
        if (const Value* all = root_.find(home); all != nullptr)
          if (const Value* found = all->find(path.substr(prefix.size())); found != nullptr) return *found;
    std::abort();
  }

  const Value& root_;
};

/// A text that the grammar takes; empty when it found no end. Bytes are drawn for a while; then what closes goes first.
std::string drawn(const std::shared_ptr<const saaz::Grammar>& grammar, unsigned seed) {
  constexpr size_t kFree = 40, kMost = 160;
  static const std::string kWords = "\"]}0123456789aetfnrulsx:,{[ -.";
  std::minstd_rand random(seed);
  saaz::GrammarState state(grammar);
  std::string text;
  while (text.size() < kMost && !(state.is_complete() && (!state.can_go_on() || random() % 4 == 0))) {
    int found = -1;
    const auto takes = [&](int byte) {
      const char one = static_cast<char>(byte);
      if (found < 0 && state.accepts({&one, 1})) found = byte;
    };
    if (text.size() < kFree && random() % 2 == 0) takes(static_cast<int>(random() % 256));
    const size_t from = text.size() < kFree ? random() % kWords.size() : 0;
    for (size_t i = 0; i < kWords.size() && found < 0; ++i)
      takes(static_cast<unsigned char>(kWords[(from + i) % kWords.size()]));
    for (int byte = 0; byte < 256 && found < 0; ++byte) takes(byte);
    if (found < 0) return {};  // too deep: nothing may follow
    const char one = static_cast<char>(found);
    state.push({&one, 1});
    text += one;
  }
  return state.is_complete() ? text : std::string();
}

/// Replaces an object of the text by one of a seed: so that most inputs stay JSON.
std::string grafted(std::string text, std::minstd_rand& random) {
  const auto object_in = [&](const std::string& from) -> std::pair<size_t, size_t> {
    const size_t begin = from.find('{', random() % from.size());
    int depth = 0;
    for (size_t i = begin; begin != from.npos && i < from.size(); ++i) {
      depth += from[i] == '{' ? 1 : from[i] == '}' ? -1 : 0;
      if (depth == 0) return {begin, i + 1 - begin};
    }
    return {0, 0};
  };
  const std::string& seed = seeds()[random() % seeds().size()];
  const auto [from, n] = object_in(seed);
  const auto [at, n_old] = object_in(text);
  return n == 0 || n_old == 0 ? text : text.replace(at, n_old, seed.substr(from, n));
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  std::minstd_rand random(seed);
  const std::string* fresh = saaz::fuzz::fresh_seed(seeds(), size, seed);
  const std::string input = fresh != nullptr ? *fresh : std::string(reinterpret_cast<const char*>(data), size);
  if (random() % 2 == 0) return saaz::fuzz::store(grafted(input, random), data, max_size);
  return saaz::fuzz::store(saaz::fuzz::mutated(input, max_size), data, max_size);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  Value schema;
  std::shared_ptr<const saaz::Grammar> grammar;
  try {
    schema = saaz::parse_json(input, "fuzz");
    grammar = saaz::Grammar::json_schema(schema);
  } catch (const saaz::Error& error) {
    require(error.code() == saaz::ExitCode::bad_input);
    return 0;
  }
  std::string text;
  try {
    text = drawn(grammar, static_cast<unsigned>(std::hash<std::string>()(input)));
  } catch (const saaz::Error& error) {  // too many ways at one place
    require(error.code() == saaz::ExitCode::bad_input);
  }
  if (text.empty()) return 0;
  Value value;
  try {
    value = saaz::parse_json(text, "drawn");
  } catch (const saaz::Error& error) {  // JSON allows what our own reader refuses
    require(std::string(error.what()).find("appears twice") != std::string::npos);
    return 0;
  }
  require(Validator(schema).valid(value, schema));
  return 0;
}
