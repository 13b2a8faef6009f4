// What the program says where memory is refused, whichever thread hears of it.
#pragma once

namespace saaz {

inline constexpr const char* kOutOfMemory =
    "out of memory: use a smaller batch, a shorter max_seq_length or quant.scheme nf4";

}  // namespace saaz
