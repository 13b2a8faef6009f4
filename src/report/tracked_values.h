// What experiment trackers are told of an event, under the names Hugging Face's callbacks use.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "report/run_record.h"

namespace saaz {

using TrackedValues = std::vector<std::pair<std::string, double>>;

inline TrackedValues tracked_values(const Value& event) {
  static constexpr struct {
    const char *event, *key, *tag;
  } kRows[] = {
      {"step", "loss_nats", "train/loss"},
      {"step", "grad_norm", "train/grad_norm"},
      {"step", "learning_rate", "train/learning_rate"},
      {"step", "epoch", "train/epoch"},
      {"eval", "eval_loss_nats", "eval/loss"},
      {"eval", "runtime_s", "eval/runtime"},
      {"eval", "samples_per_s", "eval/samples_per_second"},
      {"end", "train_loss", "train/train_loss"},
      {"end", "train_runtime", "train/train_runtime"},
      {"end", "train_samples_per_second", "train/train_samples_per_second"},
      {"end", "train_steps_per_second", "train/train_steps_per_second"},
      {"end", "total_flos", "train/total_flos"},
  };
  TrackedValues out;
  const std::string kind = text_or_empty(event, "event");
  for (const auto& row : kRows)
    if (const Value* value = event.find(row.key); kind == row.event && value != nullptr && value->is_number())
      out.emplace_back(row.tag, value->as_double());
  return out;
}

}  // namespace saaz
