// The decoding guard: keeps an answer in clean Persian while it is made. Enters: the text so far and the logits.
// Leaves: logits in which the tokens that would break a rule are out, their probability given to the token that spells
// the same the Persian way, where there is one. Invariant: inside code (fenced and inline) and LaTeX nothing is
// touched. Rules and their measured effect: docs/generation.md.
#pragma once

#include "data/normalize.h"

namespace saaz {

struct GuardOptions {
  Digits digits = Digits::fa;  // of prose; keep: as the model writes them
};

}  // namespace saaz
