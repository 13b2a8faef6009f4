// Sending a folder to the hub as one commit: what is already there is not sent, large files go first (lfs.h), small
// ones inside the commit. Until the commit, nobody sees a change.
#pragma once

#include <string>
#include <vector>

#include "hub/client.h"

namespace saaz {

struct PushFile {
  std::string path;  // below the folder
  uint64_t size = 0;
  bool is_large = false;  // goes by LFS; in a plan by the hub's usual rules, in a push as the hub says
};

struct PushPlan {
  std::vector<PushFile> files;
  std::vector<std::string> left_out;  // hidden, unfinished, or a training state
  std::vector<std::string> logs;      // of a run, left out, too
};

/// Whether the logs of a run go along: events, losses of rows, recipe, state and the trackers' files, which show
/// training rows and paths of this machine.
enum class RunLogs : uint8_t { stay, go };

/// What a push of the folder would send; looks at nothing but the folder. bad_input for links and for a file that holds
/// the token.
PushPlan plan_push(const fs::path& folder, const Token& token, RunLogs logs = RunLogs::stay);

struct PushOptions {
  std::string message = "Upload with saaz";
  bool make_private = false;
};

struct PushResult {
  std::string commit_url;  // empty: all was there already
  size_t n_sent = 0, n_unchanged = 0;
  uint64_t bytes_sent = 0;  // of large files
};

/// `state`: where parts of unfinished uploads are remembered.
PushResult push_folder(HubClient& hub, const fs::path& folder, PushPlan plan, const RepoRevision& to,
                       const PushOptions& options, const fs::path& state);

}  // namespace saaz
