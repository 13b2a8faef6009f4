#include "cli/end_at_stop.h"

#include <unistd.h>

#include "base/system.h"

namespace saaz {

namespace {
void end_now(int signal) { _exit(128 + signal); }
}  // namespace

EndAtStop::EndAtStop() {
  struct sigaction at_once {};
  at_once.sa_handler = end_now;
  for (int i = 0; i < 3; ++i) {
    sigaction(kSignals[i], nullptr, &before_[i]);
    if (before_[i].sa_handler != SIG_IGN) sigaction(kSignals[i], &at_once, nullptr);
  }
  if (stop_signal() != 0) end_now(stop_signal());
}

EndAtStop::~EndAtStop() {
  for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &before_[i], nullptr);
}

}  // namespace saaz
