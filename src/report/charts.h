// The figures of a run, at any moment: charts/loss.svg (updates, smoothed, validation), charts/grad_norm.svg (before
// clipping) and charts/learning_rate.svg; and two or more runs in one figure.
#pragma once

#include <span>

#include "report/run_record.h"
#include "report/svg_chart.h"

namespace saaz {

Chart loss_chart(const RunRecord& run);
Chart grad_norm_chart(const RunRecord& run);
Chart learning_rate_chart(const RunRecord& run);
/// Smoothed training loss and validation loss of several runs.
Chart comparison_chart(std::span<const RunRecord> runs);

/// Writes the three into `folder`, which is created. Nothing for a run without a step.
void write_charts(const RunRecord& run, const fs::path& folder);

/// The exponential moving average that TensorBoard draws, without its pull towards zero at the start; values that are
/// not finite are passed over.
std::vector<double> smoothed(std::span<const double> values, double weight);
/// Remembers about a twentieth of the run.
double smoothing_weight(size_t n_values);

}  // namespace saaz
