// The vocabulary in a GGUF file's header, as the tokenizer room takes it.
#pragma once

#include "base/system.h"
#include "tokenizer/vocabulary.h"

namespace saaz {

/// bad_input naming file and key when the header holds no SentencePiece vocabulary.
GgufVocabulary read_gguf_vocabulary(const fs::path& path);

}  // namespace saaz
