#include "train/optimizer.h"

#include <charconv>
#include <cmath>
#include <map>
#include <numbers>

#include "base/check.h"
#include "checkpoint/safetensors.h"

namespace saaz {

namespace {
constexpr int64_t kMin8BitSize = 4096;  // smaller tensors keep f32 states (bitsandbytes' min_8bit_size)
constexpr int64_t kStateBlock = 256;
constexpr const char* kStepsKey = "n_steps";
}  // namespace

int64_t warmup_steps_of(const TrainRecipe& recipe, int64_t n_updates) {
  if (recipe.warmup_steps > 0) return recipe.warmup_steps;
  return static_cast<int64_t>(std::ceil(recipe.warmup_ratio * static_cast<double>(n_updates)));
}

double learning_rate_at(const TrainRecipe& recipe, int64_t update, int64_t n_updates, int64_t warmup_steps) {
  const double k = static_cast<double>(update), warmup = static_cast<double>(warmup_steps),
               total = static_cast<double>(n_updates);
  if (update < warmup_steps) return recipe.learning_rate * k / std::max(1.0, warmup);
  const double rest = std::max(1.0, total - warmup);
  switch (recipe.lr_scheduler_type) {
    case LrScheduler::linear:
      return recipe.learning_rate * std::max(0.0, (total - k) / rest);
    case LrScheduler::cosine:
      return recipe.learning_rate * std::max(0.0, 0.5 * (1 + std::cos(std::numbers::pi * (k - warmup) / rest)));
    case LrScheduler::constant:
      return recipe.learning_rate;
  }
  fail(ExitCode::bug, "unknown schedule");
}

Tensor AdamW::allocate(DType dtype, int64_t n) {
  Tensor t(nullptr, dtype, {n});
  if (n == 0) return t;
  t.data = backend_.allocate(t.bytes(), "optimizer states");
  memory_.push_back(t.data);
  return t;
}

AdamW::AdamW(Backend& backend, const Adapter& adapter, const TrainRecipe& recipe)
    : backend_(backend), recipe_(recipe), gradients_(adapter.gradients()) {
  const auto blocks = [](int64_t n) { return (n + kStateBlock - 1) / kStateBlock; };
  int64_t n_blocks = 0, n_f32 = 0;
  for (const Adapter::Module& module : adapter.modules())
    for (const auto& [suffix, parameter, gradient] : {std::tuple{".lora_A.weight", module.pair.a, module.pair.da},
                                                      std::tuple{".lora_B.weight", module.pair.b, module.pair.db}}) {
      const int64_t n = parameter.size();
      State state{.name = module.linear->name + suffix, .parameter = parameter, .gradient = gradient};
      const bool quantised = recipe.optim == Optimizer::adamw_8bit && n >= kMin8BitSize;
      state.m = state.v = Tensor(nullptr, quantised ? DType::u8 : DType::f32, {n});
      if (quantised) state.m_absmax = state.v_absmax = Tensor(nullptr, DType::f32, {blocks(n)});
      (quantised ? n_blocks : n_f32) += quantised ? blocks(n) : n;
      states_.push_back(state);
    }
  // Each kind in one piece, in the order of the parameters.
  struct Piece {
    Tensor all;
    int64_t used = 0;
    void take(Tensor& t, int64_t n) {
      t.data = static_cast<char*>(all.data) + used * size_of(all.dtype);
      used += n;
    }
  };
  Piece m8{allocate(DType::u8, n_blocks * kStateBlock)}, v8{allocate(DType::u8, n_blocks * kStateBlock)},
      m_absmax{allocate(DType::f32, n_blocks)}, v_absmax{allocate(DType::f32, n_blocks)},
      m{allocate(DType::f32, n_f32)}, v{allocate(DType::f32, n_f32)};
  for (State& s : states_) {
    const int64_t n = s.m.size();
    if (s.is_8bit()) {
      m8.take(s.m, blocks(n) * kStateBlock);
      v8.take(s.v, blocks(n) * kStateBlock);
      m_absmax.take(s.m_absmax, blocks(n));
      v_absmax.take(s.v_absmax, blocks(n));
    } else {
      m.take(s.m, n);
      v.take(s.v, n);
    }
  }
  join_states();
}

/// States whose parameters lie one after another are updated together, where blocks end with their parameter.
void AdamW::join_states() {
  const auto is_next = [](const Tensor& before, const Tensor& t) {
    return static_cast<const char*>(before.data) + before.bytes() == t.data;
  };
  for (const State& s : states_) {
    State* last = runs_.empty() ? nullptr : &runs_.back();
    const bool joins = last != nullptr && last->is_8bit() == s.is_8bit() && is_next(last->parameter, s.parameter) &&
                       is_next(last->gradient, s.gradient) && is_next(last->m, s.m) &&
                       (!s.is_8bit() || last->m.size() % kStateBlock == 0);
    if (!joins) {
      runs_.push_back(s);
      continue;
    }
    const auto grow = [](Tensor& t, const Tensor& by) { t = Tensor(t.data, t.dtype, {t.size() + by.size()}); };
    grow(last->parameter, s.parameter);
    grow(last->gradient, s.gradient);
    grow(last->m, s.m);
    grow(last->v, s.v);
    if (!s.is_8bit()) continue;
    grow(last->m_absmax, s.m_absmax);
    grow(last->v_absmax, s.v_absmax);
  }
}

AdamW::~AdamW() {
  for (void* memory : memory_) backend_.release(memory);
}

double AdamW::gradient_norm() const { return std::sqrt(backend_.sum_of_squares(gradients_)); }

bool AdamW::is_finite() const {
  // A sum of f32 squares cannot overflow in f64: it is finite when every term is. 8-bit codes have finite values only.
  const auto finite = [&](const Tensor& t) { return std::isfinite(backend_.sum_of_squares(t)); };
  for (const State& s : states_) {
    const bool states = s.is_8bit() ? finite(s.m_absmax) && finite(s.v_absmax) : finite(s.m) && finite(s.v);
    if (!states || !finite(s.parameter)) return false;
  }
  return true;
}

void AdamW::step(double learning_rate, double grad_scale) {
  ++n_steps_;
  const AdamWStep step{.lr = static_cast<float>(learning_rate),
                       .beta1 = static_cast<float>(recipe_.adam_beta1),
                       .beta2 = static_cast<float>(recipe_.adam_beta2),
                       .eps = static_cast<float>(recipe_.adam_epsilon),
                       .weight_decay = static_cast<float>(recipe_.weight_decay),
                       .t = n_steps_,
                       .grad_scale = static_cast<float>(grad_scale)};
  for (const State& s : runs_) {
    if (s.is_8bit()) {
      backend_.adamw_8bit(s.parameter, s.gradient, s.m, s.v, s.m_absmax, s.v_absmax, step);
    } else {
      backend_.adamw_f32(s.parameter, s.gradient, s.m, s.v, step);
    }
  }
}

std::vector<std::pair<std::string, Tensor>> AdamW::named_states() const {
  std::vector<std::pair<std::string, Tensor>> out;
  for (const State& s : states_) {
    out.emplace_back(s.name + ".state1", s.m);
    out.emplace_back(s.name + ".state2", s.v);
    if (!s.is_8bit()) continue;
    out.emplace_back(s.name + ".absmax1", s.m_absmax);
    out.emplace_back(s.name + ".absmax2", s.v_absmax);
  }
  return out;
}

void AdamW::save(const fs::path& path) const {
  std::vector<TensorSpec> specs;
  std::map<std::string, Tensor> tensors;
  for (const auto& [name, tensor] : named_states()) {
    specs.push_back({name, stored_dtype(tensor.dtype), {tensor.size()}});
    tensors[name] = tensor;
  }
  std::vector<std::byte> host;
  write_safetensors(path, specs, {{"format", "pt"}, {kStepsKey, std::to_string(n_steps_)}},
                    [&](const TensorSpec& spec, const ByteSink& sink) {
                      const Tensor& tensor = tensors.at(spec.name);
                      host.resize(static_cast<size_t>(tensor.bytes()));
                      backend_.download(host.data(), tensor);
                      sink(host);
                    });
}

void AdamW::load(const fs::path& path) {
  const SafetensorsFile file(path);
  std::map<std::string, const TensorEntry*> entries;
  for (const TensorEntry& entry : file.tensors()) entries[entry.name] = &entry;
  const auto states = named_states();
  check(entries.size() == states.size(), ExitCode::verification,
        "{}: {} optimizer states, the adapter has {}: the recipe has changed", path.string(), entries.size(),
        states.size());
  for (const auto& [name, tensor] : states) {
    const auto found = entries.find(name);
    check(found != entries.end() && found->second->dtype == stored_dtype(tensor.dtype) &&
              found->second->data.size() == static_cast<size_t>(tensor.bytes()),
          ExitCode::verification, "{}: optimizer state '{}' is missing or of another size: the recipe has changed",
          path.string(), name);
    backend_.upload(tensor, found->second->data.data());
  }
  n_steps_ = -1;
  for (const auto& [key, value] : file.metadata())
    if (key == kStepsKey && std::from_chars(value.data(), value.data() + value.size(), n_steps_).ec != std::errc())
      n_steps_ = -1;
  check(n_steps_ >= 0, ExitCode::verification, "{}: no step count in its metadata", path.string());
}

}  // namespace saaz
