#include "hub/http.h"

#include <curl/curl.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>

#include "base/check.h"
#include "base/system.h"

namespace saaz {
namespace {

constexpr size_t kMaxReplyBytes = 256u << 20;  // kept in memory; a listing of 100,000 files has 30 MB

struct Transfer {
  const HttpRequest& request;
  HttpReply reply;
  size_t sent = 0;
  std::exception_ptr error = nullptr;

  /// Exceptions must not pass through C; they wait here until curl has returned.
  template <class Body>
  bool guard(Body&& body) {
    try {
      body();
      return true;
    } catch (...) {
      error = std::current_exception();
      return false;
    }
  }
};

size_t on_header(char* data, size_t, size_t n, void* user) {
  HttpReply& reply = static_cast<Transfer*>(user)->reply;
  std::string_view line(data, n);
  while (!line.empty() && (line.back() == '\r' || line.back() == '\n')) line.remove_suffix(1);
  if (line.starts_with("HTTP/")) {  // a status line; "100 Continue" comes before the real one
    const size_t space = line.find(' ');
    reply.headers.clear();
    reply.status = space == std::string_view::npos ? 0 : std::atoi(std::string(line.substr(space + 1, 3)).c_str());
  } else if (const size_t colon = line.find(':'); colon != std::string_view::npos) {
    std::string name(line.substr(0, colon));
    for (char& c : name) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
    line.remove_prefix(std::min(line.find_first_not_of(" \t", colon + 1), line.size()));
    reply.headers.emplace_back(std::move(name), line);
  }
  return n;
}

size_t on_body(char* data, size_t, size_t n, void* user) {
  Transfer& transfer = *static_cast<Transfer*>(user);
  HttpReply& reply = transfer.reply;
  const bool done = transfer.guard([&] {
    if (transfer.request.sink && reply.ok()) return transfer.request.sink(reply, std::as_bytes(std::span(data, n)));
    check(reply.body.size() + n <= kMaxReplyBytes, ExitCode::resource, "{} sent a reply of more than {} bytes",
          url_without_query(transfer.request.url), kMaxReplyBytes);
    reply.body.append(data, n);
  });
  return done ? n : 0;
}

size_t on_read(char* data, size_t, size_t n, void* user) {
  Transfer& transfer = *static_cast<Transfer*>(user);
  const Bytes rest = transfer.request.body.subspan(transfer.sent);
  n = std::min(n, rest.size());
  if (n > 0) std::memcpy(data, rest.data(), n);
  transfer.sent += n;
  if (transfer.request.on_sent && !transfer.guard([&] { transfer.request.on_sent(transfer.sent); }))
    return CURL_READFUNC_ABORT;
  return n;
}

/// A kept connection that was closed meanwhile makes curl send the body again from its start.
int on_seek(void* user, curl_off_t offset, int origin) {
  if (origin != SEEK_SET) return CURL_SEEKFUNC_CANTSEEK;
  static_cast<Transfer*>(user)->sent = static_cast<size_t>(offset);
  return CURL_SEEKFUNC_OK;
}

int on_progress(void*, curl_off_t, curl_off_t, curl_off_t, curl_off_t) { return stop_signal() != 0; }

/// A part of a parsed URL, or empty.
std::string part_of(CURLU* url, CURLUPart part) {
  char* text = nullptr;
  if (curl_url_get(url, part, &text, CURLU_DEFAULT_PORT) != CURLUE_OK) return {};
  std::string out(text);
  curl_free(text);
  return out;
}

using Url = std::unique_ptr<CURLU, decltype(&curl_url_cleanup)>;

Url parse_url(const std::string& text) {
  Url url(curl_url(), curl_url_cleanup);
  const bool ok = url && curl_url_set(url.get(), CURLUPART_URL, text.c_str(), CURLU_DISALLOW_USER) == CURLUE_OK;
  const std::string scheme = ok ? part_of(url.get(), CURLUPART_SCHEME) : "";
  check(scheme == "http" || scheme == "https", ExitCode::usage,
        "'{}' is no address to fetch from: expected http:// or https:// and a host, without a password",
        printable(url_without_query(text.substr(text.find('@') == std::string::npos ? 0 : text.rfind('@')))));
  return url;
}

/// What a failed transfer means, and what to do.
std::string fault_text(CURLcode code, const HttpRequest& request, const char* detail) {
  const std::string host = part_of(parse_url(request.url).get(), CURLUPART_HOST);
  switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
      return fmt::format("the host {} is not found: check the network, the name server and HF_ENDPOINT", host);
    case CURLE_COULDNT_RESOLVE_PROXY:
      return "the host of the proxy is not found: check https_proxy";
    case CURLE_COULDNT_CONNECT:
      return fmt::format("{} does not take the connection: check the network, a firewall or https_proxy", host);
    case CURLE_OPERATION_TIMEDOUT:
      return fmt::format("{} is silent (HF_HUB_DOWNLOAD_TIMEOUT sets how long to wait)", host);
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
      return fmt::format(
          "the certificate of {} is not trusted ({}): check the clock, install ca-certificates, or name "
          "your proxy's certificate in SSL_CERT_FILE",
          host, printable(detail));
    case CURLE_SSL_CONNECT_ERROR:
      return fmt::format("no secure connection with {} ({}): is it a proxy, or an http:// address?", host,
                         printable(detail));
    default:
      return fmt::format("the connection with {} broke ({})", host,
                         printable(*detail != '\0' ? detail : curl_easy_strerror(code)));
  }
}

bool may_pass(CURLcode code) {
  return code != CURLE_PEER_FAILED_VERIFICATION && code != CURLE_SSL_CACERT_BADFILE && code != CURLE_SSL_CONNECT_ERROR;
}

void set_method(CURL* curl, const HttpRequest& request) {
  const auto size = static_cast<curl_off_t>(request.body.size());
  if (request.method == "PUT") {
    curl_easy_setopt(curl, CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(curl, CURLOPT_INFILESIZE_LARGE, size);
  } else if (request.method == "POST") {
    curl_easy_setopt(curl, CURLOPT_POST, 1L);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, size);
  }
}

}  // namespace

std::string_view HttpReply::header(std::string_view name) const {
  for (const auto& [key, value] : headers)
    if (key == name) return value;
  return {};
}

Http::Http(int stall_seconds, std::string ca_file) : stall_seconds_(stall_seconds), ca_file_(std::move(ca_file)) {
  static const CURLcode kReady = curl_global_init(CURL_GLOBAL_DEFAULT);
  handle_ = curl_easy_init();
  check(kReady == CURLE_OK && handle_ != nullptr, ExitCode::resource, "libcurl cannot start");
}

Http::~Http() { curl_easy_cleanup(static_cast<CURL*>(handle_)); }

HttpReply Http::send(const HttpRequest& request) {
  CURL* curl = static_cast<CURL*>(handle_);
  Transfer transfer{request, {}};
  char detail[CURL_ERROR_SIZE] = "";
  std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> headers(nullptr, curl_slist_free_all);
  const auto add = [&headers](const char* line) { headers.reset(curl_slist_append(headers.release(), line)); };
  add("Expect:");  // no waiting for "100 Continue"
  for (const std::string& line : request.headers) add(line.c_str());
  curl_easy_reset(curl);
  curl_easy_setopt(curl, CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers.get());
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "saaz");
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, static_cast<long>(stall_seconds_));
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, static_cast<long>(stall_seconds_));
  if (!ca_file_.empty()) curl_easy_setopt(curl, CURLOPT_CAINFO, ca_file_.c_str());
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, detail);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_READFUNCTION, on_read);
  curl_easy_setopt(curl, CURLOPT_READDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_SEEKFUNCTION, on_seek);
  curl_easy_setopt(curl, CURLOPT_SEEKDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
  set_method(curl, request);
  const CURLcode code = curl_easy_perform(curl);
  if (transfer.error) std::rethrow_exception(transfer.error);
  check(code != CURLE_ABORTED_BY_CALLBACK, static_cast<ExitCode>(128 + stop_signal()),
        "stopped by a signal; the same command goes on from here");
  if (code != CURLE_OK) {
    transfer.reply.fault = fault_text(code, request, detail);
    transfer.reply.fault_may_pass = may_pass(code);
  }
  return std::move(transfer.reply);
}

std::string url_origin(const std::string& url) {
  const Url parsed = parse_url(url);
  std::string host = part_of(parsed.get(), CURLUPART_HOST);
  for (char& c : host) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  return part_of(parsed.get(), CURLUPART_SCHEME) + "://" + host + ":" + part_of(parsed.get(), CURLUPART_PORT);
}

bool is_loopback(const std::string& url) {
  const std::string host = part_of(parse_url(url).get(), CURLUPART_HOST);
  const bool is_ipv4 = host.find_first_not_of("0123456789.") == std::string::npos;
  return host == "localhost" || host == "[::1]" || (is_ipv4 && host.starts_with("127."));
}

std::string resolve_url(const std::string& base, const std::string& location) {
  const Url url = parse_url(base);
  char* text = nullptr;
  const bool ok = curl_url_set(url.get(), CURLUPART_URL, location.c_str(), CURLU_DISALLOW_USER) == CURLUE_OK &&
                  curl_url_get(url.get(), CURLUPART_URL, &text, 0) == CURLUE_OK;
  check(ok, ExitCode::io, "{} redirects to an impossible address", url_without_query(base));
  std::string out(text);
  curl_free(text);
  return out;
}

std::string url_without_query(const std::string& url) { return url.substr(0, url.find_first_of("?#")); }

}  // namespace saaz
