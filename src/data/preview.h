// Rows as the tokens that the model is trained on: one row for a terminal, several as a page. Enters: rows, their
// samples and, for the page, each token's loss. Leaves: text. Nothing of a row can steer a terminal or become markup:
// control characters, marks of direction and HTML's own characters are shown, not passed on.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/value.h"
#include "data/batcher.h"

namespace saaz {

enum class Colours { none, ansi };

/// One row as tokens, separated by '|', cut as in training. Scored tokens are green, or stand inside ⟦ ⟧ without
/// colours; a newline shows as ↵ and breaks the line. Ends with a line on what was cut.
std::string preview(const Tokenizer& tokenizer, const Row& row, const EncodeOptions& options, Colours colours);

/// A sample as the model sees it, by turns: {n_tokens, n_scored, n_cut, turns: [{role, text, n_tokens, n_scored}]}. Raw
/// text is one turn of the role "text".
Value turns_of(const Tokenizer& tokenizer, const Sample& sample);

struct PreviewRow {
  std::string file;
  int64_t number = 0, line = 0;  // as in Row
  Sample sample;                 // cut
  std::vector<float> losses;     // [ids.size()] in nats, of every token but the first; empty: not computed
};

enum class Language { en, fa };

/// One HTML file without scripts that loads nothing: each token coloured by whether it is trained on or, with losses,
/// by its loss, with id, text and loss shown under the pointer. Every line has the direction of its own text.
std::string preview_page(const Tokenizer& tokenizer, std::span<const PreviewRow> rows, const std::string& model,
                         Language language);

/// A token's text for people. Byte pieces, which are no text alone, show as <0xNN>, characters that would steer a
/// terminal or a line's direction as <U+NNNN>, newlines as `newline`.
std::string visible_token(const Tokenizer& tokenizer, int32_t id, std::string_view newline);

}  // namespace saaz
