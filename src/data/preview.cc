#include "data/preview.h"

#include <algorithm>

#include "base/check.h"
#include "base/unicode.h"
#include "data/script.h"

namespace saaz {
namespace {

/// A character that would steer a terminal or reorder its line.
bool is_steering(uint32_t c) {
  const bool is_control = c < 0x20 || is_within(c, 0x7F, 0x9F) || c == 0x2028 || c == 0x2029;
  return is_control || (is_invisible_mark(c) && c != kSoftHyphen);
}

struct Marks {
  const char *scored_begin, *scored_end, *masked_begin, *masked_end;
};
constexpr Marks kPlain{"⟦", "⟧", "", ""};
constexpr Marks kAnsi{"\x1b[1;32m", "\x1b[0m", "\x1b[2m", "\x1b[0m"};

}  // namespace

std::string visible_token(const Tokenizer& tokenizer, int32_t id, std::string_view newline) {
  const Piece& piece = tokenizer.vocabulary().pieces[id];
  if (piece.type == PieceType::byte) return piece.text;
  const std::string text = tokenizer.decode(std::span(&id, 1), SkipSpecial::no);
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const CodePoint point = decode_utf8(std::string_view(text).substr(i));
    if (point.value == '\n') {
      out += newline;
    } else if (is_steering(point.value)) {
      out += fmt::format("<U+{:04X}>", point.value);
    } else {
      append_utf8(out, point.value);
    }
    i += point.length;
  }
  return out;
}

std::string preview(const Tokenizer& tokenizer, const Row& row, const EncodeOptions& options, Colours colours) {
  const Sample sample = encode_whole(tokenizer, row, options.loss_on);
  const Marks& marks = colours == Colours::ansi ? kAnsi : kPlain;
  const auto n_kept = std::min<int64_t>(static_cast<int64_t>(sample.ids.size()), options.max_seq_length);
  std::string out = row.place() + "\n";
  int64_t n_scored = 0;
  for (int64_t i = 0; i < n_kept; ++i) {
    const bool is_scored = sample.scored[i] != 0;
    const bool is_run_start = i == 0 || (sample.scored[i - 1] != 0) != is_scored;
    const bool is_run_end = i + 1 == n_kept || (sample.scored[i + 1] != 0) != is_scored;
    if (is_run_start) out += is_scored ? marks.scored_begin : marks.masked_begin;
    out += visible_token(tokenizer, sample.ids[i], "↵\n");
    out += is_run_end ? (is_scored ? marks.scored_end : marks.masked_end) : "|";
    n_scored += is_scored ? 1 : 0;
  }
  if (!out.ends_with('\n')) out += '\n';
  out += fmt::format("{} tokens, {} scored, {} cut off\n", n_kept, n_scored,
                     static_cast<int64_t>(sample.ids.size()) - n_kept);
  return out;
}

}  // namespace saaz
