// Longest match by narrowing a range of the sorted strings, one byte at a time. Enters: the text from a place on.
// Leaves: the longest string that is a prefix of it. Invariant: all strings in [low, high) agree with the text so far.
#include "tokenizer/token_matcher.h"

#include <algorithm>

namespace saaz {
namespace {
uint8_t byte_at(std::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }
}  // namespace

TokenMatcher::TokenMatcher(std::vector<Token> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end(), [](const Token& a, const Token& b) { return a.text < b.text; });
  for (const Token& token : tokens_) ++first_[byte_at(token.text, 0) + 1];
  for (size_t b = 1; b < first_.size(); ++b) first_[b] += first_[b - 1];
}

std::optional<TokenMatcher::Match> TokenMatcher::match(std::string_view text) const {
  if (text.empty()) return std::nullopt;
  auto low = tokens_.begin() + first_[byte_at(text, 0)];
  auto high = tokens_.begin() + first_[byte_at(text, 0) + 1];
  std::optional<Match> best;
  for (size_t depth = 1; low != high; ++depth) {
    // Of the strings that share `depth` bytes, the one that ends here sorts first.
    if (low->text.size() == depth) best = Match{low++->id, depth};
    if (depth == text.size()) break;
    const uint8_t byte = byte_at(text, depth);
    low = std::partition_point(low, high, [&](const Token& t) { return byte_at(t.text, depth) < byte; });
    high = std::partition_point(low, high, [&](const Token& t) { return byte_at(t.text, depth) == byte; });
  }
  return best;
}

}  // namespace saaz
