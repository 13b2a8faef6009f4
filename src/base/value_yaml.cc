// YAML in. Enters: the text of a recipe, or of one `--set` value. Leaves: a Value whose nodes know their line and
// column, or one Error (usage) that starts with "name:line:column:". yaml-cpp is known only here and driven through its
// events, so that depth, aliases, anchors, tags and duplicate keys are refused before any recursion or expansion can
// grow (docs/formats.md 11.2; CVE-2017-5950). Plain scalars are resolved here, by the YAML 1.2 core rules.
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <sstream>

#include "base/check.h"
#include "base/unicode.h"
#include "base/value.h"
#include "base/value_builder.h"

namespace saaz {
namespace {

constexpr size_t kMaxYamlDepth = 32;
constexpr size_t kMaxYamlBytes = 64 << 10;  // yaml-cpp 0.7 needs time quadratic in the length: 3 s for this much
constexpr size_t kMaxYamlKeyBytes = 128;
constexpr size_t kMaxYamlNodes = 10000;  // keeps the linear search for duplicate keys cheap

bool is_one_of(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), text) != words.end();
}

/// YAML 1.2 core: [-+]?digits, 0o17, 0x1f. False when the text is no integer or does not fit 64 bits.
bool read_yaml_integer(std::string_view text, int64_t& out) {
  int base = 10;
  if (text.starts_with("0x")) base = 16;
  if (text.starts_with("0o")) base = 8;
  if (base != 10) {
    text.remove_prefix(2);
    if (text.starts_with('-')) return false;
  } else if (text.starts_with('+')) {
    text.remove_prefix(1);
    if (text.starts_with('-')) return false;
  }
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out, base);
  return !text.empty() && error == std::errc() && end == text.data() + text.size();
}

/// [-+]? ( .digits | digits [. digits*] ) ( [eE] [-+]? digits )?
bool looks_like_real(std::string_view text) {
  size_t i = 0;
  const auto digits = [&] {
    const size_t start = i;
    while (i < text.size() && text[i] >= '0' && text[i] <= '9') ++i;
    return i - start;
  };
  if (i < text.size() && (text[i] == '-' || text[i] == '+')) ++i;
  size_t n_digits = digits();
  if (i < text.size() && text[i] == '.') ++i, n_digits += digits();
  if (n_digits == 0) return false;
  if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    ++i;
    if (i < text.size() && (text[i] == '-' || text[i] == '+')) ++i;
    if (digits() == 0) return false;
  }
  return i == text.size();
}

bool is_non_finite_literal(std::string_view text) {
  if (text.starts_with('-') || text.starts_with('+')) text.remove_prefix(1);
  return is_one_of(text, {".inf", ".Inf", ".INF", ".nan", ".NaN", ".NAN"});
}

class YamlHandler : public YAML::EventHandler {
 public:
  explicit YamlHandler(const std::string& name) : name_(name) {}

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (n_documents_++ > 0) report(mark, "a second YAML document; expected one document in the file");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    refuse_extras(mark, "?", anchor);
    if (expects_key()) report(mark, "an empty or null key; expected a name");
    add(mark, {});
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { report(mark, "aliases (*name) are not allowed"); }
  void OnAnchor(const YAML::Mark& mark, const std::string&) override {
    report(mark, "anchors (&name) are not allowed");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& text) override {
    refuse_extras(mark, tag, anchor);
    if (expects_key()) return set_key(mark, text);
    add(mark, tag == "?" ? resolve_plain(mark, text) : Value(text));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, Value::array());
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, Value::object());
  }
  void OnMapEnd() override { close(); }

  [[noreturn]] void report(const YAML::Mark& mark, std::string_view message) const {
    fail(ExitCode::usage, "{}:{}:{}: {}", name_, std::max(mark.line, 0) + 1, std::max(mark.column, 0) + 1, message);
  }
  Value take() { return tree_.take(); }

 private:
  bool expects_key() { return tree_.depth() > 0 && tree_.top().is_object() && !has_key_; }

  void refuse_extras(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) const {
    if (anchor != 0) report(mark, "anchors (&name) are not allowed");
    if (!tag.empty() && tag != "?" && tag != "!")
      report(mark, fmt::format("tags ({}) are not allowed", printable(tag)));
  }
  void set_key(const YAML::Mark& mark, const std::string& key) {
    if (key.size() > kMaxYamlKeyBytes) report(mark, fmt::format("a key longer than {} bytes", kMaxYamlKeyBytes));
    if (const Value* first = tree_.top().find(key)) {
      report(mark, fmt::format("the key '{}' appears twice; it is already at line {}", printable(key), first->line));
    }
    tree_.set_key(key);
    key_mark_ = mark;
    has_key_ = true;
  }
  /// Gives the node its place: a member stands where its key stands.
  Value placed(const YAML::Mark& mark, Value value) {
    if (++n_nodes_ > kMaxYamlNodes) report(mark, fmt::format("more than {} values", kMaxYamlNodes));
    const YAML::Mark& place = has_key_ ? key_mark_ : mark;
    value.line = place.line + 1;
    value.column = place.column + 1;
    has_key_ = false;
    return value;
  }
  void add(const YAML::Mark& mark, Value value) { tree_.add(placed(mark, std::move(value))); }
  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, Value container) {
    refuse_extras(mark, tag, anchor);
    if (expects_key()) report(mark, "a list or a map as a key; expected a name");
    if (tree_.depth() >= kMaxYamlDepth) report(mark, fmt::format("nested deeper than {} levels", kMaxYamlDepth));
    tree_.open(placed(mark, std::move(container)));
  }
  void close() { tree_.close(); }

  Value resolve_plain(const YAML::Mark& mark, const std::string& text) const {
    if (is_one_of(text, {"true", "True", "TRUE"})) return true;
    if (is_one_of(text, {"false", "False", "FALSE"})) return false;
    if (is_non_finite_literal(text)) report(mark, fmt::format("'{}' is not a finite number", text));
    if (int64_t integer = 0; read_yaml_integer(text, integer)) return integer;
    if (!looks_like_real(text)) return text;
    const std::string_view digits = std::string_view(text).substr(text[0] == '+' ? 1 : 0);
    double real = 0;
    std::from_chars(digits.data(), digits.data() + digits.size(), real);
    // from_chars leaves `real` alone when the number is too small or too large: both are refused rather than rounded.
    const bool is_zero = digits.find_first_of("123456789") >= digits.find_first_of("eE");
    if (real == 0 && !is_zero) report(mark, fmt::format("the number '{}' does not fit a double", printable(text)));
    return real;
  }

  const std::string& name_;
  TreeBuilder tree_;
  YAML::Mark key_mark_;
  bool has_key_ = false;
  int n_documents_ = 0;
  size_t n_nodes_ = 0;
};

/// Refuses what must not reach the scanner: bytes that are no text, and flow brackets nested too deep (counted without
/// looking at quotes, so that the count needs no scanner; no recipe comes near it).
void check_text(std::string_view text, const std::string& name) {
  const auto place = [&](size_t at) {
    const std::string_view before = text.substr(0, at);
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const size_t start = before.rfind('\n');
    return fmt::format("{}:{}:{}", name, line, at - (start == std::string_view::npos ? 0 : start + 1) + 1);
  };
  const size_t invalid = find_invalid_utf8(text);
  check(invalid == std::string_view::npos, ExitCode::usage, "{}: invalid UTF-8; save the file as UTF-8",
        place(invalid));
  size_t depth = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte == '[' || byte == '{') ++depth;
    if ((byte == ']' || byte == '}') && depth > 0) --depth;
    check(depth <= kMaxYamlDepth, ExitCode::usage, "{}: nested deeper than {} levels", place(i), kMaxYamlDepth);
    const bool is_control = (byte < 0x20 && byte != '\n' && byte != '\r' && byte != '\t') || byte == 0x7F;
    check(!is_control, ExitCode::usage, "{}: the control byte 0x{:02x} is not allowed in YAML", place(i), byte);
  }
}

}  // namespace

Value parse_yaml(std::string_view text, const std::string& name) {
  check(text.size() <= kMaxYamlBytes, ExitCode::usage, "{}: {} bytes; a recipe may have at most {}", name, text.size(),
        kMaxYamlBytes);
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  check_text(text, name);
  std::istringstream stream{std::string(text)};
  YamlHandler handler(name);
  try {
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(handler)) {
    }
  } catch (const YAML::Exception& error) {
    handler.report(error.mark, fmt::format("invalid YAML: {}", printable(error.msg)));
  }
  return handler.take();
}

}  // namespace saaz
