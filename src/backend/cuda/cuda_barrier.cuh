// Barriers in a block's shared memory, by address. Unlike the block's numbered ones they let a thread arrive without
// waiting, and racecheck follows them where every lane arrives. For sm_80 and later; on older cards these do nothing
// and are not called. Room-private.
#pragma once

#include "backend/cuda/cuda_mma.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define SAAZ_BARRIER(...)
#else
#define SAAZ_BARRIER(...) asm volatile(__VA_ARGS__)
#endif
// Waiting asleep is newer than barriers are.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define SAAZ_TRY_WAIT "mbarrier.test_wait"
#else
#define SAAZ_TRY_WAIT "mbarrier.try_wait"
#endif

namespace saaz::cuda {

/// A phase is over when so many threads have arrived. By one thread; the others see it behind another barrier.
__device__ inline void init_barrier(uint32_t barrier, int n_arrivals) {
  SAAZ_BARRIER("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(n_arrivals) : "memory");
}
/// Releases what the thread wrote before.
__device__ inline void arrive(uint32_t barrier) {
  SAAZ_BARRIER(
      "{\n"
      ".reg .b64 phase;\n"
      "mbarrier.arrive.shared.b64 phase, [%0];\n"
      "}" ::"r"(barrier)
      : "memory");
}
__device__ inline bool is_over(uint32_t barrier, int parity) {
  uint32_t over = 1;
  SAAZ_BARRIER(
      "{\n"
      ".reg .pred over;\n"
      "mbarrier.test_wait.parity.shared.b64 over, [%1], %2;\n"
      "selp.u32 %0, 1, 0, over;\n"
      "}"
      : "=r"(over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return over != 0;
}
/// Until the phase of this parity is over: the first has 0, and 1 is over before it.
__device__ inline void wait(uint32_t barrier, int parity) {
  uint32_t over = 1;
  do {
    SAAZ_BARRIER(
        "{\n"
        ".reg .pred over;\n" SAAZ_TRY_WAIT
        ".parity.shared.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;\n"
        "}"
        : "=r"(over)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (over == 0);
}

}  // namespace saaz::cuda

#undef SAAZ_TRY_WAIT
#undef SAAZ_BARRIER
