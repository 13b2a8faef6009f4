// The dashboard: run folders shown in browsers while they train and afterwards. Enters: the folders' files, through
// RunView, and nothing else. Leaves: a page, and a stream of server-sent events: "state" (everything) when a viewer
// comes, then "news" at most once a second, then "bye". Invariant: nothing of a run can be changed from here, and what
// a viewer does costs the training nothing but a few milliseconds of another thread: the text of a message is made once
// for all viewers, and not at all while there is none.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "serve/pages.h"

namespace saaz {

class Dashboard {
 public:
  /// Serves from now on, on threads of its own. The folders need not hold a run yet. Errors: those of WebServer.
  Dashboard(const std::vector<std::filesystem::path>& runs, const WebOptions& options, std::span<const PageFile> files);
  /// Sends what is still new to all who asked in time, says goodbye, and ends; who asks later is refused (503).
  ~Dashboard();
  Dashboard(const Dashboard&) = delete;
  Dashboard& operator=(const Dashboard&) = delete;

  /// "http://127.0.0.1:8080"
  std::string address() const;

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

/// HOST:PORT, or a port alone, which means this machine. usage for anything else.
WebOptions listen_at(const std::string& address);

}  // namespace saaz
