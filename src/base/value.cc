// Value, and JSON in. Enters: untrusted text (models, data, adapters). Leaves: a tree at most kMaxJsonDepth deep, or
// one Error that names the byte. nlohmann-json is known only here, and driven through its events, which do not recurse:
// depth and duplicate keys are refused while reading (docs/formats.md 11.2).
#include "base/value.h"

#include <algorithm>
#include <cassert>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/value_builder.h"

namespace saaz {
namespace {

constexpr size_t kMaxJsonDepth = 64;

/// A character iterator that leaves its position in `*cursor`, so that errors found by our own checks have a place too.
struct TrackedIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  const char* at;
  const char** cursor;

  reference operator*() const { return *at; }
  TrackedIterator& operator++() {
    *cursor = ++at;
    return *this;
  }
  bool operator==(const TrackedIterator& other) const { return at == other.at; }
  bool operator!=(const TrackedIterator& other) const { return at != other.at; }
};

class JsonHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  JsonHandler(std::string_view text, const std::string& name) : cursor(text.data()), text_(text), name_(name) {}

  bool null() override { return add({}); }
  bool boolean(bool v) override { return add(v); }
  bool number_integer(int64_t v) override { return add(v); }
  bool number_unsigned(uint64_t v) override {
    return v <= static_cast<uint64_t>(INT64_MAX) ? add(static_cast<int64_t>(v)) : add(static_cast<double>(v));
  }
  bool number_float(double v, const std::string&) override { return add(v); }
  bool string(std::string& v) override { return add(std::move(v)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return open(Value::object()); }
  bool start_array(size_t) override { return open(Value::array()); }
  bool key(std::string& v) override {
    tree.set_key(std::move(v));
    return true;
  }
  bool end_array() override {
    tree.close();
    return true;
  }
  bool end_object() override {
    // Sorting once per object keeps a 262,144-entry vocabulary at n log n.
    std::vector<std::string_view> keys;
    keys.reserve(tree.top().members().size());
    for (const auto& [key, value] : tree.top().members()) keys.push_back(key);
    std::sort(keys.begin(), keys.end());
    const auto twin = std::adjacent_find(keys.begin(), keys.end());
    if (twin != keys.end())
      report(position(), fmt::format("the key '{}' appears twice in one object", printable(*twin)));
    tree.close();
    return true;
  }
  bool parse_error(size_t byte, const std::string&, const nlohmann::detail::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: <what we want>"
    std::string_view what = error.what();
    const size_t place = what.find("parse error");
    const size_t colon = what.find(": ", place == std::string_view::npos ? 0 : place);
    if (place != std::string_view::npos && colon != std::string_view::npos) what.remove_prefix(colon + 2);
    if (const size_t bracket = what.find("] ");
        what.starts_with("[json.exception") && bracket != std::string_view::npos) {
      what.remove_prefix(bracket + 2);
    }
    report(byte, fmt::format("invalid JSON: {}", printable(what)));
  }
  size_t position() const { return static_cast<size_t>(cursor - text_.data()); }

  [[noreturn]] void report(size_t byte, const std::string& message) const {
    const std::string_view before = text_.substr(0, std::min(byte == 0 ? 0 : byte - 1, text_.size()));
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    if (line == 1) fail(ExitCode::bad_input, "{}: byte {}: {}", name_, byte, message);
    const size_t column = before.size() - before.rfind('\n');
    fail(ExitCode::bad_input, "{}: line {}, column {} (byte {}): {}", name_, line, column, byte, message);
  }

  TreeBuilder tree;
  const char* cursor;

 private:
  bool add(Value value) {
    tree.add(std::move(value));
    return true;
  }
  bool open(Value container) {
    if (tree.depth() >= kMaxJsonDepth) report(position(), fmt::format("nested deeper than {} levels", kMaxJsonDepth));
    tree.open(std::move(container));
    return true;
  }

  std::string_view text_;
  const std::string& name_;
};

}  // namespace

Value Value::array(std::vector<Value> items) {
  Value value;
  value.kind_ = Kind::array;
  value.items_ = std::move(items);
  return value;
}

Value Value::object(std::vector<Member> members) {
  Value value;
  value.kind_ = Kind::object;
  value.members_ = std::move(members);
  return value;
}

const char* Value::kind_name() const {
  switch (kind_) {
    case Kind::null:
      return "null";
    case Kind::boolean:
      return "a boolean";
    case Kind::integer:
      return "an integer";
    case Kind::real:
      return "a real number";
    case Kind::string:
      return "a string";
    case Kind::array:
      return "a list";
    case Kind::object:
      return "an object";
  }
  return "nothing";
}

bool Value::as_bool() const { return assert(is_bool()), integer_ != 0; }
int64_t Value::as_integer() const { return assert(is_integer()), integer_; }
double Value::as_double() const {
  assert(is_number());
  return is_integer() ? static_cast<double>(integer_) : real_;
}
const std::string& Value::as_string() const { return assert(is_string()), string_; }
const std::vector<Value>& Value::items() const { return assert(is_array()), items_; }
std::vector<Value>& Value::items() { return assert(is_array()), items_; }
const std::vector<Value::Member>& Value::members() const { return assert(is_object()), members_; }
std::vector<Value::Member>& Value::members() { return assert(is_object()), members_; }

const Value* Value::find(std::string_view key) const {
  for (const auto& [name, value] : members_) {
    if (name == key) return &value;
  }
  return nullptr;
}

void Value::set(std::string key, Value value) {
  assert(is_object());
  for (auto& [name, old] : members_) {
    if (name == key) return static_cast<void>(old = std::move(value));
  }
  members_.emplace_back(std::move(key), std::move(value));
}

void Value::push_back(Value value) { items().push_back(std::move(value)); }

Value parse_json(std::string_view text, const std::string& name) {
  JsonHandler handler(text, name);
  // The library takes a NUL byte for the end of its input; what follows would go unread.
  const size_t nul = text.find('\0');
  if (nul != std::string_view::npos) handler.report(nul + 1, "a NUL byte; the file is no text");
  const TrackedIterator first{text.data(), &handler.cursor}, last{text.data() + text.size(), &handler.cursor};
  const bool ok = nlohmann::json::sax_parse(first, last, &handler);
  assert(ok);
  static_cast<void>(ok);
  return handler.tree.take();
}

}  // namespace saaz
