// Files to rows: finds the rows in JSON lines or in one JSON document and gives each its place. What a row means is in
// row_formats.cc. Every fault is reported as "file: row N (line M): what".
#include "data/conversation.h"

#include "base/check.h"
#include "base/system.h"
#include "base/value.h"
#include "data/row_formats.h"

namespace saaz {
namespace {

constexpr size_t kMaxLineBytes = 16 << 20;

bool is_blank_line(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

/// Takes the next line off `text`, without its end.
std::string_view take_line(std::string_view& text) {
  const size_t end = text.find('\n');
  const std::string_view line = text.substr(0, end);
  text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  return line;
}

/// Puts the row's place in front of what went wrong inside `body`.
template <class Body>
auto at_place(const Row& row, Body&& body) {
  try {
    return body();
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}: {}", row.place(), error.what()), error.where());
  }
}

/// Gathers rows; the first one settles an automatic format.
class Collector {
 public:
  Collector(const std::string& file, DataFormat format, BadRows& bad) : file_(file), format_(format), bad_(bad) {}

  /// `parse` gives the row's Value.
  template <class Parse>
  void add(int64_t line, Parse&& parse) {
    Row row{.file = file_, .number = ++n_seen_, .line = line};
    bad_.attempt([&] {
      at_place(row, [&] {
        const Value& value = parse();
        if (format_ == DataFormat::automatic) format_ = detect_format(value);
        read_row(value, format_, row);
      });
      rows_.push_back(std::move(row));
    });
  }
  std::vector<Row> take() {
    if (rows_.empty()) fail_empty();
    return std::move(rows_);
  }

 private:
  [[noreturn]] void fail_empty() const {
    // Every row seen was refused, so the last reason is about this file.
    if (n_seen_ > 0)
      fail(ExitCode::bad_input, "{}: no usable row in it; the last fault: {}", file_, bad_.reasons().back());
    fail(ExitCode::bad_input, "{}: no usable row in it", file_);
  }

  const std::string& file_;
  DataFormat format_;
  BadRows& bad_;
  int64_t n_seen_ = 0;
  std::vector<Row> rows_;
};

void collect_lines(std::string_view text, Collector& out) {
  for (int64_t number = 1; !text.empty(); ++number) {
    const std::string_view line = take_line(text);
    if (is_blank_line(line)) continue;
    Value value;
    out.add(number, [&]() -> const Value& {
      check(line.size() <= kMaxLineBytes, ExitCode::bad_input, "a line of {} bytes; at most {} are read", line.size(),
            kMaxLineBytes);
      return value = parse_json(line, "JSON");
    });
  }
}

void collect_document(std::string_view text, const std::string& name, Collector& out) {
  const Value document = parse_json(text, name);
  const Value* data = document.find("data");
  const Value& list = data != nullptr ? *data : document;
  check(list.is_array(), ExitCode::bad_input,
        "{}: expected a list of rows, or an object with one under 'data', found {}", name, list.kind_name());
  for (const Value& item : list.items()) out.add(0, [&]() -> const Value& { return item; });
}

/// Many files named .json hold JSON lines: then the first line is an object by itself, and another follows.
bool is_lines_in_disguise(std::string_view text) {
  const std::string_view first = take_line(text);
  if (first.find('{') != first.find_first_not_of(" \t\r") || is_blank_line(first)) return false;
  const size_t next = text.find_first_not_of(" \t\r\n");
  return next != std::string_view::npos && text[next] == '{';
}

void refuse_other_files(std::string_view text, const std::string& name) {
  check(!text.starts_with("version https://git-lfs"), ExitCode::bad_input,
        "{}: a Git LFS pointer, not the data; run 'git lfs pull' where it came from", name);
  check(!text.starts_with("PAR1"), ExitCode::bad_input,
        "{}: a Parquet file; reading Parquet is not built yet, convert it to JSON lines", name);
}

}  // namespace

std::string Row::place() const {
  return line > 0 ? fmt::format("{}: row {} (line {})", file, number, line) : fmt::format("{}: row {}", file, number);
}

bool BadRows::attempt(const std::function<void()>& body) {
  try {
    body();
    return true;
  } catch (const Error& error) {
    if (error.code() != ExitCode::bad_input || static_cast<int64_t>(reasons_.size()) >= allowed_) throw;
    reasons_.emplace_back(error.what());
    return false;
  }
}

std::vector<fs::path> find_data_files(const fs::path& path, Split split) {
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) return {path};
  using Names = std::vector<const char*>;
  const Names names = split == Split::train ? Names{"train.jsonl", "train.json"}
                                            : Names{"valid.jsonl", "validation.jsonl", "valid.json", "validation.json"};
  for (const char* name : names) {
    if (fs::is_regular_file(path / name, ignored)) return {path / name};
  }
  check(split == Split::validation, ExitCode::bad_input,
        "{}: the folder has no train.jsonl or train.json; name the file, or rename it", path.string());
  return {};
}

std::vector<Row> parse_rows(std::string_view text, const std::string& name, DataFormat format, BadRows& bad) {
  refuse_other_files(text, name);
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  Collector collector(name, format, bad);
  if (name.ends_with(".json") && !is_lines_in_disguise(text)) {
    collect_document(text, name, collector);
  } else {
    collect_lines(text, collector);
  }
  return collector.take();
}

std::vector<Row> load_rows(const fs::path& file, DataFormat format, BadRows& bad) {
  const std::string name = file.string();
  check(!name.ends_with(".parquet"), ExitCode::bad_input,
        "{}: reading Parquet is not built yet; convert it to JSON lines", name);
  const MappedFile mapped(file);
  const Bytes bytes = mapped.bytes();
  return parse_rows({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, name, format, bad);
}

}  // namespace saaz
