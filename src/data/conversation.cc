// Files to rows: takes the rows of row_source.cc and gives each its place. What a row means is in row_formats.cc. Every
// fault is reported as "file: row N (line M): what".
#include "data/conversation.h"

#include <algorithm>

#include "base/check.h"
#include "base/system.h"
#include "data/row_formats.h"
#include "data/row_source.h"

namespace saaz {
namespace {

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

  void add(int64_t line, const std::function<Value()>& parse) {
    Row row{.file = file_, .number = ++n_seen_, .line = line};
    bad_.attempt([&] {
      at_place(row, [&] {
        const Value value = parse();
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

/// The shards of a split as the Hub stores them (train-00000-of-00002.parquet), in order, in `folder` or its data/.
std::vector<fs::path> find_shards(const fs::path& folder, const std::string& split) {
  std::vector<fs::path> shards;
  std::error_code ignored;
  for (const fs::path& place : {folder, folder / "data"}) {
    if (!shards.empty()) break;
    for (const auto& entry : fs::directory_iterator(place, ignored)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with(split + "-") && name.ends_with(".parquet")) shards.push_back(entry.path());
    }
  }
  std::sort(shards.begin(), shards.end());
  return shards;
}

}  // namespace

std::string Row::place() const {
  return line > 0 ? fmt::format("{}: row {} (line {})", file, number, line) : fmt::format("{}: row {}", file, number);
}

std::string text_of_row(const Row& row) {
  std::string out = row.text;
  for (const ChatMessage& message : row.messages) {
    out += '\0' + message.role;
    for (const std::string& part : message.parts) out += '\1' + part;
  }
  return out;
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
  using Names = std::vector<std::string>;
  const Names splits = split == Split::train ? Names{"train"} : Names{"valid", "validation"};
  for (const char* ending : {".jsonl", ".json", ".parquet"})
    for (const std::string& name : splits)
      if (fs::is_regular_file(path / (name + ending), ignored)) return {path / (name + ending)};
  for (const std::string& name : splits)
    if (std::vector<fs::path> shards = find_shards(path, name); !shards.empty()) return shards;
  check(split == Split::validation, ExitCode::bad_input,
        "{}: the folder has no train.jsonl, train.json, train.parquet or train-*.parquet; name the file, or rename it",
        path.string());
  return {};
}

std::vector<Row> parse_rows(std::string_view text, const std::string& name, DataFormat format, BadRows& bad) {
  Collector collector(name, format, bad);
  for_each_row(text, name, [&](int64_t line, const auto& parse) { collector.add(line, parse); });
  return collector.take();
}

std::vector<Row> load_rows(const fs::path& file, DataFormat format, BadRows& bad) {
  const MappedFile mapped(file);
  const Bytes bytes = mapped.bytes();
  return parse_rows({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, file.string(), format, bad);
}

}  // namespace saaz
