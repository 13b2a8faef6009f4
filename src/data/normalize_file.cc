// A line is edited in place: its string literals are found in the text, in the order in which the parsed row has them,
// and only those that change are replaced.
#include "data/normalize_file.h"

#include <algorithm>
#include <functional>
#include <vector>

#include "base/check.h"
#include "base/system.h"
#include "data/row_formats.h"
#include "data/row_source.h"

namespace saaz {
namespace {

/// A string literal in a line: bytes [begin, end), quotes included, and what to put there.
struct Literal {
  size_t begin = 0, end = 0;
  const std::string* text = nullptr;  // nullptr: nothing that is trained on
};

/// All string literals of valid JSON, keys included.
std::vector<Literal> find_literals(std::string_view line) {
  std::vector<Literal> out;
  for (size_t at = line.find('"'); at != std::string_view::npos; at = line.find('"', at)) {
    const size_t begin = at++;
    while (line[at] != '"') at += line[at] == '\\' ? 2 : 1;
    out.push_back({begin, ++at});
  }
  return out;
}

/// Walks a row in the order of its literals and marks those that hold training text.
class Marker {
 public:
  explicit Marker(std::vector<Literal>& literals) : literals_(literals) {}

  void mark_row(const Value& row) {
    for (const auto& [key, value] : row.members()) {
      ++at_;
      mark(value, is_one_of(key, kTextColumns));
    }
  }

 private:
  /// `is_text`: a string here is training text. In an object below a column only some members are.
  void mark(const Value& value, bool is_text) {
    if (value.is_string()) {
      Literal& literal = literals_[at_++];
      if (is_text) literal.text = &value.as_string();
    }
    if (value.is_array())
      for (const Value& item : value.items()) mark(item, is_text);
    if (!value.is_object()) return;
    for (const auto& [key, member] : value.members()) {
      ++at_;
      mark(member, is_text && is_one_of(key, kTextMembers));
    }
  }

  std::vector<Literal>& literals_;
  size_t at_ = 0;
};

/// The differing middle of two texts, cut at borders of code points.
struct Difference {
  size_t begin = 0;  // in both
  std::string_view before, after;
};
bool is_border(std::string_view text, size_t at) {
  return at >= text.size() || (static_cast<unsigned char>(text[at]) & 0xC0) != 0x80;
}
Difference difference(std::string_view before, std::string_view after) {
  const size_t n = std::min(before.size(), after.size());
  size_t begin = 0, tail = 0;
  while (begin < n && before[begin] == after[begin]) ++begin;
  while (!is_border(before, begin) || !is_border(after, begin)) --begin;
  while (tail < n - begin && before[before.size() - tail - 1] == after[after.size() - tail - 1]) ++tail;
  while (!is_border(before, before.size() - tail) || !is_border(after, after.size() - tail)) --tail;
  return {begin, before.substr(begin, before.size() - begin - tail), after.substr(begin, after.size() - begin - tail)};
}

/// Appends the normalised line to `out.lines` and its edits to `edits`.
void normalize_line(std::string_view line, const Value& row, int64_t number, const NormalizeOptions& options,
                    NormalizedFile& out, std::string& edits) {
  std::vector<Literal> literals = find_literals(line);
  Marker(literals).mark_row(row);
  std::string result;
  size_t done = 0;
  bool is_changed = false;
  for (const Literal& literal : literals) {
    if (literal.text == nullptr) continue;
    const std::string text = normalize_text(*literal.text, options, out.counts);
    if (text == *literal.text) continue;
    is_changed = true;
    ++out.n_changed_texts;
    const std::string after = to_json(Value(text));
    const Difference edit = difference(line.substr(literal.begin, literal.end - literal.begin), after);
    result += line.substr(done, literal.begin - done);
    edits += to_json(Value::object({{"line", number},
                                    {"at", static_cast<int64_t>(result.size() + edit.begin)},
                                    {"old", edit.before},
                                    {"new", edit.after}})) +
             "\n";
    result += after;
    done = literal.end;
  }
  out.n_changed_rows += is_changed ? 1 : 0;
  out.lines += result;
  out.lines += line.substr(done);
}

/// Calls `visit(line, number)` for every line and passes its end on to `out`.
void rewrite_lines(std::string_view text, std::string& out,
                   const std::function<void(std::string_view, int64_t)>& visit) {
  for (int64_t number = 1; !text.empty(); ++number) {
    const size_t n_before = text.size();
    const std::string_view line = take_line(text);
    visit(line, number);
    if (n_before - text.size() > line.size()) out += '\n';
  }
}

struct Edit {
  int64_t line = 0, at = 0;
  std::string before, after;
};
struct Patch {
  std::string original_sha256, normalized_sha256;
  std::vector<Edit> edits;
};

const Value& need(const Value& value, const char* key, Value::Kind kind, const std::string& place) {
  const Value* member = value.find(key);
  check(member != nullptr && member->kind() == kind, ExitCode::bad_input,
        "{}: '{}' is missing or of the wrong type: this is no patch of 'saaz data normalize'", place, key);
  return *member;
}

Patch read_patch(std::string_view text, const std::string& name) {
  Patch out;
  for (int64_t number = 1; !text.empty(); ++number) {
    const std::string place = fmt::format("{}: line {}", name, number);
    const Value value = parse_json(take_line(text), place);
    if (number == 1) {
      out.original_sha256 = need(value, "original_sha256", Value::Kind::string, place).as_string();
      out.normalized_sha256 = need(value, "normalized_sha256", Value::Kind::string, place).as_string();
    } else {
      out.edits.push_back({need(value, "line", Value::Kind::integer, place).as_integer(),
                           need(value, "at", Value::Kind::integer, place).as_integer(),
                           need(value, "old", Value::Kind::string, place).as_string(),
                           need(value, "new", Value::Kind::string, place).as_string()});
    }
  }
  check(!out.original_sha256.empty(), ExitCode::bad_input, "{}: an empty patch", name);
  return out;
}

}  // namespace

std::string json_lines_of(std::string_view file, const std::string& name) {
  if (file_kind(file, name) == FileKind::json_lines) return std::string(file);
  std::string out;
  int64_t n_rows = 0;
  for_each_row(file, name, [&](int64_t, const auto& parse) {
    out += with_context(fmt::format("in row {} of {}", ++n_rows, name), [&] { return to_json(parse()); }) + "\n";
  });
  return out;
}

NormalizedFile normalize_lines(std::string_view lines, const std::string& name, const NormalizeOptions& options) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  NormalizedFile out;
  std::string edits;
  rewrite_lines(lines, out.lines, [&](std::string_view line, int64_t number) {
    const bool has_mark = number == 1 && line.starts_with(kByteOrderMark);
    const std::string_view body = has_mark ? line.substr(kByteOrderMark.size()) : line;
    if (is_blank_line(body)) {
      out.lines += line;
      return;
    }
    const std::string place = fmt::format("{}: line {}", name, number);
    const Value row = parse_json(body, place);
    check(row.is_object(), ExitCode::bad_input, "{}: expected an object, found {}", place, row.kind_name());
    ++out.n_rows;
    normalize_line(line, row, number, options, out, edits);
  });
  out.patch = to_json(Value::object({{"original_sha256", sha256_hex(lines)},
                                     {"normalized_sha256", sha256_hex(out.lines)},
                                     {"changed_texts", out.n_changed_texts}})) +
              "\n" + edits;
  return out;
}

std::string revert_lines(std::string_view lines, std::string_view patch, const std::string& patch_name) {
  const Patch parsed = read_patch(patch, patch_name);
  check(sha256_hex(lines) == parsed.normalized_sha256, ExitCode::verification,
        "{}: made for another file, or the file was edited since: their SHA-256 differ", patch_name);
  std::string out;
  auto edit = parsed.edits.begin();
  rewrite_lines(lines, out, [&](std::string_view line, int64_t number) {
    size_t done = 0;
    for (; edit != parsed.edits.end() && edit->line == number; ++edit) {
      const auto at = static_cast<size_t>(edit->at);
      check(edit->at >= 0 && at >= done && at <= line.size() && line.substr(at).starts_with(edit->after),
            ExitCode::bad_input, "{}: an edit of line {} does not fit: the patch is damaged", patch_name, number);
      out += line.substr(done, at - done);
      out += edit->before;
      done = at + edit->after.size();
    }
    out += line.substr(done);
  });
  check(sha256_hex(out) == parsed.original_sha256, ExitCode::bad_input,
        "{}: it does not lead back to the original: the patch is damaged", patch_name);
  return out;
}

std::string to_text(const NormalizedFile& file) {
  std::string out = fmt::format("{:<20}{}, {} changed\n", "rows", file.n_rows, file.n_changed_rows);
  for (size_t i = 0; i < kNumRules; ++i)
    if (file.counts.changes[i] > 0)
      out += fmt::format("{:<20}{}\n", name_of(static_cast<Rule>(i)), file.counts.changes[i]);
  return out + fmt::format("{:<20}{} spans left alone\n", "quoted Arabic", file.counts.n_quoted_arabic);
}

Value to_value(const NormalizedFile& file) {
  Value rules = Value::object();
  for (size_t i = 0; i < kNumRules; ++i) rules.set(name_of(static_cast<Rule>(i)), file.counts.changes[i]);
  return Value::object({{"schema_version", 1},
                        {"rows", file.n_rows},
                        {"changed_rows", file.n_changed_rows},
                        {"changed_texts", file.n_changed_texts},
                        {"rules", rules},
                        {"quoted_arabic", file.counts.n_quoted_arabic}});
}

}  // namespace saaz
