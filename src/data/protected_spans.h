// The parts of a text that are not Persian prose, and that normalisation therefore leaves as they are: fenced and
// inline code, LaTeX, URLs, Latin runs (e-mail addresses and role markers are some), and quoted Arabic. Also decides
// the direction of a line by its first strong letter of prose.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>
#include <vector>

namespace saaz {

struct ProtectedSpan {
  enum class Kind { code, latex, url, latin, arabic };
  size_t begin = 0, end = 0;  // bytes
  Kind kind = Kind::code;
};

/// Ascending, not overlapping, on the borders of code points. `text`: valid UTF-8.
/// Arabic is guessed: a span in «», “”, "" or ﴿﴾ counts as Arabic when it stands in ﴿﴾, has a haraka to every five
/// letters, or has the article ال on at least half of its words (two or more).
std::vector<ProtectedSpan> find_protected_spans(std::string_view text);

/// Whether the first strong letter outside code, LaTeX and URLs belongs to the Arabic script; nothing without one.
std::optional<bool> is_right_to_left(std::string_view text);

}  // namespace saaz
