// Rows of w as integer codes and scales, for the products with 8-bit activations (matmul_int8.inc.h): unpacked from any
// format of 8 bits and fewer but NF4, and interleaved. In: blocks as files hold them. Out: a group in a task's scratch.
#pragma once

#include "backend/cpu/matmul.inc.h"

namespace saaz::cpu {
namespace {

/// Rows of w that are worked on together: a lane each, in two vectors.
inline constexpr int64_t kGroupVectors = 2, kGroupRows = kGroupVectors * kLanes;
/// Columns that a group holds at once. Sums go on where they stopped, so this decides no bit.
inline constexpr int64_t kGroupColumns = 512;
inline constexpr int64_t kCodeStride = kGroupColumns + 64;  // bytes: not a power of two

/// A group of rows of w over kGroupColumns columns, as integers and scales.
struct Int8Group {
  int8_t* codes;   // [kGroupRows][kCodeStride]
  int16_t* pairs;  // [kGroupColumns / 2][kGroupRows][2], the same interleaved
  float* scales;   // [kGroupColumns / G][kGroupRows], G = 32, or 16 for q6_k
  float* minima;   // [kGroupColumns / 32][kGroupRows], q4_k and q5_k: subtracted per code of x
};
static_assert(kGroupRows * (kCodeStride + 2 * kGroupColumns + 4 * kGroupColumns / 16 + 4 * kGroupColumns / 32) <=
              4 * kDotScratch);

inline Int8Group int8_group(float* scratch) {
  Int8Group g;
  g.pairs = reinterpret_cast<int16_t*>(scratch);
  g.scales = reinterpret_cast<float*>(g.pairs + kGroupColumns * kGroupRows);
  g.minima = g.scales + kGroupRows * kGroupColumns / 16;
  g.codes = reinterpret_cast<int8_t*>(g.minima + kGroupRows * kGroupColumns / 32);
  return g;
}

// Blocks to integer codes. `codes`: the row's; scales and minima: the row's lane, kGroupRows apart.

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
    scales[j * kGroupRows] = sub.step[j];
    minima[j * kGroupRows] = sub.low[j];
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
  for (int j = 0; j < 16; ++j) scales[j * kGroupRows] = d * static_cast<float>(static_cast<int8_t>(block[192 + j]));
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
      scales += scales_a_block * kGroupRows;
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
      for (int64_t i = 0; i < count;
           i += 256, block += 144, codes += 256, scales += 8 * kGroupRows, minima += 8 * kGroupRows)
        unpack_k(block, block + 16, nullptr, codes, scales, minima);
      return;
    case WeightFormat::q5_k:
      for (int64_t i = 0; i < count;
           i += 256, block += 176, codes += 256, scales += 8 * kGroupRows, minima += 8 * kGroupRows)
        unpack_k(block, block + 48, block + 16, codes, scales, minima);
      return;
    default:  // int8
      __builtin_memcpy(codes, block, static_cast<size_t>(count));
      for (int64_t i = 0; i < count / kInt8Block; ++i) scales[i * kGroupRows] = w.row_absmax[row] * kInverseLevels;
  }
}

/// Rows [row, row + n_rows) into the group's first lanes; lanes up to n_lanes count as zero.
inline void unpack_group(const Weight& w, int64_t row, int64_t n_rows, int64_t n_lanes, int64_t k, int64_t count,
                         const Int8Group& g) {
  for (int64_t lane = 0; lane < n_rows; ++lane) {
    if (row + lane + n_lanes < w.n_out) prefetch_row(w, (row + lane + n_lanes) * w.n_in + k, count);
    unpack_row(w, row + lane, k, count, g, lane);
  }
  for (int64_t lane = n_rows; lane < n_lanes; ++lane) {
    __builtin_memset(g.codes + lane * kCodeStride, 0, static_cast<size_t>(count));
    for (int64_t i = 0; i < count / 16; ++i) g.scales[i * kGroupRows + lane] = 0;
    for (int64_t i = 0; i < count / 32; ++i) g.minima[i * kGroupRows + lane] = 0;
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

/// codes to pairs, for the first n_lanes rows.
inline void interleave(const Int8Group& g, int64_t n_lanes, int64_t count) {
#if defined(__AVX2__)
  // Bytes 0 and 1 (then 2 and 3) of each lane into the upper halves of its two 16-bit parts, shifted down with sign.
  const __m256i first = _mm256_broadcastsi128_si256(
                    _mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13)),
                second = _mm256_broadcastsi128_si256(
                    _mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15));
  for (int64_t k = 0; k < count; k += 32) {
    for (int64_t lane = 0; lane < n_lanes; lane += 8) {
      __m256i groups[8];
      transpose_groups(g.codes + lane * kCodeStride + k, groups);
      int16_t* to = g.pairs + k * kGroupRows + 2 * lane;
      for (int j = 0; j < 8; ++j, to += 4 * kGroupRows) {
        const __m256i low = _mm256_srai_epi16(_mm256_shuffle_epi8(groups[j], first), 8),
                      high = _mm256_srai_epi16(_mm256_shuffle_epi8(groups[j], second), 8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), low);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * kGroupRows), high);
      }
    }
  }
#else
  for (int64_t k = 0; k < count; k += 2)
    for (int64_t lane = 0; lane < n_lanes; ++lane) {
      g.pairs[k * kGroupRows + 2 * lane] = g.codes[lane * kCodeStride + k];
      g.pairs[k * kGroupRows + 2 * lane + 1] = g.codes[lane * kCodeStride + k + 1];
    }
#endif
}

}  // namespace
}  // namespace saaz::cpu
