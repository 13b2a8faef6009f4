// What generate and chat share: the sampling flags, and writing an answer while it is made.
#pragma once

#include <string>

#include "cli/session.h"
#include "infer/generate.h"

namespace saaz {

/// --max-new-tokens, --temperature, --top-k, --top-p, --min-p, --repetition-penalty, --seed
void declare_sampling(Arguments& arguments, GenerateOptions& options);

/// Answers one prompt and writes the text to stdout as it becomes certain, with a newline at the end. A stop signal
/// ends it.
Answer stream_answer(Generator& generator, const Tokenizer& tokenizer, const std::vector<int32_t>& prompt,
                     const GenerateOptions& options);

}  // namespace saaz
