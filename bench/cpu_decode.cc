// Times prefill and decoding of a real model on the CPU and sets them against the machine's memory: a step reads every
// weight once, so tokens/s of one row cannot exceed read bandwidth / weight bytes.
//   bench_cpu_decode MODEL [THREADS]
// Prints for f32 and int8 products: tokens/s of a prompt of 512 tokens; tokens/s of decoding with 1, 4 and 16 sequences
// behind 32 tokens each (median of 32 steps), and the share of the roofline. Peer: bench/llama_decode.cc.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <random>

#include "base/system.h"
#include "base/threads.h"
#include "infer/scheduler.h"
#include "model/pass.h"

namespace {

using namespace saaz;
using Ids = std::vector<int32_t>;

constexpr int64_t kPrompt = 512, kPrefix = 32, kSteps = 32;

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

/// GB/s of reading 512 MiB once with all threads, the best of ten.
double read_bandwidth(int n_threads) {
  ThreadPool pool(n_threads);
  std::vector<uint64_t> memory(int64_t{64} << 20, 1);
  constexpr int64_t kTasks = 512;
  const auto piece = static_cast<int64_t>(memory.size()) / kTasks;
  double best = 0;
  for (int i = 0; i < 10; ++i) {
    std::vector<uint64_t> sums(kTasks);
    const double start = monotonic_seconds();
    pool.run(kTasks, [&](int64_t task, int) {
      const uint64_t* at = memory.data() + task * piece;
      sums[static_cast<size_t>(task)] = std::accumulate(at, at + piece, uint64_t{0});
    });
    best = std::max(best, 8e-9 * static_cast<double>(memory.size()) / (monotonic_seconds() - start));
  }
  return best;
}

struct Runner {
  Backend& backend;
  const Model& model;
  int64_t rows;
  KvCache cache;
  PassMemory memory;
  std::vector<float> staging;
  std::mt19937 draw{1};

  Runner(Backend& backend, const Model& model, int64_t rows, int64_t length, int64_t chunk, PassBytes bytes)
      : backend(backend),
        model(model),
        rows(rows),
        cache(backend, model.config(), {.n_sequences = rows, .max_length = length, .max_chunk = chunk}),
        memory(backend, bytes.work, bytes.store) {
    for (int64_t s = 0; s < rows; ++s) cache.open(s, length);
  }

  /// Seconds of appending `count` random tokens to each sequence; logits of the last of each.
  double step(int64_t count) {
    std::vector<Ids> ids(static_cast<size_t>(rows), Ids(static_cast<size_t>(count)));
    std::vector<KvCache::Append> items;
    std::vector<int32_t> last;
    for (int64_t s = 0; s < rows; ++s) {
      for (int32_t& id : ids[static_cast<size_t>(s)])
        id = static_cast<int32_t>(draw() % static_cast<uint64_t>(model.config().vocab_size));
      items.push_back({s, ids[static_cast<size_t>(s)]});
      last.push_back(static_cast<int32_t>((s + 1) * count - 1));
    }
    const double start = monotonic_seconds();
    Batch batch;
    cache.append(items, batch);
    logits_pass(backend, memory, model, batch, &cache, last, LogitsWanted::all, staging, [](Logits&) {});
    return monotonic_seconds() - start;
  }
};

void measure(const BaseModel& base, int n_threads, DType compute_dtype, double bandwidth) {
  const std::unique_ptr<Backend> backend = make_cpu_backend({.n_threads = n_threads, .compute_dtype = compute_dtype});
  const std::unique_ptr<Model> model = load_model(*backend, base, {.max_positions = kPrompt + kSteps});
  const PassBytes bytes = inference_bytes(*model, kPrompt, kPrompt);
  const double roofline = bandwidth * 1e9 / static_cast<double>(model->weight_bytes());
  std::vector<double> rates;
  for (int i = 0; i < 4; ++i) {
    Runner run(*backend, *model, 1, kPrompt, kPrompt, bytes);
    const double seconds = run.step(kPrompt);
    if (i > 0) rates.push_back(static_cast<double>(kPrompt) / seconds);  // the first is for the caches
  }
  fmt::print("{}\n  prefill {}: {:.1f} tokens/s\n", backend->describe(), kPrompt, median(rates));
  for (const int64_t rows : {1, 4, 16}) {
    Runner run(*backend, *model, rows, kPrefix + kSteps, kPrefix, bytes);
    run.step(kPrefix);
    rates.clear();
    for (int64_t i = 0; i < kSteps; ++i) rates.push_back(static_cast<double>(rows) / run.step(1));
    const double rate = median(rates);
    fmt::print("  decode, {:2} rows: {:.1f} tokens/s", rows, rate);
    if (rows == 1) fmt::print(", {:.0f} % of the roofline", 100 * rate / roofline);
    fmt::print("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const int n_threads = argc > 2 ? std::atoi(argv[2]) : 0;
  const double bandwidth = read_bandwidth(n_threads);
  const BaseModel base = open_base_model(argv[1]);
  fmt::print("read bandwidth {:.1f} GB/s\n", bandwidth);
  for (const DType dtype : {DType::f32, DType::i8}) measure(base, n_threads, dtype, bandwidth);
}
