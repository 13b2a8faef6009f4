// A stop signal (base/system.h) in the midst of work that has nothing to save, and leaves nothing when it fails.
#pragma once

namespace saaz {

/// Between two pieces of such work: throws an Error with 128 + the signal's number once one asked us to stop.
void check_stop();

}  // namespace saaz
