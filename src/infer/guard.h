// The decoding guard: keeps an answer in clean Persian while it is made. Enters: the text so far and the logits.
// Leaves: logits in which the tokens that would break a rule are out, their probability given to the token that spells
// the same the Persian way, where there is one. Invariant: inside code (fenced and inline) and LaTeX nothing is
// touched. Rules and their measured effect: docs/generation.md.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "data/normalize.h"
#include "tokenizer/tokenizer.h"

namespace saaz {

struct GuardOptions {
  Digits digits = Digits::fa;  // of prose; keep: as the model writes them
};

/// Where in an answer its next character stands.
class GuardState {
 public:
  /// What stands before the next character of prose.
  enum class Before : uint8_t {
    line,         // nothing, or the end of a line
    open,         // a blank, a mark
    arabic,       // a letter of Persian, or a mark on it
    half_space,   // ZWNJ
    latin,        // a run that began with a Latin letter
    digit,        // one of prose
    list_digit,   // a Latin one that opens a line: 1
    list_digits,  // two
    greek,
    symbol,  // an emoji, or a mark that goes on one
  };
  static constexpr size_t kNumBefore = 10;

  /// Code or LaTeX: anything may follow.
  bool is_free() const { return mode_ != Mode::prose || run_ > 0; }
  Before before() const { return before_; }
  void set_before(Before before) { before_ = before; }
  void push(uint32_t c);
  void push(std::string_view text);

 private:
  enum class Mode : uint8_t { prose, inline_code, fence, dollar, double_dollar, bracket };
  void push_prose(uint32_t c);
  void push_code(uint32_t c);
  void push_latex(uint32_t c);

  Mode mode_ = Mode::prose;
  Before before_ = Before::line;
  bool line_starts_ = true;  // only blanks since the line began
  uint32_t mark_ = 0;        // of the run, and of a fence: ` or ~
  int64_t run_ = 0;          // marks just before, which may open or close code
  bool run_starts_line_ = false;
  int64_t open_ = 0;  // marks that opened it
  uint32_t last_ = '\n';
};

/// Whether the rules let `c` follow in prose.
bool guard_allows(GuardState::Before before, uint32_t c, Digits digits);

/// The rules, worked out for every token of a vocabulary. Immutable; made once for all sequences.
class GuardTable {
 public:
  GuardTable(const Tokenizer& tokenizer, const GuardOptions& options);
  /// Takes out what may not follow.
  void apply(const GuardState& state, std::span<float> logits) const;
  bool allows(const GuardState& state, int32_t id) const;

 private:
  struct Twin {
    int32_t from, to;  // the same word, spelled another way and the Persian way
  };
  std::vector<uint16_t> banned_;  // by id: bit b = not after Before b
  std::vector<Twin> twins_;
};

}  // namespace saaz
