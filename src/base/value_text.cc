// Value out, as JSON and as YAML. Enters: any Value. Leaves: text that parse_json, or parse_yaml, reads back to the
// same Value (finite reals; JSON also writes NaN and Infinity as Python does, which strict readers refuse).
#include <algorithm>
#include <cassert>
#include <cmath>

#include "base/check.h"
#include "base/unicode.h"
#include "base/value.h"

namespace saaz {
namespace {

void append_quoted(std::string& out, std::string_view text) {
  out += '"';
  for (size_t i = 0; i < text.size();) {
    const CodePoint point = decode_utf8(text.substr(i));
    if (point.value == '"' || point.value == '\\') {
      out += '\\', out += text[i];
    } else if (point.value == '\n') {
      out += "\\n";
    } else if (point.value == '\t') {
      out += "\\t";
    } else if (point.value == '\r') {
      out += "\\r";
    } else if (point.value < 0x20 || point.value == 0x7F || point.value == 0xFEFF) {
      out += fmt::format("\\u{:04x}", point.value);
    } else {
      append_utf8(out, point.value);  // an invalid byte leaves as U+FFFD
    }
    i += point.length;
  }
  out += '"';
}

/// Shortest text that reads back to the same double, always recognisable as a real (1 becomes 1.0, 1e-06
/// becomes 1.0e-06: readers of YAML 1.1 need the point).
std::string real_text(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  std::string text = fmt::format("{}", value);
  if (text.find('.') != std::string::npos) return text;
  const size_t exponent = text.find('e');
  return exponent == std::string::npos ? text + ".0" : text.insert(exponent, ".0");
}

void append_json_scalar(std::string& out, const Value& value) {
  switch (value.kind()) {
    case Value::Kind::null:
      out += "null";
      return;
    case Value::Kind::boolean:
      out += value.as_bool() ? "true" : "false";
      return;
    case Value::Kind::integer:
      out += std::to_string(value.as_integer());
      return;
    case Value::Kind::real:
      out += real_text(value.as_double());
      return;
    case Value::Kind::string:
      append_quoted(out, value.as_string());
      return;
    case Value::Kind::array:
      out += "[]";
      return;
    case Value::Kind::object:
      out += "{}";
      return;
  }
}

bool is_empty_container(const Value& value) {
  return (value.is_array() && value.items().empty()) || (value.is_object() && value.members().empty());
}
bool is_leaf(const Value& value) { return (!value.is_array() && !value.is_object()) || is_empty_container(value); }

void append_json(std::string& out, const Value& value, int indent, int depth) {
  if (is_leaf(value)) return append_json_scalar(out, value);
  const auto new_line = [&](int levels) {
    if (indent >= 0) out += '\n', out.append(static_cast<size_t>(indent) * levels, ' ');
  };
  const char* separator = indent >= 0 ? "," : ", ";
  bool is_first = true;
  const auto begin_item = [&] {
    if (!is_first) out += separator;
    is_first = false;
    new_line(depth + 1);
  };
  out += value.is_array() ? '[' : '{';
  if (value.is_array()) {
    for (const Value& item : value.items()) begin_item(), append_json(out, item, indent, depth + 1);
  } else {
    for (const auto& [key, item] : value.members()) {
      begin_item();
      append_quoted(out, key);
      out += ": ";
      append_json(out, item, indent, depth + 1);
    }
  }
  new_line(depth);
  out += value.is_array() ? ']' : '}';
}

/// Plain only where YAML 1.1 and 1.2 readers agree that it is a string.
bool is_plain_yaml(std::string_view text) {
  static constexpr std::string_view kPlainBytes =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_/.-+@";
  if (text.empty() || text.find_first_not_of(kPlainBytes) != std::string_view::npos) return false;
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  static constexpr std::string_view kWords[] = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"};
  if (std::find(std::begin(kWords), std::end(kWords), lower) != std::end(kWords)) return false;
  return (lower[0] >= 'a' && lower[0] <= 'z') || lower[0] == '_' || lower[0] == '/';
}

void append_yaml_scalar(std::string& out, const Value& value) {
  assert(value.kind() != Value::Kind::real || std::isfinite(value.as_double()));
  if (value.is_string() && is_plain_yaml(value.as_string())) {
    out += value.as_string();
  } else {
    append_json_scalar(out, value);
  }
}

void append_yaml_block(std::string& out, const Value& value, int depth) {
  const auto child = [&](const Value& item) {
    if (is_leaf(item)) {
      out += ' ';
      append_yaml_scalar(out, item);
      out += '\n';
    } else {
      out += '\n';
      append_yaml_block(out, item, depth + 1);
    }
  };
  const std::string indent(static_cast<size_t>(depth) * 2, ' ');
  if (value.is_array()) {
    for (const Value& item : value.items()) out += indent + '-', child(item);
    return;
  }
  for (const auto& [key, item] : value.members()) {
    out += indent;
    append_yaml_scalar(out, Value(key));
    out += ':';
    child(item);
  }
}

}  // namespace

std::string to_json(const Value& value, int indent) {
  std::string out;
  append_json(out, value, indent, 0);
  return out;
}

std::string to_yaml(const Value& value) {
  std::string out;
  if (!is_leaf(value)) {
    append_yaml_block(out, value, 0);
    return out;
  }
  append_yaml_scalar(out, value);
  return out + '\n';
}

}  // namespace saaz
