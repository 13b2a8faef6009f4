// Gemma 3n E4B at full size on one GPU, random weights: training and generation as the program does them, timed.
//   bench_full_size train SEQUENCES[/MICRO] LENGTH RECOMPUTE(layer|offload|none|segments) CACHE(nf4|bf16) REPEATS
//                   [profile]                          an update of SEQUENCES, MICRO in a pass
//   bench_full_size auto SEQUENCES[/MICRO] LENGTH LIMIT(GiB, 0: the card) REPEATS      as the plan decides, against it
//   bench_full_size source RECOMPUTE CACHE STEPS        the source's lengths, 8 conversations an update
//   bench_full_size prefill LENGTH CACHE REPEATS [profile]
//   bench_full_size decode SEQUENCES CONTEXT CACHE REPEATS [profile]
// CACHE of generation may also be `dense`: the weights as they are, bf16 and never NF4, which loads in seconds.
// Several commands may follow one another, separated by "and": the model is made once for each CACHE.
// Prints medians; memory is the driver's figure.
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <optional>
#include <random>

#include "backend/plan.h"
#include "base/error.h"
#include "bench/full_size.h"
#include "infer/scheduler.h"
#include "lora/lora.h"
#include "train/counted_run.h"
#include "train/optimizer.h"

namespace {

using namespace saaz;
using Arguments = std::vector<std::string>;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double used_gib() {
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  return static_cast<double>(total - free) / (1 << 30);
}

double median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + static_cast<long>(x.size() / 2), x.end());
  return x[x.size() / 2];
}

/// The model with NF4 linears, kept as NF4 or as dense bf16.
struct Loaded {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
  std::string cache;
};

std::vector<int32_t> random_ids(int64_t n, uint64_t seed) {
  std::mt19937_64 draw(seed);
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int32_t& id : ids) id = static_cast<int32_t>(3 + draw() % 262000);
  return ids;
}

struct Step {
  std::vector<int32_t> ids, targets;
  std::vector<int64_t> starts = {0};
};

/// Every token but each sequence's first is scored.
Step make_step(std::span<const int64_t> lengths, uint64_t seed) {
  Step step;
  for (const int64_t length : lengths) step.starts.push_back(step.starts.back() + length);
  step.ids = random_ids(step.starts.back(), seed);
  step.targets.assign(step.ids.begin() + 1, step.ids.end());
  step.targets.push_back(-1);
  for (size_t i = 1; i < step.starts.size(); ++i) step.targets[static_cast<size_t>(step.starts[i] - 1)] = -1;
  return step;
}

class Training {
 public:
  Training(Loaded& loaded, Recompute recompute, const Step& largest)
      : loaded_(loaded), recompute_(recompute), adapter_(make_adapter()), optimizer_(backend(), *adapter_, recipe_) {
    PlanBackend plan(backend());
    PassMemory measured;
    train_pass(plan, measured, *loaded.model, packed_batch(largest.ids, largest.starts), largest.targets, recompute, 1);
    flops_per_token_ = plan.report.flops() / static_cast<double>(largest.ids.size());
    memory_.emplace(backend(), measured.work().peak(), measured.store().peak());
  }

  double flops_per_token() const { return flops_per_token_; }
  const Adapter& adapter() const { return *adapter_; }

  /// One update by these micro-batches; the loss.
  double update(std::span<const Step> micro) {
    int64_t n = 0;
    for (const Step& step : micro)
      n += std::count_if(step.targets.begin(), step.targets.end(), [](int32_t t) { return t >= 0; });
    backend().fill(adapter_->gradients_and_totals(), 0);
    double loss = 0;
    for (const Step& step : micro) {
      const std::vector<float> losses =
          train_pass(backend(), *memory_, *loaded_.model, packed_batch(step.ids, step.starts), step.targets, recompute_,
                     1.0f / static_cast<float>(n));
      loss += std::accumulate(losses.begin(), losses.end(), 0.0);
    }
    const double norm = optimizer_.gradient_norm();
    optimizer_.step(2e-5, std::min(1.0, 1.0 / (norm + 1e-6)));
    return loss / static_cast<double>(n);
  }

 private:
  static TrainRecipe recipe() {
    TrainRecipe r;
    r.optim = Optimizer::adamw_8bit;
    return r;
  }
  std::unique_ptr<Adapter> make_adapter() {
    const LoraSpec spec{.targets = std::vector<std::string>{"gate_proj", "up_proj", "down_proj"}, .r = 8, .alpha = 16};
    std::unique_ptr<Adapter> adapter = Adapter::create(backend(), *loaded_.model, spec, 3407);
    adapter->attach();
    return adapter;
  }
  Backend& backend() { return *loaded_.backend; }

  Loaded& loaded_;
  Recompute recompute_;
  TrainRecipe recipe_ = recipe();
  std::unique_ptr<Adapter> adapter_;
  AdamW optimizer_;
  std::optional<PassMemory> memory_;
  double flops_per_token_ = 0;
};

/// "none", "layer", "offload", or how many segments are recomputed.
Recompute recompute_of(const std::string& word) {
  if (word == "none") return Recompute::none;
  if (word == "offload") return Recompute::offload;
  return word == "layer" ? Recompute::layer : Recompute{std::stoi(word)};
}

void report_training(const char* what, const std::vector<double>& seconds, double n_tokens, const Training& training) {
  const double s = median(seconds);
  fmt::print("{}: {:.0f} tokens/s, {:.2f} ms an update, {:.0f} TFLOP/s, {:.2f} GiB of the card in use\n", what,
             n_tokens / s, s * 1e3, training.flops_per_token() * n_tokens / s * 1e-12, used_gib());
}

template <class F>
std::vector<double> timed(int warm_up, int repeats, bool profile, const char* title, F f) {
  std::vector<double> seconds;
  for (int i = 0; i < warm_up + repeats; ++i) {
    const double began = now();
    f(i);
    if (i >= warm_up) seconds.push_back(now() - began);
  }
  if (profile) {
    bench::KernelProfile kernels;
    kernels.start();
    for (int i = 0; i < 2; ++i) f(i);
    kernels.stop_and_print(title, 2);
  }
  return seconds;
}

struct Sequences {
  size_t all, micro;
};
/// "8/2": eight, two in a pass.
Sequences sequences_of(const std::string& word) {
  const size_t n = std::stoul(word), slash = word.find('/');
  return {n, slash == std::string::npos ? n : std::stoul(word.substr(slash + 1))};
}

void train(Loaded& loaded, const Arguments& a) {
  const auto [n_sequences, n_micro] = sequences_of(a[1]);
  std::vector<Step> micro;
  for (size_t begin = 0; begin < n_sequences; begin += n_micro) {
    const std::vector<int64_t> lengths(std::min(n_micro, n_sequences - begin), std::stol(a[2]));
    micro.push_back(make_step(lengths, begin + 1));
  }
  Training training(loaded, recompute_of(a[3]), micro[0]);
  const std::string what = fmt::format("train {} x {} recompute {} {}", a[1], a[2], a[3], a[4]);
  double loss = 0;
  const std::vector<double> seconds =
      timed(2, std::stoi(a[5]), a.size() > 6, what.c_str(), [&](int) { loss = training.update(micro); });
  report_training(what.c_str(), seconds, static_cast<double>(n_sequences) * std::stod(a[2]), training);
  fmt::print("  loss {:.4f}\n", loss);
}

/// Trains as the plan decides; what the plan says and what the driver says in the end.
void plan_and_train(Loaded& loaded, const BaseModel& base, const Arguments& a) {
  const auto [n_sequences, n_micro] = sequences_of(a[1]);
  const std::vector<int32_t> ids = random_ids(std::stol(a[2]), 7);
  Sample sample{.ids = ids, .scored = std::vector<uint8_t>(ids.size(), 1)};
  sample.scored[0] = 0;
  const std::vector<Sample> samples(n_sequences, sample);
  Recipe recipe;
  recipe.model.max_seq_length = 8192;
  recipe.train.per_device_train_batch_size = static_cast<int64_t>(n_micro);
  recipe.train.gradient_accumulation_steps = static_cast<int64_t>(n_sequences / n_micro);
  recipe.train.optim = Optimizer::adamw_8bit;
  recipe.lora.target_modules = {"gate_proj", "up_proj", "down_proj"};
  loaded.model.reset();
  loaded.backend.reset();
  loaded.backend = make_cuda_backend({.compute_dtype = DType::bf16});
  UpdateOrder order(samples, recipe);
  const double limit_gib = std::stod(a[3]);
  const auto limit = limit_gib > 0 ? static_cast<int64_t>(limit_gib * 0x1p30) : *loaded.backend->own_total_bytes();
  const double began = now();
  const GpuPlan plan = plan_gpu(*loaded.backend, base, recipe, order, {}, limit, {});
  const double planned = static_cast<double>(plan.total()) * 0x1p-30, seconds = now() - began;
  for (const auto& [kind, bytes] : plan.parts)
    fmt::print("  {:28} {:8.3f} GiB\n", kind, static_cast<double>(bytes) * 0x1p-30);
  fmt::print("  planned in {:.2f} s: weights {}, tables {}, {} segments recomputed{}\n", seconds,
             plan.residence.dense_weights ? "dense" : "as stored",
             plan.residence.tables ? "on the card" : "on the host", std::min(plan.recompute.n_segments, 36),
             plan.recompute.inputs_on_host ? ", inputs on the host" : "");
  if (limit_gib > 0) loaded.backend->limit_own_bytes(limit);
  loaded.backend->set_residence(plan.residence);
  loaded.model = load_model(*loaded.backend, base, {.scheme = QuantScheme::nf4, .max_positions = 8192});
  loaded.cache = "auto";
  std::vector<Step> micro;
  for (size_t begin = 0; begin < n_sequences; begin += n_micro)
    micro.push_back(make_step(std::vector<int64_t>(n_micro, std::stol(a[2])), begin + 1));
  Training training(loaded, plan.recompute, micro[0]);
  const std::vector<double> times = timed(2, std::stoi(a[4]), false, "", [&](int) { training.update(micro); });
  const std::string what = fmt::format("auto {} x {} within {} GiB", a[1], a[2], a[3]);
  report_training(what.c_str(), times, static_cast<double>(n_sequences) * std::stod(a[2]), training);
  fmt::print("  planned {:.3f} GiB, used {:.3f} GiB: {:+.1f} %\n", planned, used_gib(),
             100 * (planned / used_gib() - 1));
}

void source(Loaded& loaded, const Arguments& a) {
  const std::vector<int64_t> lengths = bench::source_lengths(5897, 3407);
  const int64_t n_steps = std::min<int64_t>(std::stol(a[3]), 738);
  std::vector<Step> steps;
  size_t largest = 0;
  double n_tokens = 0;
  for (int64_t s = 0; s < n_steps; ++s) {
    const auto all = std::span(lengths).subspan(static_cast<size_t>(8 * s));
    steps.push_back(make_step(all.first(std::min<size_t>(8, all.size())), static_cast<uint64_t>(s)));
    if (steps.back().ids.size() > steps[largest].ids.size()) largest = steps.size() - 1;
    n_tokens += static_cast<double>(steps.back().ids.size());
  }
  Training training(loaded, recompute_of(a[1]), steps[largest]);
  const double began = now();
  double loss = 0;
  for (const Step& step : steps) loss = training.update({&step, 1});
  const double s = now() - began;
  std::vector<float> parameters(static_cast<size_t>(training.adapter().n_parameters()));
  loaded.backend->download(parameters.data(), training.adapter().parameters());
  uint64_t hash = 0xcbf29ce484222325u;
  for (const float p : parameters) {
    uint32_t bits;
    std::memcpy(&bits, &p, 4);
    hash = (hash ^ bits) * 0x100000001b3u;
  }
  fmt::print(
      "source recompute {} {}: {} updates, {:.0f} tokens, largest update {}, {:.2f} s, {:.0f} tokens/s, {:.2f} "
      "GiB, last loss {:.4f}, adapter hash {:016x}\n",
      a[1], a[2], n_steps, n_tokens, steps[largest].ids.size(), s, n_tokens / s, used_gib(), loss, hash);
}

void append(KvCache& cache, int64_t sequence, std::span<const int32_t> ids, Batch& batch) {
  const KvCache::Append item{sequence, ids};
  cache.append({&item, 1}, batch);
}

void prefill(Loaded& loaded, const Arguments& a) {
  const int64_t n = std::stol(a[1]);
  const std::vector<int32_t> ids = random_ids(n, 2);
  const PassBytes bytes = inference_bytes(*loaded.model, n, 1);
  PassMemory memory(*loaded.backend, bytes.work, bytes.store);
  KvCache cache(*loaded.backend, loaded.model->config(), {.max_length = n, .max_chunk = n});
  const auto last = static_cast<int32_t>(n - 1);
  Batch batch;
  const std::string what = fmt::format("prefill {} {}", a[1], a[2]);
  const std::vector<double> seconds = timed(2, std::stoi(a[3]), a.size() > 4, what.c_str(), [&](int) {
    cache.close(0);
    cache.open(0, n);
    append(cache, 0, ids, batch);
    logits_pass(*loaded.backend, memory, *loaded.model, batch, &cache, {&last, 1});
  });
  fmt::print("{}: {:.0f} tokens/s, {:.2f} ms\n", what, static_cast<double>(n) / median(seconds), median(seconds) * 1e3);
}

void decode(Loaded& loaded, const Arguments& a) {
  const int64_t n = std::stol(a[1]), context = std::stol(a[2]), repeats = std::stol(a[4]);
  const int64_t chunk = std::max<int64_t>(n, std::min<int64_t>(context, 512));
  const PassBytes bytes = inference_bytes(*loaded.model, chunk, n);
  PassMemory memory(*loaded.backend, bytes.work, bytes.store);
  const int64_t length = context + repeats + 8;
  KvCache cache(*loaded.backend, loaded.model->config(), {.n_sequences = n, .max_length = length, .max_chunk = chunk});
  Batch batch;
  for (int64_t s = 0; s < n; ++s) {
    const std::vector<int32_t> ids = random_ids(context, static_cast<uint64_t>(s));
    cache.open(s, length);
    for (int64_t at = 0; at < context; at += chunk) {
      const auto count = static_cast<size_t>(std::min(chunk, context - at));
      append(cache, s, std::span(ids).subspan(static_cast<size_t>(at), count), batch);
      logits_pass(*loaded.backend, memory, *loaded.model, batch, &cache, {});
    }
  }
  std::vector<int32_t> rows(static_cast<size_t>(n)), ids = random_ids(n, 5);
  std::iota(rows.begin(), rows.end(), 0);
  std::vector<float> staging;
  std::vector<Candidates> found;
  const std::vector<CandidateQuery> greedy(static_cast<size_t>(n), {.k = 1, .within = 0});
  const std::string what = fmt::format("decode {} x {} {}", a[1], a[2], a[3]);
  const std::vector<double> seconds = timed(3, static_cast<int>(repeats), a.size() > 5, what.c_str(), [&](int) {
    std::vector<KvCache::Append> items;
    for (int64_t s = 0; s < n; ++s) items.push_back({s, std::span(ids).subspan(static_cast<size_t>(s), 1)});
    cache.append(items, batch);
    logits_pass(*loaded.backend, memory, *loaded.model, batch, &cache, rows, LogitsWanted::likeliest, staging,
                [&](Logits& logits) {
                  loaded.backend->find_candidates(logits.values(), {}, greedy, found);
                  for (size_t s = 0; s < ids.size(); ++s) ids[s] = found[s].found.at(0).id;
                });
  });
  fmt::print("{}: {:.1f} tokens/s, {:.3f} ms a step\n", what, static_cast<double>(n) / median(seconds),
             median(seconds) * 1e3);
}

const std::string& cache_of(const Arguments& a) {
  if (a[0] == "train") return a[4];
  return a[0] == "decode" ? a[3] : a[2];
}

void load(Loaded& loaded, const BaseModel& base, const std::string& cache) {
  if (loaded.cache == cache) return;
  const double began = now();
  loaded.model.reset();
  loaded.backend.reset();
  loaded.backend = make_cuda_backend({.compute_dtype = DType::bf16, .cache_weights = cache != "nf4"});
  if (loaded.backend == nullptr) {
    fmt::print("no GPU\n");
    std::exit(1);
  }
  loaded.model = load_model(*loaded.backend, base,
                            {.scheme = cache == "dense" ? QuantScheme::none : QuantScheme::nf4, .max_positions = 8192});
  loaded.cache = cache;
  fmt::print("{}: E4B, {} in {:.1f} s, {:.2f} GiB of the card in use\n", loaded.backend->describe(), cache,
             now() - began, used_gib());
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const double began = now();
  const BaseModel base = bench::random_full_size_model(1);
  fmt::print("random weights made in {:.1f} s\n", now() - began);
  Loaded loaded;
  Arguments a;
  for (int i = 1; i <= argc; ++i) {
    if (i < argc && std::strcmp(argv[i], "and") != 0) {
      a.emplace_back(argv[i]);
      continue;
    }
    try {
      if (a[0] == "auto") {
        plan_and_train(loaded, base, a);
        a.clear();
        continue;
      }
      load(loaded, base, cache_of(a));
      if (a[0] == "train") train(loaded, a);
      if (a[0] == "source") source(loaded, a);
      if (a[0] == "prefill") prefill(loaded, a);
      if (a[0] == "decode") decode(loaded, a);
    } catch (const Error& error) {
      fmt::print("{} {}: {}\n", a[0], a[1], error.what());
    }
    a.clear();
  }
}
