// Names from the outside world: repositories, revisions, paths of files. Nothing is used in a local path or a URL
// before it has passed here: no "..", no absolute path, no control character, no surprise.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace saaz {

enum class RepoKind { model, dataset };

struct Repo {
  RepoKind kind = RepoKind::model;
  std::string id;  // "google/gemma-3n-E4B-it", checked

  const char* kind_name() const { return kind == RepoKind::model ? "model" : "dataset"; }
  /// "/api/models/org/name"
  std::string api_path() const { return std::string("/api/") + kind_name() + "s/" + id; }
  /// "/org/name" or "/datasets/org/name"
  std::string web_path() const { return (kind == RepoKind::model ? "/" : "/datasets/") + id; }
  /// "models--org--name": the folder in the cache
  std::string folder_name() const;
};

/// A repository and a branch, tag or commit of it.
struct RepoRevision {
  Repo repo;
  std::string revision = "main";
};

/// Whether `text` reads as a repository, with or without "@revision".
bool looks_like_repo(std::string_view text);
/// "org/name" or "org/name@revision"; usage when it is none.
RepoRevision parse_repo(std::string_view text, RepoKind kind);
/// usage when it cannot be a branch, tag or commit.
void check_revision(std::string_view revision);

/// Forty lower-case hex digits: a commit, or a git blob.
bool is_git_id(std::string_view text);
/// Sixty-four lower-case hex digits.
bool is_sha256(std::string_view text);
/// A path of a file that stays below the folder it is used in; otherwise `code` naming `where`.
void check_relative_path(std::string_view path, ExitCode code, std::string_view where);
/// Whether a path matches one of the patterns, as Hugging Face's tools match: '*' also takes '/', and a pattern that
/// ends with '/' takes all below it. No pattern matches everything.
bool matches_any(const std::string& path, const std::vector<std::string>& patterns);

/// Percent-encoded for a URL; '/' stays.
std::string url_path(std::string_view path);
/// The same, with '/' encoded too: one segment.
std::string url_segment(std::string_view text);

}  // namespace saaz
