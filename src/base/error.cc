#include "base/error.h"

#include <string_view>

#include "base/unicode.h"

namespace saaz {

std::string printable(std::string_view text, size_t limit) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (out.size() >= limit) return out + "...";
    const CodePoint point = decode_utf8(text.substr(i));
    const bool control = point.value < 0x20 || (point.value >= 0x7f && point.value < 0xa0) || point.value == 0x2028;
    if (point.valid && !control) {
      out.append(text.substr(i, point.length));
    } else {
      for (int k = 0; k < point.length; ++k) {
        const auto byte = static_cast<unsigned char>(text[i + k]);
        out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
      }
    }
    i += point.length;
  }
  return out;
}

}  // namespace saaz
