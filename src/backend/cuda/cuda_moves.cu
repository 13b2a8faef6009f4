// CudaBackend: rotary positions, and the kernels that move rows and columns. Tables of embeddings may lie in host
// memory; then only the rows that are asked for travel.
#include "backend/cuda/cuda_items.cuh"
#include "quant/blockwise.h"

namespace saaz::cuda {

namespace {

constexpr int kScratchGathered = 140;

/// A thread rotates W pairs (i, i + half) of one head. table: cosines, then sines of a position.
template <class T, int W>
__global__ void __launch_bounds__(kRowThreads)
    rope_kernel(Target<T> y, const T* x, const int32_t* positions, const float* table, float sine_sign, int64_t tokens,
                int n_heads, int half) {
  const int64_t t = row_of_thread();
  if (t >= tokens) return;
  const float* angles = table + static_cast<int64_t>(positions[t]) * 2 * half;
  const int items_of_head = half / W;
  for (int item = threadIdx.x; item < n_heads * items_of_head; item += blockDim.x) {
    const int head = item / items_of_head, i = (item - head * items_of_head) * W;
    const int64_t at = (t * n_heads + head) * 2 * half + i;
    const Item<W> cosine = load_item<W>(angles + i), sine = load_item<W>(angles + half + i);
    const Item<W> first = load_item<W>(x + at), second = load_item<W>(x + at + half);
    Item<W> to_first, to_second;
#pragma unroll
    for (int k = 0; k < W; ++k) {
      const float s = sine_sign * sine.v[k];
      to_first.v[k] = first.v[k] * cosine.v[k] - second.v[k] * s;
      to_second.v[k] = second.v[k] * cosine.v[k] + first.v[k] * s;
    }
    y.put(at, to_first);
    y.put(at + half, to_second);
  }
}

/// to[to_rows[r]] = from[from_rows[r]], rows of n units; no list: row r itself.
template <class Unit, class Index>
__global__ void __launch_bounds__(kRowThreads) copy_rows_kernel(Unit* to, const Index* to_rows, const Unit* from,
                                                                const Index* from_rows, int64_t rows, int64_t n) {
  const int64_t r = row_of_thread();
  if (r >= rows) return;
  to += (to_rows ? static_cast<int64_t>(to_rows[r]) : r) * n;
  from += (from_rows ? static_cast<int64_t>(from_rows[r]) : r) * n;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) to[i] = from[i];
}
/// Bytes are moved 16 at a time, else two: the size of the smallest activation.
template <class Index>
void copy_rows(cudaStream_t stream, const Tensor& to, const Index* to_rows, const Tensor& from, const Index* from_rows,
               int64_t rows, const char* name) {
  if (rows == 0) return;
  const int64_t bytes = from.dim(-1) * size_of(from.dtype);
  const auto launch = [&](auto unit) {
    using Unit = decltype(unit);
    const RowLaunch l = row_launch(rows, bytes / static_cast<int64_t>(sizeof(Unit)), 1, 1);
    copy_rows_kernel<Unit, Index>
        <<<l.grid, l.block, 0, stream>>>(to.as<Unit>(), to_rows, from.as<Unit>(), from_rows, l.rows, l.dim);
  };
  if (takes_vectors<char>(bytes, {to.data, from.data}))
    launch(uint4{});
  else
    launch(uint16_t{});
  check_launch(name);
}

template <class T, int W>
__global__ void __launch_bounds__(kRowThreads)
    add_rows_kernel(T* dx, const int32_t* to_rows, const T* dy, int64_t rows, int64_t dim) {
  const int64_t r = row_of_thread();
  if (r >= rows) return;
  const HeldRows<T, W, 1, 1> held({dy + r * dim}, dim);
  const Target<T> to{dx + to_rows[r] * dim, true};
  held.each([&](int64_t at, const auto& in) { to.put(at, in[0]); });
}

/// One token's n slices of `width`: side by side in x or y [tokens, n * width], apart in the other [n, tokens, width].
template <class T, int W>
__global__ void __launch_bounds__(kRowThreads)
    split_columns_kernel(Target<T> y, const T* x, bool split, int64_t tokens, int n, int width) {
  const int64_t t = row_of_thread();
  if (t >= tokens) return;
  const int items_of_slice = width / W;
  for (int item = threadIdx.x; item < n * items_of_slice; item += blockDim.x) {
    const int j = item / items_of_slice, i = (item - j * items_of_slice) * W;
    const int64_t slice = (j * tokens + t) * width + i, column = (t * n + j) * width + i;
    y.put(split ? slice : column, load_item<W>(x + (split ? column : slice)));
  }
}

// Tables.

template <class Stored>
struct DenseTable {
  const Stored* data;
  template <int W>
  __device__ Item<W> at(int64_t element) const {
    return load_item<W>(data + element);
  }
};
/// Products and sums are rounded one by one, as quant/weight.cc does.
struct Nf4Table {
  const uint8_t* codes;
  const float* absmax;
  const uint8_t* absmax_codes;
  const float *nested_absmax, *values, *map;
  float nested_offset;
  DType rounded_to;

  __device__ float scale_of(int64_t block) const {
    if (absmax) return absmax[block];
    return __fadd_rn(__fmul_rn(map[absmax_codes[block]], nested_absmax[block / kNestedBlock]), nested_offset);
  }
  __device__ float rounded(float x) const {
    if (rounded_to == DType::bf16) return __bfloat162float(__float2bfloat16_rn(x));
    if (rounded_to == DType::f16) return __half2float(__float2half_rn(x));
    return x;
  }
  /// W elements lie in one block: `element` is a multiple of W, and W of 64 a divisor.
  template <int W>
  __device__ Item<W> at(int64_t element) const {
    const float scale = scale_of(element / kNf4Block);
    Item<W> out;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const uint8_t pair = codes[(element + i) / 2];
      out.v[i] = rounded(__fmul_rn(values[(element + i) % 2 == 0 ? pair >> 4 : pair & 15], scale));
    }
    return out;
  }
};

/// ids null: row t of the table. An id beyond it takes row 0.
template <class T, int W, class Table>
__global__ void __launch_bounds__(kRowThreads)
    gather_kernel(T* out, const int32_t* ids, Table table, int64_t n_out, int64_t n_in, int64_t first_column,
                  float scale, int64_t rows, int64_t dim) {
  const int64_t t = row_of_thread();
  if (t >= rows) return;
  const int64_t row = ids ? static_cast<int64_t>(ids[t]) : t, begin = (row < n_out ? row : 0) * n_in + first_column;
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * W; i < dim; i += static_cast<int64_t>(blockDim.x) * W) {
    Item<W> x = table.template at<W>(begin + i);
#pragma unroll
    for (int k = 0; k < W; ++k) x.v[k] *= scale;
    store_item<W>(out + t * dim + i, x);
  }
}
template <class Table>
void gather(cudaStream_t stream, const Tensor& out, const int32_t* ids, const Weight& w, Table table,
            int64_t first_column, float scale) {
  const bool vectors = w.n_in % 8 == 0 && first_column % 8 == 0 && reinterpret_cast<uintptr_t>(w.data) % 16 == 0;
  const int64_t dim = out.dim(-1), rows = out.size() / dim;
  dispatch(out.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(vectors && takes_vectors<T>(dim, {out.data}), [&](auto width) {
      constexpr int W = decltype(width)::value;
      const RowLaunch l = row_launch(rows, dim, W, 1);
      gather_kernel<T, W><<<l.grid, l.block, 0, stream>>>(out.as<T>(), ids, table, w.n_out, w.n_in, first_column, scale,
                                                          l.rows, l.dim);
    });
  });
  check_launch("gather_rows");
}

}  // namespace

bool in_host_memory(const void* p) {
  cudaPointerAttributes attributes;
  check_cuda(cudaPointerGetAttributes(&attributes, p), "asking where a table lies");
  return attributes.type == cudaMemoryTypeUnregistered || attributes.type == cudaMemoryTypeHost;
}

/// How rows of a table in host memory travel: as they are where the format is dense, else as f32.
Weight travelling_rows(const Weight& table, int64_t n_rows, int64_t dim) {
  const bool dense = block_size(table.format).elements == 1;
  return {.format = dense ? table.format : WeightFormat::f32, .n_out = n_rows, .n_in = dim};
}

void gather_on_host(ThreadPool& threads, char* rows, const Weight& form, std::span<const int32_t> ids,
                    const Weight& table, int64_t first_column) {
  const int64_t size = block_size(form.format).bytes, row_bytes = form.n_in * size;
  constexpr int64_t kTaskBytes = 1 << 18;
  const int64_t n = form.n_out, task_rows = std::max<int64_t>(1, kTaskBytes / row_bytes);
  threads.run(ceil_div(n, task_rows), [&](int64_t task, int) {
    for (int64_t i = task * task_rows; i < std::min(n, (task + 1) * task_rows); ++i) {
      const int64_t begin = ids[static_cast<size_t>(i)] * table.n_in + first_column;
      char* row = rows + i * row_bytes;
      if (form.format == table.format)
        std::memcpy(row, static_cast<const char*>(table.data) + begin * size, static_cast<size_t>(row_bytes));
      else
        dequantise(table, begin, form.n_in, reinterpret_cast<float*>(row));
    }
  });
}

void CudaBackend::rope(const Grad& y, const Tensor& x, std::span<const int32_t> positions, const Tensor& table,
                       int64_t n_heads, Rotation rotation) {
  if (!y.wanted() || positions.empty()) return;
  const int32_t* at = staged(positions);
  const int64_t half = table.dim(1) / 2, tokens = static_cast<int64_t>(positions.size());
  dispatch(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(takes_vectors<T>(half, {y.tensor.data, x.data, table.data}), [&](auto width) {
      constexpr int W = decltype(width)::value;
      const RowLaunch l = row_launch(tokens, n_heads * half, W, 1);
      rope_kernel<T, W><<<l.grid, l.block, 0, stream_>>>(target<T>(y), x.as<T>(), at, table.f32(),
                                                         rotation == Rotation::forward ? 1.0f : -1.0f, tokens,
                                                         static_cast<int>(n_heads), static_cast<int>(half));
    });
  });
  check_launch("rope");
}

void CudaBackend::scatter_rows(const Tensor& cache, std::span<const int64_t> rows, const Tensor& x) {
  if (rows.empty()) return;
  copy_rows<int64_t>(stream_, cache, staged(rows), x, nullptr, static_cast<int64_t>(rows.size()), "scatter_rows");
}

void CudaBackend::select_rows(const Tensor& y, const Tensor& x, std::span<const int32_t> rows) {
  if (rows.empty()) return;
  copy_rows<int32_t>(stream_, y, nullptr, x, staged(rows), static_cast<int64_t>(rows.size()), "select_rows");
}

void CudaBackend::select_rows_backward(const Grad& dx, const Tensor& dy, std::span<const int32_t> rows) {
  if (!dx.wanted()) return;
  if (dx.write == Write::overwrite) fill(dx.tensor, 0);
  if (rows.empty()) return;
  const int32_t* to_rows = staged(rows);
  for_rows(dy, 1, {dx.tensor.data, dy.data}, "select_rows_backward", [&](auto zero, auto width, const RowLaunch& l) {
    using T = decltype(zero);
    add_rows_kernel<T, decltype(width)::value>
        <<<l.grid, l.block, 0, stream_>>>(dx.tensor.as<T>(), to_rows, dy.as<T>(), l.rows, l.dim);
  });
}

void CudaBackend::split_columns(const Grad& y, const Tensor& x, Split direction) {
  if (!y.wanted()) return;
  const bool split = direction == Split::split;
  const Tensor& slices = split ? y.tensor : x;
  const int64_t n = slices.dim(0), tokens = slices.dim(1), slice_width = slices.dim(2);
  if (slices.size() == 0) return;
  dispatch(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(takes_vectors<T>(slice_width, {y.tensor.data, x.data}), [&](auto width) {
      constexpr int W = decltype(width)::value;
      const RowLaunch l = row_launch(tokens, n * slice_width, W, 2);
      split_columns_kernel<T, W><<<l.grid, l.block, 0, stream_>>>(target<T>(y), x.as<T>(), split, tokens,
                                                                  static_cast<int>(n), static_cast<int>(slice_width));
    });
  });
  check_launch("split_columns");
}

void* CudaBackend::pinned_rows(int64_t bytes) {
  if (gathered_.copied == nullptr)
    check_cuda(cudaEventCreateWithFlags(&gathered_.copied, cudaEventDisableTiming), "creating an event");
  else
    check_cuda(cudaEventSynchronize(gathered_.copied), "copying rows of a table");
  if (gathered_.bytes < bytes) {
    cudaFreeHost(gathered_.pinned);
    check_cuda(cudaMallocHost(&gathered_.pinned, static_cast<size_t>(bytes)), "pinned memory for rows of a table");
    gathered_.bytes = bytes;
  }
  return gathered_.pinned;
}

void CudaBackend::gather_rows(const Tensor& out, std::span<const int32_t> ids, const Weight& table,
                              int64_t first_column, float scale) {
  if (ids.empty() || out.size() == 0) return;
  const int32_t* rows = nullptr;
  Weight w = table;
  if (in_host_memory(table.data)) {
    w = travelling_rows(table, static_cast<int64_t>(ids.size()), out.dim(-1));
    const int64_t bytes = w.size() * block_size(w.format).bytes;
    char* pinned = static_cast<char*>(pinned_rows(bytes));
    gather_on_host(threads_, pinned, w, ids, table, first_column);
    w.data = scratch(kScratchGathered, bytes);
    check_cuda(
        cudaMemcpyAsync(const_cast<void*>(w.data), pinned, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_),
        "copying rows of a table");
    check_cuda(cudaEventRecord(gathered_.copied, stream_), "copying rows of a table");
    first_column = 0;
  } else {
    rows = staged(ids);
  }
  gather_placed(out, rows, w, first_column, scale);
}

void CudaBackend::gather_placed(const Tensor& out, const int32_t* rows, const Weight& w, int64_t first_column,
                                float scale) {
  switch (w.format) {
    case WeightFormat::f32:
      return gather(stream_, out, rows, w, DenseTable<float>{static_cast<const float*>(w.data)}, first_column, scale);
    case WeightFormat::bf16:
      return gather(stream_, out, rows, w, DenseTable<bf16>{static_cast<const bf16*>(w.data)}, first_column, scale);
    case WeightFormat::f16:
      return gather(stream_, out, rows, w, DenseTable<__half>{static_cast<const __half*>(w.data)}, first_column, scale);
    case WeightFormat::nf4:
      return gather(
          stream_, out, rows, w,
          Nf4Table{static_cast<const uint8_t*>(w.data), w.absmax, w.absmax_codes, w.nested_absmax,
                   staged(std::span<const float>(kNf4Values)), staged(std::span<const float>(dynamic_map_signed())),
                   w.nested_offset, w.dequantised_dtype},
          first_column, scale);
    default:
      throw Error(ExitCode::bug, std::string("cuda: no rows of a table of format ") + name_of(w.format));
  }
}

}  // namespace saaz::cuda
