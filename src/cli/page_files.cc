#include "cli/page_files.h"

#include "cli/embedded.h"

namespace saaz {

std::vector<PageFile> page_files() {
  constexpr std::string_view kFolder = "web/";
  std::vector<PageFile> files;
  for (const EmbeddedFile& file : embedded_files())
    if (file.path.starts_with(kFolder)) files.push_back({file.path.substr(kFolder.size()), file.bytes});
  return files;
}

}  // namespace saaz
