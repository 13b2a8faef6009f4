#include "serve/http_parser.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>

#include "base/error.h"

namespace saaz {

namespace http = boost::beast::http;

namespace {

constexpr size_t kTargetBytes = 8 << 10;  // of the request line's target
constexpr size_t kChunkDigits = 8;

bool is_token(std::string_view text) {
  constexpr std::string_view kMarks = "!#$%&'*+-.^_`|~";
  return !text.empty() && std::all_of(text.begin(), text.end(), [&](char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || kMarks.find(c) != kMarks.npos;
  });
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  return out;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

[[noreturn]] void refuse(int status, const char* message) { throw WebFault(status, message); }

void check_request_line(std::string_view line) {
  const size_t first = line.find(' '), last = line.rfind(' ');
  if (first == line.npos || first == last) refuse(400, "the request line is not 'METHOD /path HTTP/1.1'");
  const std::string_view target = line.substr(first + 1, last - first - 1), version = line.substr(last + 1);
  if (!is_token(line.substr(0, first))) refuse(400, "the method is no word");
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    if (version.starts_with("HTTP/")) refuse(505, "only HTTP/1.1 and HTTP/1.0 are spoken here");
    refuse(400, "the request line does not end in HTTP/1.1");
  }
  if (target.size() > kTargetBytes) refuse(414, "the path and query are longer than 8 KiB");
  if (!target.starts_with('/')) refuse(400, "the request target must begin with '/'");
  const auto is_plain = [](char c) { return c > 0x20 && c < 0x7f && c != '#'; };
  if (!std::all_of(target.begin(), target.end(), is_plain))
    refuse(400, "the request target has characters that must be percent-encoded");
}

/// What decides how long a message is.
struct Framing {
  int n_lengths = 0, n_encodings = 0, n_hosts = 0;
  bool is_http_1_0 = false;

  void add(const std::string& name, std::string_view value) {
    if (name == "content-length") {
      const bool is_number = !value.empty() && value.size() <= 18 &&
                             std::all_of(value.begin(), value.end(), [](char c) { return c >= '0' && c <= '9'; });
      if (!is_number) refuse(400, "Content-Length is no number");
      ++n_lengths;
    } else if (name == "transfer-encoding") {
      if (lower(value) != "chunked") refuse(501, "the only Transfer-Encoding is 'chunked'");
      ++n_encodings;
    } else if (name == "host") {
      ++n_hosts;
    } else if (name == "expect" && lower(value) != "100-continue") {
      refuse(417, "the only expectation is '100-continue'");
    }
  }
  void check() const {
    if (n_hosts > 1) refuse(400, "more than one Host");
    if (n_lengths + n_encodings > 1) refuse(400, "the length of the body is given more than once");
    if (n_encodings > 0 && is_http_1_0) refuse(400, "HTTP/1.0 has no chunks");
  }
};

void check_field(std::string_view line, Framing& framing) {
  const size_t colon = line.find(':');
  if (colon == line.npos || !is_token(line.substr(0, colon)))
    refuse(400, "a header line is not 'Name: value' (folded lines are refused, too)");
  const std::string_view value = trimmed(line.substr(colon + 1));
  const auto is_control = [](char c) { return (static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f; };
  if (std::any_of(value.begin(), value.end(), is_control)) refuse(400, "a header value has control characters");
  framing.add(lower(line.substr(0, colon)), value);
}

/// `head` ends with an empty line.
void check_head(std::string_view head, size_t max_headers) {
  const size_t end = head.find("\r\n");
  const std::string_view request_line = head.substr(0, end);
  check_request_line(request_line);
  Framing framing;
  framing.is_http_1_0 = request_line.ends_with("1.0");
  head.remove_prefix(end + 2);
  for (size_t n = 1; !head.starts_with("\r\n"); ++n) {
    if (n > max_headers) refuse(431, "too many header lines");
    const size_t line_end = head.find("\r\n");
    check_field(head.substr(0, line_end), framing);
    head.remove_prefix(line_end + 2);
  }
  framing.check();
}

int status_of(boost::beast::error_code error) {
  if (error == http::error::body_limit) return 413;
  if (error == http::error::header_limit) return 431;
  return 400;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

WebFields query_fields(std::string_view text) {
  WebFields fields;
  while (!text.empty()) {
    const size_t end = std::min(text.find('&'), text.size());
    const std::string_view pair = text.substr(0, end);
    const size_t equals = std::min(pair.find('='), pair.size());
    const auto name = percent_decoded(pair.substr(0, equals), PlusSign::blank);
    const auto value = percent_decoded(pair.substr(std::min(equals + 1, pair.size())), PlusSign::blank);
    if (!name || !value) refuse(400, "the query has a broken percent escape");
    if (!pair.empty()) fields.emplace_back(*name, *value);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return fields;
}

/// Takes a body that comes in chunks. Extensions and trailers, which nobody sends and parsers read differently, are
/// refused.
class Chunks {
 public:
  bool is_done() const { return stage_ == Stage::done; }

  void take(std::string& input, std::string& body, size_t limit) {
    size_t before = 0;
    do {
      before = input.size();
      if (stage_ == Stage::data)
        take_data(input, body);
      else
        take_line(input, body.size(), limit);
    } while (!is_done() && input.size() < before);
  }

 private:
  enum class Stage : uint8_t { size, data, end_of_data, end, done };

  void take_data(std::string& input, std::string& body) {
    const size_t n = std::min(left_, input.size());
    body.append(input, 0, n);
    input.erase(0, n);
    left_ -= n;
    if (left_ == 0) stage_ = Stage::end_of_data;
  }

  void take_line(std::string& input, size_t n_taken, size_t limit) {
    const size_t most = stage_ == Stage::size ? kChunkDigits : 0, end = input.find("\r\n");
    if (std::min(end, input.size()) > most + (end == std::string::npos ? 1 : 0))
      refuse(400, "the chunks of the body are malformed, or have extensions or trailers");
    if (end == std::string::npos) return;
    if (stage_ == Stage::size) {
      left_ = chunk_size(std::string_view(input).substr(0, end));
      if (left_ > limit - n_taken) throw WebFault(413, fmt::format("the body is larger than {} bytes", limit));
      stage_ = left_ == 0 ? Stage::end : Stage::data;
    } else {
      stage_ = stage_ == Stage::end ? Stage::done : Stage::size;
    }
    input.erase(0, end + 2);
  }

  static size_t chunk_size(std::string_view digits) {
    size_t size = 0;
    if (digits.empty()) refuse(400, "a chunk has no size");
    for (const char c : digits) {
      if (hex_digit(c) < 0) refuse(400, "a chunk's size is no hexadecimal number, or has an extension");
      size = size << 4 | static_cast<size_t>(hex_digit(c));
    }
    return size;
  }

  Stage stage_ = Stage::size;
  size_t left_ = 0;
};

}  // namespace

struct HttpParser::Impl {
  WebLimits limits;
  // Of the head alone: how Beast reads a chunk's extension depends on where the input was cut (docs/lab.md).
  http::request_parser<http::empty_body> parser;
  Chunks chunks;
  size_t scanned = 0;  // of the head so far
  uint64_t length = 0;
  bool failed = false, is_chunked = false, expects_continue = false;
};

HttpParser::HttpParser(const WebLimits& limits) : impl_(std::make_unique<Impl>()) {
  impl_->limits = limits;
  impl_->parser.header_limit(static_cast<std::uint32_t>(limits.head_bytes + 1));
  impl_->parser.body_limit(limits.body_bytes);
}
HttpParser::~HttpParser() = default;

bool HttpParser::has_head() const { return impl_->parser.is_header_done(); }
bool HttpParser::is_done() const {
  return has_head() && (impl_->is_chunked ? impl_->chunks.is_done() : request_.body.size() == impl_->length);
}
bool HttpParser::keep_alive() const { return !impl_->failed && has_head() && impl_->parser.keep_alive(); }
bool HttpParser::is_http_1_0() const { return has_head() && impl_->parser.get().version() == 10; }
bool HttpParser::expects_continue() const { return impl_->expects_continue; }

void HttpParser::take(std::string& input) {
  try {
    if (!has_head()) return take_head(input);
    if (impl_->is_chunked) return impl_->chunks.take(input, request_.body, impl_->limits.body_bytes);
    const size_t n = std::min<uint64_t>(impl_->length - request_.body.size(), input.size());
    request_.body.append(input, 0, n);
    input.erase(0, n);
  } catch (const WebFault&) {
    impl_->failed = true;
    throw;
  }
}

void HttpParser::take_head(std::string& input) {
  Impl& impl = *impl_;
  while (input.starts_with("\r\n")) input.erase(0, 2), impl.scanned = 0;  // RFC 9112 2.2
  const size_t from = impl.scanned < 3 ? 0 : impl.scanned - 3;
  const size_t end = input.find("\r\n\r\n", from);
  for (size_t i = impl.scanned; i < std::min(end, input.size()); ++i)
    if (input[i] == '\n' && (i == 0 || input[i - 1] != '\r')) refuse(400, "a line ends without a carriage return");
  impl.scanned = input.size();
  if ((end == std::string::npos ? input.size() : end + 4) > impl.limits.head_bytes)
    throw WebFault(431, fmt::format("the header is larger than {} bytes", impl.limits.head_bytes));
  if (end == std::string::npos) return;
  const std::string_view head(input.data(), end + 4);
  check_head(head, impl.limits.n_headers);
  boost::beast::error_code error;
  while (!has_head()) {
    const size_t taken = impl.parser.put(boost::asio::buffer(std::as_const(input)), error);
    input.erase(0, taken);
    if (error == http::error::body_limit)
      throw WebFault(413, fmt::format("the body is larger than {} bytes", impl.limits.body_bytes));
    if ((error && error != http::error::need_more) || (taken == 0 && !has_head()))
      refuse(status_of(error), "the header is malformed");
  }
  fill_request();
}

void HttpParser::fill_request() {
  const auto& message = impl_->parser.get();
  const auto text = [](auto view) { return std::string(view.data(), view.size()); };
  request_.method = text(message.method_string());
  for (const auto& field : message)
    request_.headers.emplace_back(lower(text(field.name_string())), text(field.value()));
  const std::string target = text(message.target());
  const size_t mark = std::min(target.find('?'), target.size());
  const auto path = percent_decoded(std::string_view(target).substr(0, mark), PlusSign::plus);
  if (!path) refuse(400, "the path has a broken percent escape");
  request_.path = *path;
  request_.query = query_fields(std::string_view(target).substr(std::min(mark + 1, target.size())));
  impl_->is_chunked = impl_->parser.chunked();
  impl_->length = impl_->parser.content_length().value_or(0);
  impl_->expects_continue = !request_.header("expect").empty() && message.version() == 11;
}

std::optional<std::string> percent_decoded(std::string_view text, PlusSign plus) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i] == '+' && plus == PlusSign::blank ? ' ' : text[i];
      continue;
    }
    if (i + 2 >= text.size()) return std::nullopt;
    const int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
    if (high < 0 || low < 0 || high + low == 0) return std::nullopt;
    out += static_cast<char>(high << 4 | low);
    i += 2;
  }
  return out;
}

}  // namespace saaz
