// The peer of bench/cpu_decode.cc: the same figures of the same GGUF file by llama.cpp, built for speed
// (tools/build-llama-oracle speed). Random ids, greedy or not makes no difference to the time.
//   llama_decode MODEL.gguf [THREADS]
// Prints tokens/s of a prompt of 512 tokens, and of decoding 32 steps with 1, 4 and 16 sequences behind 32 tokens each.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "llama.h"

namespace {

constexpr int kPrompt = 512, kPrefix = 32, kSteps = 32, kMaxRows = 16, kRepeats = 3;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Runner {
  llama_context* context;
  int n_vocab;
  std::mt19937 draw{1};
  llama_batch batch = llama_batch_init(kPrompt, 0, 1);

  void clear() { llama_memory_clear(llama_get_memory(context), true); }
  /// `count` tokens of each of `rows` sequences from `position` on; logits of the last of each.
  void step(int rows, int count, int position) {
    batch.n_tokens = 0;
    for (int s = 0; s < rows; ++s)
      for (int i = 0; i < count; ++i) {
        const int at = batch.n_tokens++;
        batch.token[at] = int(draw() % unsigned(n_vocab));
        batch.pos[at] = position + i;
        batch.n_seq_id[at] = 1;
        batch.seq_id[at][0] = s;
        batch.logits[at] = i == count - 1;
      }
    if (llama_decode(context, batch) != 0) std::exit(1);
    llama_synchronize(context);
  }
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_model_params model_params = llama_model_default_params();
  model_params.n_gpu_layers = 0;
  llama_model* model = llama_model_load_from_file(argv[1], model_params);
  if (model == nullptr) return 1;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = kMaxRows * (kPrompt + 128);  // split evenly among the sequences
  params.n_batch = params.n_ubatch = kPrompt;
  params.n_seq_max = kMaxRows;
  params.n_threads = params.n_threads_batch = argc > 2 ? std::atoi(argv[2]) : 2;
  Runner run{llama_init_from_model(model, params), llama_vocab_n_tokens(llama_model_get_vocab(model))};
  if (run.context == nullptr) return 1;
  std::vector<double> rates;
  for (int i = 0; i <= kRepeats; ++i) {
    run.clear();
    const double start = now();
    run.step(1, kPrompt, 0);
    if (i > 0) rates.push_back(kPrompt / (now() - start));  // the first is for the caches
  }
  std::printf("llama.cpp prefill %d: %.1f tokens/s\n", kPrompt, median(rates));
  for (const int rows : {1, 4, 16}) {
    run.clear();
    for (int at = 0; at < kPrefix; at += kPrompt / kMaxRows) run.step(rows, kPrompt / kMaxRows, at);
    rates.clear();
    for (int i = 0; i < kSteps; ++i) {
      const double start = now();
      run.step(rows, 1, kPrefix + i);
      rates.push_back(rows / (now() - start));
    }
    std::printf("llama.cpp decode, %2d rows: %.1f tokens/s\n", rows, median(rates));
  }
  llama_free(run.context);
  llama_model_free(model);
}
