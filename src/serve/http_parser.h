// HTTP messages as bytes. Enters: what a client sends, in any pieces. Leaves: a WebRequest, or the status that refuses
// it. Stricter than RFC 9112 asks: every shape that two parsers could read differently (two lengths, a length and
// chunks, folded lines, bare line feeds, blanks before a colon) is 400, and the connection must end.
#pragma once

#include <memory>

#include "serve/http.h"

namespace saaz {

class HttpParser {
 public:
  explicit HttpParser(const WebLimits& limits);
  ~HttpParser();

  /// Takes bytes from the front of `input` and erases what it took. Stops after the head (once), and after the message.
  /// Throws WebFault (400, 413, 414, 431, 501, 505).
  void take(std::string& input);
  /// The head is complete: `request` has all but the body.
  bool has_head() const;
  bool is_done() const;
  WebRequest& request() { return request_; }
  /// As the message says; false after an error.
  bool keep_alive() const;
  bool is_http_1_0() const;
  bool expects_continue() const;

 private:
  struct Impl;
  void take_head(std::string& input);
  void fill_request();
  WebRequest request_;
  std::unique_ptr<Impl> impl_;
};

/// "a%20b" as text; nothing when an escape is broken or gives a NUL. `plus`: what '+' means.
enum class PlusSign : uint8_t { plus, blank };
std::optional<std::string> percent_decoded(std::string_view text, PlusSign plus);

}  // namespace saaz
