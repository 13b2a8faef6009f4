// y = x w^T with activations rounded to 8 bits in blocks of 32 (--compute-dtype int8) against weights that are stored
// in 8 bits or fewer. Block sums are exact integers; each is scaled and added in f32, block after block along K, one
// lane per row of w. So an element is a function of its rows alone, whichever of the two forms below computes it:
// - few rows of x: rows of w as they lie, block sums folded across lanes;
// - more: kLanes rows of w interleaved by pairs of columns, so that a lane holds a row's sum from the start.
#pragma once

#include "backend/cpu/matmul.inc.h"

namespace saaz::cpu {
namespace {

inline constexpr int64_t kGroupPadding = 64;  // bytes between rows of codes: not a power of two apart

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

/// kLanes rows of w over one chunk of columns, as integers and scales.
struct Int8Group {
  int8_t* codes;   // [kLanes][kDotChunk + kGroupPadding]
  int16_t* pairs;  // [kDotChunk / 2][kLanes][2], the same interleaved
  float* scales;   // [kDotChunk / G][kLanes], G = 32, or 16 for q6_k
  float* minima;   // [kDotChunk / 32][kLanes], q4_k and q5_k: subtracted per code of x
};
inline constexpr int64_t kCodeStride = kDotChunk + kGroupPadding;
static_assert(kLanes * kCodeStride + 2 * kDotChunk * kLanes + 4 * kLanes * kDotChunk / 16 +
                  4 * kLanes * kDotChunk / 32 <=
              4 * kDotScratch);

inline Int8Group int8_group(float* scratch) {
  Int8Group g;
  g.pairs = reinterpret_cast<int16_t*>(scratch);
  g.scales = reinterpret_cast<float*>(g.pairs + kDotChunk * kLanes);
  g.minima = g.scales + kLanes * kDotChunk / 16;
  g.codes = reinterpret_cast<int8_t*>(g.minima + kLanes * kDotChunk / 32);
  return g;
}

// Blocks to integer codes. `codes`: the row's; scales and minima: the row's lane, kLanes apart.

inline void unpack_q8_0(const uint8_t* block, int8_t* codes, float* scales) {
  *scales = read_f16(block);
  __builtin_memcpy(codes, block + 2, 32);
}

#if defined(__AVX2__)
/// 32 nibbles of 16 bytes: the low ones, then the high ones.
inline __m256i nibbles(const uint8_t* q) {
  const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
  const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(packed), _mm_srli_epi16(packed, 4), 1);
  return _mm256_and_si256(both, _mm256_set1_epi8(15));
}
inline void store_codes(int8_t* codes, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), v); }
/// 32 bits as bytes of `value` or 0.
inline __m256i spread_bits(int32_t bits, int8_t value) {
  const __m256i bytes = _mm256_shuffle_epi8(
      _mm256_set1_epi32(bits), _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0));
  const __m256i own_bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ull));
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, own_bit), own_bit);
  return _mm256_and_si256(set, _mm256_set1_epi8(value));
}
#endif

inline void unpack_q4_0(const uint8_t* block, int8_t* codes, float* scales) {
  *scales = read_f16(block);
#if defined(__AVX2__)
  store_codes(codes, _mm256_sub_epi8(nibbles(block + 2), _mm256_set1_epi8(8)));
#else
  for (int i = 0; i < 16; ++i) {
    codes[i] = static_cast<int8_t>((block[2 + i] & 15) - 8);
    codes[i + 16] = static_cast<int8_t>((block[2 + i] >> 4) - 8);
  }
#endif
}

inline void unpack_q5_0(const uint8_t* block, int8_t* codes, float* scales) {
  *scales = read_f16(block);
  int32_t high;
  __builtin_memcpy(&high, block + 2, sizeof high);
#if defined(__AVX2__)
  const __m256i value = _mm256_or_si256(nibbles(block + 6), spread_bits(high, 16));
  store_codes(codes, _mm256_sub_epi8(value, _mm256_set1_epi8(16)));
#else
  for (int i = 0; i < 16; ++i) {
    codes[i] = static_cast<int8_t>(((block[6 + i] & 15) | (high >> i & 1) << 4) - 16);
    codes[i + 16] = static_cast<int8_t>(((block[6 + i] >> 4) | (high >> (i + 16) & 1) << 4) - 16);
  }
#endif
}

/// A block of 256 of q4_k or q5_k; `high` is null for q4_k.
inline void unpack_k(const uint8_t* block, const uint8_t* q, const uint8_t* high, int8_t* codes, float* scales,
                     float* minima) {
  const SubBlocks sub = sub_blocks(block);
  for (int j = 0; j < 8; ++j) {
    scales[j * kLanes] = sub.step[j];
    minima[j * kLanes] = sub.low[j];
  }
  for (int pair = 0; pair < 4; ++pair, q += 32, codes += 64) {
#if defined(__AVX2__)
    const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q)), low_bits = _mm256_set1_epi8(15);
    __m256i first = _mm256_and_si256(packed, low_bits),
            second = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low_bits);
    if (high != nullptr) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high)), sixteen = _mm256_set1_epi8(16);
      const auto fifth = [&](int bit) {
        const __m256i mask = _mm256_set1_epi8(static_cast<char>(1 << bit));
        return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bits, mask), mask), sixteen);
      };
      first = _mm256_or_si256(first, fifth(2 * pair));
      second = _mm256_or_si256(second, fifth(2 * pair + 1));
    }
    store_codes(codes, first);
    store_codes(codes + 32, second);
#else
    for (int i = 0; i < 32; ++i) {
      const int fifth = high != nullptr ? (high[i] >> (2 * pair) & 1) << 4 : 0;
      const int sixth = high != nullptr ? (high[i] >> (2 * pair + 1) & 1) << 4 : 0;
      codes[i] = static_cast<int8_t>((q[i] & 15) | fifth);
      codes[i + 32] = static_cast<int8_t>((q[i] >> 4) | sixth);
    }
#endif
  }
}

inline void unpack_q6_k(const uint8_t* block, int8_t* codes, float* scales) {
  const float d = read_f16(block + 208);
  for (int j = 0; j < 16; ++j) scales[j * kLanes] = d * static_cast<float>(static_cast<int8_t>(block[192 + j]));
  for (int half = 0; half < 2; ++half, codes += 128) {
    const uint8_t *low = block + 64 * half, *high = block + 128 + 32 * half;
    for (int i = 0; i < 32; ++i) {  // plain bytes: the compiler's vectors will do
      codes[i] = static_cast<int8_t>(((low[i] & 15) | (high[i] & 3) << 4) - 32);
      codes[i + 32] = static_cast<int8_t>(((low[i + 32] & 15) | (high[i] & 12) << 2) - 32);
      codes[i + 64] = static_cast<int8_t>(((low[i] >> 4) | (high[i] & 48)) - 32);
      codes[i + 96] = static_cast<int8_t>(((low[i + 32] >> 4) | (high[i] & 192) >> 2) - 32);
    }
  }
}

/// Columns [k, k + count) of one row of w into lane `lane` of the group.
inline void unpack_row(const Weight& w, int64_t row, int64_t k, int64_t count, const Int8Group& g, int64_t lane) {
  const BlockSize size = block_size(w.format);
  const auto* block = static_cast<const uint8_t*>(w.data) + (row * w.n_in + k) / size.elements * size.bytes;
  int8_t* codes = g.codes + lane * kCodeStride;
  float *scales = g.scales + lane, *minima = g.minima + lane;
  const auto each = [&](auto unpack, int64_t scales_a_block) __attribute__((always_inline)) {
    for (int64_t i = 0; i < count; i += size.elements, block += size.bytes, codes += size.elements) {
      unpack(block, codes, scales);
      scales += scales_a_block * kLanes;
    }
  };
  switch (w.format) {
    case WeightFormat::q4_0:
      return each(unpack_q4_0, 1);
    case WeightFormat::q5_0:
      return each(unpack_q5_0, 1);
    case WeightFormat::q8_0:
      return each(unpack_q8_0, 1);
    case WeightFormat::q6_k:
      return each(unpack_q6_k, 16);
    case WeightFormat::q4_k:
      for (int64_t i = 0; i < count; i += 256, block += 144, codes += 256, scales += 8 * kLanes, minima += 8 * kLanes)
        unpack_k(block, block + 16, nullptr, codes, scales, minima);
      return;
    case WeightFormat::q5_k:
      for (int64_t i = 0; i < count; i += 256, block += 176, codes += 256, scales += 8 * kLanes, minima += 8 * kLanes)
        unpack_k(block, block + 48, block + 16, codes, scales, minima);
      return;
    default:  // int8
      __builtin_memcpy(codes, block, static_cast<size_t>(count));
      for (int64_t i = 0; i < count / kInt8Block; ++i) scales[i * kLanes] = w.row_absmax[row] * kInverseLevels;
  }
}

/// The group's rows [row, row + n_rows); lanes past them count as zero.
inline void unpack_group(const Weight& w, int64_t row, int64_t n_rows, int64_t k, int64_t count, const Int8Group& g) {
  for (int64_t lane = 0; lane < n_rows; ++lane) {
    if (row + lane + kLanes < w.n_out) prefetch_row(w, (row + lane + kLanes) * w.n_in + k, count);
    unpack_row(w, row + lane, k, count, g, lane);
  }
  for (int64_t lane = n_rows; lane < kLanes; ++lane) {
    __builtin_memset(g.codes + lane * kCodeStride, 0, static_cast<size_t>(count));
    for (int64_t i = 0; i < count / 16; ++i) g.scales[i * kLanes + lane] = 0;
    for (int64_t i = 0; i < count / 32; ++i) g.minima[i * kLanes + lane] = 0;
  }
}

#if defined(__AVX2__)
/// Eight rows of eight 4-byte groups, transposed: out[j] holds group j of every row.
inline void transpose_groups(const int8_t* codes, __m256i out[8]) {
  __m256i r[8], s[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i * kCodeStride));
  for (int i = 0; i < 4; ++i) {
    s[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    s[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_unpacklo_epi64(s[4 * i], s[4 * i + 2]);
    r[4 * i + 1] = _mm256_unpackhi_epi64(s[4 * i], s[4 * i + 2]);
    r[4 * i + 2] = _mm256_unpacklo_epi64(s[4 * i + 1], s[4 * i + 3]);
    r[4 * i + 3] = _mm256_unpackhi_epi64(s[4 * i + 1], s[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    out[i] = _mm256_permute2x128_si256(r[i], r[4 + i], 0x20);
    out[4 + i] = _mm256_permute2x128_si256(r[i], r[4 + i], 0x31);
  }
}
#endif

/// codes to pairs.
inline void interleave(const Int8Group& g, int64_t count) {
#if defined(__AVX2__)
  // Bytes 0 and 1 (then 2 and 3) of each lane into the upper halves of its two 16-bit parts, shifted down with sign.
  const __m256i first = _mm256_broadcastsi128_si256(
                    _mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13)),
                second = _mm256_broadcastsi128_si256(
                    _mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15));
  for (int64_t k = 0; k < count; k += 32) {
    for (int64_t lane = 0; lane < kLanes; lane += 8) {
      __m256i groups[8];
      transpose_groups(g.codes + lane * kCodeStride + k, groups);
      int16_t* to = g.pairs + k * kLanes + 2 * lane;
      for (int j = 0; j < 8; ++j, to += 4 * kLanes) {
        const __m256i low = _mm256_srai_epi16(_mm256_shuffle_epi8(groups[j], first), 8),
                      high = _mm256_srai_epi16(_mm256_shuffle_epi8(groups[j], second), 8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), low);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * kLanes), high);
      }
    }
  }
#else
  for (int64_t k = 0; k < count; k += 2)
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      g.pairs[k * kLanes + 2 * lane] = g.codes[lane * kCodeStride + k];
      g.pairs[k * kLanes + 2 * lane + 1] = g.codes[lane * kCodeStride + k + 1];
    }
#endif
}

/// sum + the products of the pairs of each lane with one pair of x.
inline VecI add_pair_products(VecI sum, const int16_t* pairs, const int16_t* x) {
  int32_t pair;
  __builtin_memcpy(&pair, x, sizeof pair);
#if defined(__AVX512F__)
  const __m512i w = _mm512_loadu_si512(pairs);
  return (VecI)_mm512_add_epi32((__m512i)sum, _mm512_madd_epi16(w, _mm512_set1_epi32(pair)));
#elif defined(__AVX2__)
  const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs));
  return (VecI)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16(w, _mm256_set1_epi32(pair)));
#else
  const __m128i w = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pairs));
  return (VecI)_mm_add_epi32((__m128i)sum, _mm_madd_epi16(w, _mm_set1_epi32(pair)));
#endif
}

/// The sums over G columns from k of every row of the group with x, a lane each.
template <int G>
inline VecI folded_sums(const Int8Group& g, int64_t k, const int16_t* x) {
#if defined(__AVX2__)
  const auto load16 = [](const int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); };
  VecI out;
  for (int64_t lane = 0; lane < kLanes; lane += 8) {
    __m256i sums[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
      const int8_t* codes = g.codes + (lane + r) * kCodeStride + k;
      const auto wide = [&](int at) {
        return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + at)));
      };
      sums[r] = _mm256_madd_epi16(wide(0), load16(x));
      if (G == 32) sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(wide(16), load16(x + 16)));
    }
    const __m256i s01 = _mm256_hadd_epi32(sums[0], sums[1]), s23 = _mm256_hadd_epi32(sums[2], sums[3]),
                  s45 = _mm256_hadd_epi32(sums[4], sums[5]), s67 = _mm256_hadd_epi32(sums[6], sums[7]);
    const __m256i s03 = _mm256_hadd_epi32(s01, s23), s47 = _mm256_hadd_epi32(s45, s67);
    const __m256i eight =
        _mm256_add_epi32(_mm256_permute2x128_si256(s03, s47, 0x20), _mm256_permute2x128_si256(s03, s47, 0x31));
    __builtin_memcpy(reinterpret_cast<char*>(&out) + 4 * lane, &eight, sizeof eight);
  }
  return out;
#else
  VecI out{};
  for (int64_t lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < G; ++i) out[lane] += static_cast<int32_t>(x[i]) * g.codes[lane * kCodeStride + k + i];
  return out;
#endif
}

enum class Minima { no, yes };

/// y[i, 0..n) for M rows of x and the group's n rows, over its columns [k, k + count) of K. One block after the other:
/// sum += float(integer sum) * (scale of w * scale of x), then the minimum's part.
template <int M, int G, Minima kMinima, class Sums>
inline void int8_tile(const DotTask& t, int64_t row, int64_t n_begin, int64_t n, const Int8Group& g, int64_t k,
                      int64_t count, Sums integer_sums) {
  Int8Row x[M];
  VecF sums[M];
  const bool chained = k > 0 || t.write == Write::add;
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
    x[i] = int8_row(t.x, row + i, t.w->n_in);
    sums[i] = chained ? load(t.y + (row + i) * t.ldy + n_begin, n) : VecF{};
  }
  for (int64_t b = 0; b < count / kInt8Block; ++b) {
    const int64_t x_block = k / kInt8Block + b;
#pragma GCC unroll 2
    for (int part = 0; part < kInt8Block / G; ++part) {
      VecI products[M];
      integer_sums(x, b * kInt8Block + part * G, products);
      const VecF scales = load(g.scales + (b * (kInt8Block / G) + part) * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) sums[i] = fma(to_float(products[i]), scales * x[i].scales[x_block], sums[i]);
    }
    if (kMinima == Minima::no) continue;
    const VecF minima = load(g.minima + b * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) sums[i] = fma(-minima, broadcast(x[i].sums[x_block]), sums[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) store(t.y + (row + i) * t.ldy + n_begin, sums[i], n);
}

template <int M, int G, Minima kMinima>
inline void int8_folded(const DotTask& t, int64_t row, int64_t n_begin, int64_t n, const Int8Group& g, int64_t k,
                        int64_t count) {
  int8_tile<M, G, kMinima>(t, row, n_begin, n, g, k, count, [&](const Int8Row* x, int64_t at, VecI* out) {
    for (int i = 0; i < M; ++i) out[i] = folded_sums<G>(g, at, x[i].codes + k + at);
  });
}

template <int M, int G, Minima kMinima>
inline void int8_interleaved(const DotTask& t, int64_t row, int64_t n_begin, int64_t n, const Int8Group& g, int64_t k,
                             int64_t count) {
  int8_tile<M, G, kMinima>(
      t, row, n_begin, n, g, k, count, [&](const Int8Row* x, int64_t at, VecI* out) __attribute__((always_inline)) {
        VecI sums[M] = {};
        const int16_t* pairs = g.pairs + at * kLanes;
    // One step a round: unrolled further, the compiler regroups the integer sums and runs out of registers.
#pragma GCC unroll 1
        for (int p = 0; p < G; p += 2) {
#pragma GCC unroll 8
          for (int i = 0; i < M; ++i) sums[i] = add_pair_products(sums[i], pairs + p * kLanes, x[i].codes + k + at + p);
        }
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i) out[i] = sums[i];
      });
}

inline constexpr int64_t kFoldedRows = 3;  // up to so many rows of x interleaving costs more than it saves

template <int G, Minima kMinima>
void int8_rows(const DotTask& t, int64_t n_begin, int64_t n, const Int8Group& g, int64_t k, int64_t count) {
  if (t.m <= kFoldedRows) {
    for (int64_t i = 0; i < t.m; ++i) int8_folded<1, G, kMinima>(t, i, n_begin, n, g, k, count);
    return;
  }
  interleave(g, count);
  for (int64_t i = 0; i < t.m;) {
    switch (t.m - i) {
      case 1:
        int8_interleaved<1, G, kMinima>(t, i, n_begin, n, g, k, count);
        i += 1;
        break;
      case 2:
        int8_interleaved<2, G, kMinima>(t, i, n_begin, n, g, k, count);
        i += 2;
        break;
      case 3:
      case 5:
        int8_interleaved<3, G, kMinima>(t, i, n_begin, n, g, k, count);
        i += 3;
        break;
      case 4:
      case 7:
      case 8:
        int8_interleaved<4, G, kMinima>(t, i, n_begin, n, g, k, count);
        i += 4;
        break;
      default:
        int8_interleaved<6, G, kMinima>(t, i, n_begin, n, g, k, count);
        i += 6;
    }
  }
}

void dot_task_int8(const DotTask& t) {
  const Weight& w = *t.w;
  const Int8Group g = int8_group(t.scratch);
  for (int64_t n = t.n_begin; n < t.n_end; n += kLanes) {
    const int64_t rows = t.n_end - n < kLanes ? t.n_end - n : kLanes;
    for (int64_t k = 0; k < w.n_in; k += kDotChunk) {
      const int64_t count = w.n_in - k < kDotChunk ? w.n_in - k : kDotChunk;
      unpack_group(w, n, rows, k, count, g);
      if (w.format == WeightFormat::q6_k) {
        int8_rows<16, Minima::no>(t, n, rows, g, k, count);
      } else if (w.format == WeightFormat::q4_k || w.format == WeightFormat::q5_k) {
        int8_rows<32, Minima::yes>(t, n, rows, g, k, count);
      } else {
        int8_rows<32, Minima::no>(t, n, rows, g, k, count);
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
