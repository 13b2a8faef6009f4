// Comparison and figures of evaluations (src/eval), and evaluate_loss on the tiny model: independent of batching.
#include "eval/evaluate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "model/weight_source.h"

namespace saaz {
namespace {

EvalResult result_of(std::vector<double> losses, std::vector<int64_t> tokens) {
  EvalResult result;
  result.n_rows = static_cast<int64_t>(losses.size());
  result.row_losses = std::move(losses);
  result.row_tokens = std::move(tokens);
  return result;
}

TEST(Evaluate, PairedDifferenceIsTheMeanOfRowDifferences) {
  const PairedDifference d = compare(result_of({4, 2, 9, 0}, {3, 5, 1, 0}), result_of({3, 1.5, 6, 0}, {3, 5, 1, 0}));
  EXPECT_EQ(d.n_rows, 3);  // a row without scored tokens says nothing
  EXPECT_DOUBLE_EQ(d.mean, -1.5);
  // Differences -1, -0.5, -3: variance 1.75, so the error of the mean is sqrt(1.75 / 3).
  EXPECT_DOUBLE_EQ(d.standard_error, std::sqrt(1.75 / 3));
}

TEST(Evaluate, OtherRowsAreRefused) {
  EXPECT_THROW(compare(result_of({4, 2}, {3, 5}), result_of({4, 2}, {3, 6})), Error);
  EXPECT_THROW(compare(result_of({4, 2}, {3, 5}), result_of({4}, {3})), Error);
}

TEST(Evaluate, LossDoesNotDependOnBatching) {
  const std::unique_ptr<Backend> backend = make_cpu_backend({.n_threads = 2, .instruction_set = ""});
  const BaseModel base = open_base_model(SAAZ_SOURCE_DIR "/data/try/model");
  const std::unique_ptr<Model> model = load_model(*backend, base, {.scheme = QuantScheme::none, .max_positions = 64});
  std::vector<Sample> samples;
  for (int32_t s = 0; s < 7; ++s) {
    Sample& sample = samples.emplace_back();
    for (int32_t i = 0; i < 5 + 3 * s; ++i) sample.ids.push_back((17 * i + 5 * s) % 200);
    sample.scored.assign(sample.ids.size(), 1);
    sample.scored[0] = 0;
  }
  const EvalResult alone = evaluate_loss(*backend, *model, samples, 1),
                   packed = evaluate_loss(*backend, *model, samples, 50);
  EXPECT_EQ(alone.row_losses, packed.row_losses);
  EXPECT_EQ(alone.loss_nats, packed.loss_nats);
  EXPECT_EQ(alone.n_tokens, 7 * 4 + 3 * 21);
  EXPECT_GT(alone.standard_error, 0);
  EXPECT_EQ(alone.perplexity, std::exp(alone.loss_nats));

  samples[0].ids.resize(65);
  samples[0].scored.resize(65, 1);
  EXPECT_THROW(evaluate_loss(*backend, *model, samples, 50), Error);
  EXPECT_THROW(evaluate_loss(*backend, *model, {}, 50), Error);
}

}  // namespace
}  // namespace saaz
