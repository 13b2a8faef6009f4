// Texts that say nearly the same. Two texts are near duplicates when the sets of their runs of five characters overlap
// to at least kNearDuplicate (Jaccard: common runs over all runs). MinHash finds candidates and every candidate is
// counted out exactly, so nothing is reported that is not so; at the threshold fewer than one pair in a million is
// missed.
// Source: Broder 1997; banding as in Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace saaz {

constexpr double kNearDuplicate = 0.8;

/// Letters and digits with one blank between words, in one spelling (Arabic yeh, kaf and digits as Persian ones, small
/// Latin letters, no marks): what near duplicates are compared by.
std::string comparable_text(std::string_view text);

class NearDuplicates {
 public:
  static constexpr size_t kNumHashes = 72, kNumBands = 24, kBandHashes = kNumHashes / kNumBands;

  /// What is remembered of a text.
  struct Sketch {
    std::vector<uint32_t> shingles;  // hashes of its runs, ascending, each once
    std::array<uint32_t, kNumHashes> minima{};
  };
  static Sketch sketch_of(std::string_view comparable);

  struct Match {
    size_t key = 0;
    double similarity = 0;
  };
  /// The first earlier text found that is a near duplicate.
  std::optional<Match> find(const Sketch& sketch) const;
  /// Remembers a text under the caller's `key`.
  void add(Sketch sketch, size_t key);

 private:
  std::vector<Sketch> sketches_;
  std::vector<size_t> keys_;
  std::unordered_map<uint64_t, std::vector<uint32_t>> buckets_;  // band -> indices of sketches
};

}  // namespace saaz
