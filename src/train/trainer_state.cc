#include "train/trainer_state.h"

#include "base/system.h"

namespace saaz {

namespace {

constexpr const char* kName = "SaazState";

double number(const Value& object, const char* key) {
  const Value* value = object.find(key);
  return value != nullptr && value->is_number() ? value->as_double() : 0;
}

std::string digest_of(std::span<const Sample> rows) {
  std::string text;
  for (const Sample& row : rows) {
    for (const int32_t id : row.ids) text += std::to_string(id) + ' ';
    text += '\n';
  }
  return sha256_hex(text);
}

}  // namespace

Value stateful_callbacks(const Value& inputs, const RunSums& sums) {
  const Value attributes = Value::object({{"inputs", inputs},
                                          {"loss_sum", sums.loss},
                                          {"n_samples", sums.n_samples},
                                          {"n_unlogged", sums.n_unlogged},
                                          {"owes_look", sums.owes_look},
                                          {"seconds", sums.seconds},
                                          {"unlogged_loss_sum", sums.unlogged_loss}});
  return Value::object({{kName, Value::object({{"args", Value::object()}, {"attributes", attributes}})}});
}

const Value* find_own_state(const Value& trainer_state) {
  const Value* callbacks = trainer_state.find("stateful_callbacks");
  const Value* own = callbacks == nullptr ? nullptr : callbacks->find(kName);
  return own == nullptr ? nullptr : own->find("attributes");
}

RunSums read_sums(const Value& own_state) {
  const Value* owes_look = own_state.find("owes_look");
  return {.loss = number(own_state, "loss_sum"),
          .seconds = number(own_state, "seconds"),
          .n_samples = static_cast<int64_t>(number(own_state, "n_samples")),
          .unlogged_loss = number(own_state, "unlogged_loss_sum"),
          .n_unlogged = static_cast<int64_t>(number(own_state, "n_unlogged")),
          .owes_look = owes_look != nullptr && owes_look->is_bool() && owes_look->as_bool()};
}

Value end_entry(const RunSums& sums, int64_t step, double epoch, double total_flos) {
  const auto n_steps = static_cast<double>(step), n_samples = static_cast<double>(sums.n_samples);
  return Value::object({{"epoch", epoch},
                        {"step", step},
                        {"total_flos", total_flos},
                        {"train_loss", sums.loss / n_steps},
                        {"train_runtime", sums.seconds},
                        {"train_samples_per_second", n_samples / sums.seconds},
                        {"train_steps_per_second", n_steps / sums.seconds}});
}

Value row_losses_entry(int64_t step, std::span<const Sample> rows, const EvalResult& result) {
  return Value::object(
      {{"step", step},
       {"rows_sha256", digest_of(rows)},
       {"row_losses", Value::array(std::vector<Value>(result.row_losses.begin(), result.row_losses.end()))},
       {"row_tokens", Value::array(std::vector<Value>(result.row_tokens.begin(), result.row_tokens.end()))}});
}

}  // namespace saaz
