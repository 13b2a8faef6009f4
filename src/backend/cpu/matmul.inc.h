// The two product kernels everything is made of.
// dot: y = x w^T, both contiguous along K. A tile of x rows by w rows keeps one vector accumulator per element; K is
// cut
//   into chunks of kDotChunk, folded one by one. An element's order of additions is a function of K alone.
// outer: c = a w, vectors along the columns of w. Per chunk of kOuterChunk rows of w an accumulator starts at zero and
// is
//   added to c, so an element's order is a function of the number of rows of w alone.
// Other formats than f32 are dequantised piece by piece into the task's scratch, once for all rows of the task.
#pragma once

#include "backend/cpu/dequantise.inc.h"

namespace saaz::cpu {
namespace {

#if defined(__AVX512F__)
// w rows of a dot tile with 1..4 x rows, by the number of registers.
inline constexpr int kTileColumns[5] = {0, 4, 4, 4, 6};
inline constexpr int kOuterVectors = 4;
#else
inline constexpr int kTileColumns[5] = {0, 4, 4, 4, 3};
inline constexpr int kOuterVectors = 2;
#endif
inline constexpr int64_t kStripRows = 4, kOuterTileRows = 6, kPanel = kOuterVectors * kLanes;

// Loops over a tile are unrolled by name: the accumulators must be registers from the start, also around the main loop.

template <class T>
struct RowsOf {
  const T* data;
  int64_t stride;
};
using Rows = RowsOf<float>;

/// Elements of a vector of an operand: kLanes f32; twice as many bf16 (matmul_bf16.inc.h).
template <class T>
inline constexpr int64_t kOperandLanes = kLanes * 4 / static_cast<int64_t>(sizeof(T));

/// y[i, j] (+)= <x row i, w row j> for i < M, j < N.
template <int M, int N, class T>
inline void dot_tile(float* y, int64_t ldy, RowsOf<T> x, RowsOf<T> w, int64_t k, Write write) {
  constexpr int kSums = (M * N + 3) / 4 * 4;
  constexpr int64_t kStep = kOperandLanes<T>;
  VecF sums[kSums] = {};
  const auto step = [&](int64_t at, int64_t count) __attribute__((always_inline)) {
    decltype(load(w.data, count)) columns[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) columns[j] = load(w.data + j * w.stride + at, count);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const auto row = load(x.data + i * x.stride + at, count);
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) sums[j * M + i] = fma(row, columns[j], sums[j * M + i]);
    }
  };
  int64_t at = 0;
  for (; at + kStep <= k; at += kStep) step(at, kStep);
  if (at < k) step(at, k - at);
  float totals[kSums];
#pragma GCC unroll 8
  for (int g = 0; g < kSums; g += 4) {
    _mm_storeu_ps(totals + g, sums_of_four(sums[g], sums[g + 1], sums[g + 2], sums[g + 3]));
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      float& to = y[i * ldy + j];
      to = write == Write::add ? to + totals[j * M + i] : totals[j * M + i];
    }
  }
}

template <int M, class T>
inline void dot_strip(float* y, int64_t ldy, RowsOf<T> x, RowsOf<T> w, int64_t n, int64_t k, Write write) {
  constexpr int kColumns = kTileColumns[M];
  int64_t j = 0;
  for (; j + kColumns <= n; j += kColumns) {
    dot_tile<M, kColumns>(y + j, ldy, x, RowsOf<T>{w.data + j * w.stride, w.stride}, k, write);
  }
  for (; j < n; ++j) dot_tile<M, 1>(y + j, ldy, x, RowsOf<T>{w.data + j * w.stride, w.stride}, k, write);
}

/// y[m, n] (+)= x w^T.
template <class T>
inline void dot_rows(float* y, int64_t ldy, RowsOf<T> x, int64_t m, RowsOf<T> w, int64_t n, int64_t k, Write write) {
  for (int64_t i = 0; i < m; i += kStripRows) {
    const RowsOf<T> strip{x.data + i * x.stride, x.stride};
    float* to = y + i * ldy;
    switch (m - i) {
      case 1:
        dot_strip<1>(to, ldy, strip, w, n, k, write);
        break;
      case 2:
        dot_strip<2>(to, ldy, strip, w, n, k, write);
        break;
      case 3:
        dot_strip<3>(to, ldy, strip, w, n, k, write);
        break;
      default:
        dot_strip<4>(to, ldy, strip, w, n, k, write);
    }
  }
}

/// Asks for `columns` elements of a row of w ahead of their use: they are short pieces far from each other.
inline void prefetch_row(const Weight& w, int64_t begin, int64_t columns) {
  const BlockSize size = block_size(w.format);
  const auto* from = static_cast<const char*>(w.data) + begin / size.elements * size.bytes;
  const int64_t bytes = columns / size.elements * size.bytes;
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 2);
}

/// A piece of a dot task: w rows [n, n + n_count) over the columns [k, k + k_count) that are summed before folding.
struct DotPiece {
  int64_t n, n_count, k, k_count;
  Write write;
};

/// product(piece) for every piece of the task, in order.
template <class F>
inline void for_pieces(const DotTask& t, F product) {
  const int64_t k = t.w->n_in;
  // Few x rows: small pieces, so that what was just dequantised is still in the first-level cache.
  const int64_t rows = t.m <= 3 ? 4 : t.m <= 8 ? 6 : kDotRows;
  for (int64_t n = t.n_begin; n < t.n_end; n += rows) {
    const int64_t n_count = t.n_end - n < rows ? t.n_end - n : rows;
    for (int64_t k_begin = 0; k_begin < k; k_begin += kDotChunk) {
      const int64_t k_count = k - k_begin < kDotChunk ? k - k_begin : kDotChunk;
      product(DotPiece{n, n_count, k_begin, k_count, k_begin > 0 ? Write::add : t.write});
    }
  }
}

/// use(j, row j of the piece as f32 in `to(j)`) for its rows j = 0, 1, ...; the next piece's are on their way.
template <class To, class Use>
inline void dequantise_piece(const Weight& w, const DotPiece& piece, To to, Use use) {
  for (int64_t j = 0; j < piece.n_count; ++j) {
    const int64_t row = piece.n + j, next = row + piece.n_count;
    if (next < w.n_out) prefetch_row(w, next * w.n_in + piece.k, piece.k_count);
    dequantise_range(w, row * w.n_in + piece.k, piece.k_count, to(j));
    use(j);
  }
}

void dot_task(const DotTask& t) {
  const Weight& w = *t.w;
  const auto* x = static_cast<const float*>(t.x);
  for_pieces(t, [&](const DotPiece& piece) {
    Rows rows{static_cast<const float*>(w.data) + piece.n * w.n_in + piece.k, w.n_in};
    if (w.format != WeightFormat::f32) {
      dequantise_piece(
          w, piece, [&](int64_t j) { return t.scratch + j * kDotStride; }, [](int64_t) {});
      rows = {t.scratch, kDotStride};
    }
    dot_rows(t.y + piece.n, t.ldy, Rows{x + piece.k, w.n_in}, t.m, rows, piece.n_count, piece.k_count, piece.write);
  });
}

/// How an outer tile ends: c = s * sums, c += s * sums, or the sums continue what c holds (scale unused).
enum class Finish { overwrite, add, chain };

struct OuterA {
  const float* data;
  int64_t row_stride, n_stride;
};

/// c[i, 0..kPanel) from M rows of a and n rows of w (kPanel wide).
template <int M>
inline void outer_tile(float* c, int64_t ldc, OuterA a, Rows w, int64_t n, float scale, Finish finish) {
  VecF sums[M][kOuterVectors] = {};
  if (finish == Finish::chain) {
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kOuterVectors; ++v) sums[i][v] = load(c + i * ldc + v * kLanes);
    }
  }
  const float* a_at = a.data;
  const float* w_at = w.data;
  for (int64_t j = 0; j < n; ++j, a_at += a.n_stride, w_at += w.stride) {
    VecF columns[kOuterVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kOuterVectors; ++v) columns[v] = load(w_at + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const VecF factor = broadcast(a_at[i * a.row_stride]);
#pragma GCC unroll 8
      for (int v = 0; v < kOuterVectors; ++v) sums[i][v] = fma(factor, columns[v], sums[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kOuterVectors; ++v) {
      float* to = c + i * ldc + v * kLanes;
      if (finish == Finish::chain) {
        store(to, sums[i][v]);
      } else {
        store(to, finish == Finish::add ? load(to) + scale * sums[i][v] : scale * sums[i][v]);
      }
    }
  }
}

inline void outer_tile_of(int64_t rows, float* c, int64_t ldc, OuterA a, Rows w, int64_t n, float scale,
                          Finish finish) {
  switch (rows) {
    case 1:
      return outer_tile<1>(c, ldc, a, w, n, scale, finish);
    case 2:
      return outer_tile<2>(c, ldc, a, w, n, scale, finish);
    case 3:
      return outer_tile<3>(c, ldc, a, w, n, scale, finish);
    case 4:
      return outer_tile<4>(c, ldc, a, w, n, scale, finish);
    case 5:
      return outer_tile<5>(c, ldc, a, w, n, scale, finish);
    default:
      return outer_tile<6>(c, ldc, a, w, n, scale, finish);
  }
}

/// One panel of at most kPanel columns for all m rows; w rows are kPanel wide whatever `columns` is.
inline void outer_panel(float* c, int64_t ldc, int64_t columns, OuterA a, int64_t m, Rows w, int64_t n, float scale,
                        Finish finish) {
  for (int64_t i = 0; i < m; i += kOuterTileRows) {
    const int64_t rows = m - i < kOuterTileRows ? m - i : kOuterTileRows;
    const OuterA from{a.data + i * a.row_stride, a.row_stride, a.n_stride};
    float* to = c + i * ldc;
    if (columns == kPanel) {
      outer_tile_of(rows, to, ldc, from, w, n, scale, finish);
      continue;
    }
    float full[kOuterTileRows * kPanel] = {};
    const auto bytes = static_cast<size_t>(columns) * sizeof(float);
    for (int64_t r = 0; r < rows; ++r) __builtin_memcpy(full + r * kPanel, to + r * ldc, bytes);
    outer_tile_of(rows, full, kPanel, from, w, n, scale, finish);
    for (int64_t r = 0; r < rows; ++r) __builtin_memcpy(to + r * ldc, full + r * kPanel, bytes);
  }
}

/// Row `n` of a chunk's panels: [panel][kOuterChunk][kPanel], zero past the last column.
inline void store_in_panels(float* panels, int64_t n, const float* row, int64_t columns) {
  for (int64_t at = 0; at < columns; at += kPanel) {
    float* to = panels + at * kOuterChunk + n * kPanel;
    const int64_t count = columns - at < kPanel ? columns - at : kPanel;
    if (count == kPanel) {
      for (int v = 0; v < kOuterVectors; ++v) store(to + v * kLanes, load(row + at + v * kLanes));
      continue;
    }
    for (int64_t i = 0; i < kPanel; ++i) to[i] = i < count ? row[at + i] : 0.0f;
  }
}

/// a's rows of this chunk, moved next to each other: rows a power of two apart share the sets of every cache.
inline OuterA gather_chunk(OuterA a, int64_t m, int64_t n, float* to) {
  for (int64_t i = 0; i < m; ++i) {
    __builtin_memcpy(to + i * kOuterStride, a.data + i * a.row_stride, static_cast<size_t>(n) * sizeof(float));
  }
  return {to, kOuterStride, 1};
}

/// Rows [n, n + count) of the task's columns of w, as panels at the start of its scratch.
inline void pack_chunk(const OuterTask& t, int64_t n, int64_t count) {
  constexpr int64_t kAhead = 8;
  const Weight& w = *t.w;
  const int64_t columns = t.k_end - t.k_begin;
  float* row = t.scratch + kOuterChunk * kOuterColumns;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t begin = (n + j) * w.n_in + t.k_begin;
    if (n + j + kAhead < w.n_out) prefetch_row(w, begin + kAhead * w.n_in, columns);
    if (w.format == WeightFormat::f32) {
      store_in_panels(t.scratch, j, static_cast<const float*>(w.data) + begin, columns);
      continue;
    }
    dequantise_range(w, begin, columns, row);
    store_in_panels(t.scratch, j, row, columns);
  }
}

void outer_task(const OuterTask& t) {
  const int64_t n_rows = t.w->n_out, columns = t.k_end - t.k_begin;
  float* gathered = t.scratch + kOuterChunk * kOuterColumns + kOuterColumns;
  for (int64_t n = 0; n < n_rows; n += kOuterChunk) {
    const int64_t count = n_rows - n < kOuterChunk ? n_rows - n : kOuterChunk;
    pack_chunk(t, n, count);
    const Finish finish = n > 0 || t.write == Write::add ? Finish::add : Finish::overwrite;
    for (int64_t i = 0; i < t.m; i += kOuterRows) {
      const int64_t m = t.m - i < kOuterRows ? t.m - i : kOuterRows;
      OuterA a{t.a + i * t.row_stride + n * t.n_stride, t.row_stride, t.n_stride};
      if (t.n_stride == 1 && m > kOuterTileRows) a = gather_chunk(a, m, count, gathered);
      float* c = t.c + i * t.ldc + t.k_begin;
      for (int64_t at = 0; at < columns; at += kPanel) {
        const int64_t width = columns - at < kPanel ? columns - at : kPanel;
        outer_panel(c + at, t.ldc, width, a, m, {t.scratch + at * kOuterChunk, kPanel}, count, t.scale, finish);
      }
    }
  }
}

}  // namespace
}  // namespace saaz::cpu
