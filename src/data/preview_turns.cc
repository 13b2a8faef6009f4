// A sample as turns of text, for the events of a run: what its dashboard shows of the training data.
#include <algorithm>

#include "base/unicode.h"
#include "data/preview.h"

namespace saaz {
namespace {

/// The turn of the tokens [begin, end). Its first line names the role when it opens with <start_of_turn>.
Value turn_of(const Tokenizer& tokenizer, const Sample& sample, size_t begin, size_t end, bool has_role) {
  const std::string text = tokenizer.decode(std::span(sample.ids).subspan(begin, end - begin), SkipSpecial::yes);
  const size_t line = has_role ? std::min(text.find('\n'), text.size()) : 0;
  const auto scored = sample.scored.begin() + static_cast<int64_t>(begin);
  return Value::object(
      {{"role", has_role ? Value(text.substr(0, line)) : Value("text")},
       {"text", Value(strip_like_python(std::string_view(text).substr(line)))},
       {"n_tokens", Value(static_cast<int64_t>(end - begin))},
       {"n_scored", Value(static_cast<int64_t>(std::count(scored, scored + static_cast<int64_t>(end - begin), 1)))}});
}

}  // namespace

Value turns_of(const Tokenizer& tokenizer, const Sample& sample) {
  const std::optional<int32_t> start = tokenizer.find_token("<start_of_turn>");
  const auto is_start = [&](size_t i) { return start && sample.ids[i] == *start; };
  std::vector<Value> turns;
  const size_t n = sample.ids.size();
  for (size_t begin = n > 0 && tokenizer.find_token("<bos>") == sample.ids[0] ? 1 : 0; begin < n;) {
    size_t end = begin + 1;
    while (end < n && !is_start(end)) ++end;
    turns.push_back(turn_of(tokenizer, sample, begin, end, is_start(begin)));
    begin = end;
  }
  return Value::object({{"n_tokens", Value(static_cast<int64_t>(n))},
                        {"n_scored", Value(sample.n_scored())},
                        {"n_cut", Value(sample.n_cut)},
                        {"turns", Value::array(std::move(turns))}});
}

}  // namespace saaz
