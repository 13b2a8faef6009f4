// What a run tells others: charts whose drawn points are the data, checksums and frames of the trackers' files against
// published values, run folders of our own and of Hugging Face's Trainer, and the model card. That the real programs
// read the files is tried by tests/real/check_records.py.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <regex>

#include "base/check.h"
#include "report/card_text.h"
#include "report/charts.h"
#include "report/model_card.h"
#include "report/protobuf.h"
#include "report/provenance.h"
#include "report/run_files.h"
#include "report/wandb.h"

namespace saaz {
namespace {

/// Whether tags nest and close, attributes are quoted, and no bare '&' or '<' stands in a text.
void expect_well_formed(const std::string& xml) {
  static const std::regex kToken(
      R"re(<(/?)([a-z]+)((?: [a-zA-Z0-9:-]+="[^"<&]*")*) ?(/?)>|[^<&]|&(amp|lt|gt|quot);)re");
  std::vector<std::string> open;
  size_t at = 0;
  for (std::sregex_iterator it(xml.begin(), xml.end(), kToken), end; it != end; ++it) {
    ASSERT_EQ(static_cast<size_t>(it->position()), at) << "not XML: " << xml.substr(at, 80);
    at += static_cast<size_t>(it->length());
    if (!(*it)[2].matched || (*it)[4].length() > 0) continue;
    if ((*it)[1].length() == 0) {
      open.push_back((*it)[2]);
    } else {
      ASSERT_FALSE(open.empty());
      ASSERT_EQ(open.back(), (*it)[2].str());
      open.pop_back();
    }
  }
  EXPECT_EQ(at, xml.size());
  EXPECT_TRUE(open.empty());
}

/// Pixels to data, by the place and text of the first and last tick of an axis.
struct Scale {
  double pixel = 0, value = 0, per_pixel = 0;
  double at(double p) const { return value + (p - pixel) * per_pixel; }
};
Scale scale_of(const std::string& svg, bool is_x) {
  const std::regex tick(
      fmt::format(R"re(<text x="([\d.]+)" y="([\d.]+)"[^>]*class="{} tick">([^<]+)<)re", is_x ? 'x' : 'y'));
  std::vector<std::pair<double, double>> found;  // pixel, value
  for (std::sregex_iterator it(svg.begin(), svg.end(), tick), end; it != end; ++it)
    found.emplace_back(is_x ? std::stod((*it)[1]) : std::stod((*it)[2]) - 4, std::stod((*it)[3]));
  if (found.size() < 2) return {};
  const auto [p0, v0] = found.front();
  const auto [p1, v1] = found.back();
  return {p0, v0, (v1 - v0) / (p1 - p0)};
}
/// The points of the series with that title, read back from the drawing.
std::vector<std::pair<double, double>> drawn(const std::string& svg, const std::string& title) {
  const Scale x = scale_of(svg, true), y = scale_of(svg, false);
  const size_t series = svg.find("<title>" + title + "</title>\n<path d=\"");
  std::vector<std::pair<double, double>> out;
  if (series == std::string::npos) return out;
  const size_t begin = svg.find("d=\"", series) + 3;
  const std::string path = svg.substr(begin, svg.find('"', begin) - begin);
  static const std::regex kPoint(R"re([ML]([\d.]+) ([\d.]+))re");
  for (std::sregex_iterator it(path.begin(), path.end(), kPoint), end; it != end; ++it)
    out.emplace_back(x.at(std::stod((*it)[1])), y.at(std::stod((*it)[2])));
  return out;
}

RunRecord sample_run() {
  RunRecord run;
  run.name = "a <b> & \"c\"";
  for (int i = 1; i <= 30; ++i)
    run.steps.push_back({.step = i,
                         .loss = 5.0 / i + 0.1 * (i % 3),
                         .grad_norm = i == 7 ? kUnknown : 1.0 + i % 4,
                         .learning_rate = 1e-4 * i,
                         .n_tokens = 100,
                         .seconds = 2});
  run.evals = {{.step = 0, .loss = 4.5}, {.step = 30, .loss = 1.25}};
  run.max_steps = 30;
  return run;
}

TEST(Chart, DrawsTheDataAndIsWellFormed) {
  const RunRecord run = sample_run();
  const std::string svg = to_svg(loss_chart(run));
  expect_well_formed(svg);
  // Pixels are written with two decimals, tick places with one: half of 0.1 at both ticks that give the scale.
  const double tolerance = 0.2 * std::abs(scale_of(svg, false).per_pixel), across = 0.2 * scale_of(svg, true).per_pixel;
  const auto points = drawn(svg, "each update");
  ASSERT_EQ(points.size(), run.steps.size());
  for (size_t i = 0; i < points.size(); ++i) {
    EXPECT_NEAR(points[i].first, static_cast<double>(run.steps[i].step), across);
    EXPECT_NEAR(points[i].second, run.steps[i].loss, tolerance);
  }
  const auto evals = drawn(svg, "validation 4.500 to 1.250");
  ASSERT_EQ(evals.size(), 2u);
  EXPECT_NEAR(evals[0].second, 4.5, tolerance);
  EXPECT_NEAR(evals[1].second, 1.25, tolerance);
}

TEST(Chart, NonFiniteInterruptsTheLine) {
  const std::string svg = to_svg(grad_norm_chart(sample_run()));
  expect_well_formed(svg);
  EXPECT_EQ(drawn(svg, "each update").size(), 29u);
  const size_t begin = svg.find("<path d=\"M", svg.find("<title>each update"));
  const std::string path = svg.substr(begin, svg.find("/>", begin) - begin);
  EXPECT_EQ(std::count(path.begin(), path.end(), 'M'), 2);
}

TEST(Chart, SmallNumbersShareAPowerOfTen) {
  const std::string svg = to_svg(learning_rate_chart(sample_run()));
  EXPECT_NE(svg.find("learning rate (×10⁻³)"), std::string::npos);
  const auto [step, rate] = drawn(svg, "").back();
  EXPECT_NEAR(rate, 3.0, 0.2 * std::abs(scale_of(svg, false).per_pixel));
  EXPECT_NEAR(step, 30, 0.2 * scale_of(svg, true).per_pixel);
}

TEST(Chart, ManyPointsKeepTheirExtremes) {
  RunRecord run;
  for (int i = 1; i <= 50000; ++i) run.steps.push_back({.step = i, .loss = i == 31234 ? 9.0 : 2.0 + 0.001 * (i % 10)});
  const std::string svg = to_svg(loss_chart(run));
  EXPECT_LT(svg.size(), 100000u);
  double highest = 0;
  for (const auto& [step, loss] : drawn(svg, "each update")) highest = std::max(highest, loss);
  EXPECT_NEAR(highest, 9.0, 0.2 * std::abs(scale_of(svg, false).per_pixel));
}

TEST(Chart, EmptyAndConstantRuns) {
  expect_well_formed(to_svg(loss_chart(RunRecord())));
  RunRecord flat;
  flat.steps = {{.step = 1, .loss = 2}};
  expect_well_formed(to_svg(loss_chart(flat)));
}

TEST(Ticks, AreRound) {
  EXPECT_EQ(nice_ticks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(nice_ticks(-1, 1, 4), (std::vector<double>{-1, -0.5, 0, 0.5, 1}));
  for (const double tick : nice_ticks(-0.01, 5, 5)) EXPECT_FALSE(tick == 0 && std::signbit(tick));
}

TEST(Smoothing, HasNoPullTowardsZero) {
  const std::vector<double> values = {3, 3, kUnknown, 3};
  const std::vector<double> out = smoothed(values, 0.9);
  EXPECT_DOUBLE_EQ(out[0], 3);
  EXPECT_TRUE(std::isnan(out[2]));
  EXPECT_DOUBLE_EQ(out[3], 3);
}

TEST(Checksums, KnownValues) {
  // The check values of the two polynomials, over "123456789".
  EXPECT_EQ(crc32<kCrc32Ieee>("123456789"), 0xCBF43926u);
  EXPECT_EQ(crc32<kCrc32Castagnoli>("123456789"), 0xE3069283u);
}

TEST(Protobuf, DocumentedExamples) {
  EXPECT_EQ(ProtoMessage().integer(1, 150).bytes(), "\x08\x96\x01");
  EXPECT_EQ(ProtoMessage().text(2, "testing").bytes(), "\x12\x07testing");
}

TEST(Wandb, FramesNeverCrossABlock) {
  WandbLog log;
  Value recipe = Value::object({{"text", std::string(100000, 'x')}});
  std::string file = log.header("abcd1234", "run", 1000, recipe);
  for (int i = 1; i < 2000; ++i)
    file += log.bytes(Value::object({{"event", "step"}, {"step", i}, {"loss_nats", 1.5}, {"unix_time", 1000.0 + i}}));
  constexpr size_t kBlock = 32768;
  size_t n_full = 0;
  for (size_t at = 7; at < file.size();) {
    if (kBlock - at % kBlock < 7) {
      at += kBlock - at % kBlock;
      continue;
    }
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(file[at + i]); };
    const size_t length = byte(4) | byte(5) << 8;
    const uint32_t crc = byte(0) | byte(1) << 8 | byte(2) << 16 | static_cast<uint32_t>(byte(3)) << 24;
    ASSERT_LE(at % kBlock + 7 + length, kBlock);
    ASSERT_EQ(crc, crc32<kCrc32Ieee>(std::string_view(file).substr(at + 6, length + 1)));
    n_full += byte(6) == 1;
    at += 7 + length;
  }
  EXPECT_GT(n_full, 1900u);
}

class RunFolder : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("saaz-report-" + std::to_string(getpid()));
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }
  void write(const fs::path& name, const std::string& text) const {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name) << text;
  }
  fs::path root_;
};

TEST_F(RunFolder, ForeignTrainerStateWithNaN) {
  write("hf/checkpoint-2/trainer_state.json",
        R"({"global_step": 2, "max_steps": 4, "note": "NaN \" Infinity", "log_history": [
    {"loss": 8.5, "grad_norm": NaN, "learning_rate": 0.0, "epoch": 0.1, "step": 1},
    {"loss": 7.5, "grad_norm": Infinity, "learning_rate": 2e-6, "epoch": 0.2, "step": 2},
    {"eval_loss": 7.0, "epoch": 0.2, "step": 2}]})");
  const RunRecord run = read_run(root_ / "hf");
  EXPECT_EQ(run.name, "hf");
  EXPECT_EQ(run.status, RunRecord::Status::stopped);
  ASSERT_EQ(run.steps.size(), 2u);
  EXPECT_EQ(run.steps[1].loss, 7.5);
  EXPECT_TRUE(std::isnan(run.steps[0].grad_norm));
  ASSERT_EQ(run.evals.size(), 1u);
  EXPECT_EQ(run.evals[0].loss, 7.0);
  EXPECT_THROW(read_run(root_), Error);
}

TEST_F(RunFolder, FilesMadeAnewEqualThoseWrittenLive) {
  // What a resume makes from the log is what the run wrote as it went, byte for byte.
  write("run/recipe.yaml", "train:\n  learning_rate: 0.001\n");
  std::vector<Value> events = {
      Value::object({{"event", "start"}, {"step", 0}, {"max_steps", 2}, {"unix_time", 1.7e9}})};
  for (int i = 1; i <= 2; ++i)
    events.push_back(Value::object({{"event", "step"}, {"step", i}, {"loss_nats", 3.0 / i}, {"unix_time", 1.7e9 + i}}));
  events.push_back(Value::object({{"event", "end"}, {"step", 2}, {"train_loss", 2.25}, {"unix_time", 1.7e9 + 3}}));
  const auto contents = [&] {
    std::map<std::string, std::string> out;
    for (const char* folder : {"runs", "wandb"})
      for (const auto& entry : fs::recursive_directory_iterator(root_ / "run" / folder))
        if (entry.is_regular_file()) out[entry.path().string()] = read_file(entry.path());
    return out;
  };
  std::string log;
  {
    RunFiles live(root_ / "run", {});
    for (const Value& event : events) {
      log += to_json(event) + "\n";
      live.add(event);
    }
  }
  const auto before = contents();
  ASSERT_EQ(before.size(), 2u);
  write("run/events.jsonl", log);
  RunFiles again(root_ / "run", {});
  EXPECT_EQ(contents(), before);
}

TEST_F(RunFolder, CardSaysWhatIsKnownAndNothingElse) {
  write("models--google--gemma-3n-E4B-it/snapshots/abc123/config.json", "{}");
  write("set/README.md", "---\nlicense: cc-by-4.0\nlanguage:\n  - fa\n---\n# Set\n```bibtex\n@misc{set}\n```\n");
  write("set/train.jsonl", "{}\n");
  RunRecord run = sample_run();
  run.name = "run";
  const fs::path base = root_ / "models--google--gemma-3n-E4B-it" / "snapshots" / "abc123";
  run.start =
      Value::object({{"provenance", provenance(base.string(), {root_ / "set" / "train.jsonl"}, Value::object())},
                     {"n_samples", 299}});
  const std::string card = model_card(run, Value(), true);
  for (const char* text : {"base_model: google/gemma-3n-E4B-it", "license: gemma", "library_name: peft", "- fa\n",
                           "cc-by-4.0", "@misc{set}", "4.5000 → 1.2500", "۴٫۵۰۰۰ ← ۱٫۲۵۰۰", "| Tokens seen | 3,000 |",
                           "۳٬۰۰۰", "Gemma Terms of Use", "charts/loss.svg", "50 tokens/s"})
    EXPECT_NE(card.find(text), std::string::npos) << text;
  for (const char* text : {" nan", "Peak memory", "Proof of the merge", root_.c_str()})
    EXPECT_EQ(card.find(text), std::string::npos) << text;
  // Without validation there is no result for the Hub, and the card says so.
  run.evals.clear();
  const std::string bare = model_card(run, Value(), false);
  EXPECT_EQ(bare.find("model-index"), std::string::npos);
  EXPECT_EQ(bare.find("charts/"), std::string::npos);
  EXPECT_NE(bare.find("No conversations were set aside"), std::string::npos);
}

TEST(Numbers, Persian) {
  EXPECT_EQ(persian_number("1,234.50 / a.b"), "۱٬۲۳۴٫۵۰ / a.b");
  EXPECT_EQ(grouped(1234567), "1,234,567");
  EXPECT_EQ(grouped(-1234), "-1,234");
  EXPECT_EQ(grouped(999), "999");
  EXPECT_EQ(duration(59.6), "60 s");
  EXPECT_EQ(duration(750), "12 min 30 s");
  EXPECT_EQ(persian_duration(3720), "۱ ساعت و ۲ دقیقه");
}

}  // namespace
}  // namespace saaz
