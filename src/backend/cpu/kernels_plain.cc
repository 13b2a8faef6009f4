// The kernels for SSE2, the floor of x86-64: same source as the other instruction sets, flags set by the build for this
// file.
#include "backend/cpu/kernels.inc.h"

namespace saaz::cpu {

const KernelTable kPlainKernels = make_table("plain");

}  // namespace saaz::cpu
