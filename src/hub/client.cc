#include "hub/client.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <thread>

#include "base/check.h"

namespace saaz {
namespace {

constexpr int kMaxTries = 5;
constexpr double kLongestWait = 300;  // seconds; a hub that asks for more is not waited for
constexpr int kMaxRedirects = 10;

bool is_redirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

bool is_passing_status(int status) { return status == 408 || status == 429 || (status >= 500 && status <= 504); }

/// Seconds, or -1 when the header is absent or a date.
double retry_after(const HttpReply& reply) {
  const std::string_view text = reply.header("retry-after");
  int seconds = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  return error == std::errc() && end == text.data() + text.size() ? seconds : -1;
}

void sleep_unless_stopped(double seconds) {
  const double until = monotonic_seconds() + seconds;
  while (monotonic_seconds() < until) {
    check(stop_signal() == 0, static_cast<ExitCode>(128 + stop_signal()),
          "stopped by a signal; the same command goes on from here");
    std::this_thread::sleep_for(std::chrono::duration<double>(std::min(0.05, seconds)));
  }
}

std::string reason_of(const HttpReply& reply) {
  return reply.fault.empty() ? fmt::format("the hub answers HTTP {}", reply.status) : reply.fault;
}

}  // namespace

bool Retries::wait_for_another(const HttpReply& reply) {
  const bool passes = reply.fault.empty() ? is_passing_status(reply.status) : reply.fault_may_pass;
  const double asked = retry_after(reply);
  const bool again = passes && ++n_tries_ < kMaxTries && asked <= kLongestWait;
  if (!again) {
    check(reply.fault.empty(), ExitCode::io, "{}{}", reply.fault,
          reply.fault_may_pass ? "; run the same command again to go on" : "");
    return false;
  }
  const double wait = asked >= 0 ? asked : settings_.backoff_seconds * (1 << (n_tries_ - 1));
  settings_.log(
      fmt::format("{}: trying again in {:.0f} s ({} of {})", reason_of(reply), wait, n_tries_, kMaxTries - 1));
  sleep_unless_stopped(wait);
  return true;
}

HubClient::HubClient(HubSettings settings)
    : settings_(std::move(settings)), http_(settings_.stall_seconds, settings_.ca_file) {
  while (settings_.endpoint.ends_with('/')) settings_.endpoint.pop_back();
  const std::string origin = url_origin(settings_.endpoint);
  const bool is_clear = origin.starts_with("http:") && !is_loopback(settings_.endpoint);
  check(!is_clear || !settings_.send_token || settings_.token.empty(), ExitCode::usage,
        "HF_ENDPOINT {} is not encrypted: a token is not sent there; use https://", settings_.endpoint);
}

bool HubClient::may_see_token(const std::string& url) const {
  const std::string endpoint = url_origin(settings_.endpoint);
  return !settings_.token.empty() && url_origin(url) == endpoint &&
         (settings_.send_token || endpoint == url_origin(kOfficialEndpoint));
}

HttpReply HubClient::try_once(HttpRequest request) {
  check(!settings_.offline, ExitCode::usage, "this needs the network, and --offline or HF_HUB_OFFLINE forbids it");
  if (request.url.starts_with('/')) request.url = settings_.endpoint + request.url;
  for (int n_hops = 0; n_hops <= kMaxRedirects; ++n_hops) {
    HttpRequest sent = request;
    if (may_see_token(request.url)) sent.headers.push_back(settings_.token.authorization_header());
    HttpReply reply = http_.send(sent);
    if (!reply.fault.empty() || !is_redirect(reply.status)) return reply;
    // A body may only be sent again where the reply says so.
    check(request.method == "GET" || reply.status >= 307, ExitCode::io, "{} redirects a {} with HTTP {}",
          url_without_query(request.url), request.method, reply.status);
    const std::string next = resolve_url(request.url, std::string(reply.header("location")));
    check(!request.url.starts_with("https:") || next.starts_with("https:"), ExitCode::io,
          "{} redirects to an address without encryption: refused", url_without_query(request.url));
    request.url = next;
  }
  fail(ExitCode::io, "{} redirects in a circle", url_without_query(request.url));
}

HttpReply HubClient::send(const HttpRequest& request) {
  for (Retries retries(settings_);;) {
    HttpReply reply = try_once(request);
    if (!retries.wait_for_another(reply)) return reply;
  }
}

HttpReply HubClient::expect(const HttpRequest& request, const RepoRevision& about) {
  HttpReply reply = send(request);
  if (!reply.ok()) refuse(reply, about);
  return reply;
}

Value HubClient::get_json(const std::string& target, const RepoRevision& about) {
  return reply_json(expect({.url = target}, about), url_without_query(target));
}

Value HubClient::post_json(const std::string& target, const Value& body, const RepoRevision& about,
                           const std::string& content_type) {
  const std::string text = to_json(body);
  HttpRequest request{.method = "POST", .url = target, .headers = {"Content-Type: " + content_type}};
  if (content_type != "application/json") request.headers.push_back("Accept: " + content_type);
  request.body = std::as_bytes(std::span(text));
  return reply_json(expect(request, about), url_without_query(target));
}

/// The hub's own words, for a message: short, printable, without the token.
std::string HubClient::words_of(const HttpReply& reply) const {
  std::string words(reply.header("x-error-message"));
  if (words.empty() && reply.header("content-type").starts_with("application/json")) {
    try {
      const Value body = parse_json(reply.body, "reply");
      if (const Value* error = body.find("error"); error != nullptr && error->is_string()) words = error->as_string();
    } catch (const Error&) {  // then it has no words
    }
  }
  return words.empty() ? "" : fmt::format(" ({})", printable(settings_.token.starred(words)));
}

std::string HubClient::token_advice() const {
  if (settings_.token.empty())
    return fmt::format(
        "make a token at {}/settings/tokens and put it in HF_TOKEN or in a file named by --hf-token-file",
        kOfficialEndpoint);
  return fmt::format("a token is there ({}), but HF_ENDPOINT is not {}: --send-token sends it to {} as well",
                     settings_.token.source(), kOfficialEndpoint, settings_.endpoint);
}

void HubClient::refuse_unauthorized(const HttpReply& reply, const RepoRevision& about) const {
  const std::string address = web_address(about.repo);
  check(!may_see_token(address), ExitCode::bad_input,
        "the hub does not accept the token of {}{}: it is wrong, "
        "expired or revoked; make a new one at {}/settings/tokens",
        settings_.token.source(), words_of(reply), settings_.endpoint);
  if (reply.header("x-error-code") == "GatedRepo")
    fail(ExitCode::bad_input, "{} is gated: log in, accept its terms at {}, then {}", about.repo.id, address,
         token_advice());
  fail(ExitCode::bad_input, "{} is not there for strangers: check the name; if it is private or gated, {}",
       about.repo.id, token_advice());
}

void HubClient::refuse_forbidden(const HttpReply& reply, const RepoRevision& about) const {
  const std::string address = web_address(about.repo);
  if (reply.header("x-error-code") == "GatedRepo")
    fail(ExitCode::bad_input,
         "{} is gated and its terms are not accepted by the account of this token{}: open {} logged in, accept them, "
         "and run this again",
         about.repo.id, words_of(reply), address);
  fail(ExitCode::bad_input, "the hub forbids this for {}{}: {}", about.repo.id, words_of(reply),
       may_see_token(address)
           ? fmt::format("the token of {} lacks the right; give it access to this repository (write, to push)",
                         settings_.token.source())
           : token_advice());
}

void HubClient::refuse(const HttpReply& reply, const RepoRevision& about) const {
  const std::string_view kind = reply.header("x-error-code");
  const Repo& repo = about.repo;
  if (reply.status == 401) refuse_unauthorized(reply, about);
  if (reply.status == 403) refuse_forbidden(reply, about);
  if (reply.status == 404 && kind == "RevisionNotFound")
    fail(ExitCode::bad_input, "{} has no branch, tag or commit '{}': see {}/tree/main", repo.id, about.revision,
         web_address(repo));
  if (reply.status == 404 && kind == "EntryNotFound")
    fail(ExitCode::bad_input, "{} at '{}' lost a file while it was fetched: run this again", repo.id, about.revision);
  if (reply.status == 404)
    fail(ExitCode::bad_input, "the hub {} has no {} {}: check the name; if it is private, the token must see it",
         settings_.endpoint, repo.kind_name(), repo.id);
  if (reply.status == 429)
    fail(ExitCode::io, "the hub limits requests (HTTP 429{}): wait{}, then run this again to go on", words_of(reply),
         retry_after(reply) > 0 ? fmt::format(" {:.0f} s", retry_after(reply)) : "");
  fail(ExitCode::io, "the hub answers HTTP {}{} about {}: {}", reply.status, words_of(reply), repo.id,
       reply.status >= 500 ? "it has trouble of its own; try again later" : "it does not understand this request");
}

Value reply_json(const HttpReply& reply, const std::string& where) {
  try {
    return parse_json(reply.body, where);
  } catch (const Error& error) {
    fail(ExitCode::io, "the reply is not the hub's: {}; is a proxy or a login page in between?", error.what());
  }
}

const std::string& text_of(const Value& object, std::string_view key, const std::string& where) {
  const Value* value = object.find(key);
  check(value != nullptr && value->is_string(), ExitCode::io, "{}: the reply has no text '{}'", where, key);
  return value->as_string();
}

uint64_t size_of_member(const Value& object, std::string_view key, const std::string& where) {
  const Value* value = object.find(key);
  check(value != nullptr && value->is_integer() && value->as_integer() >= 0, ExitCode::io,
        "{}: the reply has no size '{}'", where, key);
  return static_cast<uint64_t>(value->as_integer());
}

}  // namespace saaz
