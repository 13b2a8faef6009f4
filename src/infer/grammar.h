// Grammar: what the text of an answer must be, byte by byte: any JSON object, or the JSON that a schema describes.
// Enters: a schema. Leaves: a machine with a stack that says which bytes may follow. Invariant: what it accepts to the
// end is JSON, in UTF-8, and valid under the schema; a keyword that it does not hold the answer to is refused, never
// ignored. Properties come in the schema's order, and only those that it names.
#pragma once

#include <bitset>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "base/value.h"

namespace saaz {

class Grammar {
 public:
  static std::shared_ptr<const Grammar> json_object();
  /// bad_input for a schema that is none, or that asks for what is not held: the keyword and its place are named.
  static std::shared_ptr<const Grammar> json_schema(const Value& schema);

 private:
  friend class GrammarBuilder;
  friend class GrammarState;
  using Bytes = std::bitset<256>;
  struct Node {
    enum class Kind : uint8_t { match, call, split, finish };
    Kind kind = Kind::finish;
    int32_t next = -1, other = -1;  // match: next. call: the rule `other`, then next. split: either
    Bytes bytes;                    // match
  };
  std::vector<Node> nodes_;
  std::vector<int32_t> rules_;  // the first node of each
  int32_t start_ = -1;
};

/// How far an answer has come.
class GrammarState {
 public:
  explicit GrammarState(std::shared_ptr<const Grammar> grammar);
  /// Whether these bytes may follow.
  bool accepts(std::string_view bytes) const;
  /// Goes on by bytes that may follow.
  void push(std::string_view bytes);
  /// The text is whole.
  bool is_complete() const { return is_complete_; }
  bool can_go_on() const { return !stacks_.empty(); }

 private:
  using Stack = std::vector<int32_t>;  // nodes to come, the next one last: a match
  void step(unsigned char byte);
  void open(Stack stack);

  std::shared_ptr<const Grammar> grammar_;
  std::vector<Stack> stacks_;
  bool is_complete_ = false;
  int n_opened_ = 0;
};

}  // namespace saaz
