// Files compiled into the binary (cmake/embed.cmake): the recipes, and the model and data of `saaz try`.
#pragma once

#include <span>
#include <string_view>

namespace saaz {

struct EmbeddedFile {
  std::string_view path;  // in the source tree: "recipes/try.yaml"
  std::string_view bytes;
};
/// In the order of their paths.
std::span<const EmbeddedFile> embedded_files();

}  // namespace saaz
