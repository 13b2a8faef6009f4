// Files that are often found where a model file should be: what they are and what to do, from their first bytes.
// Room-private. Asked only after the real format's own check has failed, so a valid file can never be mistaken.
#pragma once

#include <string>

#include "base/bytes.h"

namespace saaz {

/// "this is a Git LFS pointer, not the file: ..." or empty when the bytes look like nothing known.
std::string describe_foreign_file(Bytes bytes);

}  // namespace saaz
