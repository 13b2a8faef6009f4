// y = x w^T for a few rows of rounded activations (decoding): kLanes rows of w at once, read where they lie, block
// after block, their block sums folded across lanes so that each lane ends with one row's. The codes of a block are
// unpacked in registers and meet every row of x there. What limits it is memory: the next rows of w are asked for piece
// by piece, never in a burst. AVX2 and AVX-512; an element's bits are those of the other forms (matmul_int8.inc.h).
#pragma once

#include <type_traits>

#include "backend/cpu/round_int8.inc.h"
#include "backend/cpu/unpack_int8.inc.h"

#if defined(__AVX2__)

namespace saaz::cpu {
namespace {

inline __m256i load_32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// How a format holds the codes of 32 columns: stored blocks of kBlocks * 32 columns and kBytes bytes, codes(block, j)
// of the j-th 32 of them. kOffset: what is to be taken off each code; kSigned: nothing, they have signs.
inline constexpr int kSigned = -1;

struct Q8_0Codes {
  static constexpr int64_t kBytes = 34, kBlocks = 1;
  static constexpr int kOffset = kSigned;
  static __m256i codes(const uint8_t* block, int64_t) { return load_32(block + 2); }
};
struct Int8Codes {
  static constexpr int64_t kBytes = 32, kBlocks = 1;
  static constexpr int kOffset = kSigned;
  static __m256i codes(const uint8_t* block, int64_t) { return load_32(block); }
};
struct Q4_0Codes {
  static constexpr int64_t kBytes = 18, kBlocks = 1;
  static constexpr int kOffset = 8;
  static __m256i codes(const uint8_t* block, int64_t) { return nibbles(block + 2); }
};
struct Q5_0Codes {
  static constexpr int64_t kBytes = 22, kBlocks = 1;
  static constexpr int kOffset = 16;
  static __m256i codes(const uint8_t* block, int64_t) {
    int32_t high;
    __builtin_memcpy(&high, block + 2, sizeof high);
    return _mm256_or_si256(nibbles(block + 6), spread_bits(high, 16));
  }
};
/// Of 32 bytes the low nibbles, or the high ones.
inline __m256i nibbles_of(const uint8_t* q, bool high) {
  const __m256i packed = load_32(q), low_bits = _mm256_set1_epi8(15);
  return _mm256_and_si256(high ? _mm256_srli_epi16(packed, 4) : packed, low_bits);
}
struct Q4_KCodes {
  static constexpr int64_t kBytes = 144, kBlocks = 8;
  static constexpr int kOffset = 0;
  static __m256i codes(const uint8_t* block, int64_t j) { return nibbles_of(block + 16 + j / 2 * 32, j % 2 == 1); }
};
struct Q5_KCodes {
  static constexpr int64_t kBytes = 176, kBlocks = 8;
  static constexpr int kOffset = 0;
  static __m256i codes(const uint8_t* block, int64_t j) {
    const __m256i mask = _mm256_set1_epi8(static_cast<char>(1 << j));
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(load_32(block + 16), mask), mask);
    return _mm256_or_si256(nibbles_of(block + 48 + j / 2 * 32, j % 2 == 1),
                           _mm256_and_si256(set, _mm256_set1_epi8(16)));
  }
};
struct Q6_KCodes {
  static constexpr int64_t kBytes = 210, kBlocks = 8;
  static constexpr int kOffset = 32;
  static __m256i codes(const uint8_t* block, int64_t j) {
    const int64_t half = j / 4, quarter = j % 4;
    const __m256i low = nibbles_of(block + 64 * half + quarter % 2 * 32, quarter >= 2);
    const __m256i bits = _mm256_srl_epi16(load_32(block + 128 + 32 * half), _mm_cvtsi64_si128(2 * quarter));
    return _mm256_or_si256(low, _mm256_slli_epi16(_mm256_and_si256(bits, _mm256_set1_epi8(3)), 4));
  }
};

/// The 32 products of a row's codes with x, added by fours.
template <int kOffset>
inline __m256i sums_by_four(__m256i codes, __m256i x) {
  // |w| times x with w's sign: at most 2 * 128 * 127 in 16 bits; codes without signs: at most 2 * 63 * 127.
  const __m256i pairs = kOffset == kSigned ? _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes))
                                           : _mm256_maddubs_epi16(codes, x);
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

/// Of eight rows' partial sums: the sum of the lower halves, and of the upper ones, a lane a row.
inline void fold_eight(const __m256i sums[8], __m256i& first, __m256i& second) {
  const auto pair_up = [](__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
  };
  const auto pair_up_twos = [](__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
  };
  const __m256i s03 = pair_up_twos(pair_up(sums[0], sums[1]), pair_up(sums[2], sums[3])),
                s47 = pair_up_twos(pair_up(sums[4], sums[5]), pair_up(sums[6], sums[7]));
  first = _mm256_permute2x128_si256(s03, s47, 0x20);
  second = _mm256_permute2x128_si256(s03, s47, 0x31);
}

/// Eight lanes of a vector, [lane, lane + 8).
inline void set_eight(VecI& v, int64_t lane, __m256i eight) {
#if defined(__AVX512F__)
  v = lane == 0 ? (VecI)_mm512_zextsi256_si512(eight) : (VecI)_mm512_inserti64x4((__m512i)v, eight, 1);
#else
  (void)lane;
  v = (VecI)eight;
#endif
}

/// The f16 scales that begin the stored blocks of kLanes rows.
inline VecF scales_of_blocks(const uint8_t* block, int64_t row_bytes) {
  // By register: a vector read of eight separate writes would wait for all of them.
  const auto eight = [&](int64_t lane) __attribute__((always_inline)) {
    const auto half = [&](int64_t i) __attribute__((always_inline)) {
      uint16_t bits;
      __builtin_memcpy(&bits, block + (lane + i) * row_bytes, sizeof bits);
      return bits;
    };
    __m128i v = _mm_cvtsi32_si128(half(0));
    v = _mm_insert_epi16(v, half(1), 1);
    v = _mm_insert_epi16(v, half(2), 2);
    v = _mm_insert_epi16(v, half(3), 3);
    v = _mm_insert_epi16(v, half(4), 4);
    v = _mm_insert_epi16(v, half(5), 5);
    v = _mm_insert_epi16(v, half(6), 6);
    return _mm_insert_epi16(v, half(7), 7);
  };
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(eight(0)), eight(8), 1));
#else
  return _mm256_cvtph_ps(eight(0));
#endif
}

/// Scales, and minima, of the next 256 columns of kLanes rows, a lane a row.
struct BlockScales {
  float steps[16][kLanes], lows[8][kLanes];

  template <class Codes>
  void read(const uint8_t* block, int64_t row_bytes) {
    for (int64_t lane = 0; lane < kLanes; ++lane, block += row_bytes) {
      if constexpr (Codes::kOffset == Q6_KCodes::kOffset) {
        const float d = read_f16(block + 208);
        for (int j = 0; j < 16; ++j) steps[j][lane] = d * static_cast<float>(static_cast<int8_t>(block[192 + j]));
      } else {
        const SubBlocks sub = sub_blocks(block);
        for (int j = 0; j < 8; ++j) steps[j][lane] = sub.step[j], lows[j][lane] = sub.low[j];
      }
    }
  }
};

/// y[row + i, n_begin + lane] for M rows of x and kLanes rows of w.
template <class Codes, int M>
void few_rows_tile(const DotTask& t, int64_t row, int64_t n_begin) {
  constexpr bool kIsK = Codes::kBlocks == 8, kHasMinima = kIsK && Codes::kOffset == 0;
  constexpr int kParts = Codes::kOffset == Q6_KCodes::kOffset ? 2 : 1;
  const Weight& w = *t.w;
  const int64_t n_blocks = w.n_in / kInt8Block, row_bytes = n_blocks / Codes::kBlocks * Codes::kBytes;
  const uint8_t* from = static_cast<const uint8_t*>(w.data) + n_begin * row_bytes;
  const int64_t ahead = kLanes * row_bytes, step = kLanes * Codes::kBytes / Codes::kBlocks;
  Int8Row x[M];
  VecF sums[M], row_scales{};
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
    x[i] = int8_row(t.x, row + i, w.n_in);
    sums[i] = t.write == Write::add ? load(t.y + (row + i) * t.ldy + n_begin) : VecF{};
  }
  if constexpr (std::is_same_v<Codes, Int8Codes>) row_scales = load(w.row_absmax + n_begin) * kInverseLevels;
  BlockScales scales;
  for (int64_t b = 0; b < n_blocks; ++b) {
    const int64_t j = b % Codes::kBlocks;
    const uint8_t* block = from + b / Codes::kBlocks * Codes::kBytes;
    if (row == 0) {
      const uint8_t* next = from + ahead + b * step;
      for (int64_t at = 0; at < step; at += 64) __builtin_prefetch(next + at, 0, 3);
    }
    if constexpr (kIsK) {
      if (j == 0) scales.read<Codes>(block, row_bytes);
    }
    VecI first[M], second[M];
#pragma GCC unroll 2
    for (int64_t lane = 0; lane < kLanes; lane += 8) {
      __m256i codes[8];
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) codes[r] = Codes::codes(block + (lane + r) * row_bytes, j);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) {
        const __m256i codes_of_x = load_32(x[i].bytes + b * kInt8Block);
        __m256i by_four[8], low, high;
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) by_four[r] = sums_by_four<Codes::kOffset>(codes[r], codes_of_x);
        fold_eight(by_four, low, high);
        set_eight(first[i], lane, low);
        set_eight(second[i], lane, high);
      }
    }
    VecF step_of[kParts];
    if constexpr (kIsK) {
      for (int part = 0; part < kParts; ++part) step_of[part] = load(scales.steps[kParts * j + part]);
    } else {
      step_of[0] = std::is_same_v<Codes, Int8Codes> ? row_scales : scales_of_blocks(block, row_bytes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      constexpr int kTakenOff = Codes::kOffset == kSigned ? 0 : Codes::kOffset;
      const int32_t *halves = x[i].halves + 2 * b, low = kTakenOff * halves[0], high = kTakenOff * halves[1];
      if constexpr (kParts == 2) {
        sums[i] = fma(to_float(first[i] - broadcast(low)), step_of[0] * x[i].scales[b], sums[i]);
        sums[i] = fma(to_float(second[i] - broadcast(high)), step_of[1] * x[i].scales[b], sums[i]);
      } else {
        sums[i] = fma(to_float(first[i] + second[i] - broadcast(low + high)), step_of[0] * x[i].scales[b], sums[i]);
      }
      if constexpr (kHasMinima) sums[i] = fma(-load(scales.lows[j]), broadcast(x[i].sums[b]), sums[i]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) store(t.y + (row + i) * t.ldy + n_begin, sums[i]);
}

template <class Codes>
void few_rows(const DotTask& t, int64_t n_begin) {
  int64_t row = 0;
  for (; row + 4 <= t.m; row += 4) few_rows_tile<Codes, 4>(t, row, n_begin);
  if (t.m - row == 3) few_rows_tile<Codes, 3>(t, row, n_begin);
  if (t.m - row == 2) few_rows_tile<Codes, 2>(t, row, n_begin);
  if (t.m - row == 1) few_rows_tile<Codes, 1>(t, row, n_begin);
}

/// kLanes rows of w, all of their columns.
inline void int8_few_rows(const DotTask& t, int64_t n_begin) {
  switch (t.w->format) {
    case WeightFormat::q4_0:
      return few_rows<Q4_0Codes>(t, n_begin);
    case WeightFormat::q5_0:
      return few_rows<Q5_0Codes>(t, n_begin);
    case WeightFormat::q8_0:
      return few_rows<Q8_0Codes>(t, n_begin);
    case WeightFormat::q4_k:
      return few_rows<Q4_KCodes>(t, n_begin);
    case WeightFormat::q5_k:
      return few_rows<Q5_KCodes>(t, n_begin);
    case WeightFormat::q6_k:
      return few_rows<Q6_KCodes>(t, n_begin);
    default:
      return few_rows<Int8Codes>(t, n_begin);
  }
}

}  // namespace
}  // namespace saaz::cpu

#endif
