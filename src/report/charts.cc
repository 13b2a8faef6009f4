#include "report/charts.h"

#include <array>
#include <cmath>

#include "base/check.h"

namespace saaz {

namespace {

/// One figure of every update.
Series series_of(const RunRecord& run, double StepRecord::*figure) {
  Series out;
  for (const StepRecord& step : run.steps) {
    out.x.push_back(static_cast<double>(step.step));
    out.y.push_back(step.*figure);
  }
  return out;
}

Series smoothed_series(const RunRecord& run, double StepRecord::*figure) {
  Series out = series_of(run, figure);
  out.y = smoothed(out.y, smoothing_weight(out.y.size()));
  return out;
}

Series validation_series(const RunRecord& run) {
  Series out{.style = Series::Style::markers};
  for (const EvalRecord& eval : run.evals) {
    out.x.push_back(static_cast<double>(eval.step));
    out.y.push_back(eval.loss);
  }
  return out;
}

Series with(Series series, std::string label, const char* colour, Series::Style style) {
  series.label = std::move(label);
  series.colour = colour;
  series.style = style;
  return series;
}

/// A figure of every update, faint, and its moving average over it.
std::vector<Series> raw_and_smoothed(const RunRecord& run, double StepRecord::*figure, const char* what) {
  const double weight = smoothing_weight(run.steps.size());
  return {
      with(series_of(run, figure), what, kBlue, Series::Style::faint),
      with(smoothed_series(run, figure), fmt::format("moving average ({:.2f})", weight), kBlue, Series::Style::line)};
}

constexpr const char* kUpdates = "update";

}  // namespace

std::vector<double> smoothed(std::span<const double> values, double weight) {
  std::vector<double> out;
  double sum = 0, mass = 0;
  for (const double v : values) {
    if (std::isfinite(v)) {
      sum = weight * sum + (1 - weight) * v;
      mass = weight * mass + (1 - weight);
    }
    out.push_back(std::isfinite(v) ? sum / mass : kUnknown);
  }
  return out;
}

double smoothing_weight(size_t n_values) {
  constexpr double kShare = 20, kLeast = 0.5;
  return std::max(kLeast, 1 - kShare / std::max(kShare, static_cast<double>(n_values)));
}

Chart loss_chart(const RunRecord& run) {
  Chart chart{.title = "Loss: " + run.name, .x_label = kUpdates, .y_label = "loss (nats per token)"};
  chart.series = raw_and_smoothed(run, &StepRecord::loss, "each update");
  if (!run.evals.empty()) {
    std::string label = fmt::format("validation {:.3f}", run.evals.front().loss);
    if (run.evals.size() > 1) label += fmt::format(" to {:.3f}", run.evals.back().loss);
    chart.series.push_back(with(validation_series(run), label, kOrange, Series::Style::markers));
  }
  return chart;
}

Chart grad_norm_chart(const RunRecord& run) {
  Chart chart{.title = "Gradient norm: " + run.name,
              .x_label = kUpdates,
              .y_label = "2-norm before clipping",
              .from_zero = true};
  chart.series = raw_and_smoothed(run, &StepRecord::grad_norm, "each update");
  const Value* train = run.recipe.find("train");
  const double limit = train == nullptr ? 0 : number_or(*train, "max_grad_norm", 0);
  if (limit > 0 && !run.steps.empty()) {
    Series clip{.x = {0, static_cast<double>(run.steps.back().step)}, .y = {limit, limit}};
    chart.series.push_back(with(clip, fmt::format("clipped to {:g}", limit), kOrange, Series::Style::dashed));
  }
  return chart;
}

Chart learning_rate_chart(const RunRecord& run) {
  Chart chart{
      .title = "Learning rate: " + run.name, .x_label = kUpdates, .y_label = "learning rate", .from_zero = true};
  chart.series = {with(series_of(run, &StepRecord::learning_rate), "", kGreen, Series::Style::line)};
  return chart;
}

Chart comparison_chart(std::span<const RunRecord> runs) {
  static constexpr std::array kColours = {kBlue, kOrange, kGreen};
  Chart chart{.title = "Loss: moving average, and validation (circles)",
              .x_label = kUpdates,
              .y_label = "loss (nats per token)"};
  for (size_t i = 0; i < runs.size(); ++i) {
    const char* colour = kColours[i % kColours.size()];
    const Series training = smoothed_series(runs[i], &StepRecord::loss);
    chart.series.push_back(with(training, runs[i].name, colour, Series::Style::line));
    chart.series.push_back(with(validation_series(runs[i]), "", colour, Series::Style::markers));
  }
  return chart;
}

void write_charts(const RunRecord& run, const fs::path& folder) {
  if (run.steps.empty()) return;
  make_directories(folder);
  write_file_atomically(folder / "loss.svg", to_svg(loss_chart(run)));
  write_file_atomically(folder / "grad_norm.svg", to_svg(grad_norm_chart(run)));
  write_file_atomically(folder / "learning_rate.svg", to_svg(learning_rate_chart(run)));
}

}  // namespace saaz
