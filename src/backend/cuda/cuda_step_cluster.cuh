// Step: what the blocks of a cluster send to each other's shared memory. Before the first send each block has its
// barriers made and waits for the others; none ends before all that is sent to it has come. Device code of sm_90; on
// older cards these do nothing and are not called. Room-private.
#pragma once

#include "backend/cuda/cuda_barrier.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define SAAZ_OF_CLUSTER(...)
#else
#define SAAZ_OF_CLUSTER(...) asm volatile(__VA_ARGS__)
#endif

namespace saaz::cuda {

/// Where `p` lies in the shared memory of another block of the cluster.
__device__ inline uint32_t of_block(const void* p, int rank) {
  uint32_t address = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
#endif
  return address;
}

/// What the other blocks send is counted by a barrier that ends its only phase when so many bytes have come. No fence
/// is needed, which a barrier of the cluster would make of all the card's memory. By a whole warp, a barrier for each
/// lane that takes one. They wait in between for racecheck alone, which does not see that one thread's two operations
/// are in order.
__device__ inline void expect(bool takes_one, uint64_t& arrival, int bytes) {
  if (takes_one) init_barrier(shared_address(&arrival), 1);
  __syncwarp();
  if (takes_one) {
    SAAZ_OF_CLUSTER("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&arrival)), "r"(bytes)
                    : "memory");
  }
}
__device__ inline void await(uint64_t& arrival) { wait(shared_address(&arrival), 0); }

/// By the threads that made a block's barriers, then; others may.
__device__ inline void show_barriers() { SAAZ_OF_CLUSTER("fence.mbarrier_init.release.cluster;" ::: "memory"); }
/// By all threads, once each. Relaxed: a release would wait for all that the block has on its way.
__device__ inline void arrive_at_cluster() {
  __syncwarp();
  SAAZ_OF_CLUSTER("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void wait_for_cluster() {
  __syncwarp();
  SAAZ_OF_CLUSTER("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// To an address in a block of the cluster, counted by that block's arrival.
__device__ inline void put(uint32_t address, uint32_t arrival, float x) {
  SAAZ_OF_CLUSTER("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(address),
                  "f"(x), "r"(arrival)
                  : "memory");
}
__device__ inline void put(uint32_t address, uint32_t arrival, float2 x) {
  SAAZ_OF_CLUSTER(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(address),
      "f"(x.x), "f"(x.y), "r"(arrival)
      : "memory");
}
__device__ inline void put(uint32_t address, uint32_t arrival, uint4 x) {
  SAAZ_OF_CLUSTER(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
      "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(arrival)
      : "memory");
}

}  // namespace saaz::cuda

#undef SAAZ_OF_CLUSTER
