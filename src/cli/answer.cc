#include "cli/answer.h"

#include <limits>

#include "base/system.h"

namespace saaz {

void declare_sampling(Arguments& arguments, GenerateOptions& options) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  SamplingOptions& sampling = options.sampling;
  arguments.integer("--max-new-tokens", options.max_new_tokens, 1, kMax, "the longest answer");
  arguments.real("--temperature", sampling.temperature, 0, 100, "0 always takes the most likely token");
  arguments.integer("--top-k", sampling.top_k, 0, kMax, "draw from the k most likely; 0 = all");
  arguments.real("--top-p", sampling.top_p, 0, 1, "draw from the smallest set with this probability; 1 = all");
  arguments.real("--min-p", sampling.min_p, 0, 1, "drop tokens below this share of the best; 0 = none");
  arguments.real("--repetition-penalty", sampling.repetition_penalty, 0.01, 100, "1 = off");
  arguments.unsigned_integer("--seed", sampling.seed, "of the draws");
}

Answer stream_answer(Generator& generator, const Tokenizer& tokenizer, const std::vector<int32_t>& prompt,
                     const GenerateOptions& options) {
  StreamDecoder decoder(tokenizer, SkipSpecial::yes);
  const auto on_token = [&](size_t, int32_t id) {
    print_text(without_controls(decoder.push(id)));
    return stop_signal() == 0;
  };
  const Answer answer = generator.generate({&prompt, 1}, options, on_token)[0];
  print_text(without_controls(decoder.finish()) + "\n");
  return answer;
}

}  // namespace saaz
