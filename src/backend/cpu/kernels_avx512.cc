// The kernels for AVX-512, without and with its bf16 products: same source as the other instruction sets, flags set by
// the build for this file. The compiler itself never makes a bf16 instruction; only the named kernels hold any.
// GCC 12's own AVX-512 header reads variables it leaves undefined on purpose; the other two files keep the warning on.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "backend/cpu/kernels.inc.h"

namespace saaz::cpu {

const KernelTable kAvx512Kernels = make_table("avx512");
const KernelTable kAvx512Bf16Kernels = make_table("avx512-bf16", kNativeBf16);

}  // namespace saaz::cpu
