#include "serve/http_rules.h"

#include <algorithm>
#include <charconv>

#include "base/system.h"

namespace saaz {
namespace {

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  return out;
}

/// The host of "host", "host:port" or "[::1]:port", in lower case; empty when it is none of them.
std::string host_of(std::string_view authority) {
  size_t end = authority.find(':');
  if (authority.starts_with('[')) {
    end = authority.find(']');
    if (end == authority.npos) return {};
    ++end;
  }
  end = std::min(end, authority.size());
  const std::string_view rest = authority.substr(end), port = rest.substr(std::min<size_t>(1, rest.size()));
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  if (!rest.empty() && (rest[0] != ':' || port.size() > 5 || !std::all_of(port.begin(), port.end(), is_digit)))
    return {};
  return lower(authority.substr(0, end));
}

/// Four decimal bytes; what a name cannot be.
bool is_ipv4(std::string_view host) {
  int n = 0;
  while (n < 4) {
    unsigned byte = 256;
    const auto [end, error] = std::from_chars(host.data(), host.data() + host.size(), byte);
    if (error != std::errc() || byte > 255) return false;
    host.remove_prefix(static_cast<size_t>(end - host.data()));
    if (++n == 4) return host.empty();
    if (!host.starts_with('.')) return false;
    host.remove_prefix(1);
  }
  return false;
}

bool is_loopback_host(std::string_view host) {
  return host == "localhost" || host == "[::1]" || (is_ipv4(host) && host.starts_with("127."));
}

bool matches(const WebRoute& route, const std::string& path) {
  if (!route.path.ends_with('*')) return path == route.path;
  const std::string_view prefix = std::string_view(route.path).substr(0, route.path.size() - 1);
  return path.size() > prefix.size() && path.starts_with(prefix);
}

bool is_read(const std::string& method) { return method == "GET" || method == "HEAD"; }

void check_content_type(const WebRequest& request) {
  const std::string_view field = request.header("content-type");
  std::string type = lower(field.substr(0, field.find(';')));
  while (!type.empty() && type.back() == ' ') type.pop_back();
  if (type != "application/json") throw WebFault(415, "Content-Type must be application/json");
  std::string parameters = field.find(';') == field.npos ? "" : lower(field.substr(field.find(';') + 1));
  std::erase_if(parameters, [](char c) { return c == ' ' || c == '"'; });
  if (!parameters.empty() && parameters != "charset=utf-8")
    throw WebFault(415, "the only parameter of Content-Type is charset=utf-8");
}

}  // namespace

KeyRing::KeyRing(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) {
    const bool is_plain = std::all_of(key.begin(), key.end(), [](char c) { return c > 0x20 && c < 0x7f; });
    check(!key.empty() && is_plain, ExitCode::usage,
          "an API key is empty or has blanks or characters that are not ASCII: a header cannot carry it");
    digests_.push_back(sha256_hex(std::string_view(key)));
  }
}

bool KeyRing::admits(std::string_view authorization) const {
  if (authorization.size() < 7 || lower(authorization.substr(0, 7)) != "bearer ") return false;
  const std::string digest = sha256_hex(authorization.substr(7));
  unsigned found = 0;
  for (const std::string& known : digests_) {
    unsigned difference = 0;
    for (size_t i = 0; i < known.size(); ++i) difference |= static_cast<unsigned char>(known[i] ^ digest[i]);
    found |= difference == 0 ? 1u : 0u;
  }
  return found != 0;
}

WebRules::WebRules(const WebOptions& options, BindKind bind) : keys_(options.keys), bind_(bind) {
  const bool is_open = keys_.is_empty() && options.anonymous == WebOptions::Anonymous::on_loopback;
  check(
      bind == BindKind::loopback || !is_open, ExitCode::usage,
      "{} can be reached from other machines, and no API key is set: set one, or let everybody in with --allow-anonymous",
      options.host);
  for (const std::string& name : options.host_names) {
    check(!host_of(name).empty(), ExitCode::usage, "'{}' is no host name", printable(name));
    host_names_.push_back(host_of(name));
  }
  for (const std::string& origin : options.origins) {
    const size_t mark = origin.find("://");
    const bool ok = mark != origin.npos && (origin.starts_with("http:") || origin.starts_with("https:")) &&
                    !host_of(origin.substr(mark + 3)).empty() && origin.find('/', mark + 3) == origin.npos;
    check(ok, ExitCode::usage, "'{}' is no origin: expected https://host or https://host:port", printable(origin));
    origins_.push_back(lower(origin));
  }
}

const WebRoute& WebRules::admit(WebRequest& request, const std::vector<WebRoute>& routes) const {
  check_host(request);
  const WebRoute* route = nullptr;
  std::string methods;
  const std::string method = request.method == "HEAD" ? "GET" : request.method;
  for (const WebRoute& candidate : routes) {
    if (!matches(candidate, request.path)) continue;
    methods += (methods.empty() ? "" : ", ") + candidate.method + (candidate.method == "GET" ? ", HEAD" : "");
    if (candidate.method == method) {
      route = &candidate;
      break;
    }
  }
  const bool is_open = route != nullptr && route->access == WebRoute::Access::open;
  if (!keys_.is_empty() && !is_open && !keys_.admits(request.header("authorization"))) {
    WebFault fault(401, "an API key is needed: send 'Authorization: Bearer KEY'", "", "invalid_api_key");
    fault.headers = {{"WWW-Authenticate", "Bearer"}};
    throw fault;
  }
  if (route == nullptr && methods.empty()) throw WebFault(404, "there is nothing at this path", "", "not_found");
  if (route == nullptr) {
    WebFault fault(405, "this path does not take " + printable(request.method, 20), "", "method_not_allowed");
    fault.headers = {{"Allow", methods}};
    throw fault;
  }
  if (!is_read(request.method)) {
    check_origin(request);
    if (request.method == "POST") check_content_type(request);
  }
  if (route->path.ends_with('*')) request.tail = request.path.substr(route->path.size() - 1);
  return *route;
}

/// A page that names its own server by a foreign name (DNS rebinding) is what this refuses.
void WebRules::check_host(const WebRequest& request) const {
  const std::string host = host_of(request.header("host"));
  if (host.empty()) throw WebFault(400, "the Host header is missing or malformed");
  const bool is_address = is_ipv4(host) || host.starts_with('[');
  const bool ok = is_loopback_host(host) || (is_address && bind_ == BindKind::other) ||
                  std::find(host_names_.begin(), host_names_.end(), host) != host_names_.end();
  if (!ok) throw WebFault(403, "this server does not answer to the name in the Host header");
}

void WebRules::check_origin(const WebRequest& request) const {
  const std::string_view origin = request.header("origin"), site = request.header("sec-fetch-site");
  if (is_allowed_origin(origin)) return;
  const std::string host = lower(request.header("host"));
  const bool is_own = origin.empty() || lower(origin) == "http://" + host || lower(origin) == "https://" + host;
  const bool is_same_site = site.empty() || site == "same-origin" || site == "none";
  if (!is_own || !is_same_site) throw WebFault(403, "pages of other origins may not use this server");
}

bool WebRules::is_allowed_origin(std::string_view origin) const {
  return !origin.empty() && std::find(origins_.begin(), origins_.end(), lower(origin)) != origins_.end();
}

std::optional<WebReply> WebRules::preflight(const WebRequest& request) const {
  const bool is_preflight = request.method == "OPTIONS" && !request.header("access-control-request-method").empty();
  if (!is_preflight || !is_allowed_origin(request.header("origin"))) return std::nullopt;
  check_host(request);
  WebReply reply{204, "", "", {}};
  reply.headers = {{"Access-Control-Allow-Methods", "GET, POST"},
                   {"Access-Control-Allow-Headers", "authorization, content-type"},
                   {"Access-Control-Max-Age", "600"}};
  return reply;
}

WebFields WebRules::cors_fields(const WebRequest& request) const {
  if (origins_.empty()) return {};
  if (!is_allowed_origin(request.header("origin"))) return {{"Vary", "Origin"}};
  return {{"Vary", "Origin"}, {"Access-Control-Allow-Origin", std::string(request.header("origin"))}};
}

const WebFields& security_fields() {
  static const WebFields kFields = {
      {"Content-Security-Policy",
       "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
       "frame-ancestors 'none'"},
      {"X-Content-Type-Options", "nosniff"},
      {"X-Frame-Options", "DENY"},
      {"Referrer-Policy", "no-referrer"},
      {"Cross-Origin-Opener-Policy", "same-origin"},
      {"Cross-Origin-Resource-Policy", "same-origin"},
      {"Permissions-Policy", "camera=(), geolocation=(), microphone=()"}};
  return kFields;
}

std::string_view reason_of(int status) {
  static constexpr std::pair<int, std::string_view> kReasons[] = {{200, "OK"},
                                                                  {204, "No Content"},
                                                                  {304, "Not Modified"},
                                                                  {400, "Bad Request"},
                                                                  {401, "Unauthorized"},
                                                                  {403, "Forbidden"},
                                                                  {404, "Not Found"},
                                                                  {405, "Method Not Allowed"},
                                                                  {408, "Request Timeout"},
                                                                  {409, "Conflict"},
                                                                  {413, "Content Too Large"},
                                                                  {414, "URI Too Long"},
                                                                  {415, "Unsupported Media Type"},
                                                                  {417, "Expectation Failed"},
                                                                  {429, "Too Many Requests"},
                                                                  {431, "Request Header Fields Too Large"},
                                                                  {500, "Internal Server Error"},
                                                                  {501, "Not Implemented"},
                                                                  {503, "Service Unavailable"},
                                                                  {505, "HTTP Version Not Supported"}};
  for (const auto& [code, reason] : kReasons)
    if (code == status) return reason;
  return "Other";
}

}  // namespace saaz
