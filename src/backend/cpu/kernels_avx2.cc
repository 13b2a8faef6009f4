// The kernels for AVX2 with FMA: same source as the other instruction sets, flags set by the build for this file.
#include "backend/cpu/kernels.inc.h"

namespace saaz::cpu {

const KernelTable kAvx2Kernels = make_table("avx2");

}  // namespace saaz::cpu
