// From a JSON schema to a machine. Nodes are made from the end: each part is given the node that follows it.
#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string>

#include "base/check.h"
#include "infer/grammar.h"

namespace saaz {

namespace {
constexpr size_t kMostNodes = 200'000, kMostProperties = 256;
constexpr int64_t kLongestCount = 1024;
constexpr int kDeepestSchema = 48;
}  // namespace

class GrammarBuilder {
 public:
  GrammarBuilder() {
    finish_ = add({});
    for (size_t rule = 0; rule < kNumRules; ++rule) grammar_.rules_.push_back(-1);
    build_blank();
    build_string();
    set_rule(kInteger, integer(finish_));
    set_rule(kNumber, number(finish_));
    set_rule(kObject, any_object(finish_));
    set_rule(kArray, list(kValue, finish_));
    int32_t value = literal("null", finish_);
    for (const char* word : {"true", "false"}) value = either(literal(word, finish_), value);
    for (const size_t rule : {kNumber, kArray, kObject, kString}) value = either(call(rule, finish_), value);
    set_rule(kValue, value);
  }

  std::shared_ptr<const Grammar> object() { return made(call(kObject, finish_)); }
  std::shared_ptr<const Grammar> schema(const Value& root) {
    root_ = &root;
    const int32_t start = of(root, finish_, "schema", 0);
    refuse_loops();
    return made(start);
  }

 private:
  using Node = Grammar::Node;
  using Bytes = Grammar::Bytes;
  enum : size_t { kBlank, kString, kCharacter, kInteger, kNumber, kObject, kArray, kValue, kNumRules };

  std::shared_ptr<const Grammar> made(int32_t start) {
    grammar_.start_ = start;
    return std::make_shared<const Grammar>(std::move(grammar_));
  }

  // ------------------------------------------------------------------------------------------------------ parts
  int32_t add(Node node) {
    check(grammar_.nodes_.size() < kMostNodes, ExitCode::bad_input,
          "the schema is too large: it needs more than {} states", kMostNodes);
    grammar_.nodes_.push_back(std::move(node));
    return static_cast<int32_t>(grammar_.nodes_.size() - 1);
  }
  void set_rule(size_t rule, int32_t start) { grammar_.rules_[rule] = start; }
  int32_t call(size_t rule, int32_t next) { return add({Node::Kind::call, next, static_cast<int32_t>(rule), {}}); }
  int32_t either(int32_t a, int32_t b) { return add({Node::Kind::split, a, b, {}}); }
  int32_t match(const Bytes& bytes, int32_t next) { return add({Node::Kind::match, next, -1, bytes}); }
  static Bytes range(unsigned first, unsigned last) {
    Bytes bytes;
    for (unsigned b = first; b <= last; ++b) bytes.set(b);
    return bytes;
  }
  static Bytes any_of(std::string_view text) {
    Bytes bytes;
    for (const char c : text) bytes.set(static_cast<unsigned char>(c));
    return bytes;
  }
  int32_t literal(std::string_view text, int32_t next) {
    for (size_t i = text.size(); i-- > 0;) next = match(any_of(text.substr(i, 1)), next);
    return next;
  }
  /// `most` times at most.
  int32_t up_to(int64_t most, const Bytes& bytes, int32_t next) {
    int32_t at = next;
    for (int64_t i = 0; i < most; ++i) at = either(match(bytes, at), next);
    return at;
  }
  int32_t blank(int32_t next) { return call(kBlank, next); }

  /// Nothing, a space, or a new line with some indentation: no model can dwell in it.
  void build_blank() {
    const int32_t line = match(any_of("\n"), up_to(32, any_of(" \t"), finish_));
    set_rule(kBlank, either(finish_, either(match(any_of(" "), finish_), line)));
  }

  void build_string() {
    const auto tail = [&](int n, int32_t next) {
      for (int i = 0; i < n; ++i) next = match(range(0x80, 0xBF), next);
      return next;
    };
    const Bytes hex = range('0', '9') | range('a', 'f') | range('A', 'F');
    int32_t digits = finish_;
    for (int i = 0; i < 4; ++i) digits = match(hex, digits);
    // Of \uXXXX no surrogates: half of a pair would be no text.
    const int32_t high = match(any_of("dD"), match(range('0', '7'), match(hex, match(hex, finish_))));
    const int32_t other = match(hex & ~any_of("dD"), match(hex, match(hex, match(hex, finish_))));
    const int32_t escape = either(match(any_of("\"\\/bfnrt"), finish_), match(any_of("u"), either(high, other)));
    int32_t character = match(range(0x20, 0x7F) & ~any_of("\"\\"), finish_);
    for (const int32_t more : {match(any_of("\\"), escape), match(range(0xC2, 0xDF), tail(1, finish_)),
                               match(range(0xE0, 0xE0), match(range(0xA0, 0xBF), tail(1, finish_))),
                               match(range(0xE1, 0xEC) | range(0xEE, 0xEF), tail(2, finish_)),
                               match(range(0xED, 0xED), match(range(0x80, 0x9F), tail(1, finish_))),
                               match(range(0xF0, 0xF0), match(range(0x90, 0xBF), tail(2, finish_))),
                               match(range(0xF1, 0xF3), tail(3, finish_)),
                               match(range(0xF4, 0xF4), match(range(0x80, 0x8F), tail(2, finish_)))})
      character = either(more, character);
    set_rule(kCharacter, character);
    const int32_t loop = either(literal("\"", finish_), -1);
    grammar_.nodes_[static_cast<size_t>(loop)].other = call(kCharacter, loop);
    set_rule(kString, literal("\"", loop));
  }

  int32_t integer(int32_t next) {
    const Bytes digit = range('0', '9');
    const int32_t whole = either(literal("0", next), match(range('1', '9'), up_to(15, digit, next)));
    return either(whole, match(any_of("-"), whole));
  }
  int32_t number(int32_t next) {
    const Bytes digit = range('0', '9');
    const int32_t power = match(digit, up_to(1, digit, next));  // within the range of a double
    const int32_t exponent = match(any_of("eE"), either(power, match(any_of("+-"), power)));
    const int32_t after = either(next, exponent);
    return integer(either(after, match(any_of("."), match(digit, up_to(15, digit, after)))));
  }

  int32_t any_object(int32_t next) {
    const int32_t close = literal("}", next), more = add({Node::Kind::split, close, -1, {}});
    const int32_t pair = call(kString, blank(literal(":", blank(call(kValue, blank(more))))));
    grammar_.nodes_[static_cast<size_t>(more)].other = literal(",", blank(pair));
    return literal("{", blank(either(close, pair)));
  }
  /// [items], any number of them.
  int32_t list(size_t item, int32_t next) {
    const int32_t close = literal("]", next), more = add({Node::Kind::split, close, -1, {}});
    const int32_t one = call(item, blank(more));
    grammar_.nodes_[static_cast<size_t>(more)].other = literal(",", blank(one));
    return literal("[", blank(either(close, one)));
  }

  // ----------------------------------------------------------------------------------------------------- schema
  [[noreturn]] static void refuse(const std::string& where, const std::string& what) {
    fail(ExitCode::bad_input, "{}: {}", where, what);
  }
  static int64_t count(const Value& schema, const char* key, int64_t otherwise, const std::string& where) {
    const Value* value = schema.find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_integer() || value->as_integer() < 0 || value->as_integer() > kLongestCount)
      refuse(where + "." + key, fmt::format("expected a count from 0 to {}", kLongestCount));
    return value->as_integer();
  }

  /// Keywords that say nothing about what is valid pass everywhere.
  static void check_keywords(const Value& schema, const std::string& where, std::set<std::string_view> held) {
    for (const char* word : {"title", "description", "default", "examples", "example", "$schema", "$id", "$comment",
                             "deprecated", "readOnly", "writeOnly", "format", "$defs", "definitions"})
      held.insert(word);
    for (const auto& [key, value] : schema.members())
      if (!held.contains(key))
        refuse(where + "." + printable(key, 60), "this keyword is not held, so it is refused here");
  }

  /// Nodes that may be reached from one without a byte between.
  std::array<int32_t, 2> reached_from(int32_t at) const {
    const Node& node = grammar_.nodes_[static_cast<size_t>(at)];
    if (node.kind == Node::Kind::split) return {node.next, node.other};
    if (node.kind != Node::Kind::call) return {-1, -1};
    // A blank alone may be empty.
    return {grammar_.rules_[static_cast<size_t>(node.other)], node.other == kBlank ? node.next : -1};
  }

  /// Refuses a schema of which a part is nothing but itself: nodes in a ring, none of which takes a byte.
  void refuse_loops() const {
    enum : uint8_t { unseen, open, done };
    std::vector<uint8_t> state(grammar_.nodes_.size(), unseen);
    std::vector<std::pair<int32_t, size_t>> path;  // a node, and how many of its two ways were taken
    for (size_t first = 0; first < state.size(); ++first) {
      if (state[first] == unseen) path.emplace_back(static_cast<int32_t>(first), 0);
      while (!path.empty()) {
        auto& [at, n_taken] = path.back();
        state[static_cast<size_t>(at)] = open;
        if (n_taken == 2) {
          state[static_cast<size_t>(at)] = done;
          path.pop_back();
        } else if (const int32_t to = reached_from(at)[n_taken++]; to >= 0) {
          check(state[static_cast<size_t>(to)] != open, ExitCode::bad_input,
                "the schema refers to itself without an end");
          if (state[static_cast<size_t>(to)] == unseen) path.emplace_back(to, 0);
        }
      }
    }
  }

  int32_t of(const Value& schema, int32_t next, const std::string& where, int depth) {
    if (depth > kDeepestSchema) refuse(where, "the schema is nested too deeply");
    if (schema.is_bool() && schema.as_bool()) return call(kValue, next);
    if (!schema.is_object()) refuse(where, "expected a schema: an object");
    if (schema.find("$ref") != nullptr) return reference(schema, next, where, depth);
    if (const Value* value = schema.find("const"); value != nullptr) {
      check_keywords(schema, where, {"const", "type"});
      return value_of_type(*value, schema, next, where + ".const");
    }
    if (const Value* values = schema.find("enum"); values != nullptr) {
      check_keywords(schema, where, {"enum", "type"});
      if (!values->is_array() || values->items().empty()) refuse(where + ".enum", "expected a list of values");
      int32_t all = -1;
      for (const Value& value : values->items()) {
        const int32_t one = value_of_type(value, schema, next, where + ".enum");
        all = all < 0 ? one : either(one, all);
      }
      return all;
    }
    for (const char* key : {"anyOf", "oneOf", "allOf"})
      if (const Value* choices = schema.find(key); choices != nullptr) {
        check_keywords(schema, where, {key});
        return one_of(*choices, next, where + "." + key, depth, std::string_view(key) == "allOf");
      }
    return by_type(schema, next, where, depth);
  }

  /// One value of a const or enum, which must be of the schema's type if it names any.
  int32_t value_of_type(const Value& value, const Value& schema, int32_t next, const std::string& where) {
    const auto is_named = [&](const Value& type) {
      if (!type.is_string()) return false;
      const std::string& name = type.as_string();
      if (name == "integer") return value.is_integer();
      if (name == "number") return value.is_number();
      if (name == "string") return value.is_string();
      if (name == "boolean") return value.is_bool();
      if (name == "null") return value.is_null();
      return name == "array" ? value.is_array() : name == "object" && value.is_object();
    };
    if (const Value* type = schema.find("type"); type != nullptr) {
      const bool fits =
          type->is_array() ? std::any_of(type->items().begin(), type->items().end(), is_named) : is_named(*type);
      if (!fits) refuse(where, fmt::format("{} is not of the type that is named beside it", printable(to_json(value))));
    }
    return literal(to_json(value), next);
  }

  int32_t one_of(const Value& choices, int32_t next, const std::string& where, int depth, bool needs_all) {
    if (!choices.is_array() || choices.items().empty()) refuse(where, "expected a list of schemas");
    if (needs_all && choices.items().size() > 1) refuse(where, "more than one schema at once is not held");
    int32_t all = -1;
    for (size_t i = 0; i < choices.items().size(); ++i) {
      const int32_t one = of(choices.items()[i], next, fmt::format("{}[{}]", where, i), depth + 1);
      all = all < 0 ? one : either(one, all);
    }
    return all;
  }

  /// "#", "#/$defs/X", "#/definitions/X": each is a rule, so that a schema may name itself.
  int32_t reference(const Value& schema, int32_t next, const std::string& where, int depth) {
    check_keywords(schema, where, {"$ref"});
    const Value& ref = *schema.find("$ref");
    if (!ref.is_string()) refuse(where + ".$ref", "expected a text");
    const std::string& path = ref.as_string();
    const Value* target = path == "#" ? root_ : nullptr;
    for (const char* home : {"$defs", "definitions"})
      if (const std::string prefix = fmt::format("#/{}/", home); path.starts_with(prefix))
        if (const Value* all = root_->find(home); all != nullptr) target = all->find(path.substr(prefix.size()));
    if (target == nullptr)
      refuse(where + ".$ref", fmt::format("nothing is at '{}'; #, #/$defs/NAME and #/definitions/NAME are looked up",
                                          printable(path, 80)));
    const auto [it, is_new] = named_.emplace(path, grammar_.rules_.size());
    if (is_new) {
      const size_t rule = it->second;
      grammar_.rules_.push_back(-1);
      set_rule(rule, of(*target, finish_, path, depth + 1));
    }
    return call(named_.at(path), next);
  }

  int32_t by_type(const Value& schema, int32_t next, const std::string& where, int depth) {
    const Value* type = schema.find("type");
    if (type == nullptr) {
      if (schema.find("properties") != nullptr) return object_of(schema, next, where, depth);
      check_keywords(schema, where, {});
      return call(kValue, next);
    }
    if (type->is_string()) return of_type(type->as_string(), schema, next, where, depth);
    if (!type->is_array() || type->items().empty()) refuse(where + ".type", "expected a type, or a list of them");
    int32_t all = -1;
    for (const Value& one : type->items()) {
      if (!one.is_string()) refuse(where + ".type", "expected names of types");
      const int32_t start = of_type(one.as_string(), schema, next, where, depth);
      all = all < 0 ? start : either(start, all);
    }
    return all;
  }

  int32_t of_type(const std::string& type, const Value& schema, int32_t next, const std::string& where, int depth) {
    const bool is_alone = !schema.find("type")->is_array();
    const auto only = [&](std::set<std::string_view> held) {
      if (!is_alone)  // keywords of the other types are theirs
        for (const char* word : {"properties", "required", "additionalProperties", "items", "minItems", "maxItems",
                                 "minLength", "maxLength"})
          held.insert(word);
      held.insert("type");
      check_keywords(schema, where, held);
    };
    if (type == "object") return object_of(schema, next, where, depth);
    if (type == "array") return only({"items", "minItems", "maxItems"}), array_of(schema, next, where, depth);
    if (type == "string") return only({"minLength", "maxLength"}), string_of(schema, next, where);
    only({});
    if (type == "integer") return call(kInteger, next);
    if (type == "number") return call(kNumber, next);
    if (type == "boolean") return either(literal("true", next), literal("false", next));
    if (type == "null") return literal("null", next);
    refuse(where + ".type", fmt::format("'{}' is no type of JSON", printable(type, 40)));
  }

  int32_t string_of(const Value& schema, int32_t next, const std::string& where) {
    const int64_t least = count(schema, "minLength", 0, where), most = count(schema, "maxLength", -1, where);
    if (least == 0 && most < 0) return call(kString, next);
    if (most >= 0 && most < least) refuse(where, "maxLength is less than minLength");
    const int32_t close = literal("\"", next);
    int32_t at = close;
    if (most < 0) {
      at = add({Node::Kind::split, close, -1, {}});
      grammar_.nodes_[static_cast<size_t>(at)].other = call(kCharacter, at);
    }
    for (int64_t i = most; i > least; --i) at = either(close, call(kCharacter, at));
    for (int64_t i = 0; i < least; ++i) at = call(kCharacter, at);
    return literal("\"", at);
  }

  int32_t array_of(const Value& schema, int32_t next, const std::string& where, int depth) {
    const int64_t least = count(schema, "minItems", 0, where), most = count(schema, "maxItems", -1, where);
    if (most >= 0 && most < least) refuse(where, "maxItems is less than minItems");
    const Value* items = schema.find("items");
    const size_t item = grammar_.rules_.size();
    grammar_.rules_.push_back(-1);
    set_rule(item, items == nullptr ? call(kValue, finish_) : of(*items, finish_, where + ".items", depth + 1));
    if (least == 0 && most < 0) return list(item, next);
    const int32_t close = literal("]", next);
    int32_t more = close;  // after an item
    if (most < 0) {
      more = add({Node::Kind::split, close, -1, {}});
      grammar_.nodes_[static_cast<size_t>(more)].other = literal(",", blank(call(item, blank(more))));
    }
    for (int64_t i = most; i > std::max<int64_t>(least, 1); --i)
      more = either(close, literal(",", blank(call(item, blank(more)))));
    for (int64_t i = 1; i < least; ++i) more = literal(",", blank(call(item, blank(more))));
    const int32_t first = call(item, blank(more));
    return literal("[", blank(most == 0 ? close : least > 0 ? first : either(close, first)));
  }

  int32_t object_of(const Value& schema, int32_t next, const std::string& where, int depth) {
    std::set<std::string_view> held = {"type", "properties", "required", "additionalProperties"};
    if (const Value* type = schema.find("type"); type != nullptr && type->is_array())
      for (const char* word : {"items", "minItems", "maxItems", "minLength", "maxLength"}) held.insert(word);
    check_keywords(schema, where, held);
    std::set<std::string> required;
    if (const Value* names = schema.find("required"); names != nullptr) {
      if (!names->is_array()) refuse(where + ".required", "expected a list of names");
      for (const Value& name : names->items()) {
        if (!name.is_string()) refuse(where + ".required", "expected names");
        required.insert(name.as_string());
      }
    }
    const Value* properties = schema.find("properties");
    if (properties == nullptr || (properties->is_object() && properties->members().empty())) {
      if (!required.empty()) refuse(where + ".required", "names what properties does not");
      const Value* additional = schema.find("additionalProperties");
      const bool is_closed = additional != nullptr && additional->is_bool() && !additional->as_bool();
      if (additional != nullptr && additional->is_object())
        refuse(where + ".additionalProperties", "expected true or false");
      return is_closed ? literal("{", blank(literal("}", next))) : any_object(next);
    }
    if (!properties->is_object() || properties->members().size() > kMostProperties)
      refuse(where + ".properties", fmt::format("expected an object of at most {} properties", kMostProperties));
    // From the last property to the first: what may come after those before it, when one was written or none.
    int32_t after_some = literal("}", next), after_none = after_some;
    for (size_t i = properties->members().size(); i-- > 0;) {
      const auto& [name, value] = properties->members()[i];
      const int32_t rest = of(value, blank(after_some), where + "." + printable(name, 60), depth + 1);
      const int32_t pair = literal(to_json(Value(name)), blank(literal(":", blank(rest))));
      const int32_t later_pair = literal(",", blank(pair));
      const bool is_required = required.erase(name) > 0;
      after_some = is_required ? later_pair : either(later_pair, after_some);
      after_none = is_required ? pair : either(pair, after_none);
    }
    if (!required.empty())
      refuse(where + ".required", fmt::format("'{}' is not among the properties", printable(*required.begin(), 60)));
    return literal("{", blank(after_none));
  }

  Grammar grammar_;
  const Value* root_ = nullptr;
  int32_t finish_ = -1;
  std::map<std::string, size_t> named_;  // rules of references
};

std::shared_ptr<const Grammar> Grammar::json_object() { return GrammarBuilder().object(); }

std::shared_ptr<const Grammar> Grammar::json_schema(const Value& schema) {
  std::shared_ptr<const Grammar> grammar = GrammarBuilder().schema(schema);
  GrammarState begins(grammar);  // throws for one that may begin in too many ways
  return grammar;
}

}  // namespace saaz
