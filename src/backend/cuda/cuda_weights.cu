// Weights on the GPU: placing them, and dequantising whole matrices for the products. NF4 stays NF4 in device memory,
// its scales behind its codes in one block, or becomes dense once when there is room (BackendOptions::cache_weights).
#include <cuda_fp16.h>

#include <algorithm>

#include "backend/cuda/cuda_common.cuh"
#include "quant/blockwise.h"

namespace saaz::cuda {

namespace {

__constant__ float kNf4[16];
__constant__ float kSignedMap[256];

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

__device__ float round_to(DType dtype, float x) {
  if (dtype == DType::bf16) return to_f32(__float2bfloat16_rn(x));
  if (dtype == DType::f16) return __half2float(__float2half_rn(x));
  return x;
}

__device__ float nf4_scale(const Weight& w, int64_t block) {
  if (w.absmax != nullptr) return w.absmax[block];
  return __fadd_rn(__fmul_rn(kSignedMap[w.absmax_codes[block]], w.nested_absmax[block / kNestedBlock]),
                   w.nested_offset);
}

/// 16 values of one scale block per thread.
template <class T>
__global__ void dequantise_nf4(const Weight w, T* to) {
  constexpr int kPerThread = 16;
  __shared__ float value_of[16];  // lanes ask for different codes: constant memory would answer one after the other
  if (threadIdx.x < 16) value_of[threadIdx.x] = kNf4[threadIdx.x];
  __syncthreads();
  const int64_t n = w.n_out * w.n_in;
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kPerThread;
  if (begin >= n) return;
  const float scale = nf4_scale(w, begin / kNf4Block);
  const auto* codes = static_cast<const uint8_t*>(w.data) + begin / 2;
  if (begin + kPerThread > n) {
    for (int64_t i = 0; begin + i < n; ++i) {
      const int code = i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
      to[begin + i] = from_f32<T>(round_to(w.dequantised_dtype, value_of[code] * scale));
    }
    return;
  }
  const uint2 packed = *reinterpret_cast<const uint2*>(codes);
  Vector<T> out[kPerThread / kVector<T>];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const uint32_t word = i < 8 ? packed.x : packed.y;
    const int byte = (i / 2) % 4, shift = 8 * byte + (i % 2 == 0 ? 4 : 0);
    out[i / kVector<T>].v[i % kVector<T>] = round_to(w.dequantised_dtype, value_of[word >> shift & 15] * scale);
  }
#pragma unroll
  for (int v = 0; v < kPerThread / kVector<T>; ++v) store_vector(to + begin + v * kVector<T>, out[v]);
}

template <class From, class To>
__global__ void convert(int64_t n, const From* from, To* to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) to[i] = from_f32<To>(to_f32(from[i]));
}

unsigned blocks_of_256(int64_t threads) { return static_cast<unsigned>(ceil_div(threads, 256)); }

void launch_dequantise(const Weight& w, const Tensor& to, cudaStream_t stream) {
  dispatch(to.dtype, [&](auto zero) {
    using T = decltype(zero);
    dequantise_nf4<T><<<blocks_of_256(ceil_div(w.size(), 16)), 256, 0, stream>>>(w, to.as<T>());
  });
  check_launch("dequantise_nf4");
}

}  // namespace

void CudaBackend::load_constants() {
  check_cuda(cudaMemcpyToSymbol(kNf4, kNf4Values.data(), sizeof kNf4), "constants");
  check_cuda(cudaMemcpyToSymbol(kSignedMap, dynamic_map_signed().data(), sizeof kSignedMap), "constants");
}

Weight CudaBackend::place_nf4(const Weight& w) {
  const int64_t n = w.size(), n_blocks = ceil_div(n, kNf4Block), n_nested = ceil_div(n_blocks, kNestedBlock);
  const int64_t code_bytes = aligned(ceil_div(n, 2)),
                scale_bytes = aligned(w.absmax != nullptr ? 4 * n_blocks : n_blocks);
  const int64_t nested_bytes = w.absmax != nullptr ? 0 : 4 * n_nested;
  char* to = static_cast<char*>(allocate(code_bytes + scale_bytes + nested_bytes, "weights"));
  const auto copy_in = [&](char* at, const void* from, int64_t bytes) { upload(Tensor(at, DType::u8, {bytes}), from); };
  Weight placed = w;
  placed.data = to;
  copy_in(to, w.data, ceil_div(n, 2));
  if (w.absmax != nullptr) {
    copy_in(to + code_bytes, w.absmax, 4 * n_blocks);
    placed.absmax = reinterpret_cast<const float*>(to + code_bytes);
  } else {
    copy_in(to + code_bytes, w.absmax_codes, n_blocks);
    copy_in(to + code_bytes + scale_bytes, w.nested_absmax, nested_bytes);
    placed.absmax_codes = reinterpret_cast<const uint8_t*>(to + code_bytes);
    placed.nested_absmax = reinterpret_cast<const float*>(to + code_bytes + scale_bytes);
  }
  if (!cache_weights_) return placed;
  const Tensor values(allocate(n * size_of(activations_), "weights"), activations_, {w.n_out, w.n_in});
  launch_dequantise(placed, values, stream_);
  release(to);
  return dense_weight(values);
}

/// Whether a table that may stay in host memory is better off here: as the plan says, or, without one, where speed is
/// wanted and half of the card is free afterwards.
bool CudaBackend::has_room_for(const Weight& table) const {
  if (tables_here_) return *tables_here_;
  return cache_weights_ && leaves_half_free(table.size() * size_of(activations_));
}

/// Whether half of the card stays free beside so many bytes more: asked for what is kept for speed alone. False where
/// memory has a limit.
bool CudaBackend::leaves_half_free(int64_t bytes) const {
  return most_bytes_ == 0 && bytes + *own_total_bytes() / 2 < *own_free_bytes();
}

Weight CudaBackend::place(const Weight& w, Placement placement) {
  if (placement == Placement::rows && !has_room_for(w)) return w;
  const bool has_own_maps = w.quant_map != nullptr || w.nested_map != nullptr;  // FP4: dense, like any other format
  if (w.format == WeightFormat::nf4 && !has_own_maps) return place_nf4(w);
  if (w.format == WeightFormat::bf16 || (w.format == WeightFormat::f32 && activations_ == DType::f32)) {
    const DType dtype = w.format == WeightFormat::bf16 ? DType::bf16 : DType::f32;
    const Tensor values(allocate(w.size() * size_of(dtype), "weights"), dtype, {w.n_out, w.n_in});
    upload(values, w.data);
    return dense_weight(values);
  }
  // Any other format becomes dense, some rows at a time.
  const Tensor values(allocate(w.size() * size_of(activations_), "weights"), activations_, {w.n_out, w.n_in});
  const int64_t step = std::max<int64_t>(1, (int64_t{1} << 20) / w.n_in);
  std::vector<float> rows;
  std::vector<uint16_t> halves;
  for (int64_t begin = 0; begin < w.n_out; begin += step) {
    const int64_t n = std::min(step, w.n_out - begin);
    rows.resize(static_cast<size_t>(n * w.n_in));
    dequantise(w, begin * w.n_in, n * w.n_in, rows.data());
    if (activations_ == DType::f32) {
      upload(row_slice(values, begin, n), rows.data());
      continue;
    }
    halves.resize(rows.size());
    std::transform(rows.begin(), rows.end(), halves.begin(), f32_to_bf16);
    upload(row_slice(values, begin, n), halves.data());
  }
  return dense_weight(values);
}

Tensor CudaBackend::dense(const Weight& w) {
  if (w.format == WeightFormat::nf4) {
    const Tensor values(scratch(kWeightScratch, w.size() * size_of(activations_)), activations_, {w.n_out, w.n_in});
    launch_dequantise(w, values, stream_);
    return values;
  }
  const Tensor stored(const_cast<void*>(w.data), w.format == WeightFormat::f32 ? DType::f32 : DType::bf16,
                      {w.n_out, w.n_in});
  return as_activations(stored, kWeightScratch);
}

Tensor CudaBackend::as_activations(const Tensor& x, int slot) {
  if (x.dtype == activations_) return x;
  Tensor out = x;
  out.dtype = activations_;
  out.data = scratch(slot, out.bytes());
  const int64_t n = x.size();
  if (x.dtype == DType::f32) {
    convert<<<blocks_of_256(n), 256, 0, stream_>>>(n, x.as<float>(), out.as<bf16>());
  } else {
    convert<<<blocks_of_256(n), 256, 0, stream_>>>(n, x.as<bf16>(), out.as<float>());
  }
  check_launch("convert");
  return out;
}

}  // namespace saaz::cuda
