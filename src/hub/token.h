// The hub's access token: a secret that nothing prints. There is no formatter and no conversion; the only way out is
// the header of a request, which client.cc adds for the hosts that may see it.
#pragma once

#include <string>
#include <string_view>
#include <utility>

namespace saaz {

class Token {
 public:
  Token() = default;
  /// `source` says where it came from ("HF_TOKEN", a path), for messages.
  Token(std::string secret, std::string source) : secret_(std::move(secret)), source_(std::move(source)) {}

  bool empty() const { return secret_.empty(); }
  const std::string& source() const { return source_; }
  std::string authorization_header() const { return "Authorization: Bearer " + secret_; }
  bool is_in(std::string_view text) const { return !empty() && text.find(secret_) != std::string_view::npos; }
  /// `text`, which came from outside, with stars where it repeats the token.
  std::string starred(std::string text) const {
    for (size_t at = 0; !empty() && (at = text.find(secret_, at)) != std::string::npos;)
      text.replace(at, secret_.size(), "***");
    return text;
  }

 private:
  std::string secret_, source_;
};

}  // namespace saaz
