// Arena: a stack of memory for activations. Tensors are bumped off it and released together at a mark, so the same step
// gets the same addresses. A measuring arena (plan backend) hands out addresses that must never be touched and only
// counts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "tensor/tensor.h"

namespace saaz {

class Arena {
 public:
  static constexpr int64_t kAlignment = 64;

  /// Uses [base, base + capacity), not owned, base aligned to 64.
  Arena(void* base, int64_t capacity) : base_(static_cast<char*>(base)), capacity_(capacity) {}
  /// An arena that only measures: its addresses are not memory.
  static Arena measuring() { return Arena(reinterpret_cast<void*>(kAlignment), int64_t{1} << 50); }

  /// Throws resource naming the bytes when the capacity is exceeded.
  void* allocate(int64_t bytes);
  Tensor tensor(DType dtype, std::initializer_list<int64_t> dims) {
    Tensor t(nullptr, dtype, dims);
    t.data = allocate(t.bytes());
    return t;
  }
  int64_t used() const { return used_; }
  int64_t peak() const { return peak_; }
  int64_t capacity() const { return capacity_; }
  void release_to(int64_t mark) { used_ = mark; }

 private:
  char* base_;
  int64_t capacity_;
  int64_t used_ = 0, peak_ = 0;
};

/// Releases what was allocated since its construction at the closing brace.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.used()) {}
  ~ArenaScope() { arena_.release_to(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  int64_t mark_;
};

}  // namespace saaz
