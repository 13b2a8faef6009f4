// CudaBackend: the device, its memory, and the copies between it and the host.
#include <algorithm>

#include "backend/cuda/cuda_blas.h"
#include "backend/cuda/cuda_step.h"

namespace saaz {

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  int n_devices = 0;
  if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0) {
    cudaGetLastError();  // no driver or no card is an answer, not a failure
    return nullptr;
  }
  return std::make_unique<cuda::CudaBackend>(options);
}

namespace cuda {

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  const bool memory = status == cudaErrorMemoryAllocation;
  fail(memory ? ExitCode::resource : ExitCode::bug, "CUDA: {}: {}", what, cudaGetErrorString(status));
}

namespace {

constexpr size_t kHostArraySlots = 64;
constexpr int64_t kBlasWorkspace = 32 << 20;

uint64_t hash_of(const void* bytes, size_t n) {
  uint64_t h = 0xcbf29ce484222325u ^ n;
  const auto* p = static_cast<const unsigned char*>(bytes);
  for (; n >= 8; n -= 8, p += 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    h = (h ^ word) * 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
  }
  for (; n > 0; --n, ++p) h = (h ^ *p) * 0x100000001b3u;
  return h;
}

__global__ void fill_f32(int64_t n, float* to, float value) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) to[i] = value;
}

}  // namespace

struct HostArrays::Slot {
  void *device = nullptr, *pinned = nullptr;
  size_t capacity = 0, bytes = 0;
  uint64_t hash = 0;
  cudaEvent_t copied = nullptr;  // the pinned bytes are free again
};

HostArrays::HostArrays(cudaStream_t stream) : stream_(stream) {
  for (size_t i = 0; i < kHostArraySlots; ++i) {
    slots_.push_back(std::make_unique<Slot>());
    check_cuda(cudaEventCreateWithFlags(&slots_.back()->copied, cudaEventDisableTiming), "creating an event");
  }
}

HostArrays::~HostArrays() {
  for (const auto& slot : slots_) {
    cudaFree(slot->device);
    cudaFreeHost(slot->pinned);
    cudaEventDestroy(slot->copied);
  }
}

const void* HostArrays::stage(const void* host, size_t bytes) {
  const uint64_t hash = hash_of(host, bytes);
  if (const auto found = by_hash_.find(hash); found != by_hash_.end()) {
    const Slot& slot = *slots_[found->second];
    if (slot.bytes == bytes && std::memcmp(slot.pinned, host, bytes) == 0) return slot.device;
  }
  const size_t index = next_;
  next_ = (next_ + 1) % slots_.size();
  Slot& slot = *slots_[index];
  if (slot.bytes > 0) {
    by_hash_.erase(slot.hash);
    check_cuda(cudaEventSynchronize(slot.copied), "waiting for a copy");
  }
  if (slot.capacity < bytes) {
    check_cuda(cudaStreamSynchronize(stream_), "waiting for the device");  // kernels may still read the old memory
    cudaFree(slot.device);
    cudaFreeHost(slot.pinned);
    slot.capacity = std::max<size_t>(bytes, 16384);
    check_cuda(cudaMalloc(&slot.device, slot.capacity), "memory for ids and positions");
    check_cuda(cudaMallocHost(&slot.pinned, slot.capacity), "pinned memory for ids and positions");
  }
  std::memcpy(slot.pinned, host, bytes);
  slot.bytes = bytes;
  slot.hash = hash;
  by_hash_[hash] = index;
  check_cuda(cudaMemcpyAsync(slot.device, slot.pinned, bytes, cudaMemcpyHostToDevice, stream_), "copying ids");
  check_cuda(cudaEventRecord(slot.copied, stream_), "recording an event");
  return slot.device;
}

CudaBackend::CudaBackend(const BackendOptions& options)
    : activations_(options.compute_dtype), cache_weights_(options.cache_weights) {
  check_cuda(cudaSetDevice(device_), "opening the GPU");
  // No kernel here calls itself: the stack that the driver keeps for every thread would be a quarter of a GiB.
  check_cuda(cudaDeviceSetLimit(cudaLimitStackSize, 0), "the stack of kernels");
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, device_), "reading the GPU's properties");
  compute_capability_ = properties.major * 10 + properties.minor;
  n_multiprocessors_ = properties.multiProcessorCount;
  name_ = properties.name;
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
  check(blas().create(&blas_) == CUBLAS_STATUS_SUCCESS, ExitCode::resource, "CUDA: cuBLAS does not start");
  blas_workspace_ = {allocate(kBlasWorkspace, "workspace of products"), kBlasWorkspace};
  blas().set_stream(blas_, stream_);
  blas().set_workspace(blas_, blas_workspace_.data, kBlasWorkspace);  // a fixed one: the same algorithm, the same bytes
  arrays_ = std::make_unique<HostArrays>(stream_);
  load_constants();
}

CudaBackend::~CudaBackend() {
  cudaStreamSynchronize(stream_);
  step_.reset();
  arrays_.reset();
  for (const auto& [slot, block] : scratch_) cudaFree(block.data);
  blas().destroy(blas_);
  cudaFree(blas_workspace_.data);
  cudaFreeHost(gathered_.pinned);
  cudaFreeHost(found_.data);
  if (gathered_.copied != nullptr) cudaEventDestroy(gathered_.copied);
  cudaStreamDestroy(stream_);
}

std::string CudaBackend::describe() const {
  return fmt::format("cuda {} (sm_{}), {}", name_, compute_capability_, name_of(activations_));
}

std::optional<int64_t> CudaBackend::own_free_bytes() const {
  size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "asking for free memory");
  return static_cast<int64_t>(free);
}

std::optional<int64_t> CudaBackend::own_total_bytes() const {
  size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "asking for free memory");
  return static_cast<int64_t>(total);
}

Residence CudaBackend::residence() const { return {cache_weights_, tables_here_.value_or(false)}; }

void CudaBackend::set_residence(const Residence& residence) {
  cache_weights_ = residence.dense_weights;
  tables_here_ = residence.tables;
}

void* CudaBackend::allocate(int64_t bytes, const char* what) {
  const std::lock_guard lock(recording_);
  if (most_bytes_ > 0) {
    const int64_t used = *own_total_bytes() - *own_free_bytes();
    check(used + bytes <= most_bytes_, ExitCode::resource,
          "{}: {} bytes would make {} of GPU memory in use, --max-gpu-memory allows {}", what, bytes, used + bytes,
          most_bytes_);
  }
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1)));
  if (status != cudaSuccess) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    fail(ExitCode::resource,
         "{}: no GPU memory for {} bytes, {} of {} are free; use a smaller batch or recompute: layer", what, bytes,
         free, total);
  }
  check_cuda(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream_), what);
  return memory;
}

void CudaBackend::release(void* memory) {
  if (memory == nullptr) return;
  const std::lock_guard lock(recording_);
  cudaStreamSynchronize(stream_);
  if (step_) static_cast<Step&>(*step_).forget(memory);
  cudaFree(memory);
}

void CudaBackend::copy(const Tensor& to, const Tensor& from) {
  const std::lock_guard lock(recording_);
  check_cuda(cudaMemcpyAsync(to.data, from.data, static_cast<size_t>(from.bytes()), cudaMemcpyDeviceToDevice, stream_),
             "copying");
}

void CudaBackend::upload(const Tensor& to, const void* host) {
  const std::lock_guard lock(recording_);
  check_cuda(cudaMemcpyAsync(to.data, host, static_cast<size_t>(to.bytes()), cudaMemcpyHostToDevice, stream_),
             "copying to the GPU");
  check_cuda(cudaStreamSynchronize(stream_), "copying to the GPU");
}

void CudaBackend::download(void* host, const Tensor& from) {
  const std::lock_guard lock(recording_);
  check_cuda(cudaMemcpyAsync(host, from.data, static_cast<size_t>(from.bytes()), cudaMemcpyDeviceToHost, stream_),
             "copying from the GPU");
  check_cuda(cudaStreamSynchronize(stream_), "running on the GPU");
}

void CudaBackend::fill(const Tensor& t, float value) {
  const std::lock_guard lock(recording_);
  if (value == 0) {
    check_cuda(cudaMemsetAsync(t.data, 0, static_cast<size_t>(t.bytes()), stream_), "filling");
    return;
  }
  fill_f32<<<static_cast<unsigned>(ceil_div(t.size(), 256)), 256, 0, stream_>>>(t.size(), t.f32(), value);
  check_launch("fill");
}

void* CudaBackend::scratch(int slot, int64_t bytes) {
  Block& block = scratch_[slot];
  if (block.bytes >= bytes) return block.data;
  if (block.data != nullptr) release(block.data), ++scratch_moves_;
  block = {allocate(bytes, "scratch of a kernel"), bytes};
  return block.data;
}

}  // namespace cuda
}  // namespace saaz
