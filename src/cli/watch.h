// What `train --watch` and `watch` share: opening the dashboard.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/system.h"
#include "cli/cli.h"
#include "serve/dashboard.h"

namespace saaz {

/// The flag alone: 127.0.0.1:8080, or any port when that one is taken.
inline constexpr const char* kAnyAddress = "any";

struct DashboardFlags {
  std::string address;           // HOST:PORT, a port, or kAnyAddress
  bool allow_anonymous = false;  // an address that other machines reach
};

/// Serves and says where. Errors: those of WebServer.
std::unique_ptr<Dashboard> open_dashboard(const std::vector<fs::path>& runs, const DashboardFlags& flags,
                                          const Globals& globals);

}  // namespace saaz
