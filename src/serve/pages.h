// The program's own pages as routes. Enters: the files that were compiled in. Leaves: routes for "/" and for everything
// in /assets/, open to whoever may reach the server.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "serve/http.h"

namespace saaz {

struct PageFile {
  std::string_view name;   // "dashboard.html"
  std::string_view bytes;  // outlive the server
};

/// "/" answers with the file `page`, "/assets/NAME" with every other file but pages.
std::vector<WebRoute> page_routes(std::span<const PageFile> files, std::string_view page);

}  // namespace saaz
