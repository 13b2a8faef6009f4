// The probes that a recipe asks for, embedded or of a file.
#pragma once

#include <memory>

#include "config/recipe.h"
#include "eval/probes.h"

namespace saaz {

/// nullptr without eval.probes. Errors: those of the base's tokenizer and of Probes; bad_input for a missing file.
std::shared_ptr<const Probes> probes_of(const Recipe& recipe);

}  // namespace saaz
