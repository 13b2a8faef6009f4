// `saaz generate --batch`: a file of requests in OpenAI's batch format, answered into another. Enters: one request a
// line (custom_id, method, url, body). Leaves: one answer or error a line, in the order of the requests. Invariant: the
// lines written so far answer the first requests of the input, each whole; so a run that was killed goes on where it
// stopped, and a line cut short is made again. Format and exit codes: docs/generation.md.
#pragma once

#include <string>

#include "cli/answer.h"

namespace saaz {

struct BatchFlags {
  std::string input, output;
  int64_t context = 4096, parallel = 16;
};

/// Returns the exit code: 0 when every request was answered, bad_input when some could not be.
int run_batch(const ModelFlags& model, const AnswerFlags& defaults, const BatchFlags& flags, const Globals& globals);

}  // namespace saaz
