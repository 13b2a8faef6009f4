// y = x w^T with activations rounded to 8 bits in blocks of 32 (--compute-dtype int8) against weights that are stored
// in 8 bits or fewer. Block sums are exact integers; each is scaled and added in f32, block after block along K, one
// lane per row of w. So an element is a function of its rows alone, whichever of the two forms below computes it:
// - few rows of x: rows of w one by one, block sums folded across lanes (few_rows_int8.inc.h; here for the rest of rows
//   that fill no vector, and without AVX2);
// - more: rows of w interleaved by pairs of columns, so that a lane holds a row's sum from the start.
#pragma once

#include "backend/cpu/few_rows_int8.inc.h"
#include "backend/cpu/round_int8.inc.h"

namespace saaz::cpu {
namespace {

template <int N>
struct Count {
  static constexpr int value = N;
};

inline VecI load_pairs(const int16_t* pairs) {
  VecI v;
  __builtin_memcpy(&v, pairs, sizeof v);
  return v;
}
inline VecI broadcast_pair(const int16_t* x) {
  int32_t pair;
  __builtin_memcpy(&pair, x, sizeof pair);
#if defined(__AVX512F__)
  return (VecI)_mm512_set1_epi32(pair);
#elif defined(__AVX2__)
  return (VecI)_mm256_set1_epi32(pair);
#else
  return (VecI)_mm_set1_epi32(pair);
#endif
}
/// sum + the two products of each lane. The sum is pinned to its register: integer sums may be regrouped, and the
/// compiler would, until it runs out of registers.
inline VecI add_pair_products(VecI sum, VecI w, VecI x) {
#if defined(__AVX512F__)
  sum = (VecI)_mm512_add_epi32((__m512i)sum, _mm512_madd_epi16((__m512i)w, (__m512i)x));
  asm("" : "+v"(sum));
#elif defined(__AVX2__)
  sum = (VecI)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16((__m256i)w, (__m256i)x));
  asm("" : "+x"(sum));
#else
  sum = (VecI)_mm_add_epi32((__m128i)sum, _mm_madd_epi16((__m128i)w, (__m128i)x));
#endif
  return sum;
}

/// Codes of kLanes rows, evenly spaced: in the group, or in w itself.
struct CodeRows {
  const int8_t* first;
  int64_t row_bytes, block_bytes;  // from a row to the next, from a block of 32 codes to the next
  const int8_t* at(int64_t lane, int64_t block) const { return first + lane * row_bytes + block * block_bytes; }
};

/// The sums of 32 columns, the first 16 and the others, of every row with row x, a lane each.
inline void folded_sums(const CodeRows& w, int64_t block, const Int8Row& x, int64_t column, VecI& first, VecI& second) {
#if defined(__AVX2__)
  const __m256i codes_of_x = load_32(x.bytes + column);
  for (int64_t lane = 0; lane < kLanes; lane += 8) {
    __m256i sums[8], low, high;
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) sums[r] = sums_by_four<kSigned>(load_32(w.at(lane + r, block)), codes_of_x);
    fold_eight(sums, low, high);
    set_eight(first, lane, low);
    set_eight(second, lane, high);
  }
#else
  first = second = VecI{};
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const int8_t* codes = w.at(lane, block);
    for (int i = 0; i < 16; ++i) {
      first[lane] += static_cast<int32_t>(x.codes[column + i]) * codes[i];
      second[lane] += static_cast<int32_t>(x.codes[column + i + 16]) * codes[i + 16];
    }
  }
#endif
}

enum class Minima { no, yes };

/// y[row + i, n_begin + j] for M rows of x and n of the group's rows in V vectors, over its columns [k, k + count) of
/// K. One block after the other: sum += float(integer sum) * (scale of w * scale of x), then the minimum's part.
/// integer_sums(x, block, out) fills out[part][i][v], a part for each scale of a block; scales_of(block, part, v) are
/// w's.
template <int M, int V, int G, Minima kMinima, class Sums, class Scales>
inline void int8_tile(const DotTask& t, int64_t row, int64_t n_begin, int64_t n, const Int8Group& g, int64_t k,
                      int64_t count, Sums integer_sums, Scales scales_of) {
  constexpr int kParts = kInt8Block / G;
  const auto lanes_of = [&](int v) { return n - v * kLanes < kLanes ? n - v * kLanes : kLanes; };
  Int8Row x[M];
  VecF sums[M][V];
  const bool chained = k > 0 || t.write == Write::add;
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
    x[i] = int8_row(t.x, row + i, t.w->n_in);
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v)
      sums[i][v] = chained ? load(t.y + (row + i) * t.ldy + n_begin + v * kLanes, lanes_of(v)) : VecF{};
  }
  for (int64_t b = 0; b < count / kInt8Block; ++b) {
    const int64_t x_block = k / kInt8Block + b;
    VecI products[kParts][M][V];
    integer_sums(x, b, products);
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          const VecF scales = scales_of(b, part, v);
          sums[i][v] = fma(to_float(products[part][i][v]), scales * x[i].scales[x_block], sums[i][v]);
        }
      }
    }
    if (kMinima == Minima::no) continue;
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v)
        sums[i][v] = fma(-load(g.minima + b * kGroupRows + v * kLanes), broadcast(x[i].sums[x_block]), sums[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(t.y + (row + i) * t.ldy + n_begin + v * kLanes, sums[i][v], lanes_of(v));
  }
}

template <int G>
inline auto stored_scales(const Int8Group& g) {
  return [&g](int64_t b, int part, int v) __attribute__((always_inline)) {
    return load(g.scales + (b * (kInt8Block / G) + part) * kGroupRows + v * kLanes);
  };
}

template <int G, Minima kMinima, class Scales>
inline void int8_folded(const DotTask& t, int64_t row, int64_t n_begin, int64_t n, const Int8Group& g,
                        const CodeRows& codes, int64_t k, int64_t count, Scales scales_of) {
  int8_tile<1, 1, G, kMinima>(
      t, row, n_begin, n, g, k, count,
      [&](const Int8Row* x, int64_t b, auto& out) __attribute__((always_inline)) {
        VecI first, second;
        folded_sums(codes, b, x[0], k + b * kInt8Block, first, second);
        out[0][0][0] = G == 16 ? first : first + second;
        if constexpr (G == 16) out[1][0][0] = second;
      },
      scales_of);
}

template <int M, int V, int G, Minima kMinima>
void int8_interleaved(const DotTask& t, int64_t row, int64_t n_begin, int64_t n, const Int8Group& g, int64_t k,
                      int64_t count) {
  int8_tile<M, V, G, kMinima>(
      t, row, n_begin, n, g, k, count,
      [&](const Int8Row* x, int64_t b, auto& out) __attribute__((always_inline)) {
#pragma GCC unroll 2
        for (int part = 0; part < kInt8Block / G; ++part) {
          const int64_t at = b * kInt8Block + part * G;
          VecI sums[M][V] = {};
          const int16_t* pairs = g.pairs + at * kGroupRows;
#pragma GCC unroll 16
          for (int p = 0; p < G; p += 2) {
            VecI w[V];
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) w[v] = load_pairs(pairs + p * kGroupRows + 2 * v * kLanes);
#pragma GCC unroll 8
            for (int i = 0; i < M; ++i) {
              const VecI pair = broadcast_pair(x[i].codes + k + at + p);
#pragma GCC unroll 2
              for (int v = 0; v < V; ++v) sums[i][v] = add_pair_products(sums[i][v], w[v], pair);
            }
          }
#pragma GCC unroll 8
          for (int i = 0; i < M; ++i) {
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) out[part][i][v] = sums[i][v];
          }
        }
      },
      stored_scales<G>(g));
}

// Up to so many rows of x interleaving costs more than it saves.
#if defined(__AVX2__)
inline constexpr int64_t kFoldedRows = 8;
#else
inline constexpr int64_t kFoldedRows = 3;
#endif
#if defined(__AVX512F__)
inline constexpr int64_t kInterleavedRows = 6;  // rows of x of a tile, by the number of registers
#else
inline constexpr int64_t kInterleavedRows = 3;
#endif

template <int V, int G, Minima kMinima>
void int8_rows(const DotTask& t, int64_t n_begin, int64_t n, const Int8Group& g, int64_t k, int64_t count) {
  interleave(g, V * kLanes, count);
  for (int64_t i = 0, rows; i < t.m; i += rows) {
    const int64_t left = t.m - i;
    rows = left <= kInterleavedRows ? left : left < 2 * kInterleavedRows ? (left + 1) / 2 : kInterleavedRows;
    const auto tile = [&](auto count_of) {
      constexpr int kRows = decltype(count_of)::value;
      if constexpr (kRows <= kInterleavedRows) int8_interleaved<kRows, V, G, kMinima>(t, i, n_begin, n, g, k, count);
    };
    switch (rows) {
      case 1:
        tile(Count<1>());
        break;
      case 2:
        tile(Count<2>());
        break;
      case 3:
        tile(Count<3>());
        break;
      case 4:
        tile(Count<4>());
        break;
      case 5:
        tile(Count<5>());
        break;
      default:
        tile(Count<6>());
    }
  }
}

template <int G, Minima kMinima>
void int8_group_rows(const DotTask& t, int64_t n_begin, int64_t n, const Int8Group& g, int64_t k, int64_t count) {
  const bool few = t.m <= kFoldedRows;
  unpack_group(*t.w, n_begin, n, few || n <= kLanes ? kLanes : kGroupRows, k, count, g);
  if (few) {
    const CodeRows codes{g.codes, kCodeStride, kInt8Block};
    for (int64_t i = 0; i < t.m; ++i)
      int8_folded<G, kMinima>(t, i, n_begin, n, g, codes, k, count, stored_scales<G>(g));
  } else if (n <= kLanes) {
    int8_rows<1, G, kMinima>(t, n_begin, n, g, k, count);
  } else {
    int8_rows<2, G, kMinima>(t, n_begin, n, g, k, count);
  }
}

void dot_task_int8(const DotTask& t) {
  const Weight& w = *t.w;
  const Int8Group g = int8_group(t.scratch);
  const int64_t step = t.m <= kFoldedRows ? kLanes : kGroupRows;
  for (int64_t n = t.n_begin; n < t.n_end; n += step) {
    const int64_t rows = t.n_end - n < step ? t.n_end - n : step;
#if defined(__AVX2__)
    if (t.m <= kFoldedRows && rows == kLanes) {
      int8_few_rows(t, n);
      continue;
    }
#endif
    for (int64_t k = 0; k < w.n_in; k += kGroupColumns) {
      const int64_t count = w.n_in - k < kGroupColumns ? w.n_in - k : kGroupColumns;
      if (w.format == WeightFormat::q6_k) {
        int8_group_rows<16, Minima::no>(t, n, rows, g, k, count);
      } else if (w.format == WeightFormat::q4_k || w.format == WeightFormat::q5_k) {
        int8_group_rows<32, Minima::yes>(t, n, rows, g, k, count);
      } else {
        int8_group_rows<32, Minima::no>(t, n, rows, g, k, count);
      }
    }
  }
}

/// For LLM.int8(): the integer sum of two rows of 8-bit codes.
int32_t int8_product(int64_t n, const int8_t* a, const int8_t* b) {
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<int32_t>(a[i]) * b[i];
  return sum;
}

}  // namespace
}  // namespace saaz::cpu
