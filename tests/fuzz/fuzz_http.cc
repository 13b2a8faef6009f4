// Bytes as HTTP requests on one connection. Either a documented status comes out, or a request; and the same one in
// whatever pieces the bytes arrive, one by one or all at once.
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "mutation.h"
#include "serve/http_parser.h"
#include "serve/http_rules.h"

namespace {

const std::vector<std::string>& seeds() {
  static const std::vector<std::string> all = {
      "GET /v1/models?a=b%20c HTTP/1.1\r\nHost: localhost:1\r\nOrigin: http://localhost:1\r\n\r\n",
      "POST /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: "
      "2\r\n\r\n{}",
      "POST /echo HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nTransfer-Encoding: "
      "chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nT: v\r\n\r\n",
      "HEAD / HTTP/1.0\r\nHost: a\r\nAuthorization: Bearer key\r\nExpect: 100-continue\r\n\r\n",
  };
  return all;
}

void require(bool condition) {
  if (!condition) std::abort();
}

/// All messages of `bytes` fed in pieces of `piece` bytes, as text; a refusal ends it.
std::string outcome(std::string_view bytes, size_t piece) {
  static const std::vector<saaz::WebRoute> kRoutes = {
      {"POST", "/echo", saaz::WebRoute::Access::keyed, nullptr},
      {"GET", "/v1/models", saaz::WebRoute::Access::open, nullptr},
      {"GET", "/v1/models/*", saaz::WebRoute::Access::keyed, nullptr},
  };
  static const saaz::WebRules kRules({.keys = {"key"}}, saaz::BindKind::loopback);
  static const std::set<int> kStatuses = {400, 401, 403, 404, 405, 413, 414, 415, 417, 431, 501, 505};
  saaz::WebLimits limits;
  limits.head_bytes = 300, limits.n_headers = 8, limits.body_bytes = 64;
  std::string out, input;
  auto parser = std::make_unique<saaz::HttpParser>(limits);
  for (size_t at = 0; at < bytes.size(); at += piece) {
    input += bytes.substr(at, piece);
    size_t before = 0;
    do {
      before = input.size();
      try {
        parser->take(input);
        if (parser->is_done()) {
          saaz::WebRequest& request = parser->request();
          require(request.body.size() <= limits.body_bytes && request.headers.size() <= limits.n_headers);
          require(request.path.starts_with('/') && request.path.find('\0') == std::string::npos);
          out += request.method + " " + request.path + "\n" + request.body + "\n";
          for (const auto& [name, value] : request.headers) out += name + ":" + value + "\n";
          try {
            out += kRules.admit(request, kRoutes).path + request.tail + "\n";
          } catch (const saaz::WebFault& fault) {
            require(kStatuses.contains(fault.status));
            out += std::to_string(fault.status) + "\n";
          }
          parser = std::make_unique<saaz::HttpParser>(limits);
        }
      } catch (const saaz::WebFault& fault) {
        require(kStatuses.contains(fault.status));
        return out + "refused";
      }
    } while (!input.empty() && input.size() < before);
  }
  return out;
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  const std::string* fresh = saaz::fuzz::fresh_seed(seeds(), size, seed);
  const std::string input = fresh != nullptr ? *fresh : std::string(reinterpret_cast<const char*>(data), size);
  return saaz::fuzz::store(saaz::fuzz::mutated(input, max_size), data, max_size);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::string whole = outcome(bytes, std::max<size_t>(size, 1));
  require(outcome(bytes, 1) == whole);
  require(outcome(bytes, 1 + size / 3) == whole);
  return 0;
}
