#include "hub/names.h"

#include <fnmatch.h>

#include <algorithm>

#include "base/check.h"
#include "base/unicode.h"

namespace saaz {
namespace {

bool is_alphanumeric(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

bool is_lower_hex(std::string_view text, size_t n) {
  return text.size() == n && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

/// The hub's rule for names of owners and repositories. "--" separates them in the cache's folder names.
bool is_name(std::string_view text) {
  constexpr size_t kMaxName = 96;
  return !text.empty() && text.size() <= kMaxName && (is_alphanumeric(text[0]) || text[0] == '_') &&
         std::all_of(text.begin(), text.end(),
                     [](char c) { return is_alphanumeric(c) || c == '.' || c == '_' || c == '-'; }) &&
         text.find("--") == std::string_view::npos && text.find("..") == std::string_view::npos && text.back() != '.' &&
         text.back() != '-' && !text.ends_with(".git");
}

bool is_repo_id(std::string_view id) {
  const size_t slash = id.find('/');
  return slash != std::string_view::npos && is_name(id.substr(0, slash)) && is_name(id.substr(slash + 1));
}

bool is_revision(std::string_view text) {
  return !text.empty() && text.size() <= 200 && is_alphanumeric(text[0]) && text.back() != '/' &&
         std::all_of(
             text.begin(), text.end(),
             [](char c) { return is_alphanumeric(c) || std::string_view("._-/").find(c) != std::string::npos; }) &&
         text.find("..") == std::string_view::npos && text.find("//") == std::string_view::npos &&
         text.find("/.") == std::string_view::npos;
}

std::string percent_encoded(std::string_view text, std::string_view kept) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (is_alphanumeric(c) || kept.find(c) != std::string_view::npos)
      out += c;
    else
      out += {'%', kHex[byte >> 4], kHex[byte & 15]};
  }
  return out;
}

std::string_view id_of(std::string_view spec) { return spec.substr(0, spec.find('@')); }

bool is_plain_segment(std::string_view segment) {
  constexpr size_t kMaxSegment = 255;
  return !segment.empty() && segment != "." && segment != ".." && segment.size() <= kMaxSegment;
}

bool is_printable_text(std::string_view text) {
  while (!text.empty()) {
    const CodePoint point = decode_utf8(text);
    if (!point.valid || point.value < 0x20 || (point.value >= 0x7f && point.value < 0xa0) || point.value == '\\')
      return false;
    text.remove_prefix(static_cast<size_t>(point.length));
  }
  return true;
}

}  // namespace

std::string Repo::folder_name() const {
  std::string out = std::string(kind_name()) + "s--" + id;
  return out.replace(out.find('/'), 1, "--");
}

bool looks_like_repo(std::string_view text) {
  const size_t at = text.find('@');
  return is_repo_id(id_of(text)) && (at == std::string_view::npos || is_revision(text.substr(at + 1)));
}

RepoRevision parse_repo(std::string_view text, RepoKind kind) {
  check(is_repo_id(id_of(text)), ExitCode::usage,
        "'{}' is no name of a repository: expected owner/name, like google/gemma-3-270m-it", printable(text));
  RepoRevision out{{kind, std::string(id_of(text))}};
  if (const size_t at = text.find('@'); at != std::string_view::npos) out.revision = text.substr(at + 1);
  check_revision(out.revision);
  return out;
}

void check_revision(std::string_view revision) {
  check(is_revision(revision), ExitCode::usage, "'{}' cannot be a branch, tag or commit", printable(revision));
}

bool is_git_id(std::string_view text) { return is_lower_hex(text, 40); }
bool is_sha256(std::string_view text) { return is_lower_hex(text, 64); }

void check_relative_path(std::string_view path, ExitCode code, std::string_view where) {
  bool ok = is_printable_text(path);
  for (std::string_view rest = path;;) {
    const size_t slash = rest.find('/');
    ok = ok && is_plain_segment(rest.substr(0, slash));
    if (slash == std::string_view::npos) break;
    rest.remove_prefix(slash + 1);
  }
  check(ok, code, "{}: the path '{}' is refused: expected a plain path below a folder", where, printable(path));
}

bool matches_any(const std::string& path, const std::vector<std::string>& patterns) {
  if (patterns.empty()) return true;
  return std::any_of(patterns.begin(), patterns.end(), [&path](std::string pattern) {
    if (pattern.ends_with('/')) pattern += '*';
    return fnmatch(pattern.c_str(), path.c_str(), FNM_NOESCAPE) == 0;
  });
}

std::string url_path(std::string_view path) { return percent_encoded(path, "-._~/"); }
std::string url_segment(std::string_view text) { return percent_encoded(text, "-._~"); }

}  // namespace saaz
