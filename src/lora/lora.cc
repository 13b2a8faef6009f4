// Choosing modules, initialising and attaching. Files: lora/peft_files.cc.
#include "lora/lora.h"

#include <re2/re2.h>

#include <cmath>
#include <random>

#include "base/check.h"

namespace saaz {

float LoraSpec::scaling() const {
  const double rank = static_cast<double>(r);
  return static_cast<float>(use_rslora ? alpha / std::sqrt(rank) : alpha / rank);
}

namespace {

bool matches_name(const std::string& path, const std::string& name) {
  return path == name ||
         (path.size() > name.size() && path.ends_with(name) && path[path.size() - name.size() - 1] == '.');
}

/// torch's uniform(-bound, bound) in f32: 24 bits of each 32-bit draw.
void fill_uniform(std::mt19937& generator, std::vector<float>& out, float bound) {
  for (float& value : out) {
    const float u = static_cast<float>(generator() & 0xFFFFFF) * 0x1p-24f;
    value = std::fma(u, bound - -bound, -bound);
  }
}

}  // namespace

std::vector<Linear*> select_linears(const Model& model, const TargetModules& targets) {
  const std::string& prefix = model.module_prefix();
  std::vector<Linear*> out;
  if (std::holds_alternative<AllLinear>(targets)) return model.linears();
  if (const auto* pattern = std::get_if<std::string>(&targets)) {
    RE2::Options options;
    options.set_log_errors(false);
    const RE2 regex(*pattern, options);
    check(regex.ok(), ExitCode::usage, "target_modules: '{}' is not a regular expression this program reads: {}",
          printable(*pattern), regex.error());
    for (Linear* linear : model.linears())
      if (RE2::FullMatch(prefix + linear->name, regex)) out.push_back(linear);
  } else {
    const auto& names = std::get<std::vector<std::string>>(targets);
    for (Linear* linear : model.linears())
      for (const std::string& name : names)
        if (matches_name(prefix + linear->name, name)) {
          out.push_back(linear);
          break;
        }
    for (const std::string& name : names) {
      bool used = false;
      for (const Linear* linear : out) used |= matches_name(prefix + linear->name, name);
      check(used, ExitCode::usage, "target_modules: no linear of this model is called '{}' (for example: {})",
            printable(name), model.linears()[0]->name);
    }
  }
  check(!out.empty(), ExitCode::usage, "target_modules selects none of the model's {} linears (for example: {}{})",
        model.linears().size(), prefix, model.linears()[0]->name);
  return out;
}

void Adapter::allocate(std::vector<Linear*> linears, ForTraining training) {
  int64_t total = 0;
  for (const Linear* linear : linears) total += spec_.r * (linear->weight.n_in + linear->weight.n_out);
  parameters_ = Tensor(nullptr, DType::f32, {total});
  parameters_.data = backend_.allocate(parameters_.bytes(), "adapter");
  constexpr int64_t kTotals = 2;
  if (training == ForTraining::yes) {
    gradients_and_totals_ = Tensor(nullptr, DType::f32, {total + kTotals});
    gradients_and_totals_.data = backend_.allocate(gradients_and_totals_.bytes(), "adapter gradients");
    gradients_ = Tensor(gradients_and_totals_.data, DType::f32, {total});
  }
  int64_t offset = 0;
  for (Linear* linear : linears) {
    Module module{linear, {}, offset};
    const auto view = [&](const Tensor& flat, int64_t at, int64_t rows, int64_t columns) {
      return flat.empty() ? Tensor{} : Tensor(static_cast<float*>(flat.data) + at, DType::f32, {rows, columns});
    };
    const int64_t n_in = linear->weight.n_in, n_out = linear->weight.n_out, at_b = offset + spec_.r * n_in;
    module.pair = {.a = view(parameters_, offset, spec_.r, n_in),
                   .b = view(parameters_, at_b, n_out, spec_.r),
                   .da = view(gradients_, offset, spec_.r, n_in),
                   .db = view(gradients_, at_b, n_out, spec_.r),
                   .scaling = spec_.scaling()};
    modules_.push_back(module);
    offset += module.size();
  }
}

std::unique_ptr<Adapter> Adapter::create(Backend& backend, Model& model, const LoraSpec& spec, uint32_t seed) {
  std::unique_ptr<Adapter> adapter(new Adapter(backend, model, spec));
  adapter->allocate(select_linears(model, spec.targets), ForTraining::yes);
  std::mt19937 generator(seed);
  std::vector<float> a, b;
  for (const Module& module : adapter->modules_) {
    a.resize(static_cast<size_t>(module.pair.a.size()));
    b.resize(static_cast<size_t>(module.pair.b.size()));
    // kaiming_uniform(a = sqrt 5) on [r, n_in]: bound 1 / sqrt(n_in), rounded as torch rounds it.
    const auto bound = [](int64_t fan_in) {
      return static_cast<float>(std::sqrt(3.0) * (std::sqrt(2.0 / 6.0) / std::sqrt(static_cast<double>(fan_in))));
    };
    // PEFT's Linear layers draw their default start first (A, then B), then A again; B becomes zero.
    fill_uniform(generator, a, bound(module.pair.a.dim(1)));
    fill_uniform(generator, b, bound(module.pair.b.dim(1)));
    fill_uniform(generator, a, bound(module.pair.a.dim(1)));
    backend.upload(module.pair.a, a.data());
  }
  return adapter;
}

Adapter::~Adapter() {
  detach();
  backend_.release(parameters_.data);
  if (!gradients_and_totals_.empty()) backend_.release(gradients_and_totals_.data);
}

std::vector<const LoraPair*> Adapter::pairs_by_linear(const Model& model) const {
  std::vector<const LoraPair*> pairs(model.linears().size(), nullptr);
  for (const Module& module : modules_) pairs[static_cast<size_t>(module.linear->index)] = &module.pair;
  return pairs;
}

void Adapter::attach() {
  for (Module& module : modules_) module.linear->lora = &module.pair;
}

void Adapter::detach() {
  for (Module& module : modules_)
    if (module.linear->lora == &module.pair) module.linear->lora = nullptr;
}

}  // namespace saaz
