// TokenMatcher: the longest of a fixed set of strings that starts at a place of a text. Enters: (text, id) pairs.
// Leaves: id and length, or nothing. Invariant: a query costs at most log(n) comparisons per byte of the longest
// string, and one table look-up where no string starts.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace saaz {

class TokenMatcher {
 public:
  struct Token {
    std::string_view text;  // owned by the caller, not empty
    int32_t id = 0;
  };
  struct Match {
    int32_t id = 0;
    size_t length = 0;  // bytes
  };

  explicit TokenMatcher(std::vector<Token> tokens);
  /// The longest token that `text` starts with.
  std::optional<Match> match(std::string_view text) const;

 private:
  std::vector<Token> tokens_;          // sorted by text
  std::array<uint32_t, 257> first_{};  // tokens that start with byte b: [first_[b], first_[b + 1])
};

}  // namespace saaz
