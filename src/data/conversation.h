// Rows of training text. Enters: JSONL, JSON or Parquet files (formats.md 10). Leaves: rows of one shape, each a
// conversation or a raw text, in file order, that know their file and line. Invariant: the roles of a conversation are
// an optional system message and then user and assistant in turn, and no user or assistant message is blank. Extra
// columns are ignored and null keys dropped. A bad row stops the reading, unless the caller allows some to be skipped.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "config/recipe.h"
#include "tokenizer/chat_template.h"

namespace saaz {

struct Row {
  std::string file;
  int64_t number = 0;                 // 1-based among the file's rows
  int64_t line = 0;                   // 1-based; 0 in a JSON array or in Parquet, where lines mean nothing
  std::vector<ChatMessage> messages;  // empty: `text` is the row
  std::string text;                   // no template is put around it, and all of it is scored
  size_t n_prompt_messages = 0;       // leading messages that are never scored (a prompt given as a list of messages)
  std::string license;                // the row's own word on it; mostly none

  bool is_text() const { return messages.empty(); }
  /// "train.jsonl: row 17 (line 18)"
  std::string place() const;
};

/// All of a row's text, with roles and borders, so that equal rows and only those give equal text.
std::string text_of_row(const Row& row);

/// Counts the rows that were left out. The reasons are for the report; they name file, row and fault.
class BadRows {
 public:
  explicit BadRows(int64_t allowed) : allowed_(allowed) {}
  /// Runs `body`; a bad_input Error that leaves it is noted, as long as no more than `allowed` are. Returns whether it
  /// ran through.
  bool attempt(const std::function<void()>& body);
  const std::vector<std::string>& reasons() const { return reasons_; }

 private:
  int64_t allowed_;
  std::vector<std::string> reasons_;
};

enum class Split { train, validation };

/// The files behind a path of the recipe: the file itself, or in a folder train.jsonl (valid.jsonl or validation.jsonl
/// for the validation split; .json and .parquet as well), or the shards of a split (train-*.parquet, there or in
/// data/). An empty list when a folder has no validation file; bad_input when it has no training file.
std::vector<std::filesystem::path> find_data_files(const std::filesystem::path& path, Split split);

/// All rows of one file. `format` automatic: told by the first row's keys. bad_input for anything that is no such row,
/// and for a file without rows.
std::vector<Row> load_rows(const std::filesystem::path& file, DataFormat format, BadRows& bad);
/// The same for text already in memory; `name` stands for the path and its ending helps to tell the kind.
std::vector<Row> parse_rows(std::string_view text, const std::string& name, DataFormat format, BadRows& bad);

}  // namespace saaz
