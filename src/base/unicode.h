// UTF-8: the one decoder and encoder of the program. No tables; Persian-specific rules live with their users.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace saaz {

struct CodePoint {
  uint32_t value = 0;  // U+FFFD when invalid
  int length = 0;      // bytes consumed, >= 1 on non-empty input (an invalid byte consumes one)
  bool valid = false;  // false: over-long form, surrogate, > U+10FFFF, stray or missing continuation byte
};

/// Decodes the first code point of `text` (not empty).
CodePoint decode_utf8(std::string_view text);

/// Appends the UTF-8 form of `value` (a valid scalar value) to `out`.
void append_utf8(std::string& out, uint32_t value);

/// Byte offset of the first invalid sequence, or npos when `text` is valid UTF-8.
size_t find_invalid_utf8(std::string_view text);

/// Python's str.strip(): removes Unicode white space at both ends; ZWNJ, ZWSP and BOM stay (chat template rule).
std::string_view strip_like_python(std::string_view text);

}  // namespace saaz
