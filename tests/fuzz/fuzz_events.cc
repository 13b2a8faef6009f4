// Bytes as the event log of a run, and as the text of a model: what the dashboard reads of both. Any bytes give a
// record whose figures can be asked for, and any valid text is measured and laid out.
#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/unicode.h"
#include "data/text_health.h"
#include "mutation.h"
#include "report/run_record.h"

namespace {

const std::vector<std::string>& seeds() {
  static const std::vector<std::string> all = {
      R"({"event":"start","max_steps":9,"unix_time":1.5,"base":"b"})"
      "\n"
      R"({"event":"step","step":1,"loss_nats":2.5,"grad_norm":1,"n_tokens":7,"seconds":0.5,"peak_rss_bytes":9})"
      "\n"
      R"({"event":"eval","step":1,"eval_loss_nats":2,"n_scored_tokens":3})"
      "\n"
      R"({"event":"probes","step":1,"answers":[{"prompt":"p","answer":"a"}]})"
      "\n{\"event\":\"end\"}\n",
      "می‌روم و کتاب ها را می‌‌آورم `code` علي мир\n",
      "یک دو سه چهار یک دو سه چهار $x$ https://a.ir «ٱلسَّلَامُ عَلَيْكُم»",
  };
  return all;
}

void require(bool condition) {
  if (!condition) std::abort();
}

void read_events(std::string_view text) {
  saaz::RunRecord run;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    try {
      run.add(saaz::parse_json(text.substr(0, end), "fuzz"));
    } catch (const saaz::Error& error) {
      require(error.code() == saaz::ExitCode::bad_input);
    }
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  run.final_loss();
  run.median_tokens_per_s();
  run.best_eval();
  run.n_tokens();
}

void measure(std::string_view text) {
  const saaz::TextHealth health = saaz::measure_text(text);
  require(health.n_half_spaces >= 0 && health.n_foreign_letters <= health.n_letters &&
          health.n_repeated_runs <= health.n_runs);
  const auto is_rate = [](double rate) { return !(rate < 0 || rate > 1); };
  require(is_rate(health.half_space_accuracy()) && is_rate(health.foreign_rate()) && is_rate(health.repetition()));
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  const std::string* fresh = saaz::fuzz::fresh_seed(seeds(), size, seed);
  const std::string input = fresh != nullptr ? *fresh : std::string(reinterpret_cast<const char*>(data), size);
  return saaz::fuzz::store(saaz::fuzz::mutated(input, max_size), data, max_size);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  read_events(text);
  if (saaz::find_invalid_utf8(text) == std::string_view::npos) measure(text);
  return 0;
}
