// A call between the thread that answers it and the network thread that carries the answer: what is still to be
// written, and how it ends. Enters: replies and events. Leaves: the bytes of HTTP, framed. No sockets here.
#pragma once

#include <mutex>

#include "serve/http.h"

namespace saaz {

struct WebCall::State {
  enum class Phase : uint8_t { waiting, streaming, complete, broken, gone };
  enum class Version : uint8_t { http_1_0, http_1_1 };
  enum class After : uint8_t { keep, close };
  /// What the network thread has to write now, and what comes after it.
  struct Output {
    std::string bytes;
    Phase phase = Phase::waiting;
  };

  WebRequest request;
  std::string route;  // for the log: the pattern, not the path
  Version version = Version::http_1_1;
  After after = After::close;
  size_t max_pending_bytes = 0;
  WebFields extra_fields;
  std::function<void()> wake;  // tells the network thread that there is output

  void reply(WebReply reply);
  void start_events();
  bool send(const ServerEvent& event);
  void finish();
  /// The handler lets go of the call.
  void abandon();
  bool is_gone() const;
  size_t pending_bytes() const;
  void on_gone(std::function<void()> then);

  // For the network thread alone.
  Output take_output();
  /// The bytes of the last take_output are on their way.
  void written();
  /// A comment line, when a stream has nothing else to say.
  void ping();
  /// The client is gone: runs what `on_gone` was given. Nothing after a complete answer.
  void mark_gone();
  int status() const;

 private:
  void append_head(const WebReply& reply, bool has_length);
  void append_piece(std::string_view bytes);
  void call_wake(std::unique_lock<std::mutex>& lock);

  mutable std::mutex mutex_;
  Phase phase_ = Phase::waiting;
  std::string outbox_;
  size_t in_flight_ = 0;
  int status_ = 0;
  bool woken_ = false;
  std::function<void()> on_gone_;
};

}  // namespace saaz
