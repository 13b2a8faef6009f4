// The GGUF block formats, one block at a time: what `dequantise` (weight.h) walks over. Layouts: docs/formats.md 2.
// Room-private. In: one block's bytes, any alignment. Out: 32 or 256 f32 values, each product and sum rounded on its
// own (no fused step).
#pragma once

#include <cstddef>

#include "quant/weight.h"

namespace saaz {

/// Decodes one block into block_size(format).elements floats.
using BlockDecoder = void (*)(const std::byte* block, float* out);

/// The decoder of a block format (q4_0 ... q6_k); a dense format or nf4 is the caller's bug.
BlockDecoder block_decoder(WeightFormat format);

}  // namespace saaz
