// The certificate as JSON and as a table.
#include <algorithm>

#include "base/check.h"
#include "publish/merge.h"

namespace saaz {

Value Certificate::to_value() const {
  std::vector<Value> module_values, failure_values(failures.begin(), failures.end());
  for (const ModuleReport& m : modules)
    module_values.push_back(
        Value::object({{"name", Value(m.name)},
                       {"weight_norm", Value(m.weight_norm)},
                       {"delta_norm", Value(m.delta_norm)},
                       {"delta_over_weight", Value(m.weight_norm > 0 ? m.delta_norm / m.weight_norm : 0)},
                       {"survived", Value(m.survived)},
                       {"rounding_error_over_delta", Value(m.delta_norm > 0 ? m.rounding_error / m.delta_norm : 0)},
                       {"n_changed", Value(m.n_changed)}}));
  std::vector<Value::Member> files;
  for (const auto& [name, hash] : file_hashes) files.emplace_back(name, Value(hash));
  return Value::object({{"schema_version", Value(1)},
                        {"passed", Value(passed())},
                        {"failures", Value::array(std::move(failure_values))},
                        {"base", Value(base)},
                        {"adapter", Value(adapter)},
                        {"merge_base", Value(merge_base == MergeBase::deq4 ? "deq4" : "w16")},
                        {"dtype", Value(dtype)},
                        {"n_adapter_modules", Value(static_cast<int64_t>(n_adapter_modules))},
                        {"n_merged_modules", Value(static_cast<int64_t>(modules.size()))},
                        {"n_tensors", Value(n_tensors)},
                        {"n_passed_through", Value(n_passed_through)},
                        {"logit_gap", Value::object({{"rms_adapter_against_merged", Value(gap.merged)},
                                                     {"bound", Value(gap.bound)},
                                                     {"largest", Value(gap.largest)},
                                                     {"rms_base_against_adapter", Value(gap.adapter)},
                                                     {"rms_rounding_noise", Value(gap.noise)},
                                                     {"same_top_token", Value(gap.same_top)},
                                                     {"n_probe_tokens", Value(gap.n_tokens)}})},
                        {"modules", Value::array(std::move(module_values))},
                        {"files", Value::object(std::move(files))}});
}

namespace {

/// "down_proj" of "layers.3.mlp.down_proj.weight", "altup_projections" of "altup_projections.0.weight".
std::string kind_of(const std::string& tensor) {
  std::string module = tensor.substr(0, tensor.rfind('.'));
  if (module.find_first_not_of("0123456789", module.rfind('.') + 1) == module.npos) module.resize(module.rfind('.'));
  return module.substr(module.rfind('.') + 1);
}

}  // namespace

std::string Certificate::to_table() const {
  // One line for each kind of module, over its layers.
  struct Group {
    int64_t n = 0;
    double lowest = 1e300, highest = 0, survived = 0, changed = 0;
  };
  std::map<std::string, Group> groups;
  for (const ModuleReport& m : modules) {
    Group& g = groups[kind_of(m.name)];
    const double ratio = m.weight_norm > 0 ? m.delta_norm / m.weight_norm : 0;
    ++g.n;
    g.lowest = std::min(g.lowest, ratio);
    g.highest = std::max(g.highest, ratio);
    g.survived += m.survived;
    g.changed += static_cast<double>(m.n_changed);
  }
  std::string out = fmt::format("merge certificate: {}\n", passed() ? "proven" : "FAILED");
  out += fmt::format("  {} of {} adapter modules merged into {} weights ({}), {} other tensors kept\n", modules.size(),
                     n_adapter_modules, merge_base == MergeBase::deq4 ? "dequantised 4-bit" : "original", dtype,
                     n_passed_through);
  out += fmt::format("  {:<26}{:>6}{:>24}{:>12}{:>16}\n", "module", "count", "|delta| / |weight|", "survived",
                     "values changed");
  for (const auto& [name, g] : groups)
    out += fmt::format("  {:<26}{:>6}{:>24}{:>11.1f}%{:>16.0f}\n", name, g.n,
                       fmt::format("{:.2e} .. {:.2e}", g.lowest, g.highest),
                       100 * g.survived / static_cast<double>(g.n), g.changed);
  out += fmt::format("  logit gap over {} Persian probe tokens (root mean square):\n", gap.n_tokens);
  out += fmt::format("    base against adapter      {:.3e}   what training changed\n", gap.adapter);
  out += fmt::format("    adapter against merged    {:.3e}   bound {:.3e}, largest {:.3e}, same top token {:.1f}%\n",
                     gap.merged, gap.bound, gap.largest, 100 * gap.same_top);
  for (const std::string& failure : failures) out += "  failed: " + failure + "\n";
  return out;
}

}  // namespace saaz
