// Byte-pair merging. Enters: the symbols of one fragment of text. Leaves: the same symbols after all merges, as Hugging
// Face's BPE does them: always the pair of the lowest rank, the leftmost on ties. Invariant: O(n log n) for any text,
// and each symbol keeps the byte offset it began at. Source: gemma3n.md 9.2.
#pragma once

#include <cstdint>
#include <vector>

#include "tokenizer/vocabulary.h"

namespace saaz {

/// One token-to-be: piece id, and where it begins in the text.
struct Symbol {
  int32_t id = 0;
  uint32_t begin = 0;
};

/// Pair of pieces -> rank and result, in open addressing.
class MergeTable {
 public:
  struct Entry {
    int32_t left = -1, right = -1;
    uint32_t rank = 0;
    int32_t result = 0;
  };
  explicit MergeTable(const std::vector<Merge>& merges);
  /// nullptr when the two are not merged.
  const Entry* find(int32_t left, int32_t right) const;

 private:
  size_t slot_of(int32_t left, int32_t right) const;
  std::vector<Entry> slots_;  // left < 0 = empty
};

/// Merges `symbols` in place.
void merge_symbols(const MergeTable& table, std::vector<Symbol>& symbols);

}  // namespace saaz
