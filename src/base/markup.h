// Text inside HTML and SVG.
#pragma once

#include <string>
#include <string_view>

namespace saaz {

/// Safe between tags and inside quoted attributes. Bytes of UTF-8 stay as they are.
std::string escape_markup(std::string_view text);

}  // namespace saaz
