// The independent peer of the real-model tests: the same GGUF file, run by llama.cpp on the CPU.
//   llama_logits MODEL.gguf IDS.txt OUT.bin        logits of every position of every sequence
//   llama_logits --greedy MODEL.gguf IDS.txt N     N greedy ids per sequence, one line each (no stop at end tokens)
//   llama_logits --tokenize MODEL.gguf TEXT.txt    ids of the whole text; control tokens parsed, no BOS or EOS added
//   llama_logits --f32 MODEL.gguf OUT.gguf         the same values dequantised to F32
// IDS.txt: one sequence per line, ids separated by blanks; each starts from an empty cache. OUT.bin, per sequence:
// int32 n, int32 n_vocab, then n * n_vocab float32, little-endian.
// Caches are F32, flash attention is off. With quantised weights llama.cpp also rounds activations to 8 bits; on an
// --f32 file it does not. Any error: a line on stderr, exit status 1.
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "llama.h"

namespace {

using Ids = std::vector<llama_token>;
using ModelPtr = std::unique_ptr<llama_model, decltype(&llama_model_free)>;
using ContextPtr = std::unique_ptr<llama_context, decltype(&llama_free)>;

// Tokens per evaluation; bounds the logits held in memory (128 rows of 262,144 are 128 MiB).
constexpr size_t kChunk = 128;

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error(message); }

int parse_int(std::string_view text, int limit, const std::string& where) {
  int value = -1;
  const char* stop = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), stop, value);
  if (error == std::errc() && end == stop && value >= 0 && value < limit) return value;
  fail(where + ": expected a number from 0 to " + std::to_string(limit - 1) + ", found '" + std::string(text) + "'");
}

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) fail(path + ": cannot open");
  return {std::istreambuf_iterator<char>(in), {}};
}

Ids parse_line(std::string_view line, int n_vocab, const std::string& where) {
  constexpr std::string_view kBlanks = " \t\r";
  Ids ids;
  for (size_t at = line.find_first_not_of(kBlanks); at != line.npos;) {
    const size_t end = std::min(line.find_first_of(kBlanks, at), line.size());
    ids.push_back(parse_int(line.substr(at, end - at), n_vocab, where));
    at = line.find_first_not_of(kBlanks, end);
  }
  if (ids.empty()) fail(where + ": the sequence is empty");
  return ids;
}

std::vector<Ids> read_sequences(const std::string& path, int n_vocab) {
  const std::string text = read_text(path);
  std::vector<Ids> sequences;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string where = path + ":" + std::to_string(sequences.size() + 1);
    sequences.push_back(parse_line(std::string_view(text).substr(at, end - at), n_vocab, where));
    at = end + 1;
  }
  if (sequences.empty()) fail(path + ": no sequence");
  return sequences;
}

ModelPtr load_model(const std::string& path) {
  llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = 0;
  params.use_extra_bufts = false;  // weights as the file has them, never repacked
  ModelPtr model(llama_model_load_from_file(path.c_str(), params), &llama_model_free);
  if (!model) fail(path + ": llama.cpp cannot load this model");
  return model;
}

int vocab_size(const llama_model& model) { return llama_vocab_n_tokens(llama_model_get_vocab(&model)); }

// A context that holds the longest sequence and `extra` tokens after it.
ContextPtr make_context(llama_model& model, const std::vector<Ids>& sequences, size_t extra) {
  size_t longest = 0;
  for (const Ids& ids : sequences) longest = std::max(longest, ids.size());
  llama_context_params params = llama_context_default_params();
  params.n_ctx = uint32_t(longest + extra);
  params.n_batch = params.n_ubatch = kChunk;
  params.n_threads = params.n_threads_batch = int32_t(std::max(1u, std::thread::hardware_concurrency()));
  params.type_k = params.type_v = GGML_TYPE_F32;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.swa_full = true;  // the mask, not a ring's eviction, decides what a sliding layer sees
  ContextPtr context(llama_init_from_model(&model, params), &llama_free);
  if (!context) fail("llama.cpp cannot create a context of " + std::to_string(params.n_ctx) + " tokens");
  return context;
}

// Evaluates `ids` at positions `start`, `start + 1`, ...; afterwards row i of the logits belongs to ids[i].
void decode(llama_context& context, const llama_token* ids, size_t count, size_t start) {
  llama_batch batch = llama_batch_init(int32_t(count), 0, 1);
  batch.n_tokens = int32_t(count);
  for (size_t i = 0; i < count; ++i) {
    batch.token[i] = ids[i];
    batch.pos[i] = llama_pos(start + i);
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = 1;
  }
  const int status = llama_decode(&context, batch);
  llama_batch_free(batch);
  if (status != 0) fail("llama_decode: status " + std::to_string(status));
}

// Evaluates a sequence from an empty cache; `use(row)` sees the logits of each position in turn.
template <typename Use>
void evaluate(llama_context& context, const Ids& ids, Use use) {
  llama_memory_clear(llama_get_memory(&context), true);
  for (size_t start = 0; start < ids.size(); start += kChunk) {
    const size_t count = std::min(kChunk, ids.size() - start);
    decode(context, ids.data() + start, count, start);
    for (size_t i = 0; i < count; ++i) use(llama_get_logits_ith(&context, int32_t(i)));
  }
}

void write_logits(const std::string& model_path, const std::string& ids_path, const std::string& out_path) {
  const ModelPtr model = load_model(model_path);
  const int32_t n_vocab = vocab_size(*model);
  const std::vector<Ids> sequences = read_sequences(ids_path, n_vocab);
  const ContextPtr context = make_context(*model, sequences, 0);
  std::ofstream out(out_path, std::ios::binary);
  for (const Ids& ids : sequences) {
    const int32_t head[2] = {int32_t(ids.size()), n_vocab};
    out.write(reinterpret_cast<const char*>(head), sizeof head);
    evaluate(*context, ids, [&](const float* row) {
      out.write(reinterpret_cast<const char*>(row), std::streamsize(sizeof(float)) * n_vocab);
    });
  }
  if (!out.flush()) fail(out_path + ": cannot write (disk full?)");
}

void print_greedy(const std::string& model_path, const std::string& ids_path, const std::string& count_text) {
  const auto count = size_t(parse_int(count_text, 100'000, "N"));
  const ModelPtr model = load_model(model_path);
  const int n_vocab = vocab_size(*model);
  const std::vector<Ids> sequences = read_sequences(ids_path, n_vocab);
  const ContextPtr context = make_context(*model, sequences, count);
  for (const Ids& ids : sequences) {
    llama_token next = 0;
    const auto pick = [&](const float* row) { next = llama_token(std::max_element(row, row + n_vocab) - row); };
    evaluate(*context, ids, pick);
    for (size_t i = 0; i < count; ++i) {
      std::printf(i == 0 ? "%d" : " %d", next);
      decode(*context, &next, 1, ids.size() + i);
      pick(llama_get_logits_ith(context.get(), 0));
    }
    std::printf("\n");
  }
}

void print_ids(const std::string& model_path, const std::string& text_path) {
  const ModelPtr model = load_model(model_path);
  const std::string text = read_text(text_path);
  Ids ids(text.size() + 1);  // a token is never shorter than a byte
  const int count = llama_tokenize(llama_model_get_vocab(model.get()), text.data(), int32_t(text.size()), ids.data(),
                                   int32_t(ids.size()), false, true);
  if (count < 0) fail(text_path + ": llama_tokenize failed");
  for (int i = 0; i < count; ++i) std::printf(i == 0 ? "%d" : " %d", ids[size_t(i)]);
  std::printf("\n");
}

void write_f32(const std::string& model_path, const std::string& out_path) {
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = LLAMA_FTYPE_ALL_F32;
  params.allow_requantize = true;
  if (llama_model_quantize(model_path.c_str(), out_path.c_str(), &params) != 0)
    fail(model_path + ": cannot dequantise");
}

void log_errors(ggml_log_level level, const char* text, void*) {
  if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
}

}  // namespace

int main(int argc, char** argv) try {
  const std::vector<std::string> args(argv + 1, argv + argc);
  llama_log_set(log_errors, nullptr);
  if (args.size() == 4 && args[0] == "--greedy") return print_greedy(args[1], args[2], args[3]), 0;
  if (args.size() == 3 && args[0] == "--tokenize") return print_ids(args[1], args[2]), 0;
  if (args.size() == 3 && args[0] == "--f32") return write_f32(args[1], args[2]), 0;
  if (args.size() == 3 && !args[0].starts_with("--")) return write_logits(args[0], args[1], args[2]), 0;
  fail("usage: [--greedy MODEL IDS N | --tokenize MODEL TEXT | --f32 MODEL OUT.gguf | MODEL IDS OUT.bin]");
} catch (const std::exception& error) {
  std::fprintf(stderr, "llama_logits: %s\n", error.what());
  return 1;
}
