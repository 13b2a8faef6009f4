// CudaBackend: tensors that wait in pinned host memory. All copies run in one stream of their own, in order.
#include "backend/cuda/cuda_common.cuh"

namespace saaz::cuda {

Parking::~Parking() {
  if (copies_ == nullptr) return;
  cudaStreamSynchronize(copies_);
  for (const auto& [index, place] : places_) cudaFreeHost(place.pinned);
  cudaEventDestroy(queued_);
  cudaEventDestroy(copied_);
  cudaStreamDestroy(copies_);
}

/// Copies from here on wait for the work queued so far.
void Parking::follow(cudaStream_t work) {
  if (copies_ == nullptr) {
    check_cuda(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), "creating a stream");
    check_cuda(cudaEventCreateWithFlags(&queued_, cudaEventDisableTiming), "creating an event");
    check_cuda(cudaEventCreateWithFlags(&copied_, cudaEventDisableTiming), "creating an event");
  }
  check_cuda(cudaEventRecord(queued_, work), "recording an event");
  check_cuda(cudaStreamWaitEvent(copies_, queued_), "waiting for an event");
}

void Parking::put(int place, const Tensor& from, cudaStream_t work) {
  follow(work);
  Place& to = places_[place];
  if (to.bytes < from.bytes()) {
    check_cuda(cudaStreamSynchronize(copies_), "parking");
    cudaFreeHost(to.pinned);
    to = {};
    check_cuda(cudaMallocHost(&to.pinned, static_cast<size_t>(from.bytes())), "pinned memory for layer inputs");
    to.bytes = from.bytes();
  }
  check_cuda(cudaMemcpyAsync(to.pinned, from.data, static_cast<size_t>(from.bytes()), cudaMemcpyDeviceToHost, copies_),
             "parking");
}

void Parking::get(const Tensor& to, int place, cudaStream_t work) {
  follow(work);
  check_cuda(cudaMemcpyAsync(to.data, places_.at(place).pinned, static_cast<size_t>(to.bytes()), cudaMemcpyHostToDevice,
                             copies_),
             "fetching what was parked");
}

void Parking::wait(cudaStream_t work) {
  if (copies_ == nullptr) return;
  check_cuda(cudaEventRecord(copied_, copies_), "recording an event");
  check_cuda(cudaStreamWaitEvent(work, copied_), "waiting for an event");
}

void CudaBackend::park(int place, const Tensor& from) { parking_.put(place, from, stream_); }
void CudaBackend::fetch_parked(const Tensor& to, int place) { parking_.get(to, place, stream_); }
void CudaBackend::wait_for_parked() { parking_.wait(stream_); }

}  // namespace saaz::cuda
