// Picks the kernel table by what the processor and the operating system support. In: an instruction set's name or "".
// Out: a table whose code this machine can run. A name that is unknown or not runnable here is a usage error.
#include "backend/cpu/kernels.h"
#include "base/check.h"

namespace saaz::cpu {

namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

}  // namespace

std::vector<const KernelTable*> available_kernels() {
  std::vector<const KernelTable*> tables{&kPlainKernels};
  if (has_avx2()) tables.push_back(&kAvx2Kernels);
  if (has_avx512()) tables.push_back(&kAvx512Kernels);
  if (has_avx512_bf16()) tables.push_back(&kAvx512Bf16Kernels);
  return tables;
}

const KernelTable& pick_kernels(const std::string& instruction_set) {
  const std::vector<const KernelTable*> tables = available_kernels();
  if (instruction_set.empty()) return *tables.back();
  std::string names;
  for (const KernelTable* table : tables) {
    if (instruction_set == table->name) return *table;
    names += std::string(names.empty() ? "" : ", ") + table->name;
  }
  fail(ExitCode::usage, "instruction set '{}' is not available on this machine; choose one of: {}",
       printable(instruction_set), names);
}

}  // namespace saaz::cpu
