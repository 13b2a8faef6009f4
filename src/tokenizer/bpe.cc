// Merging with a heap of candidate pairs over a linked list. Enters: symbols. Leaves: merged symbols, compacted.
// Invariant: a heap entry is only a hint: on pop it counts when the pair at its place still has the entry's rank.
// A place's pair only grows, so a stale entry never has the rank of the pair that replaced it.
#include "tokenizer/bpe.h"

#include <bit>
#include <functional>
#include <queue>

namespace saaz {

MergeTable::MergeTable(const std::vector<Merge>& merges)
    : slots_(std::bit_ceil(merges.size() + merges.size() / 2 + 1)) {
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    slots_[slot_of(merge.left, merge.right)] = {merge.left, merge.right, static_cast<uint32_t>(rank), merge.result};
  }
}

size_t MergeTable::slot_of(int32_t left, int32_t right) const {
  const uint64_t key = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  const size_t mask = slots_.size() - 1;
  size_t slot = (key * 0x9E3779B97F4A7C15ull) >> 32 & mask;
  while (slots_[slot].left >= 0 && (slots_[slot].left != left || slots_[slot].right != right)) slot = (slot + 1) & mask;
  return slot;
}

const MergeTable::Entry* MergeTable::find(int32_t left, int32_t right) const {
  const Entry& entry = slots_[slot_of(left, right)];
  return entry.left < 0 ? nullptr : &entry;
}

namespace {

struct Link {
  int32_t previous = -1, next = -1;
};

class Merger {
 public:
  Merger(const MergeTable& table, std::vector<Symbol>& symbols)
      : table_(table), symbols_(symbols), links_(symbols.size()) {
    const auto n = static_cast<int32_t>(symbols.size());
    for (int32_t i = 0; i < n; ++i) links_[i] = {i - 1, i + 1 < n ? i + 1 : -1};
    for (int32_t i = 0; i + 1 < n; ++i) offer(i);
  }

  void run() {
    while (!candidates_.empty()) {
      const uint64_t top = candidates_.top();
      candidates_.pop();
      const auto place = static_cast<int32_t>(top & 0xFFFFFFFF);
      const MergeTable::Entry* pair = pair_at(place);
      if (pair && pair->rank == top >> 32) join(place, pair->result);
    }
    std::erase_if(symbols_, [](const Symbol& symbol) { return symbol.id < 0; });
  }

 private:
  const MergeTable::Entry* pair_at(int32_t place) const {
    const int32_t next = links_[place].next;
    if (symbols_[place].id < 0 || next < 0) return nullptr;
    return table_.find(symbols_[place].id, symbols_[next].id);
  }
  void offer(int32_t place) {
    if (const auto* pair = pair_at(place))
      candidates_.push(static_cast<uint64_t>(pair->rank) << 32 | static_cast<uint32_t>(place));
  }
  void join(int32_t place, int32_t result) {
    const int32_t gone = links_[place].next, after = links_[gone].next;
    symbols_[place].id = result;
    symbols_[gone].id = -1;
    links_[place].next = after;
    if (after >= 0) links_[after].previous = place;
    if (links_[place].previous >= 0) offer(links_[place].previous);
    offer(place);
  }

  const MergeTable& table_;
  std::vector<Symbol>& symbols_;
  std::vector<Link> links_;
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> candidates_;  // rank << 32 | place
};

}  // namespace

void merge_symbols(const MergeTable& table, std::vector<Symbol>& symbols) {
  if (symbols.size() > 1) Merger(table, symbols).run();
}

}  // namespace saaz
