// Decoders and the simple encoders of the GGUF block formats. The order of operations is the format's own: the scale
// times the 6-bit sub-scale is rounded first, then times the quant, then the minimum is subtracted, so every vectorised
// twin can be compared bit for bit. Blocks come from mapped files and may lie at any address: fields are read with
// memcpy.
#include "quant/gguf_blocks.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "quant/blockwise.h"

namespace saaz {

namespace {

constexpr int kSmallBlock = 32;  // elements of a q4_0, q5_0 or q8_0 block

float read_f16(const std::byte* at) {
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return f16_to_f32(bits);
}

void write_f16(std::byte* at, float value) {
  const uint16_t bits = f32_to_f16(value);
  std::memcpy(at, &bits, sizeof bits);
}

const uint8_t* bytes_at(const std::byte* at) { return reinterpret_cast<const uint8_t*>(at); }

void decode_q4_0(const std::byte* block, float* out) {
  const float d = read_f16(block);
  const uint8_t* q = bytes_at(block + 2);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>((q[j] & 15) - 8);
    out[j + 16] = d * static_cast<float>((q[j] >> 4) - 8);
  }
}

void decode_q5_0(const std::byte* block, float* out) {
  const float d = read_f16(block);
  uint32_t high;
  std::memcpy(&high, block + 2, sizeof high);
  const uint8_t* q = bytes_at(block + 6);
  for (int j = 0; j < 16; ++j) {
    const int low_half = (q[j] & 15) | static_cast<int>(high >> j & 1) << 4;
    const int high_half = (q[j] >> 4) | static_cast<int>(high >> (j + 16) & 1) << 4;
    out[j] = d * static_cast<float>(low_half - 16);
    out[j + 16] = d * static_cast<float>(high_half - 16);
  }
}

void decode_q8_0(const std::byte* block, float* out) {
  const float d = read_f16(block);
  for (int j = 0; j < kSmallBlock; ++j) out[j] = d * static_cast<float>(static_cast<int8_t>(block[2 + j]));
}

/// The 6-bit scale and minimum of sub-block j (0..7) of q4_k and q5_k, packed in 12 bytes.
struct SubScale {
  float scale, minimum;
};
SubScale sub_scale(const uint8_t* sc, int j) {
  if (j < 4) return {static_cast<float>(sc[j] & 63), static_cast<float>(sc[j + 4] & 63)};
  return {static_cast<float>((sc[j + 4] & 15) | (sc[j - 4] >> 6) << 4),
          static_cast<float>((sc[j + 4] >> 4) | (sc[j] >> 6) << 4)};
}

void decode_q4_k(const std::byte* block, float* out) {
  const float d = read_f16(block), d_minimum = read_f16(block + 2);
  const uint8_t* scales = bytes_at(block + 4);
  const uint8_t* q = bytes_at(block + 16);
  for (int sub = 0; sub < 8; ++sub) {
    const SubScale s = sub_scale(scales, sub);
    const float step = d * s.scale, low = d_minimum * s.minimum;
    const int shift = sub % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      out[32 * sub + i] = step * static_cast<float>(q[32 * (sub / 2) + i] >> shift & 15) - low;
    }
  }
}

void decode_q5_k(const std::byte* block, float* out) {
  const float d = read_f16(block), d_minimum = read_f16(block + 2);
  const uint8_t* scales = bytes_at(block + 4);
  const uint8_t* high = bytes_at(block + 16);
  const uint8_t* q = bytes_at(block + 48);
  for (int sub = 0; sub < 8; ++sub) {
    const SubScale s = sub_scale(scales, sub);
    const float step = d * s.scale, low = d_minimum * s.minimum;
    const int shift = sub % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int value = (q[32 * (sub / 2) + i] >> shift & 15) | (high[i] >> sub & 1) << 4;
      out[32 * sub + i] = step * static_cast<float>(value) - low;
    }
  }
}

void decode_q6_k(const std::byte* block, float* out) {
  const float d = read_f16(block + 208);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* low = bytes_at(block + 64 * half);
    const uint8_t* high = bytes_at(block + 128 + 32 * half);
    const std::byte* scales = block + 192 + 8 * half;
    for (int quarter = 0; quarter < 4; ++quarter) {
      for (int l = 0; l < 32; ++l) {
        const int nibble = low[l + quarter % 2 * 32] >> (quarter / 2 * 4) & 15;
        const int value = (nibble | (high[l] >> (2 * quarter) & 3) << 4) - 32;
        const float step = d * static_cast<float>(static_cast<int8_t>(scales[2 * quarter + l / 16]));
        out[128 * half + 32 * quarter + l] = step * static_cast<float>(value);
      }
    }
  }
}

/// The element of largest magnitude, with its sign.
float signed_extreme(const float* x) {
  float extreme = 0;
  for (int j = 0; j < kSmallBlock; ++j) {
    if (std::fabs(x[j]) > std::fabs(extreme)) extreme = x[j];
  }
  return extreme;
}

float inverse_or_zero(float d) { return d != 0 ? 1.0f / d : 0.0f; }

/// trunc(x + offset) clamped to [0, top]: the rounding of the q4_0 and q5_0 encoders.
int offset_code(float x, float offset, float top) { return static_cast<int>(std::clamp(x + offset, 0.0f, top)); }

}  // namespace

BlockDecoder block_decoder(WeightFormat format) {
  switch (format) {
    case WeightFormat::q4_0:
      return decode_q4_0;
    case WeightFormat::q5_0:
      return decode_q5_0;
    case WeightFormat::q8_0:
      return decode_q8_0;
    case WeightFormat::q4_k:
      return decode_q4_k;
    case WeightFormat::q5_k:
      return decode_q5_k;
    case WeightFormat::q6_k:
      return decode_q6_k;
    default:
      break;
  }
  assert(false && "not a GGUF block format");
  return nullptr;
}

void quantise_q8_0(const float* x, int64_t n, std::byte* out) {
  assert(n % kSmallBlock == 0);
  for (int64_t begin = 0; begin < n; begin += kSmallBlock, out += 34) {
    const float d = std::fabs(signed_extreme(x + begin)) / 127.0f;
    const float inverse = inverse_or_zero(d);
    write_f16(out, d);
    for (int j = 0; j < kSmallBlock; ++j) {
      const float rounded = std::clamp(std::round(x[begin + j] * inverse), -127.0f, 127.0f);
      out[2 + j] = static_cast<std::byte>(static_cast<int8_t>(rounded));
    }
  }
}

void quantise_q4_0(const float* x, int64_t n, std::byte* out) {
  assert(n % kSmallBlock == 0);
  for (int64_t begin = 0; begin < n; begin += kSmallBlock, out += 18) {
    const float d = signed_extreme(x + begin) / -8.0f;
    const float inverse = inverse_or_zero(d);
    write_f16(out, d);
    for (int j = 0; j < 16; ++j) {
      const int low = offset_code(x[begin + j] * inverse, 8.5f, 15.0f);
      const int high = offset_code(x[begin + j + 16] * inverse, 8.5f, 15.0f);
      out[2 + j] = static_cast<std::byte>(low | high << 4);
    }
  }
}

void quantise_q5_0(const float* x, int64_t n, std::byte* out) {
  assert(n % kSmallBlock == 0);
  for (int64_t begin = 0; begin < n; begin += kSmallBlock, out += 22) {
    const float d = signed_extreme(x + begin) / -16.0f;
    const float inverse = inverse_or_zero(d);
    write_f16(out, d);
    uint32_t high_bits = 0;
    for (int j = 0; j < 16; ++j) {
      const int low = offset_code(x[begin + j] * inverse, 16.5f, 31.0f);
      const int high = offset_code(x[begin + j + 16] * inverse, 16.5f, 31.0f);
      high_bits |= static_cast<uint32_t>(low >> 4) << j | static_cast<uint32_t>(high >> 4) << (j + 16);
      out[6 + j] = static_cast<std::byte>((low & 15) | (high & 15) << 4);
    }
    std::memcpy(out + 2, &high_bits, sizeof high_bits);
  }
}

}  // namespace saaz
