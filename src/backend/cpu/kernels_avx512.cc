// The kernels for AVX-512: same source as the other instruction sets, flags set by the build for this file.
// GCC 12's own AVX-512 header reads variables it leaves undefined on purpose; the other two files keep the warning on.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "backend/cpu/kernels.inc.h"

namespace saaz::cpu {

const KernelTable kAvx512Kernels = make_table("avx512");

}  // namespace saaz::cpu
