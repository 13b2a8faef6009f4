// Watching a run: a file that grows, is cut and is replaced; the state that pages get; the terminal's charts and lines.
#include "serve/run_view.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "base/check.h"
#include "base/system.h"
#include "base/unicode.h"
#include "report/braille_chart.h"
#include "serve/terminal_view.h"
#include "terminal/graphemes.h"

namespace saaz {
namespace {

class Watching : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("saaz-watching-" + std::to_string(getpid()));
    fs::remove_all(root_);
    fs::create_directories(root_ / "run");
  }
  void TearDown() override { fs::remove_all(root_); }

  fs::path events() const { return root_ / "run" / "events.jsonl"; }
  void append(const std::string& text) const { std::ofstream(events(), std::ios::app) << text; }
  static std::string start(int max_steps) {
    return fmt::format(R"({{"event":"start","max_steps":{},"backend":"cpu","base":"b","unix_time":1}})", max_steps) +
           "\n";
  }
  static std::string step(int n) {
    return fmt::format(
               R"({{"event":"step","step":{},"max_steps":9,"loss_nats":{},"grad_norm":1.5,"learning_rate":1e-4,)"
               R"("n_tokens":100,"seconds":2,"peak_rss_bytes":1000,"epoch":0.5,"unix_time":{}}})",
               n, 5.0 / n, 10 + 2 * n) +
           "\n";
  }
  static size_t n_rows(const Value& state, const char* list) { return state.find(list)->items().size(); }

  fs::path root_;
};

TEST_F(Watching, LinesComeOnceAndWhole) {
  TailFile tail(events());
  EXPECT_TRUE(tail.read().lines.empty());  // absent
  append("one\ntw");
  EXPECT_EQ(tail.read().lines, std::vector<std::string>{"one"});
  EXPECT_TRUE(tail.read().lines.empty());
  append("o\nthree\n");
  const TailFile::Lines more = tail.read();
  EXPECT_EQ(more.lines, (std::vector<std::string>{"two", "three"}));
  EXPECT_FALSE(more.is_anew);
  // A resume writes the log again, shorter, under the same name.
  write_file_atomically(events(), "one\n");
  const TailFile::Lines anew = tail.read();
  EXPECT_TRUE(anew.is_anew);
  EXPECT_EQ(anew.lines, std::vector<std::string>{"one"});
  std::ofstream(events()) << "x\n";  // cut in place
  EXPECT_TRUE(tail.read().is_anew);
}

TEST_F(Watching, NewsAndStateAgree) {
  RunView view(root_ / "run");
  EXPECT_EQ(view.poll(), RunView::Change::none);
  EXPECT_EQ(view.record().name, "run");
  std::ofstream(root_ / "run" / "recipe.yaml") << "recipe: 1\n";
  append(start(9) + step(1) + step(2) + R"({"event":"eval","step":2,"eval_loss_nats":3.5})" + "\n");
  EXPECT_EQ(view.poll(), RunView::Change::more);
  const Value first = view.news();
  EXPECT_EQ(n_rows(first, "steps"), 2u);
  EXPECT_EQ(n_rows(first, "evals"), 1u);
  EXPECT_EQ(text_or_empty(first, "recipe"), "recipe: 1\n");
  append(step(3) + "{\"event\":\"step\",\"st\n" + R"({"event":"probes","step":3,"answers":[]})" + "\n");
  EXPECT_EQ(view.poll(), RunView::Change::more);
  const Value second = view.news();
  EXPECT_EQ(n_rows(second, "steps"), 1u);  // the broken line is left out
  EXPECT_EQ(n_rows(second, "evals"), 0u);
  EXPECT_EQ(n_rows(second, "probes"), 1u);
  EXPECT_EQ(view.poll(), RunView::Change::none);
  const Value state = view.state();
  EXPECT_EQ(n_rows(state, "steps"), 3u);
  EXPECT_EQ(text_or_empty(state, "status"), "running");
  EXPECT_EQ(number_or(state, "seconds_per_update"), 2);
  // One who comes late is told the same as one who watched.
  RunView late(root_ / "run");
  late.poll();
  EXPECT_EQ(to_json(late.state()), to_json(state));
}

TEST_F(Watching, AResumeBeginsAnew) {
  RunView view(root_ / "run");
  append(start(9) + step(1) + step(2) + step(3));
  view.poll();
  view.news();
  write_file_atomically(events(), start(9) + step(1));
  EXPECT_EQ(view.poll(), RunView::Change::anew);
  EXPECT_EQ(n_rows(view.state(), "steps"), 1u);
  append(step(2) + R"({"event":"end","step":2})" + "\n");
  EXPECT_EQ(view.poll(), RunView::Change::more);
  EXPECT_EQ(text_or_empty(view.state(), "status"), "finished");
}

TEST_F(Watching, AForeignRunIsReadAgainWhenItChanges) {
  const fs::path state = root_ / "run" / "checkpoint-2" / "trainer_state.json";
  fs::create_directories(state.parent_path());
  std::ofstream(state) << R"({"global_step":2,"max_steps":4,"log_history":[{"loss":3.5,"grad_norm":NaN,)"
                       << R"("learning_rate":1e-4,"epoch":0.5,"step":1},{"eval_loss":3.25,"step":2}]})";
  RunView view(root_ / "run");
  EXPECT_EQ(view.poll(), RunView::Change::anew);
  EXPECT_TRUE(view.is_foreign());
  const Value seen = view.state();
  EXPECT_EQ(n_rows(seen, "steps"), 1u);
  EXPECT_EQ(to_json(seen).find("NaN"), std::string::npos);
  EXPECT_EQ(view.poll(), RunView::Change::none);
  // Our own events win once there are some.
  append(start(9) + step(1));
  EXPECT_EQ(view.poll(), RunView::Change::anew);
  EXPECT_FALSE(view.is_foreign());
}

TEST_F(Watching, ALongRunIsGivenAsMeans) {
  RunView view(root_ / "run");
  std::string text = start(20000);
  for (int i = 1; i <= 20000; ++i) text += step(i);
  append(text);
  view.poll();
  const Value state = view.state();
  EXPECT_LE(n_rows(state, "steps"), RunView::kMaxPoints);
  EXPECT_GT(n_rows(state, "steps"), RunView::kMaxPoints / 2);
  EXPECT_EQ(state.find("steps")->items().back().items()[0].as_integer(), 20000);
  double expected = 0;
  for (int i = 1; i <= 7; ++i) expected += 5.0 / i / 7;  // 20000 updates in groups of 7
  EXPECT_NEAR(state.find("steps")->items()[0].items()[1].as_double(), expected, 1e-12);
}

TEST_F(Watching, RandomBytesAreNoRun) {
  uint64_t seed = 7;
  std::string bytes;
  for (int i = 0; i < 200000; ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    bytes += static_cast<char>(seed >> 56);
  }
  append(bytes + "\n" + start(9) + step(1));
  RunView view(root_ / "run");
  view.poll();
  EXPECT_EQ(n_rows(view.state(), "steps"), 1u);
}

TEST(BrailleChart, PointsLightTheirDots) {
  // Two columns of dots and four rows a cell: a diagonal from the lower left to the upper right.
  const std::vector<ChartPoint> points = {{0, 0}, {1, 1}, {2, 2}};
  const std::vector<std::string> chart = braille_chart(points, {16, 2});
  ASSERT_EQ(chart.size(), 2u);
  EXPECT_TRUE(chart[0].starts_with("      2 ┤")) << chart[0];
  EXPECT_TRUE(chart[1].starts_with("      0 ┤")) << chart[1];
  for (const std::string& line : chart) EXPECT_EQ(cell_width(line), 16) << line;
  // 14 by 8 dots: the ends in the corners, the middle point at column 7, three rows from the top.
  EXPECT_EQ(chart[0].substr(chart[0].find("┤") + 3), "⠀⠀⠀⢀⡠⠔⠊");
  EXPECT_EQ(chart[1].substr(chart[1].find("┤") + 3), "⣀⠤⠒⠁⠀⠀⠀");
  EXPECT_TRUE(braille_chart({}, {16, 2}).empty());
  const std::vector<ChartPoint> unknown = {{0, kUnknown}}, flat = {{0, 1}, {5, 1}};
  EXPECT_TRUE(braille_chart(unknown, {16, 2}).empty());
  EXPECT_EQ(braille_chart(flat, {20, 3}).size(), 3u);
}

TEST(Terminal, PersianLinesAreWrappedAndSetRight) {
  const std::string text = "پایتخت ایران تهران است\nplain words";
  const std::vector<std::string> lines = wrapped(text, 12, Bidi::padded);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0], "پایتخت ایران");
  EXPECT_EQ(lines[1], "   تهران است");
  for (const std::string& line : lines) EXPECT_LE(cell_width(line), 12);
  EXPECT_EQ(lines[2], "plain words");
  EXPECT_EQ(cell_width("می‌شود"), 5);
  // A word longer than the line is cut; what would steer the terminal is shown as a replacement character.
  EXPECT_EQ(wrapped("abcdefghijkl", 8, Bidi::off).size(), 2u);
  EXPECT_EQ(wrapped("a\x1b[31mb", 20, Bidi::off)[0], "a\xEF\xBF\xBD[31mb");
}

TEST_F(Watching, AFrameFitsTheTerminal) {
  RunView view(root_ / "run");
  std::string text = start(40);
  for (int i = 1; i <= 30; ++i) text += step(i);
  append(
      text +
      R"({"event":"probes","step":30,"answers":[{"prompt":"سلام","answer":"سلام، چه کمکی از من برمی‌آید؟"}],)"
      R"("health":{"half_space_accuracy":0.5,"foreign_rate":0,"repetition":null}})" +
      "\n");
  view.poll();
  for (const TerminalSize size : {TerminalSize{80, 24}, {40, 10}, {20, 5}, {200, 60}}) {
    const std::vector<std::string> frame = terminal_frame(view, size, Bidi::padded);
    EXPECT_LE(frame.size(), size.rows);
    for (const std::string& line : frame) EXPECT_LE(static_cast<size_t>(cell_width(line)), size.columns) << line;
  }
  std::string all;
  for (const std::string& line : terminal_frame(view, {120, 40}, Bidi::off)) all += line + "\n";
  EXPECT_NE(all.find("run  training  update 30 of 40  20 s left"), std::string::npos) << all;
  EXPECT_NE(all.find("half spaces right 50 %, foreign letters 0 %"), std::string::npos) << all;
  EXPECT_NE(all.find("\nسلام، چه کمکی از من برمی‌آید؟\n"), std::string::npos) << all;
}

}  // namespace
}  // namespace saaz
