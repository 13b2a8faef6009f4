#include "serve/pages.h"

namespace saaz {
namespace {

const char* content_type_of(std::string_view name) {
  static constexpr std::pair<std::string_view, const char*> kTypes[] = {{".html", "text/html; charset=utf-8"},
                                                                        {".css", "text/css; charset=utf-8"},
                                                                        {".js", "text/javascript; charset=utf-8"},
                                                                        {".woff2", "font/woff2"}};
  for (const auto& [ending, type] : kTypes)
    if (name.ends_with(ending)) return type;
  return "application/octet-stream";
}

}  // namespace

std::vector<WebRoute> page_routes(std::span<const PageFile> files, std::string_view page) {
  std::vector<WebRoute> routes;
  for (const PageFile& file : files) {
    const bool is_page = file.name.ends_with(".html");
    if (is_page && file.name != page) continue;
    routes.push_back(
        asset_route(is_page ? "/" : "/assets/" + std::string(file.name), content_type_of(file.name), file.bytes));
  }
  return routes;
}

}  // namespace saaz
