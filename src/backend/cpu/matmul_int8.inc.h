// y = x w^T with activations rounded to 8 bits in blocks of 32 (--compute-dtype int8) against weights that are stored
// in 8 bits or fewer. Block sums are exact integers; each is scaled and added in f32, block after block along K, one
// lane per row of w. So an element is a function of its rows alone, whichever of the two forms below computes it:
// - few rows of x: rows of w one by one, block sums folded across lanes;
// - more: rows of w interleaved by pairs of columns, so that a lane holds a row's sum from the start.
#pragma once

#include "backend/cpu/unpack_int8.inc.h"

namespace saaz::cpu {
namespace {

/// One row of rounded activations: k codes, then k / 32 scales, then k / 32 sums of codes times scale.
struct Int8Row {
  const int16_t* codes;
  const float *scales, *sums;
};
inline Int8Row int8_row(const void* x, int64_t row, int64_t k) {
  const auto* at = static_cast<const char*>(x) + row * (k / kInt8Block) * kInt8BlockBytes;
  const auto* scales = reinterpret_cast<const float*>(at + 2 * k);
  return {reinterpret_cast<const int16_t*>(at), scales, scales + k / kInt8Block};
}

inline VecI round_to_int(VecF x) {
#if defined(__AVX512F__)
  return (VecI)_mm512_cvtps_epi32(x);
#elif defined(__AVX2__)
  return (VecI)_mm256_cvtps_epi32(x);
#else
  return (VecI)_mm_cvtps_epi32(x);
#endif
}

void round_int8(int64_t k, void* to, const float* x) {
  auto* codes = static_cast<int16_t*>(to);
  auto* scales = reinterpret_cast<float*>(codes + k);
  float* sums = scales + k / kInt8Block;
  for (int64_t b = 0; b < k / kInt8Block; ++b, x += kInt8Block, codes += kInt8Block) {
    VecF largest{};
    for (int64_t i = 0; i < kInt8Block; i += kLanes) largest = max(abs(load(x + i)), largest);
    const float absmax = max_of_lanes(largest);
    const float inverse = absmax > 0 ? 127.0f / absmax : 0.0f;
    int32_t sum = 0;
    for (int64_t i = 0; i < kInt8Block; i += kLanes) {
      const VecI rounded = round_to_int(load(x + i) * inverse);
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        codes[i + lane] = static_cast<int16_t>(rounded[lane]);
        sum += rounded[lane];
      }
    }
    scales[b] = absmax / 127.0f;
    sums[b] = static_cast<float>(sum) * scales[b];
  }
}

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

/// The sums of 32 columns, the first 16 and the others, of every row with x, a lane each.
inline void folded_sums(const CodeRows& w, int64_t block, const int16_t* x, VecI& first, VecI& second) {
#if defined(__AVX2__)
  const auto load16 = [](const int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); };
  const __m256i codes_of_x = _mm256_permute4x64_epi64(_mm256_packs_epi16(load16(x), load16(x + 16)), 0xd8);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t lane = 0; lane < kLanes; lane += 8) {
    __m256i sums[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
      const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w.at(lane + r, block)));
      // |w| times x with w's sign: at most 2 * 128 * 127 in 16 bits.
      const __m256i products = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(codes_of_x, codes));
      sums[r] = _mm256_madd_epi16(products, ones);
    }
    const auto pair_up = [](__m256i a, __m256i b) {
      return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    };
    const auto pair_up_twos = [](__m256i a, __m256i b) {
      return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    };
    const __m256i s03 = pair_up_twos(pair_up(sums[0], sums[1]), pair_up(sums[2], sums[3])),
                  s47 = pair_up_twos(pair_up(sums[4], sums[5]), pair_up(sums[6], sums[7]));
    const __m256i low = _mm256_permute2x128_si256(s03, s47, 0x20), high = _mm256_permute2x128_si256(s03, s47, 0x31);
#if defined(__AVX512F__)
    first = lane == 0 ? (VecI)_mm512_zextsi256_si512(low) : (VecI)_mm512_inserti64x4((__m512i)first, low, 1);
    second = lane == 0 ? (VecI)_mm512_zextsi256_si512(high) : (VecI)_mm512_inserti64x4((__m512i)second, high, 1);
#else
    first = (VecI)low;
    second = (VecI)high;
#endif
  }
#else
  first = second = VecI{};
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const int8_t* codes = w.at(lane, block);
    for (int i = 0; i < 16; ++i) {
      first[lane] += static_cast<int32_t>(x[i]) * codes[i];
      second[lane] += static_cast<int32_t>(x[i + 16]) * codes[i + 16];
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
        folded_sums(codes, b, x[0].codes + k + b * kInt8Block, first, second);
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

inline constexpr int64_t kFoldedRows = 3;  // up to so many rows of x interleaving costs more than it saves
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

/// The scales of a block of each row, which stand before the codes in q8_0.
inline VecF scales_before(const CodeRows& w, int64_t block) {
  const auto half = [&](int64_t lane) {
    uint16_t bits;
    __builtin_memcpy(&bits, w.at(lane, block) - 2, sizeof bits);
    return bits;
  };
#if defined(__AVX2__)
  // By register: a vector read of eight separate writes would wait for all of them.
  const auto eight = [&](int64_t lane) __attribute__((always_inline)) {
    __m128i v = _mm_cvtsi32_si128(half(lane));
    v = _mm_insert_epi16(v, half(lane + 1), 1);
    v = _mm_insert_epi16(v, half(lane + 2), 2);
    v = _mm_insert_epi16(v, half(lane + 3), 3);
    v = _mm_insert_epi16(v, half(lane + 4), 4);
    v = _mm_insert_epi16(v, half(lane + 5), 5);
    v = _mm_insert_epi16(v, half(lane + 6), 6);
    return _mm_insert_epi16(v, half(lane + 7), 7);
  };
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(eight(0)), eight(8), 1));
#else
  return _mm256_cvtph_ps(eight(0));
#endif
#else
  VecF out;
  for (int64_t lane = 0; lane < kLanes; ++lane) out[lane] = f16_to_f32(half(lane));
  return out;
#endif
}

/// A few rows of x with kLanes rows of q8_0 or int8, read where they lie, whole rows at a time.
void int8_few_rows_in_place(const DotTask& t, int64_t n_begin, const Int8Group& g) {
  const Weight& w = *t.w;
  const bool is_q8_0 = w.format == WeightFormat::q8_0;
  const int64_t block_bytes = is_q8_0 ? 34 : kInt8Block, row_bytes = w.n_in / kInt8Block * block_bytes;
  const CodeRows codes{static_cast<const int8_t*>(w.data) + n_begin * row_bytes + (is_q8_0 ? 2 : 0), row_bytes,
                       block_bytes};
  VecF row_scales{};
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const int64_t row = n_begin + lane;
    if (!is_q8_0) row_scales[lane] = w.row_absmax[row] * kInverseLevels;
    if (row + kLanes < w.n_out) prefetch_row(w, (row + kLanes) * w.n_in, w.n_in);
  }
  for (int64_t i = 0; i < t.m; ++i) {
    if (is_q8_0) {
      int8_folded<32, Minima::no>(t, i, n_begin, kLanes, g, codes, 0, w.n_in,
                                  [&](int64_t b, int, int) { return scales_before(codes, b); });
    } else {
      int8_folded<32, Minima::no>(t, i, n_begin, kLanes, g, codes, 0, w.n_in,
                                  [&](int64_t, int, int) { return row_scales; });
    }
  }
}

void dot_task_int8(const DotTask& t) {
  const Weight& w = *t.w;
  const Int8Group g = int8_group(t.scratch);
  const int64_t step = t.m <= kFoldedRows ? kLanes : kGroupRows;
  for (int64_t n = t.n_begin; n < t.n_end; n += step) {
    const int64_t rows = t.n_end - n < step ? t.n_end - n : step;
    const bool has_byte_codes = w.format == WeightFormat::q8_0 || w.format == WeightFormat::int8;
    if (t.m <= kFoldedRows && has_byte_codes && rows == kLanes) {
      int8_few_rows_in_place(t, n, g);
      continue;
    }
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
