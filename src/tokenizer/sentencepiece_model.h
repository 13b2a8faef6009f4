// tokenizer.model: SentencePiece's protobuf. Enters: a BPE model with byte fallback and no text normalisation, as
// Gemma's. Leaves: a Vocabulary, or such a file. Invariant: a written file encodes text without control tokens as we do
// (checked with SentencePiece itself). Source: sentencepiece_model.proto's field numbers.
#pragma once

#include <string>

#include "base/bytes.h"
#include "tokenizer/vocabulary.h"

namespace saaz {

/// `name` (a path) opens every message. bad_input for damaged files and for models of another kind.
Vocabulary read_sentencepiece_model(Bytes bytes, const std::string& name);

/// The bytes of a tokenizer.model. Turn and media markers become user-defined pieces, as in Gemma's own file.
std::string write_sentencepiece_model(const Vocabulary& vocabulary);

}  // namespace saaz
