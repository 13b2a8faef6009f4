#include "eval/evaluate.h"

#include <cmath>

#include "base/check.h"

namespace saaz {

PairedDifference compare(const EvalResult& before, const EvalResult& after) {
  check(before.row_tokens == after.row_tokens, ExitCode::bad_input,
        "two evaluations can only be compared row by row: the first has {} rows and {} scored tokens, the second {} "
        "and {}",
        before.n_rows, before.n_tokens, after.n_rows, after.n_tokens);
  std::vector<double> differences;
  double sum = 0;
  for (size_t i = 0; i < before.row_losses.size(); ++i) {
    if (before.row_tokens[i] == 0) continue;
    differences.push_back(after.row_losses[i] - before.row_losses[i]);
    sum += differences.back();
  }
  const auto n = static_cast<double>(differences.size());
  if (differences.empty()) return {};
  PairedDifference out{.mean = sum / n, .n_rows = static_cast<int64_t>(differences.size())};
  if (differences.size() < 2) return out;
  double squares = 0;
  for (const double d : differences) squares += (d - out.mean) * (d - out.mean);
  out.standard_error = std::sqrt(squares / (n - 1) / n);
  return out;
}

Value to_value(const EvalResult& result) {
  Value losses = Value::array(), tokens = Value::array();
  for (const double loss : result.row_losses) losses.push_back(loss);
  for (const int64_t n : result.row_tokens) tokens.push_back(n);
  return Value::object({{"loss", result.loss_nats},
                        {"perplexity", result.perplexity},
                        {"standard_error", result.standard_error},
                        {"n_tokens", result.n_tokens},
                        {"n_rows", result.n_rows},
                        {"row_losses", losses},
                        {"row_tokens", tokens}});
}

Value to_value(const PairedDifference& difference) {
  return Value::object(
      {{"mean", difference.mean}, {"standard_error", difference.standard_error}, {"n_rows", difference.n_rows}});
}

std::string to_text(const EvalResult& result) {
  return fmt::format(
      "loss        {:.6f} nats a token, standard error {:.6f}\nperplexity  {:.4f}\nscored      {} tokens in {} rows\n",
      result.loss_nats, result.standard_error, result.perplexity, result.n_tokens, result.n_rows);
}

std::string to_text(const PairedDifference& difference) {
  std::string text = fmt::format("difference  {:+.6f} nats a token, mean over {} rows, standard error {:.6f}",
                                 difference.mean, difference.n_rows, difference.standard_error);
  if (difference.standard_error > 0)
    text += fmt::format(" ({:.1f} standard errors)", std::abs(difference.mean) / difference.standard_error);
  return text + "\n";
}

}  // namespace saaz
