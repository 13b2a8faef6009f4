// NF4 and the dynamic 8-bit maps. In: any weight, read in pieces. Out: codes and scales bit-equal to bitsandbytes'
// kernels (reciprocal then multiply, strict comparison with f32 midpoints). Invariant: the result depends on the values
// alone, not on the piece size. Source: docs/formats.md 1.1 to 1.3.
#include "quant/blockwise.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "base/check.h"
#include "base/threads.h"

namespace saaz {

const std::array<float, 16> kNf4Values = {-1.0f,
                                          -0.6961928009986877f,
                                          -0.5250730514526367f,
                                          -0.39491748809814453f,
                                          -0.28444138169288635f,
                                          -0.18477343022823334f,
                                          -0.09105003625154495f,
                                          0.0f,
                                          0.07958029955625534f,
                                          0.16093020141124725f,
                                          0.24611230194568634f,
                                          0.33791524171829224f,
                                          0.44070982933044434f,
                                          0.5626170039176941f,
                                          0.7229568362236023f,
                                          1.0f};

// Midpoints of the f32 values, rounded to f32.
const std::array<float, 15> kNf4Thresholds = {
    -0.8480963706970215f,  -0.6106328964233398f,   -0.4599952697753906f, -0.33967941999435425f, -0.23460739850997925f,
    -0.13791173696517944f, -0.045525018125772476f, 0.03979014977812767f, 0.120255246758461f,    0.2035212516784668f,
    0.2920137643814087f,   0.3893125355243683f,    0.5016634464263916f,  0.6427869200706482f,   0.8614784479141235f};

namespace {

constexpr int64_t kPiece = 1 << 16;     // elements held as f32 at once; a multiple of every block size
constexpr int64_t kPiecesOfThread = 4;  // fewer are not worth a thread
constexpr uint8_t kNf4Zero = 7;
// Smallest scale that is inverted: an all-zero block then gets the code of 0.0 instead of 0 * infinity.
constexpr float kSmallestScale = 1e-38f;

enum class Sign { both, positive };

/// formats.md 1.3: seven decades, each cut evenly; the fused form is what makes every value exact.
std::array<float, 256> make_dynamic_map(Sign sign) {
  constexpr float kDecades[] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  constexpr float kFirst = 0.1f, kLast = 1.0f;
  std::array<float, 256> map{};
  size_t count = 0;
  map[count++] = 0.0f;
  map[count++] = 1.0f;
  for (int decade = 0; decade < 7; ++decade) {
    const int n = 1 << (sign == Sign::both ? decade : decade + 1);
    const float step = (kLast - kFirst) / static_cast<float>(n);
    const auto boundary = [&](int j) {
      return j < (n + 1) / 2 ? std::fma(step, static_cast<float>(j), kFirst)
                             : std::fma(-step, static_cast<float>(n - j), kLast);
    };
    for (int j = 0; j < n; ++j) {
      const float value = kDecades[decade] * ((boundary(j) + boundary(j + 1)) / 2);
      map[count++] = value;
      if (sign == Sign::both) map[count++] = -value;
    }
  }
  std::sort(map.begin(), map.end());
  return map;
}

float largest_magnitude(const float* x, int64_t n) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
  return largest;
}

float inverse_scale(float absmax) { return 1.0f / std::max(absmax, kSmallestScale); }

/// Names the first value of the piece at `begin` that is not finite.
[[noreturn]] void fail_not_finite(const Weight& source, int64_t begin) {
  std::vector<float> piece(static_cast<size_t>(std::min(kPiece, source.size() - begin)));
  dequantise(source, begin, static_cast<int64_t>(piece.size()), piece.data());
  const auto bad = std::find_if(piece.begin(), piece.end(), [](float x) { return !std::isfinite(x); });
  const int64_t at = begin + (bad - piece.begin());
  fail(ExitCode::bad_input, "row {}, column {} of the matrix is {}: only finite weights can be quantised to nf4",
       at / source.n_in, at % source.n_in, *bad);
}

/// Codes of one block of at most 64 elements: the count of thresholds below each scaled value.
void quantise_block(const float* x, int64_t n, float absmax, uint8_t* packed) {
  std::array<float, kNf4Block> scaled{};
  std::array<int32_t, kNf4Block> codes{};
  const float inverse = inverse_scale(absmax);
  for (int64_t i = 0; i < n; ++i) scaled[i] = x[i] * inverse;
  for (const float threshold : kNf4Thresholds) {
    for (int64_t i = 0; i < kNf4Block; ++i) codes[i] += scaled[i] > threshold;
  }
  if (n % 2 != 0) codes[n] = kNf4Zero;
  for (int64_t i = 0; i < n; i += 2) packed[i / 2] = static_cast<uint8_t>(codes[i] << 4 | codes[i + 1]);
}

/// Replaces absmax by 8-bit codes around the mean. The mean is summed in f64 and rounded once.
void quantise_scales(Nf4Matrix& matrix) {
  const auto n = static_cast<int64_t>(matrix.absmax.size());
  double sum = 0;
  for (const float absmax : matrix.absmax) sum += absmax;
  matrix.nested_offset = n == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(n));
  matrix.absmax_codes.resize(static_cast<size_t>(n));
  matrix.nested_absmax.reserve(static_cast<size_t>((n + kNestedBlock - 1) / kNestedBlock));
  for (int64_t begin = 0; begin < n; begin += kNestedBlock) {
    const int64_t count = std::min(kNestedBlock, n - begin);
    float* deviation = matrix.absmax.data() + begin;
    for (int64_t i = 0; i < count; ++i) deviation[i] -= matrix.nested_offset;
    const float scale = largest_magnitude(deviation, count);
    const float inverse = inverse_scale(scale);
    for (int64_t i = 0; i < count; ++i) {
      matrix.absmax_codes[begin + i] = nearest_code(dynamic_map_signed(), deviation[i] * inverse);
    }
    matrix.nested_absmax.push_back(scale);
  }
  matrix.absmax = {};
}

}  // namespace

const std::array<float, 256>& dynamic_map_signed() {
  static const std::array<float, 256> map = make_dynamic_map(Sign::both);
  return map;
}

const std::array<float, 256>& dynamic_map_unsigned() {
  static const std::array<float, 256> map = make_dynamic_map(Sign::positive);
  return map;
}

uint8_t nearest_code(const std::array<float, 256>& map, float x) {
  // The midpoint is rounded to f32, as the reference kernels do; a value on it takes the lower index.
  int low = 0, high = 255;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (x > (map[middle] + map[middle + 1]) / 2) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return static_cast<uint8_t>(low);
}

Weight Nf4Matrix::view() const {
  Weight weight;
  weight.format = WeightFormat::nf4;
  weight.n_out = n_out;
  weight.n_in = n_in;
  weight.data = codes.data();
  weight.dequantised_dtype = dequantised_dtype;
  if (absmax_codes.empty()) {
    weight.absmax = absmax.data();
  } else {
    weight.absmax_codes = absmax_codes.data();
    weight.nested_absmax = nested_absmax.data();
    weight.nested_offset = nested_offset;
  }
  return weight;
}

int64_t Nf4Matrix::bytes() const {
  return static_cast<int64_t>(codes.size() + absmax_codes.size() + 4 * (absmax.size() + nested_absmax.size()));
}

Nf4Matrix quantise_nf4(const Weight& source, Nf4Options options, DType dequantised_dtype) {
  const int64_t n = source.size(), n_pieces = (n + kPiece - 1) / kPiece;
  Nf4Matrix out;
  out.n_out = source.n_out;
  out.n_in = source.n_in;
  out.dequantised_dtype = dequantised_dtype;
  out.codes.resize(static_cast<size_t>((n + 1) / 2));
  out.absmax.resize(static_cast<size_t>((n + kNf4Block - 1) / kNf4Block));
  ThreadPool pool(static_cast<int>(std::clamp<int64_t>(n_pieces / kPiecesOfThread, 1, default_threads())));
  std::vector<std::vector<float>> pieces(static_cast<size_t>(pool.size()));
  std::atomic<int64_t> first_bad = n_pieces;
  pool.run(n_pieces, [&](int64_t task, int thread) {
    std::vector<float>& piece = pieces[static_cast<size_t>(thread)];
    piece.resize(static_cast<size_t>(std::min(n, kPiece)));
    const int64_t begin = task * kPiece, count = std::min(kPiece, n - begin);
    dequantise(source, begin, count, piece.data());
    if (!std::all_of(piece.begin(), piece.begin() + count, [](float x) { return std::isfinite(x); })) {
      int64_t seen = first_bad;
      while (task < seen && !first_bad.compare_exchange_weak(seen, task)) {
      }
      return;
    }
    for (int64_t i = 0; i < count; i += kNf4Block) {
      const int64_t length = std::min(kNf4Block, count - i);
      const float absmax = largest_magnitude(piece.data() + i, length);
      out.absmax[(begin + i) / kNf4Block] = absmax;
      quantise_block(piece.data() + i, length, absmax, out.codes.data() + (begin + i) / 2);
    }
  });
  if (first_bad < n_pieces) fail_not_finite(source, first_bad * kPiece);
  if (options.double_quant) quantise_scales(out);
  return out;
}

}  // namespace saaz
