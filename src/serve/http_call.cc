#include "serve/http_call.h"

#include <ctime>

#include "base/system.h"
#include "serve/http_rules.h"

namespace saaz {
namespace {

/// "Wed, 25 Nov 2026 18:27:18 GMT"
std::string http_date() {
  static constexpr const char* kDays[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  static constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                            "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const time_t now = time(nullptr);
  struct tm t {};
  gmtime_r(&now, &t);
  return fmt::format("{}, {:02} {} {} {:02}:{:02}:{:02} GMT", kDays[t.tm_wday], t.tm_mday, kMonths[t.tm_mon],
                     t.tm_year + 1900, t.tm_hour, t.tm_min, t.tm_sec);
}

void append_field(std::string& out, std::string_view name, std::string_view value) {
  out.append(name).append(": ");
  for (const char c : value) out += c == '\r' || c == '\n' ? ' ' : c;  // a value cannot end its line
  out += "\r\n";
}

void append_lines(std::string& out, std::string_view field, std::string_view text) {
  while (true) {
    const size_t end = std::min(text.find('\n'), text.size());
    out.append(field).append(text.substr(0, end)) += '\n';
    if (end == text.size()) return;
    text.remove_prefix(end + 1);
  }
}

std::string event_text(const ServerEvent& event) {
  std::string out;
  if (!event.event_id.empty()) append_lines(out, "id: ", event.event_id);
  if (!event.name.empty()) append_lines(out, "event: ", event.name);
  append_lines(out, "data: ", event.data);
  return out + "\n";
}

const char* error_type(int status) {
  if (status == 401) return "authentication_error";
  if (status == 403) return "permission_error";
  if (status == 404) return "not_found_error";
  if (status == 429) return "rate_limit_error";
  if (status == 503) return "overloaded_error";
  return status >= 500 ? "server_error" : "invalid_request_error";
}

}  // namespace

std::string_view WebRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers)
    if (key == name) return value;
  return {};
}

std::optional<std::string> WebRequest::parameter(std::string_view name) const {
  for (const auto& [key, value] : query)
    if (key == name) return value;
  return std::nullopt;
}

WebFault retry_later(int status, std::string message, std::string code, int seconds) {
  WebFault fault(status, std::move(message), "", std::move(code));
  fault.headers = {{"Retry-After", std::to_string(seconds)}};
  return fault;
}

WebReply json_reply(const Value& value) {
  WebReply reply;
  reply.body = to_json(value);
  return reply;
}

WebReply error_reply(const WebFault& fault) {
  const auto text_or_null = [](const std::string& text) { return text.empty() ? Value() : Value(text); };
  WebReply reply = json_reply(Value::object({{"error", Value::object({{"message", fault.what()},
                                                                      {"type", error_type(fault.status)},
                                                                      {"param", text_or_null(fault.param)},
                                                                      {"code", text_or_null(fault.code)}})}}));
  reply.status = fault.status;
  reply.headers = fault.headers;
  return reply;
}

void WebCall::State::append_head(const WebReply& reply, bool has_length) {
  status_ = reply.status;
  const bool is_old = version == Version::http_1_0;
  outbox_ += fmt::format("HTTP/1.{} {} {}\r\n", is_old ? 0 : 1, reply.status, reason_of(reply.status));
  append_field(outbox_, "Date", http_date());
  if (!reply.content_type.empty()) append_field(outbox_, "Content-Type", reply.content_type);
  if (has_length && reply.status != 204 && reply.status != 304)
    append_field(outbox_, "Content-Length", std::to_string(reply.body.size()));
  if (!has_length && !is_old) append_field(outbox_, "Transfer-Encoding", "chunked");
  if (after == After::close) append_field(outbox_, "Connection", "close");
  append_field(outbox_, "X-Request-Id", request.id);
  for (const WebFields* fields : {&security_fields(), &std::as_const(extra_fields), &reply.headers})
    for (const auto& [name, value] : *fields) append_field(outbox_, name, value);
  outbox_ += "\r\n";
}

void WebCall::State::append_piece(std::string_view bytes) {
  if (request.method == "HEAD") return;
  if (version == Version::http_1_0)
    outbox_ += bytes;
  else
    outbox_.append(fmt::format("{:x}\r\n", bytes.size())).append(bytes).append("\r\n");
}

void WebCall::State::call_wake(std::unique_lock<std::mutex>& lock) {
  const bool first = !woken_;
  woken_ = true;
  lock.unlock();
  if (first && wake) wake();
}

void WebCall::State::reply(WebReply reply) {
  std::function<void()> dropped;  // destroyed without the lock: it may hold the call
  std::unique_lock lock(mutex_);
  if (phase_ != Phase::waiting) return;
  append_head(reply, true);
  const bool has_body = request.method != "HEAD" && reply.status != 204 && reply.status != 304;
  if (has_body) outbox_ += reply.body;
  phase_ = Phase::complete;
  dropped = std::exchange(on_gone_, nullptr);
  call_wake(lock);
}

void WebCall::State::start_events() {
  std::unique_lock lock(mutex_);
  if (phase_ != Phase::waiting) return;
  append_head({200, "text/event-stream; charset=utf-8", "", {{"Cache-Control", "no-store"}}}, false);
  phase_ = Phase::streaming;
  call_wake(lock);
}

bool WebCall::State::send(const ServerEvent& event) {
  std::unique_lock lock(mutex_);
  if (phase_ != Phase::streaming) return false;
  append_piece(event_text(event));
  const bool is_slow = outbox_.size() + in_flight_ > max_pending_bytes;
  if (is_slow) phase_ = Phase::broken, woken_ = false;  // the wake before this one may wait for a write
  call_wake(lock);
  return !is_slow;
}

void WebCall::State::finish() {
  std::function<void()> dropped;
  std::unique_lock lock(mutex_);
  if (phase_ != Phase::streaming) return;
  if (version == Version::http_1_1 && request.method != "HEAD") outbox_ += "0\r\n\r\n";
  phase_ = Phase::complete;
  dropped = std::exchange(on_gone_, nullptr);
  call_wake(lock);
}

void WebCall::State::abandon() {
  std::unique_lock lock(mutex_);
  if (phase_ == Phase::streaming) {
    phase_ = Phase::broken;
    woken_ = false;
    call_wake(lock);
  } else if (phase_ == Phase::waiting) {
    lock.unlock();
    reply(error_reply({500, "the request was dropped; please report it with its id, " + request.id}));
  }
}

bool WebCall::State::is_gone() const {
  const std::lock_guard lock(mutex_);
  return phase_ == Phase::gone || phase_ == Phase::broken;
}

size_t WebCall::State::pending_bytes() const {
  const std::lock_guard lock(mutex_);
  return outbox_.size() + in_flight_;
}

void WebCall::State::on_gone(std::function<void()> then) {
  std::unique_lock lock(mutex_);
  if (phase_ == Phase::waiting || phase_ == Phase::streaming) {
    on_gone_.swap(then);
    return lock.unlock();  // what `then` held before goes without the lock
  }
  const bool is_cut_off = phase_ != Phase::complete;
  lock.unlock();
  if (is_cut_off) then();
}

WebCall::State::Output WebCall::State::take_output() {
  const std::lock_guard lock(mutex_);
  woken_ = false;
  in_flight_ += outbox_.size();
  return {std::exchange(outbox_, {}), phase_};
}

void WebCall::State::written() {
  const std::lock_guard lock(mutex_);
  in_flight_ = 0;
}

void WebCall::State::ping() {
  const std::lock_guard lock(mutex_);
  if (phase_ == Phase::streaming && outbox_.empty() && in_flight_ == 0) append_piece(": ping\n\n");
}

void WebCall::State::mark_gone() {
  std::function<void()> then;
  {
    const std::lock_guard lock(mutex_);
    if (phase_ != Phase::gone) then = std::exchange(on_gone_, nullptr);
    phase_ = Phase::gone;
    outbox_.clear();
  }
  if (then) then();
}

int WebCall::State::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

WebCall::WebCall(std::shared_ptr<State> state) : state_(std::move(state)) {}
WebCall::~WebCall() { state_->abandon(); }
const WebRequest& WebCall::request() const { return state_->request; }
void WebCall::reply(WebReply reply) { state_->reply(std::move(reply)); }
void WebCall::start_events() { state_->start_events(); }
bool WebCall::send(const ServerEvent& event) { return state_->send(event); }
void WebCall::finish() { state_->finish(); }
bool WebCall::is_gone() const { return state_->is_gone(); }
size_t WebCall::pending_bytes() const { return state_->pending_bytes(); }
void WebCall::on_gone(std::function<void()> then) { state_->on_gone(std::move(then)); }

WebHandler answer_at_once(std::function<WebReply(const WebRequest&)> answer) {
  return [answer = std::move(answer)](const std::shared_ptr<WebCall>& call) { call->reply(answer(call->request())); };
}

WebRoute asset_route(std::string path, std::string content_type, std::string_view bytes) {
  const std::string tag = '"' + sha256_hex(bytes).substr(0, 32) + '"';
  const auto answer = [content_type = std::move(content_type), bytes, tag](const WebRequest& request) {
    WebReply reply{200, content_type, std::string(bytes), {{"ETag", tag}, {"Cache-Control", "no-cache"}}};
    if (request.header("if-none-match") == tag) reply.status = 304, reply.body.clear();
    return reply;
  };
  return {"GET", std::move(path), WebRoute::Access::open, answer_at_once(answer)};
}

}  // namespace saaz
