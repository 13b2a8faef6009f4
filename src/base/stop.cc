#include "base/stop.h"

#include "base/check.h"
#include "base/system.h"

namespace saaz {

void check_stop() {
  check(stop_signal() == 0, static_cast<ExitCode>(128 + stop_signal()),
        "stopped by a signal; the same command begins again");
}

}  // namespace saaz
