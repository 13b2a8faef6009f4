#include "serve/terminal_view.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/unicode.h"
#include "data/protected_spans.h"
#include "data/script.h"
#include "report/braille_chart.h"
#include "terminal/graphemes.h"
#include "terminal/text_layout.h"

namespace saaz {
namespace {

constexpr size_t kChartRows = 5;

std::string figure(double value, int decimals) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, decimals) : "-";
}

std::string duration(double seconds) {
  if (!std::isfinite(seconds)) return "-";
  const auto whole = static_cast<int64_t>(std::max(0.0, seconds));
  if (whole >= 3600) return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
  return whole >= 60 ? fmt::format("{} min {} s", whole / 60, whole % 60) : fmt::format("{} s", whole);
}

std::string without_control(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const CodePoint c = decode_utf8(text);
    text.remove_prefix(static_cast<size_t>(c.length));
    const bool is_control = c.value < 0x20 || is_within(c.value, 0x7F, 0x9F) || is_invisible_mark(c.value);
    append_utf8(out, c.value == '\t' ? ' ' : is_control ? kReplacement : c.value);
  }
  return out;
}

/// The first cells of a text, as far as they fit.
std::string cut(const std::string& text, size_t columns) {
  size_t end = 0, width = 0;
  for (const Grapheme& grapheme : graphemes(text)) {
    width += static_cast<size_t>(grapheme.cells);
    if (width > columns) break;
    end = grapheme.end;
  }
  return text.substr(0, end);
}

class Frame {
 public:
  Frame(const RunView& view, TerminalSize size, Bidi bidi)
      : view_(view), run_(view.record()), size_(size), bidi_(bidi) {}

  std::vector<std::string> lines() {
    add_head();
    add_charts();
    add_probes();
    lines_.resize(std::min(lines_.size(), size_.rows));
    return std::move(lines_);
  }

 private:
  /// Texts of our own, cut to the width.
  void add(const std::string& text) {
    lines_.push_back(std::string(direction_mark(Direction::ltr, bidi_)) + cut(text, size_.columns));
  }

  std::string status() const {
    if (view_.is_foreign()) return "a Hugging Face Trainer's run";
    switch (run_.status) {
      case RunRecord::Status::finished:
        return "finished";
      case RunRecord::Status::stopped:
        return "stopped, can be resumed";
      case RunRecord::Status::running:
        break;
    }
    return run_.start.is_null() ? "waiting for the run to begin" : "training";
  }

  void add_head() {
    const int64_t step = run_.steps.empty() ? 0 : run_.steps.back().step;
    const double left = static_cast<double>(run_.max_steps - step) * seconds_per_update(run_);
    const bool is_running = run_.status == RunRecord::Status::running;
    add(fmt::format("{}  {}  update {} of {}{}", without_control(run_.name), status(), step, run_.max_steps,
                    is_running && std::isfinite(left) ? "  " + duration(left) + " left" : ""));
    const size_t width = std::min<size_t>(size_.columns, 60);
    const double share = run_.max_steps > 0 ? static_cast<double>(step) / static_cast<double>(run_.max_steps) : 0;
    const auto done = static_cast<size_t>(std::clamp(share, 0.0, 1.0) * static_cast<double>(width));
    std::string bar;
    for (size_t i = 0; i < width; ++i) bar += i < done ? "━" : "─";
    add(bar);
    const StepRecord last = run_.steps.empty() ? StepRecord() : run_.steps.back();
    const double eval = run_.evals.empty() ? kUnknown : run_.evals.back().loss;
    const double speed = last.seconds > 0 ? static_cast<double>(last.n_tokens) / last.seconds : kUnknown;
    add(fmt::format("loss {}  validation {}  gradient norm {}  lr {}", figure(last.loss, 4), figure(eval, 4),
                    figure(last.grad_norm, 3),
                    std::isfinite(last.learning_rate) ? fmt::format("{:.2e}", last.learning_rate) : "-"));
    add(fmt::format(
        "{} tokens/s  epoch {}  memory {}", figure(speed, 0), figure(last.epoch, 2),
        run_.peak_bytes > 0 ? fmt::format("{:.2f} GiB", static_cast<double>(run_.peak_bytes) / (1 << 30)) : "-"));
  }

  void add_charts() {
    std::vector<ChartPoint> loss, norm, eval;
    for (const StepRecord& step : run_.steps) {
      loss.emplace_back(static_cast<double>(step.step), step.loss);
      norm.emplace_back(static_cast<double>(step.step), step.grad_norm);
    }
    for (const EvalRecord& record : run_.evals) eval.emplace_back(static_cast<double>(record.step), record.loss);
    add_chart("loss, each update (nats a token)", loss);
    if (size_.rows >= 34 || run_.probes.empty()) add_chart("validation loss", eval);
    if (size_.rows >= 42 || run_.probes.empty()) add_chart("gradient norm before clipping", norm);
  }

  void add_chart(const char* title, const std::vector<ChartPoint>& points) {
    const std::vector<std::string> chart = braille_chart(points, {std::min<size_t>(size_.columns, 100), kChartRows});
    if (chart.empty() || lines_.size() + chart.size() + 2 > size_.rows) return;
    add("");
    add(title);
    for (const std::string& line : chart) add(line);
  }

  void add_probes() {
    if (run_.probes.empty()) return;
    const Value& round = run_.probes.back();
    const auto percent = [&](const char* key) {
      const Value* health = round.find("health");
      const double rate = health == nullptr ? kUnknown : number_or(*health, key);
      return std::isfinite(rate) ? fmt::format("{:.0f} %", 100 * rate) : "-";
    };
    add("");
    add(fmt::format(
        "probes at update {:.0f}: half spaces right {}, foreign letters {}, Arabic letters {}, repetition {}",
        number_or(round, "step", 0), percent("half_space_accuracy"), percent("foreign_rate"),
        percent("arabic_letter_rate"), percent("repetition")));
    const Value* answers = round.find("answers");
    if (answers == nullptr || !answers->is_array()) return;
    for (const Value& answer : answers->items()) {
      if (lines_.size() + 3 > size_.rows) return;
      add("");
      add_text(text_or_empty(answer, "prompt"));
      add_text(text_or_empty(answer, "answer"));
    }
  }

  void add_text(const std::string& text) {
    for (std::string& line : wrapped(text, size_.columns, bidi_)) lines_.push_back(std::move(line));
  }

  const RunView& view_;
  const RunRecord& run_;
  TerminalSize size_;
  Bidi bidi_;
  std::vector<std::string> lines_;
};

}  // namespace

std::vector<std::string> wrapped(std::string_view text, size_t columns, Bidi bidi) {
  const auto width = static_cast<int>(std::max<size_t>(columns, 8));
  std::vector<std::string> out;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string paragraph = without_control(text.substr(0, end));
    const Direction base = is_right_to_left(paragraph).value_or(false) ? Direction::rtl : Direction::ltr;
    size_t begin = 0;
    for (const size_t line_end : wrap(paragraph, width)) {
      if (line_end > begin)
        out.push_back(std::string(direction_mark(base, bidi)) +
                      draw_line(paragraph, begin, line_end, base, bidi, width));
      begin = line_end;
    }
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

std::vector<std::string> terminal_frame(const RunView& view, TerminalSize size, Bidi bidi) {
  return Frame(view, size, bidi).lines();
}

}  // namespace saaz
