// A client of the tests that says exactly what it is told to, over a plain socket, and reads what comes back.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <string_view>
#include <utility>

namespace saaz::testing_serve {

class Client {
 public:
  explicit Client(int port) : socket_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    is_open_ = connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  ~Client() { close(socket_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  bool is_open() const { return is_open_; }
  void send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
  }
  /// Waits for more bytes; false when the server closed or nothing came in time.
  bool receive(int timeout_ms = 10000) {
    pollfd waiting{socket_, POLLIN, 0};
    if (poll(&waiting, 1, timeout_ms) <= 0) return false;
    char buffer[16384];
    const ssize_t n = recv(socket_, buffer, sizeof buffer, 0);
    if (n <= 0)
      is_open_ = false;
    else
      received_.append(buffer, static_cast<size_t>(n));
    return n > 0;
  }
  /// Everything until the server closes, or is silent for so long.
  std::string receive_all(int timeout_ms = 10000) {
    while (receive(timeout_ms)) continue;
    return std::exchange(received_, {});
  }
  /// Everything up to and with `mark`; what came when the server closed before.
  std::string receive_until(std::string_view mark) {
    while (received_.find(mark) == std::string::npos && receive()) continue;
    const size_t at = received_.find(mark), end = at == std::string::npos ? received_.size() : at + mark.size();
    const std::string out = received_.substr(0, end);
    received_.erase(0, end);
    return out;
  }
  /// One reply with a Content-Length: its head and body.
  std::pair<std::string, std::string> receive_reply() {
    const std::string head = receive_until("\r\n\r\n");
    const size_t at = head.find("Content-Length: ");
    const size_t length = at == std::string::npos ? 0 : std::stoul(head.substr(at + 16));
    while (received_.size() < length && receive()) continue;
    const std::string body = received_.substr(0, length);
    received_.erase(0, body.size());
    return {head, body};
  }
  /// The connection will end with a reset, not in order.
  void reset_on_close() {
    const linger at_once{1, 0};
    setsockopt(socket_, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  }

 private:
  static int socket(int domain, int type, int protocol) { return ::socket(domain, type, protocol); }
  int socket_;
  bool is_open_ = false;
  std::string received_;
};

/// The status of a reply's head; 0 when it is none.
inline int status_of(std::string_view head) {
  return head.starts_with("HTTP/1.") && head.size() > 12 ? std::stoi(std::string(head.substr(9, 3))) : 0;
}

/// A request as a client sends it: "POST /v1/x", with a JSON body unless that is empty.
inline std::string request_text(const std::string& method_and_path, const std::string& body = "",
                                const std::string& more_fields = "") {
  std::string out = method_and_path + " HTTP/1.1\r\nHost: 127.0.0.1\r\n" + more_fields;
  if (!body.empty()) out += "Content-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) + "\r\n";
  return out + "\r\n" + body;
}

}  // namespace saaz::testing_serve
