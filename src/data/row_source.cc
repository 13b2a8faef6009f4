#include "data/row_source.h"

#include <span>

#include "base/check.h"
#include "base/unicode.h"
#include "data/parquet.h"

namespace saaz {
namespace {

constexpr size_t kMaxLineBytes = 16 << 20;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

void visit_lines(std::string_view text, const RowVisitor& visit) {
  for (int64_t number = 1; !text.empty(); ++number) {
    const std::string_view line = take_line(text);
    if (is_blank_line(line)) continue;
    visit(number, [&] {
      check(line.size() <= kMaxLineBytes, ExitCode::bad_input, "a line of {} bytes; at most {} are read", line.size(),
            kMaxLineBytes);
      return parse_json(line, "JSON");
    });
  }
}

void visit_document(std::string_view text, const std::string& name, const RowVisitor& visit) {
  const Value document = parse_json(text, name);
  const Value* data = document.find("data");
  const Value& list = data != nullptr ? *data : document;
  check(list.is_array(), ExitCode::bad_input,
        "{}: expected a list of rows, or an object with one under 'data', found {}", name, list.kind_name());
  for (const Value& item : list.items()) visit(0, [&] { return item; });
}

/// JSON's parser refuses invalid UTF-8; Parquet's reader does not look.
void check_utf8(const Value& value) {
  if (value.is_string()) {
    const size_t at = find_invalid_utf8(value.as_string());
    check(at == std::string::npos, ExitCode::bad_input, "a text that is not valid UTF-8, at byte {} of it", at);
  }
  if (value.is_array())
    for (const Value& item : value.items()) check_utf8(item);
  if (value.is_object())
    for (const auto& [key, member] : value.members()) check_utf8(member);
}

/// Many files named .json hold JSON lines: then the first line is an object by itself, and another follows.
bool is_lines_in_disguise(std::string_view text) {
  const std::string_view first = take_line(text);
  if (first.find('{') != first.find_first_not_of(" \t\r") || is_blank_line(first)) return false;
  const size_t next = text.find_first_not_of(" \t\r\n");
  return next != std::string_view::npos && text[next] == '{';
}

Bytes bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

}  // namespace

bool is_blank_line(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

std::string_view take_line(std::string_view& text) {
  const size_t end = text.find('\n');
  const std::string_view line = text.substr(0, end);
  text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  return line;
}

FileKind file_kind(std::string_view file, const std::string& name) {
  check(!file.starts_with("version https://git-lfs"), ExitCode::bad_input,
        "{}: a Git LFS pointer, not the data; run 'git lfs pull' where it came from", name);
  if (name.ends_with(".parquet") || is_parquet(bytes_of(file))) return FileKind::parquet;
  return name.ends_with(".json") && !is_lines_in_disguise(file) ? FileKind::json_document : FileKind::json_lines;
}

void for_each_row(std::string_view file, const std::string& name, const RowVisitor& visit) {
  const FileKind kind = file_kind(file, name);
  if (file.starts_with(kByteOrderMark)) file.remove_prefix(kByteOrderMark.size());
  switch (kind) {
    case FileKind::json_lines:
      return visit_lines(file, visit);
    case FileKind::json_document:
      return visit_document(file, name, visit);
    case FileKind::parquet:
      return read_parquet(bytes_of(file), name, [&](Value row) {
        visit(0, [&] {
          check_utf8(row);
          return std::move(row);
        });
      });
  }
}

}  // namespace saaz
