// Quantisation against recorded results of the reference implementations, bit for bit: NF4 codes and values
// (bitsandbytes 0.50.2), GGUF blocks (the gguf package 0.19). Long results are compared by SHA-256 of their
// little-endian bytes; the inputs come from the fixed generator below, so nothing but the digests has to be stored.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "base/system.h"
#include "quant/blockwise.h"
#include "quant/weight.h"

namespace saaz {
namespace {

/// The input generator shared with the reference: a 32-bit linear congruential sequence.
class Sequence {
 public:
  explicit Sequence(uint32_t seed) : state_(seed) {}
  uint32_t next() { return state_ = state_ * 1664525u + 1013904223u; }

 private:
  uint32_t state_;
};

std::vector<float> uniform_values(int64_t n, uint32_t seed) {
  Sequence sequence(seed);
  std::vector<float> out(n);
  for (float& x : out) x = static_cast<float>(sequence.next() >> 8) * 0x1p-24f - 0.5f;
  return out;
}

template <class Container>
std::string digest(const Container& values) {
  return sha256_hex(std::as_bytes(std::span(values)));
}

Weight matrix_of(const std::vector<float>& values, int64_t n_out) {
  auto* data = const_cast<float*>(values.data());
  return dense_weight(Tensor(data, DType::f32, {n_out, static_cast<int64_t>(values.size()) / n_out}));
}

std::vector<float> all_values(const Weight& weight) {
  std::vector<float> out(weight.size());
  dequantise(weight, 0, weight.size(), out.data());
  return out;
}

/// 600 blocks: random ones, an all-zero one (3) and a small one (5).
std::vector<float> nf4_source() {
  std::vector<float> values = uniform_values(64 * 600, 1);
  std::fill(values.begin() + 64 * 3, values.begin() + 64 * 4, 0.0f);
  for (int i = 64 * 5; i < 64 * 6; ++i) values[i] *= 0.01f;
  return values;
}

TEST(DynamicMap, MatchesReferenceDigests) {
  EXPECT_EQ(digest(dynamic_map_signed()), "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c");
  EXPECT_EQ(digest(dynamic_map_unsigned()), "305f002cc11278fb769d13b25b9fd0c7c83c8402c40a878fe086f4039fde6398");
}

TEST(DynamicMap, NearestCodeTakesTheLowerIndexOnTies) {
  const auto& map = dynamic_map_signed();
  for (int i = 0; i < 256; ++i) EXPECT_EQ(nearest_code(map, map[i]), i);
  for (int i = 0; i < 255; ++i) {
    const float middle = (map[i] + map[i + 1]) / 2;
    EXPECT_EQ(nearest_code(map, middle), i);
    EXPECT_EQ(nearest_code(map, std::nextafter(middle, 2.0f)), i + 1);
  }
  EXPECT_EQ(nearest_code(map, -7.0f), 0);
  EXPECT_EQ(nearest_code(map, 7.0f), 255);
}

TEST(Nf4, ThresholdsAreMidpointsAndZeroIsExact) {
  for (int i = 0; i < 15; ++i) EXPECT_EQ(kNf4Thresholds[i], (kNf4Values[i] + kNf4Values[i + 1]) / 2);
  EXPECT_EQ(std::bit_cast<uint32_t>(kNf4Values[7]), 0u);
  EXPECT_EQ(std::bit_cast<uint32_t>(kNf4Values[1]), 0xbf3239b1u);
}

TEST(Nf4, CodesAndValuesMatchReference) {
  const std::vector<float> source = nf4_source();
  const Nf4Matrix matrix = quantise_nf4(matrix_of(source, 300), {.double_quant = false}, DType::f32);
  EXPECT_EQ(std::vector<uint8_t>(matrix.codes.begin(), matrix.codes.begin() + 8),
            (std::vector<uint8_t>{36, 124, 4, 216, 10, 37, 158, 47}));
  EXPECT_EQ(digest(matrix.codes), "b31681f99d393b62741d4d0cc1b48603d33e140b7dfa5fcaa76adbb386268c12");
  EXPECT_EQ(digest(matrix.absmax), "0173462d15e3b9ab772cf0af93ad60a660df4325212e61f86ddcb9113e41fbe3");
  EXPECT_EQ(digest(all_values(matrix.view())), "c5c84cda475f1c395103d02aeef5b8a7ae23ceaab3f5471eda2aff6315f0a05f");
  EXPECT_EQ(matrix.bytes(), 64 * 600 / 2 + 600 * 4);
}

TEST(Nf4, OneRoundingToBf16) {
  const std::vector<float> source = nf4_source();
  const Nf4Matrix matrix = quantise_nf4(matrix_of(source, 300), {.double_quant = false}, DType::bf16);
  EXPECT_EQ(digest(all_values(matrix.view())), "4b4ff9bf714a4b901dd56ebfae76285a0e2f9565fbf0834ec7b3d89719c01e29");
}

TEST(Nf4, DoubleQuantisationMatchesReference) {
  const std::vector<float> source = nf4_source();
  const Nf4Matrix matrix = quantise_nf4(matrix_of(source, 300), {.double_quant = true}, DType::f32);
  EXPECT_EQ(std::bit_cast<uint32_t>(matrix.nested_offset), 1056649223u);
  ASSERT_EQ(matrix.nested_absmax.size(), 3u);
  EXPECT_EQ(std::bit_cast<uint32_t>(matrix.nested_absmax[0]), 1056649223u);
  EXPECT_EQ(std::bit_cast<uint32_t>(matrix.nested_absmax[1]), 1024664616u);
  EXPECT_EQ(std::bit_cast<uint32_t>(matrix.nested_absmax[2]), 1017398512u);
  EXPECT_EQ(digest(matrix.absmax_codes), "c75d3ac7fa105154a4cdd1a5b8a0d3b466dafc7f39e677a765d03ee27f297d7d");
  EXPECT_EQ(digest(all_values(matrix.view())), "beb05cd269511fa3388ee2db1a72f921cdda3b99a676abf371a6789b6c9f2189");
  EXPECT_TRUE(matrix.absmax.empty());
  EXPECT_EQ(matrix.bytes(), 64 * 600 / 2 + 600 + 3 * 4);
}

TEST(Nf4, ZeroBlockHasTheCodeOfZero) {
  const std::vector<float> zeros(128, 0.0f);
  for (const bool double_quant : {false, true}) {
    const Nf4Matrix matrix = quantise_nf4(matrix_of(zeros, 2), {.double_quant = double_quant}, DType::f32);
    for (const uint8_t code : matrix.codes) EXPECT_EQ(code, 0x77);
    for (const float x : all_values(matrix.view())) EXPECT_EQ(x, 0.0f);
  }
}

TEST(Nf4, TiesTakeTheLowerCode) {
  std::vector<float> values(64, 0.0f);
  values[0] = 1.0f;  // scale 1: the others are compared as they are
  for (int i = 0; i < 15; ++i) {
    values[1 + i] = kNf4Thresholds[i];
    values[16 + i] = std::nextafter(kNf4Thresholds[i], 2.0f);
  }
  const Nf4Matrix matrix = quantise_nf4(matrix_of(values, 1), {.double_quant = false}, DType::f32);
  const auto code = [&](int i) { return i % 2 == 0 ? matrix.codes[i / 2] >> 4 : matrix.codes[i / 2] & 15; };
  for (int i = 0; i < 15; ++i) {
    EXPECT_EQ(code(1 + i), i);
    EXPECT_EQ(code(16 + i), i + 1);
  }
}

TEST(Nf4, OddSizeShortBlockAndRanges) {
  const std::vector<float> source = uniform_values(7 * 33, 5);  // 231 elements: last block of 39, odd count
  const Nf4Matrix matrix = quantise_nf4(matrix_of(source, 7), {.double_quant = false}, DType::f32);
  ASSERT_EQ(matrix.codes.size(), 116u);
  ASSERT_EQ(matrix.absmax.size(), 4u);
  EXPECT_EQ(matrix.codes.back() & 15, 7);
  const std::vector<float> all = all_values(matrix.view());
  for (int64_t i = 0; i < 231; ++i) {
    const float half_gap = 0.1520f;  // half of the widest gap between neighbouring NF4 values, (1 - 0.6962) / 2
    EXPECT_LE(std::fabs(all[i] - source[i]), half_gap * matrix.absmax[i / 64]);
  }
  std::vector<float> part(101);
  dequantise(matrix.view(), 130, 101, part.data());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + 130));
}

TEST(Nf4, PiecesDoNotChangeTheResult) {
  // More than one internal piece: the last row alone must give the same codes as inside the big matrix.
  const int64_t n_in = 64 * 512, n_out = 5;
  const std::vector<float> source = uniform_values(n_in * n_out, 11);
  const Nf4Matrix whole = quantise_nf4(matrix_of(source, n_out), {.double_quant = false}, DType::f32);
  const std::vector<float> last(source.end() - n_in, source.end());
  const Nf4Matrix row = quantise_nf4(matrix_of(last, 1), {.double_quant = false}, DType::f32);
  EXPECT_TRUE(std::equal(row.codes.begin(), row.codes.end(), whole.codes.end() - n_in / 2));
  EXPECT_TRUE(std::equal(row.absmax.begin(), row.absmax.end(), whole.absmax.end() - n_in / 64));
}

TEST(Nf4, RefusesNonFiniteWeightsNamingThePlace) {
  std::vector<float> values(256, 0.5f);
  values[64 * 2 + 9] = std::nanf("");
  try {
    quantise_nf4(matrix_of(values, 4), {}, DType::f32);
    FAIL() << "accepted a NaN";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input);
    EXPECT_NE(std::string(error.what()).find("row 2, column 9"), std::string::npos) << error.what();
  }
}

struct BlockCase {
  WeightFormat format;
  std::vector<int> half_floats;  // byte offsets of the f16 fields in a block
  const char* digest;
};

class BlockFormat : public testing::TestWithParam<BlockCase> {};

TEST_P(BlockFormat, DequantisesLikeTheReference) {
  const BlockCase& c = GetParam();
  const BlockSize size = block_size(c.format);
  constexpr int64_t kBlocks = 16;
  Sequence sequence(static_cast<uint32_t>(size.bytes));
  std::vector<uint8_t> raw(kBlocks * size.bytes);
  for (uint8_t& byte : raw) byte = static_cast<uint8_t>(sequence.next() >> 24);
  for (int64_t block = 0; block < kBlocks; ++block) {
    for (const int field : c.half_floats) {
      uint8_t& exponent = raw[block * size.bytes + field + 1];
      exponent = static_cast<uint8_t>((exponent & 0x83) | 0x24);  // a finite half of either sign
    }
  }
  Weight weight{.format = c.format, .n_out = 4, .n_in = 4 * size.elements, .data = raw.data()};
  const std::vector<float> all = all_values(weight);
  EXPECT_EQ(digest(all), c.digest);
  std::vector<float> part(size.elements * 3);
  dequantise(weight, size.elements * 5, size.elements * 3, part.data());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + size.elements * 5));
}

INSTANTIATE_TEST_SUITE_P(
    Gguf, BlockFormat,
    testing::Values(
        BlockCase{WeightFormat::q4_0, {0}, "06ff1a594300aaaced50530ad20c8f95f0a29a398d912302d7a2d9594bafa34f"},
        BlockCase{WeightFormat::q5_0, {0}, "4483f3d83c0b79b756854eaf11c8e19bd832e32d8a5cd332e1d94307f68641df"},
        BlockCase{WeightFormat::q8_0, {0}, "82e52dac57ba52e144389782d957c7dab8da83b28fda6338b2ccaf61fe404bb8"},
        BlockCase{WeightFormat::q4_k, {0, 2}, "b17880e1e9ef676ca126f4c09fa64133fa72a272e91948a52f37e3390fd37975"},
        BlockCase{WeightFormat::q5_k, {0, 2}, "1998dd86a32bd39ea2748c2bdc519524e46a18328232ffd9364b52cd30cac663"},
        BlockCase{WeightFormat::q6_k, {208}, "105217830cae7d1e523b8e2da16251519391e3018326d51cc88af5adf01e0d7e"}),
    [](const auto& info) { return std::string(name_of(info.param.format)); });

/// The encoders' input: random blocks with an all-zero one (1).
std::vector<float> encoder_source() {
  std::vector<float> values = uniform_values(32 * 64, 7);
  std::fill(values.begin() + 32, values.begin() + 64, 0.0f);
  return values;
}

std::string encoded_digest(void (*encode)(const float*, int64_t, std::byte*), WeightFormat format) {
  const std::vector<float> source = encoder_source();
  std::vector<std::byte> out(source.size() / 32 * block_size(format).bytes);
  encode(source.data(), static_cast<int64_t>(source.size()), out.data());
  return digest(out);
}

TEST(BlockEncoders, MatchTheReference) {
  EXPECT_EQ(encoded_digest(quantise_q4_0, WeightFormat::q4_0),
            "78b1e73d95dc7ed561b04453ef840602f17fbe4c4f1467330f5d6caeda0e54da");
  EXPECT_EQ(encoded_digest(quantise_q5_0, WeightFormat::q5_0),
            "53c757e1b3c468fa64c6aefb216681deafc0f9a9a189bcab3ba6bcf67bca09e4");
  EXPECT_EQ(encoded_digest(quantise_q8_0, WeightFormat::q8_0),
            "d21021bebd5361272ec012675b6532ae3fcf64a942b2229f443dc08b6c8f7094");
}

TEST(DenseWeight, ReadsEveryFloatType) {
  const std::vector<float> values = {0.0f, -1.5f, 0.25f, 1024.0f, -0.0078125f, 3.0f};
  std::vector<uint16_t> bf16, f16;
  for (const float x : values) {
    bf16.push_back(f32_to_bf16(x));
    f16.push_back(f32_to_f16(x));
  }
  EXPECT_EQ(all_values(matrix_of(values, 2)), values);
  EXPECT_EQ(all_values(dense_weight(Tensor(bf16.data(), DType::bf16, {2, 3}))), values);
  EXPECT_EQ(all_values(dense_weight(Tensor(f16.data(), DType::f16, {2, 3}))), values);
  std::vector<float> tail(2);
  dequantise(dense_weight(Tensor(f16.data(), DType::f16, {2, 3})), 4, 2, tail.data());
  EXPECT_EQ(tail, (std::vector<float>{-0.0078125f, 3.0f}));
}

}  // namespace
}  // namespace saaz
