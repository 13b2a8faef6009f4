#include "infer/grammar.h"

#include <algorithm>

#include "base/check.h"

namespace saaz {

namespace {
constexpr size_t kDeepest = 256;   // nodes to come: some three a level of nesting
constexpr int kMostOpened = 5000;  // at one byte
}  // namespace

GrammarState::GrammarState(std::shared_ptr<const Grammar> grammar) : grammar_(std::move(grammar)) {
  open({grammar_->start_});
}

/// Adds the stacks that `stack` stands for: those whose next node is a match.
void GrammarState::open(Stack stack) {
  while (!stack.empty()) {
    const Grammar::Node& node = grammar_->nodes_[static_cast<size_t>(stack.back())];
    if (node.kind == Grammar::Node::Kind::match) {
      if (stack.size() <= kDeepest && std::find(stacks_.begin(), stacks_.end(), stack) == stacks_.end())
        stacks_.push_back(std::move(stack));
      return;
    }
    check(++n_opened_ < kMostOpened, ExitCode::bad_input, "the schema may go on in more than {} ways at one place",
          kMostOpened);
    stack.pop_back();
    if (node.kind == Grammar::Node::Kind::finish) continue;
    if (node.kind == Grammar::Node::Kind::split) {
      Stack copy = stack;
      copy.push_back(node.other);
      open(std::move(copy));
      stack.push_back(node.next);
    } else {
      // What only finishes need not be come back to: so lists do not grow the stack.
      if (grammar_->nodes_[static_cast<size_t>(node.next)].kind != Grammar::Node::Kind::finish)
        stack.push_back(node.next);
      stack.push_back(grammar_->rules_[static_cast<size_t>(node.other)]);
    }
  }
  is_complete_ = true;
}

void GrammarState::step(unsigned char byte) {
  std::vector<Stack> before;
  before.swap(stacks_);
  is_complete_ = false;
  n_opened_ = 0;
  for (Stack& stack : before) {
    const Grammar::Node& node = grammar_->nodes_[static_cast<size_t>(stack.back())];
    if (!node.bytes[byte]) continue;
    stack.back() = node.next;
    open(std::move(stack));
  }
}

void GrammarState::push(std::string_view bytes) {
  for (const char byte : bytes) step(static_cast<unsigned char>(byte));
}

bool GrammarState::accepts(std::string_view bytes) const {
  const auto begins = [&](const Stack& stack) {
    return grammar_->nodes_[static_cast<size_t>(stack.back())].bytes[static_cast<unsigned char>(bytes[0])];
  };
  if (bytes.empty() || std::none_of(stacks_.begin(), stacks_.end(), begins)) return false;
  GrammarState ahead = *this;
  ahead.step(static_cast<unsigned char>(bytes[0]));
  for (const char byte : bytes.substr(1)) {
    if (ahead.stacks_.empty()) return false;
    ahead.step(static_cast<unsigned char>(byte));
  }
  return ahead.can_go_on() || ahead.is_complete();
}

}  // namespace saaz
