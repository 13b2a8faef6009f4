// Vector twins of quant/weight.h's `dequantise`: stored blocks to f32, bit-equal to the scalar truth (same products in
// the same order, each rounded). Ranges that do not start and end on block borders, which only tiny or odd NF4 matrices
// have, go through the scalar code. Layouts: docs/formats.md 1 and 2.
#pragma once

#include "backend/cpu/kernels.h"
#include "backend/cpu/vec.h"
#include "quant/blockwise.h"
#include "quant/int8.h"

namespace saaz::cpu {
namespace {

inline float read_f16(const uint8_t* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  return f16_to_f32(bits);
#endif
}

inline void dequantise_bf16(const uint8_t* from, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, from_bits(load_u16(from + 2 * i) << 16));
  for (; i < n; ++i) {
    uint16_t bits;
    __builtin_memcpy(&bits, from + 2 * i, sizeof bits);
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    __builtin_memcpy(out + i, &wide, sizeof wide);
  }
}

inline void dequantise_f16(const uint8_t* from, int64_t n, float* out) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    store(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 2 * i))));
  }
#elif defined(__AVX2__)
  for (; i + 8 <= n; i += 8) {
    store(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * i))));
  }
#endif
  for (; i < n; ++i) out[i] = read_f16(from + 2 * i);
}

/// 64 NF4 codes through a table of 16 values.
inline void look_up_nf4(const uint8_t* codes, const float* table, float* out) {
#if defined(__AVX512F__)
  const __m512 values = _mm512_loadu_ps(table);
  const __m512i shifts = _mm512_set_epi32(0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4);
  for (int i = 0; i < 64; i += 16) {
    const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i / 2));
    const __m512i twice = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(packed, packed));
    _mm512_storeu_ps(out + i, _mm512_permutexvar_ps(_mm512_srlv_epi32(twice, shifts), values));  // reads 4 bits
  }
#elif defined(__AVX2__)
  const __m256 low = _mm256_loadu_ps(table), high = _mm256_loadu_ps(table + 8);
  const __m256i shifts = _mm256_set_epi32(0, 4, 0, 4, 0, 4, 0, 4);
  for (int i = 0; i < 64; i += 8) {
    int32_t packed;
    __builtin_memcpy(&packed, codes + i / 2, sizeof packed);
    const __m128i bytes = _mm_cvtsi32_si128(packed);
    const __m256i code = _mm256_srlv_epi32(_mm256_cvtepu8_epi32(_mm_unpacklo_epi8(bytes, bytes)), shifts);
    const __m256 in_low = _mm256_permutevar8x32_ps(low, code), in_high = _mm256_permutevar8x32_ps(high, code);
    const __m256 use_high = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));  // bit 3 to the sign
    _mm256_storeu_ps(out + i, _mm256_blendv_ps(in_low, in_high, use_high));
  }
#else
  for (int i = 0; i < 32; ++i) {
    out[2 * i] = table[codes[i] >> 4];
    out[2 * i + 1] = table[codes[i] & 15];
  }
#endif
}

inline VecF round_to_bf16(VecF v) {
  const VecI bits = bits_of(v);
  return from_bits((bits + 0x7fff + (bits >> 16 & 1)) & broadcast(static_cast<int32_t>(0xffff0000)));
}

/// Elements [begin, begin + n), both multiples of 64. Rounding to the dequantised dtype is done on the 16 possible
/// values.
inline void dequantise_nf4_blocks(const Weight& w, int64_t begin, int64_t n, float* out) {
  const auto* codes = static_cast<const uint8_t*>(w.data) + begin / 2;
  const auto* values = w.quant_map ? w.quant_map : reinterpret_cast<const float*>(&kNf4Values);
  const float* map = w.nested_map;
  if (!w.absmax && !map) map = reinterpret_cast<const float*>(&dynamic_map_signed());
  const bool to_bf16 = w.dequantised_dtype == DType::bf16;
  for (int64_t i = 0; i < n; i += kNf4Block, codes += kNf4Block / 2) {
    const int64_t block = (begin + i) / kNf4Block;
    float absmax;
    if (w.absmax) {
      absmax = w.absmax[block];
    } else {
      const float scaled = map[w.absmax_codes[block]] * w.nested_absmax[block / kNestedBlock];
      absmax = scaled + w.nested_offset;
    }
    float table[16];
    for (int64_t t = 0; t < 16; t += kLanes) {
      const VecF v = load(values + t) * absmax;
      store(table + t, to_bf16 ? round_to_bf16(v) : v);
    }
    look_up_nf4(codes, table, out + i);
  }
}

/// Elements [begin, begin + n) of an int8 matrix, row by row.
inline void dequantise_int8(const Weight& w, int64_t begin, int64_t n, float* out) {
  const auto* codes = static_cast<const uint8_t*>(w.data);
  for (int64_t i = begin; i < begin + n;) {
    const int64_t row = i / w.n_in, row_end = (row + 1) * w.n_in, end = row_end < begin + n ? row_end : begin + n;
    const float absmax = w.row_absmax[row];
    float* to = out - begin;
    for (; i + kLanes <= end; i += kLanes) {
      store(to + i, to_float(load_i8(codes + i)) * absmax * kInverseLevels);
    }
    for (; i < end; ++i) to[i] = static_cast<float>(static_cast<int8_t>(codes[i])) * absmax * kInverseLevels;
  }
}

/// Any range of any matrix, by the scalar code, which wants even NF4 borders.
inline void dequantise_scalar(const Weight& w, int64_t begin, int64_t n, float* out) {
  constexpr int64_t kPiece = 62;
  float piece[kPiece + 2];
  const int64_t size = w.n_out * w.n_in;
  for (int64_t i = begin; i < begin + n;) {
    const int64_t first = i & ~int64_t{1};
    const int64_t end = begin + n < i + kPiece ? begin + n : i + kPiece;
    const int64_t even_end = (end + 1) & ~int64_t{1};
    saaz::dequantise(w, first, (even_end < size ? even_end : size) - first, piece);
    __builtin_memcpy(out + (i - begin), piece + (i - first), static_cast<size_t>(end - i) * sizeof(float));
    i = end;
  }
}

inline void dequantise_q4_0(const uint8_t* block, float* out) {
  const float d = read_f16(block);
  for (int64_t j = 0; j < 16; j += kLanes) {
    const VecI q = load_u8(block + 2 + j);
    store(out + j, d * to_float((q & 15) - 8));
    store(out + j + 16, d * to_float((q >> 4) - 8));
  }
}

inline void dequantise_q5_0(const uint8_t* block, float* out) {
  const float d = read_f16(block);
  int32_t high;
  __builtin_memcpy(&high, block + 2, sizeof high);
  for (int64_t j = 0; j < 16; j += kLanes) {
    const VecI q = load_u8(block + 6 + j), lane = lane_indices() + static_cast<int32_t>(j);
    const VecI fifth = broadcast(high) >> lane & 1, fifth_upper = broadcast(high) >> (lane + 16) & 1;
    store(out + j, d * to_float(((q & 15) | fifth << 4) - 16));
    store(out + j + 16, d * to_float(((q >> 4) | fifth_upper << 4) - 16));
  }
}

inline void dequantise_q8_0(const uint8_t* block, float* out) {
  const float d = read_f16(block);
  for (int64_t j = 0; j < 32; j += kLanes) store(out + j, d * to_float(load_i8(block + 2 + j)));
}

/// Steps and minima of the 8 sub-blocks of q4_k and q5_k, from the 12 bytes of 6-bit scales.
struct SubBlocks {
  float step[8], low[8];
};
inline SubBlocks sub_blocks(const uint8_t* block) {
  const float d = read_f16(block), d_minimum = read_f16(block + 2);
  const uint8_t* sc = block + 4;
  SubBlocks out;
  for (int j = 0; j < 4; ++j) {
    out.step[j] = d * static_cast<float>(sc[j] & 63);
    out.low[j] = d_minimum * static_cast<float>(sc[j + 4] & 63);
    out.step[j + 4] = d * static_cast<float>((sc[j + 8] & 15) | (sc[j] >> 6) << 4);
    out.low[j + 4] = d_minimum * static_cast<float>((sc[j + 8] >> 4) | (sc[j + 4] >> 6) << 4);
  }
  return out;
}

inline void dequantise_q4_k(const uint8_t* block, float* out) {
  const SubBlocks s = sub_blocks(block);
  for (int pair = 0; pair < 4; ++pair) {
    const int first = 2 * pair, second = first + 1;
    for (int64_t i = 0; i < 32; i += kLanes) {
      const VecI q = load_u8(block + 16 + 32 * pair + i);
      store(out + 32 * first + i, s.step[first] * to_float(q & 15) - s.low[first]);
      store(out + 32 * second + i, s.step[second] * to_float(q >> 4) - s.low[second]);
    }
  }
}

inline void dequantise_q5_k(const uint8_t* block, float* out) {
  const SubBlocks s = sub_blocks(block);
  for (int pair = 0; pair < 4; ++pair) {
    const int first = 2 * pair, second = first + 1;
    for (int64_t i = 0; i < 32; i += kLanes) {
      const VecI q = load_u8(block + 48 + 32 * pair + i), high = load_u8(block + 16 + i) >> first;
      const VecI low_value = (q & 15) | (high & 1) << 4, high_value = (q >> 4) | (high & 2) << 3;
      store(out + 32 * first + i, s.step[first] * to_float(low_value) - s.low[first]);
      store(out + 32 * second + i, s.step[second] * to_float(high_value) - s.low[second]);
    }
  }
}

inline void dequantise_q6_k(const uint8_t* block, float* out) {
  const float d = read_f16(block + 208);
  float steps[16];
  for (int64_t i = 0; i < 16; i += kLanes) store(steps + i, d * to_float(load_i8(block + 192 + i)));
  for (int half = 0; half < 2; ++half, out += 128) {
    const uint8_t *low = block + 64 * half, *high = block + 128 + 32 * half;
    for (int64_t i = 0; i < 32; i += kLanes) {
      const float* step = steps + 8 * half + i / 16;  // of the first quarter; the others follow two by two
      const VecI first = load_u8(low + i), second = load_u8(low + 32 + i), bits = load_u8(high + i);
      store(out + i, step[0] * to_float(((first & 15) | (bits & 3) << 4) - 32));
      store(out + 32 + i, step[2] * to_float(((second & 15) | (bits & 12) << 2) - 32));
      store(out + 64 + i, step[4] * to_float(((first >> 4) | (bits & 48)) - 32));
      store(out + 96 + i, step[6] * to_float(((second >> 4) | (bits & 192) >> 2) - 32));
    }
  }
}

template <int64_t kElements, int64_t kBytes, void (*Decode)(const uint8_t*, float*)>
inline void dequantise_blocks(const Weight& w, int64_t begin, int64_t n, float* out) {
  const uint8_t* block = static_cast<const uint8_t*>(w.data) + begin / kElements * kBytes;
  for (int64_t i = 0; i < n; i += kElements, block += kBytes) Decode(block, out + i);
}

void dequantise_range(const Weight& w, int64_t begin, int64_t n, float* out) {
  const auto* data = static_cast<const uint8_t*>(w.data);
  switch (w.format) {
    case WeightFormat::f32:
      __builtin_memcpy(out, data + 4 * begin, static_cast<size_t>(n) * 4);
      return;
    case WeightFormat::bf16:
      return dequantise_bf16(data + 2 * begin, n, out);
    case WeightFormat::f16:
      return dequantise_f16(data + 2 * begin, n, out);
    case WeightFormat::nf4:
      if (begin % kNf4Block != 0 || n % kNf4Block != 0 || w.dequantised_dtype == DType::f16) {
        return dequantise_scalar(w, begin, n, out);
      }
      return dequantise_nf4_blocks(w, begin, n, out);
    case WeightFormat::int8:
      return dequantise_int8(w, begin, n, out);
    case WeightFormat::q4_0:
      return dequantise_blocks<32, 18, dequantise_q4_0>(w, begin, n, out);
    case WeightFormat::q5_0:
      return dequantise_blocks<32, 22, dequantise_q5_0>(w, begin, n, out);
    case WeightFormat::q8_0:
      return dequantise_blocks<32, 34, dequantise_q8_0>(w, begin, n, out);
    case WeightFormat::q4_k:
      return dequantise_blocks<256, 144, dequantise_q4_k>(w, begin, n, out);
    case WeightFormat::q5_k:
      return dequantise_blocks<256, 176, dequantise_q5_k>(w, begin, n, out);
    case WeightFormat::q6_k:
      return dequantise_blocks<256, 210, dequantise_q6_k>(w, begin, n, out);
  }
}

}  // namespace
}  // namespace saaz::cpu
