// The files of the servers' pages that were compiled in: web/.
#pragma once

#include <vector>

#include "serve/pages.h"

namespace saaz {

std::vector<PageFile> page_files();

}  // namespace saaz
