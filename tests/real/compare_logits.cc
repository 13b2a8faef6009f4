// The real model against its independent peer (llama_logits): next-token logits, ids of texts, greedy answers.
//   compare_logits MODEL.gguf IDS.txt ORACLE.bin     this program's logits against the file that llama_logits wrote
//   compare_logits --ids MODEL.gguf TEXT.txt...      one line of ids per text, BOS first; control tokens parsed
//   compare_logits --greedy MODEL.gguf IDS.txt N     N greedy ids per sequence, one line each
// IDS.txt and ORACLE.bin are laid out as llama_logits.cc says. Prints one line per figure; exit status 8 when a figure
// misses its bar, else the code of the error (base/error.h).
// Source of the bars: cosine and top token, issue "the whole job on the CPU".
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/plan.h"
#include "base/bytes.h"
#include "base/check.h"
#include "base/system.h"
#include "infer/scheduler.h"
#include "model/base_tokenizer.h"
#include "model/pass.h"

namespace {

using namespace saaz;
using Ids = std::vector<int32_t>;

constexpr double kMinCosine = 0.999, kMinSameTop = 0.98;
constexpr int64_t kMinTokens = 200;

int32_t parse_int(std::string_view text, int64_t limit, const std::string& where) {
  int32_t value = -1;
  const char* stop = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), stop, value);
  check(error == std::errc() && end == stop && value >= 0 && value < limit, ExitCode::bad_input,
        "{}: expected a number from 0 to {}, found '{}'", where, limit - 1, printable(text));
  return value;
}

std::vector<Ids> read_sequences(const fs::path& path, int64_t vocab_size) {
  const std::string text = read_file(path);
  std::vector<Ids> sequences;
  for (size_t at = 0; at < text.size();) {
    const size_t stop = std::min(text.find('\n', at), text.size());
    const std::string where = fmt::format("{}:{}", path.string(), sequences.size() + 1);
    Ids& ids = sequences.emplace_back();
    while (at < stop) {
      const size_t end = std::min(text.find(' ', at), stop);
      ids.push_back(parse_int(std::string_view(text).substr(at, end - at), vocab_size, where));
      at = std::min(end + 1, stop);
    }
    check(!ids.empty(), ExitCode::bad_input, "{}: the sequence is empty", where);
    at = stop + 1;
  }
  check(!sequences.empty(), ExitCode::bad_input, "{}: no sequence", path.string());
  return sequences;
}

void print_sequence(const Ids& ids) { fmt::print("{}\n", fmt::join(ids, " ")); }

struct Loaded {
  std::unique_ptr<Backend> backend = make_cpu_backend({});
  BaseModel base;
  std::unique_ptr<Model> model;
};

/// The model with its own values: nothing is quantised again.
Loaded load(const fs::path& path, int64_t max_positions) {
  Loaded out;
  out.base = open_base_model(path);
  out.model = load_model(*out.backend, out.base, {.scheme = QuantScheme::none, .max_positions = max_positions});
  return out;
}

int64_t longest(const std::vector<Ids>& sequences) {
  size_t n = 0;
  for (const Ids& ids : sequences) n = std::max(n, ids.size());
  return static_cast<int64_t>(n);
}

/// Logits [ids.size(), vocab_size] of one sequence.
std::vector<float> sequence_logits(const Loaded& loaded, const Ids& ids) {
  const std::vector<int64_t> starts = {0, static_cast<int64_t>(ids.size())};
  const Batch batch = packed_batch(ids, starts);
  PlanBackend plan(*loaded.backend);
  PassMemory measured;
  logits_pass(plan, measured, *loaded.model, batch, nullptr, batch.positions);
  PassMemory memory(*loaded.backend, measured.peak());
  return logits_pass(*loaded.backend, memory, *loaded.model, batch, nullptr, batch.positions);
}

struct Comparison {
  int64_t n_tokens = 0, n_same_top = 0;
  double min_cosine = 1, cosine_sum = 0, largest_difference = 0, largest_logit = 0;

  void add(std::span<const float> ours, std::span<const float> theirs) {
    double dot = 0, our_square = 0, their_square = 0;
    for (size_t i = 0; i < ours.size(); ++i) {
      const double a = ours[i], b = theirs[i], difference = std::fabs(a - b);
      dot += a * b;
      our_square += a * a;
      their_square += b * b;
      largest_difference = std::max(largest_difference, std::isnan(difference) ? HUGE_VAL : difference);
      largest_logit = std::max(largest_logit, std::fabs(b));
    }
    const double cosine = dot / std::sqrt(our_square * their_square);
    min_cosine = std::isnan(cosine) ? -1 : std::min(min_cosine, cosine);
    cosine_sum += cosine;
    n_same_top += std::max_element(ours.begin(), ours.end()) - ours.begin() ==
                  std::max_element(theirs.begin(), theirs.end()) - theirs.begin();
    ++n_tokens;
  }

  double mean_cosine() const { return cosine_sum / static_cast<double>(n_tokens); }
  double same_top() const { return static_cast<double>(n_same_top) / static_cast<double>(n_tokens); }
};

/// The peer's logits of the next sequence; bad_input when the file is not about the same ids.
std::vector<float> read_peer_logits(ByteReader& reader, int64_t n_tokens, int64_t vocab_size) {
  const auto n = reader.read<int32_t>("number of tokens");
  const auto n_vocab = reader.read<int32_t>("vocabulary size");
  check(n == n_tokens && n_vocab == vocab_size, ExitCode::bad_input, "{}: holds {} x {} logits, expected {} x {}",
        reader.name(), n, n_vocab, n_tokens, vocab_size);
  const Bytes bytes = reader.take(static_cast<uint64_t>(n_tokens * vocab_size) * sizeof(float), "logits");
  std::vector<float> out(static_cast<size_t>(n_tokens * vocab_size));
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

bool report_bar(const char* what, double value, double bar) {
  const bool passed = value >= bar;
  fmt::print("{}: {:.6f}, at least {:.6f} is wanted: {}\n", what, value, bar, passed ? "PASS" : "FAIL");
  return passed;
}

ExitCode compare(const fs::path& model_path, const fs::path& ids_path, const fs::path& peer_path) {
  const BaseModel header = open_base_model(model_path);
  const int64_t vocab_size = header.config.vocab_size;
  const std::vector<Ids> sequences = read_sequences(ids_path, vocab_size);
  const Loaded loaded = load(model_path, longest(sequences));
  const MappedFile file(peer_path);
  ByteReader reader(file.bytes(), peer_path.string());
  Comparison all;
  double seconds = 0;
  for (const Ids& ids : sequences) {
    const std::vector<float> theirs = read_peer_logits(reader, static_cast<int64_t>(ids.size()), vocab_size);
    const double start = monotonic_seconds();
    const std::vector<float> ours = sequence_logits(loaded, ids);
    seconds += monotonic_seconds() - start;
    const auto row = static_cast<size_t>(vocab_size);
    for (size_t i = 0; i < ids.size(); ++i)
      all.add(std::span(ours).subspan(i * row, row), std::span(theirs).subspan(i * row, row));
  }
  check(reader.remaining() == 0, ExitCode::bad_input, "{}: {} bytes more than the sequences need", peer_path.string(),
        reader.remaining());
  fmt::print("sequences: {}, vocabulary: {}, our pass: {:.1f} s ({:.0f} tokens/s), peak RSS {} MiB\n", sequences.size(),
             vocab_size, seconds, static_cast<double>(all.n_tokens) / seconds, peak_rss_bytes() >> 20);
  fmt::print("mean cosine: {:.9f}, largest difference: {:.3g} (largest logit {:.3g})\n", all.mean_cosine(),
             all.largest_difference, all.largest_logit);
  // All bars are reported, whichever fails first.
  const bool enough = report_bar("tokens", static_cast<double>(all.n_tokens), static_cast<double>(kMinTokens));
  const bool close = report_bar("smallest cosine", all.min_cosine, kMinCosine);
  const bool same = report_bar("same top token", all.same_top(), kMinSameTop);
  return enough && close && same ? ExitCode::ok : ExitCode::verification;
}

void print_ids(const fs::path& model_path, std::span<const std::string> texts) {
  const Tokenizer tokenizer = load_tokenizer_alone(model_path);
  for (const std::string& text : texts)
    print_sequence(tokenizer.encode(read_file(text), ControlTokens::parse, AddBos::yes));
}

void print_greedy(const fs::path& model_path, const fs::path& ids_path, const std::string& count_text) {
  constexpr int64_t kMaxCount = 100'000;
  const int64_t count = parse_int(count_text, kMaxCount, "N");
  const std::vector<Ids> prompts = read_sequences(ids_path, open_base_model(model_path).config.vocab_size);
  const int64_t max_length = longest(prompts) + count;
  const Loaded loaded = load(model_path, max_length);
  Engine engine(*loaded.backend, *loaded.model, nullptr,
                {.max_running = static_cast<int64_t>(prompts.size()), .context = max_length, .prefix_bytes = 0});
  std::vector<Request> requests;
  for (const Ids& prompt : prompts) {
    Request& request = requests.emplace_back();
    request.prompt = prompt;
    request.max_tokens = count;
  }
  for (const Completion& answer : complete_all(engine, std::move(requests), {})) print_sequence(answer.choices[0].ids);
}

ExitCode run(const std::vector<std::string>& args) {
  if (args.size() >= 3 && args[0] == "--ids") return print_ids(args[1], std::span(args).subspan(2)), ExitCode::ok;
  if (args.size() == 4 && args[0] == "--greedy") return print_greedy(args[1], args[2], args[3]), ExitCode::ok;
  if (args.size() == 3 && !args[0].starts_with("--")) return compare(args[0], args[1], args[2]);
  fail(ExitCode::usage, "usage: [--ids MODEL TEXT... | --greedy MODEL IDS N | MODEL IDS ORACLE.bin]");
}

}  // namespace

int main(int argc, char** argv) try {
  return static_cast<int>(run({argv + 1, argv + argc}));
} catch (const Error& error) {
  fmt::print(stderr, "compare_logits: {}\n", error.what());
  return static_cast<int>(error.code());
} catch (const std::exception& error) {
  fmt::print(stderr, "compare_logits: {}\n", error.what());
  return static_cast<int>(ExitCode::bug);
}
