// Value: a parsed JSON or YAML document, with the line and column of each node where the parser knows them (YAML:
// always; JSON: 0 = unknown; a member of an object stands where its key stands). Only value.cc knows nlohmann-json,
// only value_yaml.cc yaml-cpp. Parsing is strict: depth <= 64 (YAML 32), duplicate keys, invalid UTF-8, NaN literals
// and trailing text are errors (bad_input for JSON, usage for YAML, which is only used for recipes; YAML aliases,
// anchors and tags are refused).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace saaz {

class Value {
 public:
  enum class Kind { null, boolean, integer, real, string, array, object };
  using Member = std::pair<std::string, Value>;

  Value() = default;
  Value(bool v) : kind_(Kind::boolean), integer_(v) {}
  Value(int v) : kind_(Kind::integer), integer_(v) {}
  Value(int64_t v) : kind_(Kind::integer), integer_(v) {}
  Value(uint64_t v) : kind_(Kind::integer), integer_(static_cast<int64_t>(v)) {}
  Value(double v) : kind_(Kind::real), real_(v) {}
  Value(std::string v) : kind_(Kind::string), string_(std::move(v)) {}
  Value(std::string_view v) : Value(std::string(v)) {}
  Value(const char* v) : Value(std::string(v)) {}
  static Value array(std::vector<Value> items = {});
  static Value object(std::vector<Member> members = {});

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::null; }
  bool is_bool() const { return kind_ == Kind::boolean; }
  bool is_integer() const { return kind_ == Kind::integer; }
  bool is_number() const { return kind_ == Kind::integer || kind_ == Kind::real; }
  bool is_string() const { return kind_ == Kind::string; }
  bool is_array() const { return kind_ == Kind::array; }
  bool is_object() const { return kind_ == Kind::object; }
  /// "a string", "an object", ... for messages.
  const char* kind_name() const;

  // Typed access; the kind must match (assert): use `is_*` first, or the checked readers of the caller's schema.
  bool as_bool() const;
  int64_t as_integer() const;
  double as_double() const;  // integer or real
  const std::string& as_string() const;
  const std::vector<Value>& items() const;
  std::vector<Value>& items();
  const std::vector<Member>& members() const;  // in file order
  std::vector<Member>& members();

  /// The member's value, or nullptr when absent or when this is no object.
  const Value* find(std::string_view key) const;
  /// Sets or replaces a member (object only).
  void set(std::string key, Value value);
  void push_back(Value value);

  int line = 0, column = 0;  // 1-based; 0 = unknown

 private:
  Kind kind_ = Kind::null;
  int64_t integer_ = 0;
  double real_ = 0;
  std::string string_;
  std::vector<Value> items_;
  std::vector<Member> members_;
};

/// Parses one JSON document. `name` (path, or "path: line 12") starts the message; the offending byte is named.
Value parse_json(std::string_view text, const std::string& name);
/// Parses one YAML document (at most 64 KiB). Errors: usage, with line and column. Plain scalars follow YAML 1.2 core:
/// true/false, integers, reals (1e-4 is a real), null/~/empty; `no`, `yes`, `on` are strings.
Value parse_yaml(std::string_view text, const std::string& name);
/// JSON text; `indent` < 0 gives one line. Non-finite reals are written as NaN, Infinity, -Infinity (as Python does).
/// Reals are written in the shortest form that reads back to the same double. Non-ASCII is written as UTF-8.
std::string to_json(const Value& value, int indent = -1);
/// YAML block text that parse_yaml reads back to the same value.
std::string to_yaml(const Value& value);

}  // namespace saaz
