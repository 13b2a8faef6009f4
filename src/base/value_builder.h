// Builds a Value from the events of a parser (value.cc, value_yaml.cc): open, key, add, close. What the events mean and
// which of them are refused is the parser's business; this class only keeps the place in the tree.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/value.h"

namespace saaz {

/// Builds the tree from a parser's events. Pointers into the tree stay good: a parent's list does not grow while one of
/// its children is open.
class TreeBuilder {
 public:
  /// Adds a node and returns it; under an object the pending key names it.
  Value& add(Value value) {
    if (open_.empty()) return root_ = std::move(value);
    Value& parent = *open_.back();
    if (parent.is_array()) return parent.items().emplace_back(std::move(value));
    return parent.members().emplace_back(std::move(key_), std::move(value)).second;
  }
  void open(Value container) { open_.push_back(&add(std::move(container))); }
  void close() { open_.pop_back(); }
  void set_key(std::string key) { key_ = std::move(key); }
  size_t depth() const { return open_.size(); }
  Value& top() { return *open_.back(); }
  Value take() { return std::move(root_); }

 private:
  Value root_;
  std::vector<Value*> open_;
  std::string key_;
};

}  // namespace saaz
