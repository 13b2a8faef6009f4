#include "data/near_duplicates.h"

#include <algorithm>

#include "base/unicode.h"
#include "data/script.h"

namespace saaz {
namespace {

constexpr size_t kShingleLength = 5;  // characters
/// Candidates whose sketches agree in fewer places are not counted out: five standard deviations below the threshold.
constexpr double kLeastAgreement = 0.56;

/// Splitmix64: a mixer whose output bits all depend on all input bits.
uint64_t mixed(uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  return x ^ x >> 31;
}

uint32_t comparable_character(uint32_t c) {
  if (c == kArabicYeh || c == kAlefMaksura) return kPersianYeh;
  if (c == kArabicKaf) return kPersianKaf;
  if (is_arabic_digit(c)) return c - 0x0660 + '0';
  if (is_persian_digit(c)) return c - 0x06F0 + '0';
  return is_within(c, 'A', 'Z') ? c + 32 : c;
}

bool is_ignored(uint32_t c) {
  return is_haraka(c) || is_invisible_mark(c) || c == kZwnj || c == kTatweel || c == kHamzaAbove;
}

std::vector<uint32_t> shingles_of(std::string_view text) {
  std::vector<uint32_t> points, out;
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = decode_utf8(text.substr(i));
    points.push_back(c.value);
    i += static_cast<size_t>(c.length);
  }
  const size_t length = std::min(kShingleLength, points.size());
  for (size_t i = 0; i + length <= points.size() && length > 0; ++i) {
    uint64_t hash = 0;
    for (size_t j = 0; j < length; ++j) hash = mixed(hash ^ points[i + j]);
    out.push_back(static_cast<uint32_t>(hash >> 32));
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

/// Common members over all members; both ascending.
double jaccard(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  size_t n_common = 0;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    n_common += a[i] == b[j] ? 1 : 0;
    const bool is_a_behind = a[i] <= b[j], is_b_behind = b[j] <= a[i];
    i += is_a_behind ? 1 : 0;
    j += is_b_behind ? 1 : 0;
  }
  const size_t n_all = a.size() + b.size() - n_common;
  return n_all == 0 ? 1 : static_cast<double>(n_common) / static_cast<double>(n_all);
}

uint64_t band_key(const NearDuplicates::Sketch& sketch, size_t band) {
  uint64_t key = band;
  for (size_t h = 0; h < NearDuplicates::kBandHashes; ++h)
    key = mixed(key ^ sketch.minima[band * NearDuplicates::kBandHashes + h]);
  return key;
}

}  // namespace

std::string comparable_text(std::string_view text) {
  std::string out;
  bool is_gap = false;
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = decode_utf8(text.substr(i));
    i += static_cast<size_t>(c.length);
    if (is_ignored(c.value)) continue;
    if (!is_word_character(c.value)) {
      is_gap = true;
      continue;
    }
    if (is_gap && !out.empty()) out += ' ';
    is_gap = false;
    append_utf8(out, comparable_character(c.value));
  }
  return out;
}

NearDuplicates::Sketch NearDuplicates::sketch_of(std::string_view comparable) {
  static const std::array<uint64_t, 2 * kNumHashes> kFactors = [] {
    std::array<uint64_t, 2 * kNumHashes> out{};
    for (size_t i = 0; i < out.size(); ++i) out[i] = mixed(i) | 1;
    return out;
  }();
  Sketch sketch;
  sketch.shingles = shingles_of(comparable);
  sketch.minima.fill(UINT32_MAX);
  for (const uint64_t shingle : sketch.shingles)
    for (size_t h = 0; h < kNumHashes; ++h) {
      const auto hash = static_cast<uint32_t>((kFactors[2 * h] * shingle + kFactors[2 * h + 1]) >> 32);
      sketch.minima[h] = std::min(sketch.minima[h], hash);
    }
  return sketch;
}

std::optional<NearDuplicates::Match> NearDuplicates::find(const Sketch& sketch) const {
  std::vector<uint32_t> candidates;
  for (size_t band = 0; band < kNumBands; ++band)
    if (const auto bucket = buckets_.find(band_key(sketch, band)); bucket != buckets_.end())
      candidates.insert(candidates.end(), bucket->second.begin(), bucket->second.end());
  std::sort(candidates.begin(), candidates.end());
  candidates.erase(std::unique(candidates.begin(), candidates.end()), candidates.end());
  for (const uint32_t candidate : candidates) {
    const Sketch& other = sketches_[candidate];
    size_t n_equal = 0;
    for (size_t h = 0; h < kNumHashes; ++h) n_equal += sketch.minima[h] == other.minima[h] ? 1 : 0;
    if (static_cast<double>(n_equal) < kLeastAgreement * kNumHashes) continue;
    const double similarity = jaccard(sketch.shingles, other.shingles);
    if (similarity >= kNearDuplicate) return Match{keys_[candidate], similarity};
  }
  return std::nullopt;
}

void NearDuplicates::add(Sketch sketch, size_t key) {
  for (size_t band = 0; band < kNumBands; ++band)
    buckets_[band_key(sketch, band)].push_back(static_cast<uint32_t>(sketches_.size()));
  sketches_.push_back(std::move(sketch));
  keys_.push_back(key);
}

}  // namespace saaz
