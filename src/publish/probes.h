// Fixed Persian sentences on which two models' logits are compared.
#pragma once

#include <vector>

#include "model/weight_source.h"

namespace saaz {

/// Token ids of the probes with the base's own tokenizer (bos first). A base without one gives fixed pseudo-random ids.
std::vector<std::vector<int32_t>> probe_ids(const BaseModel& base);

}  // namespace saaz
