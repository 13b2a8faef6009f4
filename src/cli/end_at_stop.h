// EndAtStop: while it lives a stop signal ends the process where it stands, with 128 + its number, as it ends programs
// that do not care. For commands and parts of commands that write no file: nothing is lost, and nothing is waited for.
#pragma once

#include <signal.h>

namespace saaz {

class EndAtStop {
 public:
  /// A stop that came before ends the process now.
  EndAtStop();
  /// As before; a stop that comes later only sets what `stop_signal` reads.
  ~EndAtStop();
  EndAtStop(const EndAtStop&) = delete;
  EndAtStop& operator=(const EndAtStop&) = delete;

 private:
  static constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP};
  struct sigaction before_[3]{};
};

}  // namespace saaz
