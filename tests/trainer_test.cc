// The trainer on the tiny model of `saaz try`: the same bytes for any thread count, recompute policy and kill schedule;
// refusals.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <regex>
#include <set>

#include "base/check.h"
#include "data/normalize_file.h"
#include "eval/probes.h"
#include "model/evaluate_loss.h"
#include "report/run_record.h"
#include "tokenizer/tokenizer.h"
#include "train/checkpoint.h"
#include "train/event_log.h"
#include "train/optimizer.h"
#include "train/run_data.h"
#include "train/trainer.h"

namespace saaz {
namespace {

const fs::path kTry = fs::path(SAAZ_SOURCE_DIR) / "data" / "try";

class Trainer : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("saaz-trainer-" + std::to_string(getpid()));
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  Recipe recipe(const std::string& run, const std::vector<std::string>& more = {}) const {
    std::vector<std::string> overrides = {"model.base=" + (kTry / "model").string(),
                                          "data.train=" + (kTry / "train.jsonl").string(),
                                          "data.validation.file=" + (kTry / "valid.jsonl").string(),
                                          "output.dir=" + (root_ / run).string(),
                                          "train.max_steps=6",
                                          "train.per_device_train_batch_size=3",
                                          "train.gradient_accumulation_steps=2",
                                          "output.save_steps=2",
                                          "eval.every_steps=0"};
    overrides.insert(overrides.end(), more.begin(), more.end());
    return load_recipe(kTry / "recipe.yaml", overrides);
  }

  TrainOutcome run(const Recipe& recipe, int threads, const TrainOptions& options = {}) const {
    const auto backend = make_cpu_backend({.n_threads = threads});
    return train(*backend, recipe, options);
  }
  std::string adapter(const std::string& run) const { return read_file(root_ / run / "adapter_model.safetensors"); }
  /// trainer_state.json without the measured times, which no two runs share.
  std::string state(const std::string& run) const {
    std::string text = read_file(root_ / run / "trainer_state.json");
    static const std::regex kTimes(R"re("(\w+_runtime|\w+_per_second|seconds)": [^,\n]+)re");
    return std::regex_replace(text, kTimes, "");
  }

  template <class F>
  void expect_error(ExitCode code, const std::string& fragment, F body) const {
    try {
      body();
      ADD_FAILURE() << "no error; expected: " << fragment;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_NE(std::string(error.what()).find(fragment), std::string::npos) << error.what();
    }
  }

  fs::path root_;
};

TEST_F(Trainer, SameBytesForAnyThreadCount) {
  for (const int threads : {1, 2, 3, 8}) {
    const std::string name = "threads" + std::to_string(threads);
    run(recipe(name), threads);
    EXPECT_EQ(adapter(name), adapter("threads1")) << threads;
  }
}

TEST_F(Trainer, AStopWhileTheModelIsLoadedIsObeyedThen) {
  const auto stopped = [&] {
    install_signal_handlers();
    raise(SIGTERM);
    try {
      run(recipe("stopped"), 1);
    } catch (const Error& error) {
      std::_Exit(static_cast<int>(error.code()));
    }
    std::_Exit(0);
  };
  EXPECT_EXIT(stopped(), testing::ExitedWithCode(128 + SIGTERM), "");
  for (const fs::path& entry : list_directory(root_ / "stopped")) EXPECT_EQ(entry.filename(), ".lock");
  run(recipe("stopped"), 1);
  EXPECT_FALSE(adapter("stopped").empty());
}

TEST_F(Trainer, RecomputeAndEightBitStates) {
  run(recipe("layer"), 2);
  run(recipe("none", {"train.recompute=none"}), 2);
  EXPECT_EQ(adapter("layer"), adapter("none"));
  // Rank 64 makes tensors large enough for 8-bit states; the two optimizers must then differ, and resume must be exact.
  const std::vector<std::string> eight = {"train.optim=adamw_8bit", "lora.r=64"};
  run(recipe("eight", eight), 2);
  run(recipe("f32", {"lora.r=64"}), 2);
  EXPECT_NE(adapter("eight"), adapter("f32"));
  fs::remove_all(root_ / "eight" / "checkpoint-6");
  const std::string whole = adapter("eight");
  run(recipe("eight", eight), 2, {.start = TrainOptions::Start::resume});
  EXPECT_EQ(adapter("eight"), whole);
}

TEST_F(Trainer, ResumeFromEveryCheckpointEndsWithTheSameBytes) {
  const std::vector<std::string> keep = {"output.save_steps=1", "output.save_total_limit=0"};
  run(recipe("whole", keep), 2);
  const std::string expected = adapter("whole"), state_of_whole = state("whole");
  for (int step = 1; step <= 6; ++step) {
    TrainOptions options;
    options.start = TrainOptions::Start::resume;
    options.checkpoint = root_ / "whole" / ("checkpoint-" + std::to_string(step));
    run(recipe("whole", keep), 1 + step % 3, options);
    EXPECT_EQ(adapter("whole"), expected) << "from step " << step;
    EXPECT_EQ(state("whole"), state_of_whole) << "from step " << step;
  }
}

TEST_F(Trainer, ResumeAcrossEpochsWithPacking) {
  // Packed epochs differ in their number of updates, so the place of a step must not be guessed from one of them.
  {
    std::ifstream rows(kTry / "train.jsonl");
    std::ofstream few(root_ / "few.jsonl");
    std::string row;
    for (int i = 0; i < 13 && std::getline(rows, row); ++i) few << row << "\n";
  }
  const Recipe packed =
      recipe("packed", {"data.train=" + (root_ / "few.jsonl").string(), "data.packing=true", "model.max_seq_length=64",
                        "train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=1",
                        "train.max_steps=30", "output.save_steps=1", "output.save_total_limit=0"});
  const RunData data = load_run_data(packed, load_tokenizer(kTry / "model"));
  UpdateOrder order(data.samples, packed);
  std::set<int64_t> lengths;
  for (int64_t step = 0, begin = 0; step < 30; ++step)
    if (order.epochs_after(step + 1) == std::floor(order.epochs_after(step + 1))) {
      lengths.insert(step + 1 - begin);
      begin = step + 1;
    }
  ASSERT_GT(lengths.size(), 1u) << "choose rows whose epochs differ";
  run(packed, 2);
  const std::string expected = adapter("packed"), state_of_whole = state("packed");
  for (const int step : {3, 11, 19, 26}) {
    TrainOptions options;
    options.start = TrainOptions::Start::resume;
    options.checkpoint = root_ / "packed" / ("checkpoint-" + std::to_string(step));
    run(packed, 2, options);
    EXPECT_EQ(adapter("packed"), expected) << "from step " << step;
    EXPECT_EQ(state("packed"), state_of_whole) << "from step " << step;
  }
}

TEST_F(Trainer, ProbesChangeNoByteAndComeAgainOnResume) {
  const std::vector<std::string> probed = {"eval.probes=default-fa", "eval.every_steps=2"};
  run(recipe("plain"), 2);
  const auto probes = std::make_shared<Probes>(load_tokenizer(kTry / "model"), "اسمت چیه؟\n# a remark\nسلام", "p", 512);
  TrainOptions options;
  options.answer_probes = [probes](Backend& backend, Model& model) { return probes->answer(backend, model); };
  run(recipe("probed", probed), 2, options);
  EXPECT_EQ(adapter("probed"), adapter("plain"));
  const auto answers = [&] {
    std::string out;
    for (const Value& event : read_json_lines(root_ / "probed" / "events.jsonl"))
      if (text_or_empty(event, "event") == "probes")
        out += to_json(*event.find("step")) + to_json(*event.find("answers")) + "\n";
    return out;
  };
  const std::string whole = answers();
  EXPECT_EQ(std::count(whole.begin(), whole.end(), '\n'), 4) << whole;
  EXPECT_TRUE(whole.starts_with("0[{\"prompt\": \"اسمت چیه؟\", \"answer\": \"")) << whole;
  options.start = TrainOptions::Start::resume;
  for (const char* step : {"checkpoint-4", "checkpoint-2"}) {
    options.checkpoint = root_ / "probed" / step;
    run(recipe("probed", probed), 3, options);
    EXPECT_EQ(adapter("probed"), adapter("plain")) << step;
    EXPECT_EQ(answers(), whole) << step;
  }
}

TEST_F(Trainer, ValidationAtStepZeroIsTheBasesLoss) {
  const Recipe r = recipe("zero");
  const TrainOutcome outcome = run(r, 2);
  const auto backend = make_cpu_backend({.n_threads = 1});
  const BaseModel base = open_base_model(kTry / "model");
  const auto model = load_model(*backend, base, load_options_of(r));
  const Tokenizer tokenizer = load_tokenizer(kTry / "model");
  BadRows bad(0);
  const EncodeOptions encode{.max_seq_length = r.model.max_seq_length, .loss_on = r.data.loss_on};
  const EncodedRows rows =
      encode_rows(tokenizer, load_rows(kTry / "valid.jsonl", DataFormat::automatic, bad), encode, bad);
  EXPECT_EQ(evaluate_loss(*backend, *model, rows.samples, 64).loss_nats, outcome.first_validation_loss.value());
  EXPECT_LT(outcome.last_validation_loss.value(), outcome.first_validation_loss.value());
}

TEST_F(Trainer, AccumulationGivesOneTokenWeightedMean) {
  // The same six rows an update, cut differently: the gradient is the same sum, so losses agree to f32 rounding of the
  // sums.
  run(recipe("a", {"train.per_device_train_batch_size=6", "train.gradient_accumulation_steps=1"}), 2);
  run(recipe("b", {"train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=6"}), 2);
  const auto losses = [&](const std::string& name) {
    std::vector<double> out;
    const Value state = parse_json(read_file(root_ / name / "trainer_state.json"), name);
    for (const Value& entry : state.find("log_history")->items())
      if (const Value* loss = entry.find("loss")) out.push_back(loss->as_double());
    return out;
  };
  const std::vector<double> a = losses("a"), b = losses("b");
  ASSERT_EQ(a.size(), 6u);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-4 * a[i]);
}

TEST_F(Trainer, NormalizeAtLoadTrainsOnTheNormalizedFile) {
  // The same letters as an Arabic keyboard gives them, so that every row has something to put right.
  std::string arabic = read_file(kTry / "train.jsonl");
  for (const auto& [from, to] : {std::pair{"ی", "ي"}, std::pair{"ک", "ك"}})
    arabic = std::regex_replace(arabic, std::regex(from), to);
  write_file_atomically(root_ / "arabic.jsonl", arabic);
  const std::string strict = normalize_lines(arabic, "arabic.jsonl", options_of(NormalizeProfile::strict)).lines;
  write_file_atomically(root_ / "strict.jsonl", strict);
  const auto trained = [&](const std::string& name, const std::string& file, const std::string& profile) {
    run(recipe(name, {"data.train=" + (root_ / file).string(), "data.normalize=" + profile}), 2);
    return adapter(name);
  };
  const std::string at_load = trained("at-load", "arabic.jsonl", "strict");
  EXPECT_EQ(at_load, trained("before", "strict.jsonl", "none"));
  EXPECT_NE(at_load, trained("not", "arabic.jsonl", "none"));
  EXPECT_NE(read_file(root_ / "at-load" / "events.jsonl").find("data.normalize changed "), std::string::npos);
  // A row of which nothing is left cannot be trained on.
  write_file_atomically(root_ / "empty.jsonl", R"({"prompt": "\u0640\u0640", "completion": "x"})"
                                               "\n");
  expect_error(ExitCode::bad_input, "nothing is left of a message", [&] { trained("empty", "empty.jsonl", "chat"); });
}

TEST_F(Trainer, ReportToNamesTheTrackersThatAreKept) {
  for (const auto& [value, boards, wandb] :
       {std::tuple{"none", false, false}, std::tuple{"[wandb]", false, true}, std::tuple{"all", true, true}}) {
    const std::string name = std::string("to-") + (boards ? "all" : wandb ? "wandb" : "none");
    run(recipe(name, {std::string("report.to=") + value, "train.max_steps=1"}), 2);
    EXPECT_EQ(fs::exists(root_ / name / "runs"), boards);
    EXPECT_EQ(fs::exists(root_ / name / "wandb"), wandb);
    EXPECT_TRUE(fs::exists(root_ / name / "charts" / "loss.svg"));
  }
}

TEST_F(Trainer, WhatIsForReadersFailsWithANoteAndTheRunGoesOn) {
  run(recipe("whole"), 2);
  std::vector<std::string> notes;
  const TrainOptions options{.on_event = [&](const Value& event) {
    const std::string kind = event.find("event")->as_string();
    if (kind == "note") notes.push_back(event.find("text")->as_string());
    if (kind != "start") return;
    std::ofstream(root_ / "spoilt" / "charts") << "not a folder";
    fs::create_directories(root_ / "spoilt" / "README.md" / "not a file");
  }};
  EXPECT_EQ(run(recipe("spoilt"), 2, options).n_steps, 6);
  // Three saves and the end would write them; it is said once.
  ASSERT_EQ(notes.size(), 2u);
  std::sort(notes.begin(), notes.end());
  EXPECT_NE(notes[0].find("the run goes on without a new model card: cannot rename to"), std::string::npos) << notes[0];
  EXPECT_NE(notes[1].find("the run goes on without new charts: "), std::string::npos) << notes[1];
  EXPECT_NE(read_file(root_ / "spoilt" / "events.jsonl").find("the run goes on without new charts"), std::string::npos);
  EXPECT_EQ(adapter("spoilt"), adapter("whole"));
  // A resume makes up for them.
  fs::remove_all(root_ / "spoilt" / "charts");
  fs::remove_all(root_ / "spoilt" / "README.md");
  run(recipe("spoilt"), 2, {.start = TrainOptions::Start::resume});
  EXPECT_TRUE(fs::exists(root_ / "spoilt" / "charts" / "loss.svg"));
  EXPECT_TRUE(fs::is_regular_file(root_ / "spoilt" / "README.md"));
}

TEST_F(Trainer, ABaseOfTheHubIsNamedAsPeftNamesIt) {
  const fs::path snapshot = root_ / "hub" / "models--org--tiny" / "snapshots" / std::string(40, 'a');
  fs::create_directories(snapshot.parent_path());
  fs::copy(kTry / "model", snapshot);
  run(recipe("of-hub", {"model.base=" + snapshot.string()}), 2);
  run(recipe("of-path"), 2);
  const auto name_of = [&](const fs::path& folder) {
    const fs::path path = root_ / folder / "adapter_config.json";
    const Value config = parse_json(read_file(path), path.string());
    return std::pair(to_json(*config.find("base_model_name_or_path")), to_json(*config.find("revision")));
  };
  const std::pair<std::string, std::string> of_hub("\"org/tiny\"", "\"" + std::string(40, 'a') + "\""),
      of_path("\"" + (kTry / "model").string() + "\"", "null");
  EXPECT_EQ(name_of("of-hub"), of_hub);
  EXPECT_EQ(name_of("of-hub/checkpoint-6"), of_hub);
  EXPECT_EQ(name_of("of-path"), of_path);
}

TEST_F(Trainer, Refusals) {
  run(recipe("busy"), 2);
  expect_error(ExitCode::in_use, "already holds", [&] { run(recipe("busy"), 2); });
  expect_error(ExitCode::verification, "recipe lora.lora_alpha",
               [&] { run(recipe("busy", {"lora.lora_alpha=4"}), 2, {.start = TrainOptions::Start::resume}); });
  expect_error(ExitCode::diverged, "not both finite", [&] {
    run(recipe("diverged", {"train.learning_rate=1", "train.warmup_steps=1", "lora.lora_alpha=4096", "lora.r=1",
                            "train.max_grad_norm=0", "quant.scheme=none"}),
        2);
  });
  {
    DirectoryLock lock(root_ / "busy");
    expect_error(ExitCode::in_use, "in use by process",
                 [&] { run(recipe("busy"), 2, {.start = TrainOptions::Start::resume}); });
  }
  expect_error(ExitCode::bad_input, "no checkpoint",
               [&] { run(recipe("fresh"), 2, {.start = TrainOptions::Start::resume}); });
}

/// The newest checkpoint is damaged: the one before it is used; when all are, the run refuses.
TEST_F(Trainer, DamagedCheckpoints) {
  run(recipe("whole"), 2);
  const std::string whole = adapter("whole");
  const auto damage = [&](int step) {
    const fs::path path = root_ / "whole" / ("checkpoint-" + std::to_string(step)) / "optimizer.safetensors";
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    ASSERT_TRUE(file.is_open()) << path;
    file.seekp(-1, std::ios::end);
    file.put('\x55');
  };
  const TrainOptions resume{.start = TrainOptions::Start::resume};
  damage(6);
  fs::remove(root_ / "whole" / "adapter_model.safetensors");
  run(recipe("whole"), 2, resume);
  EXPECT_EQ(adapter("whole"), whole);
  const std::string events = read_file(root_ / "whole" / "events.jsonl");
  EXPECT_NE(events.find("skipped: checkpoint file"), std::string::npos);
  for (const auto& entry : fs::directory_iterator(root_ / "whole"))
    if (entry.path().filename().string().starts_with("checkpoint-"))
      damage(std::atoi(entry.path().filename().c_str() + std::string_view("checkpoint-").size()));
  expect_error(ExitCode::verification, "is whole", [&] { run(recipe("whole"), 2, resume); });
}

/// What is in a folder that is not this run's stays there, whether the run is refused or begins.
TEST_F(Trainer, OthersFilesStay) {
  const fs::path folder = root_ / "mixed";
  const auto write = [&](const std::string& name) {
    fs::create_directories((folder / name).parent_path());
    std::ofstream(folder / name) << "of another";
  };
  const auto expect_there = [&](const std::vector<std::string>& names) {
    for (const std::string& name : names) EXPECT_EQ(read_file(folder / name), "of another") << name;
  };
  const std::vector<std::string> project = {"notes.txt",     "video.mkv.partial", "keep.partial/data",
                                            "recipe.yaml",   "README.md",         "runs/old/adapter_model.safetensors",
                                            "wandb/mine/log"};
  const TrainOptions resume{.start = TrainOptions::Start::resume};
  for (const std::string& name : project) write(name);
  expect_error(ExitCode::in_use, "already holds", [&] { run(recipe("mixed"), 2); });
  expect_error(ExitCode::bad_input, "no checkpoint", [&] { run(recipe("mixed"), 2, resume); });
  write("events.jsonl");
  expect_error(ExitCode::bad_input, "no checkpoint", [&] { run(recipe("mixed"), 2, resume); });
  expect_there(project);

  // A run that was killed before it saved anything, beside a file and trackers of others; then its own leftovers.
  fs::remove_all(folder);
  run(recipe("mixed", {"output.save_steps=0"}), 2);
  const std::string whole = adapter("mixed");
  fs::remove(folder / "adapter_model.safetensors");
  const std::vector<std::string> others = {"notes.txt", "video.mkv.partial", "runs/old/log", "wandb/mine/log"};
  for (const std::string& name : others) write(name);
  for (const char* name : {"checkpoint-2.partial/x", "recipe.yaml.partial", "README.md.123.partial"}) write(name);
  run(recipe("mixed", {"output.save_steps=0"}), 2, resume);
  EXPECT_EQ(adapter("mixed"), whole);
  expect_there(others);
  for (const char* name : {"checkpoint-2.partial", "recipe.yaml.partial", "README.md.123.partial"})
    EXPECT_FALSE(fs::exists(folder / name)) << name;
  const auto count = [&](const char* name) {
    return std::distance(fs::directory_iterator(folder / name), fs::directory_iterator());
  };
  EXPECT_EQ(count("runs"), 2);
  EXPECT_EQ(count("wandb"), 2);

  // Killed as it began again: of its events notes are left, and a part of the start.
  fs::remove(folder / "adapter_model.safetensors");
  std::ofstream(folder / "events.jsonl", std::ios::trunc) << R"({"event": "note", "text": "again"})"
                                                          << "\n"
                                                          << R"({"event": "sta)";
  run(recipe("mixed", {"output.save_steps=0"}), 2, resume);
  EXPECT_EQ(adapter("mixed"), whole);
  expect_there(others);
}

/// Gone on from an older checkpoint, on another course: what came after it is set aside, and nothing of it comes back.
TEST_F(Trainer, GoesOnFromAnOlderCheckpoint) {
  const std::vector<std::string> keep = {"output.save_steps=1", "output.save_total_limit=0"};
  run(recipe("old", keep), 2);
  const fs::path folder = root_ / "old";
  TrainOptions options{.start = TrainOptions::Start::resume};
  options.checkpoint = folder / "checkpoint-2";
  options.accept_changes = true;
  // Broken off right after the save of step 3.
  struct BrokenOff {};
  options.on_event = [](const Value& event) {
    if (text_or_empty(event, "event") == "save" && number_or(event, "step", 0) == 3) throw BrokenOff{};
  };
  const std::vector<std::string> other = {"output.save_steps=1", "output.save_total_limit=2",
                                          "train.learning_rate=0.001"};
  EXPECT_THROW(run(recipe("old", other), 2, options), BrokenOff);
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().filename().string().find("checkpoint-") != std::string::npos)
      names.insert(entry.path().filename().string());
  EXPECT_EQ(names,
            (std::set<std::string>{"checkpoint-2", "checkpoint-3", "abandoned-checkpoint-3", "abandoned-checkpoint-4",
                                   "abandoned-checkpoint-5", "abandoned-checkpoint-6"}));
  run(recipe("old", other), 2, {.start = TrainOptions::Start::resume});
  std::vector<int> steps;
  for (const Value& event : read_json_lines(folder / "events.jsonl"))
    if (text_or_empty(event, "event") == "step") steps.push_back(static_cast<int>(number_or(event, "step", 0)));
  EXPECT_EQ(steps, (std::vector<int>{1, 2, 3, 4, 5, 6}));
}

TEST(Schedule, HuggingFaceValues) {
  TrainRecipe recipe;
  recipe.learning_rate = 2e-5;
  recipe.warmup_steps = 10;
  constexpr int64_t kTotal = 738;
  EXPECT_EQ(learning_rate_at(recipe, 0, kTotal, 10), 0);
  EXPECT_DOUBLE_EQ(learning_rate_at(recipe, 9, kTotal, 10), 1.8e-5);
  EXPECT_DOUBLE_EQ(learning_rate_at(recipe, 10, kTotal, 10), 2e-5);
  EXPECT_NEAR(learning_rate_at(recipe, 737, kTotal, 10), 2.747e-8, 5e-12);
  recipe.lr_scheduler_type = LrScheduler::cosine;
  EXPECT_DOUBLE_EQ(learning_rate_at(recipe, 374, kTotal, 10), 1e-5);
  recipe.lr_scheduler_type = LrScheduler::constant;
  EXPECT_DOUBLE_EQ(learning_rate_at(recipe, 700, kTotal, 10), 2e-5);
}

}  // namespace
}  // namespace saaz
