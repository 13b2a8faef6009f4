// Every allocation of a train and of a merge fails once. The model is a golden one of two layers under a vocabulary of
// a few hundred pieces, and a run two updates long: so few calls that each of them can be tried.
#include "base/value.h"
#include "checkpoint/safetensors.h"
#include "fault_runs.h"
#include "tokenizer_fixture.h"

namespace saaz {
namespace {

class FaultsOfMemory : public FaultRuns {
 protected:
  FaultsOfMemory() { n_updates_ = 2; }  // the first, of the warmup, changes nothing

  fs::path make_inputs() const override {
    const auto row = [](const char* answer) {
      return fmt::format(
                 R"({{"messages": [{{"role": "user", "content": "ab"}}, {{"role": "assistant", "content": "{}"}}]}})",
                 answer) +
             "\n";
    };
    write_file_atomically(root_ / "train.jsonl", row("abc") + row("cab") + row("bac"));
    write_file_atomically(root_ / "valid.jsonl", row("cba"));
    const fs::path folder = root_ / "model";
    fs::create_directories(folder);
    copy_first_layers(fs::path(SAAZ_SOURCE_DIR) / "tests" / "golden" / "gemma3-alt", folder);
    write_file_atomically(folder / "tokenizer.json", write_tokenizer_json(small_vocabulary()));
    return folder;
  }

  /// A model of one sliding and one full layer.
  static void copy_first_layers(const fs::path& from, const fs::path& to) {
    constexpr int64_t kLayers = 2;
    Value config = parse_json(read_file(from / "config.json"), "config.json");
    config.set("num_hidden_layers", Value(kLayers));
    std::vector<Value> types = config.find("layer_types")->items();
    types.resize(kLayers);
    config.set("layer_types", Value::array(std::move(types)));
    write_file_atomically(to / "config.json", to_json(config));
    const SafetensorsFile file(from / "model.safetensors");
    std::map<std::string, Bytes> kept;
    std::vector<TensorSpec> specs;
    for (const TensorEntry& tensor : file.tensors()) {
      int layer = 0;
      const size_t at = tensor.name.find("layers.");
      if (at != std::string::npos) layer = std::atoi(&tensor.name[at + 7]);
      if (layer >= kLayers) continue;
      specs.push_back(tensor.spec());
      kept[tensor.name] = tensor.data;
    }
    write_safetensors(to / "model.safetensors", specs, file.metadata(),
                      [&](const TensorSpec& spec, const ByteSink& sink) { sink(kept.at(spec.name)); });
  }

  /// calloc is the backend's memory: tensors and arenas; malloc is all the rest.
  template <class Run>
  void each_allocation_fails(const char* name, const Run& run) const {
    for (const char* kind : {"calloc", "malloc"}) {
      const size_t n_calls = run(fmt::format("{}:0:ENOMEM", kind)).n_calls;
      ASSERT_GT(n_calls, 0u);
      size_t n = 0;
      for (const long at : points(n_calls, 12)) {
        const std::string fault = fmt::format("{}:{}:ENOMEM", kind, at);
        const Ended ended = run(fault);
        ++n;
        EXPECT_TRUE(ended.code == 4 || ended.code == 0) << fault << ": " << ended.code << " " << ended.error;
        EXPECT_TRUE(ended.code == 0 || is_one_line(ended.error)) << fault << ": " << ended.error;
      }
      // How often malloc is called differs by a few from run to run.
      report(fmt::format("{}: one of its calls of {} fails", name, kind), n, "nothing: exit 4");
    }
  }
};

TEST_F(FaultsOfMemory, EveryAllocationOfTrainFails) {
  each_allocation_fails("train", [&](const std::string& fault) { return train_through(fault); });
}

TEST_F(FaultsOfMemory, EveryAllocationOfGenerateFails) {
  const auto generate = [&](const std::string& fault) {
    return saaz({"generate", "--model", model_.string(), "--prompt", "ab", "--max-new-tokens", "8"}, fault);
  };
  each_allocation_fails("generate", generate);
  // The engine's own are the last but a few: some of them always.
  const size_t n_calls = generate("malloc:0:ENOMEM").n_calls;
  constexpr size_t kLast = 400;
  ASSERT_GT(n_calls, kLast);
  size_t n_failed = 0;
  for (const long back : points(kLast, 12)) {
    const std::string fault = fmt::format("malloc:{}:ENOMEM", static_cast<long>(n_calls) - back);
    const Ended ended = generate(fault);
    n_failed += ended.code == 4 ? 1 : 0;
    EXPECT_TRUE(ended.code == 4 || ended.code == 0) << fault << ": " << ended.code << " " << ended.error;
    EXPECT_TRUE(ended.code == 0 || is_one_line(ended.error)) << fault << ": " << ended.error;
  }
  EXPECT_GT(n_failed, 0u);
}

// What a batch owes when memory fails gets no line: the same command again answers it.
TEST_F(FaultsOfMemory, ABatchGoesOnAfterAFailingAllocation) {
  constexpr int kRequests = 4;
  std::string requests;
  for (int i = 0; i < kRequests; ++i)
    requests += fmt::format(
        R"({{"custom_id": "{}", "method": "POST", "url": "/v1/completions", "body": {{"prompt": "ab", "max_tokens": 4}}}})"
        "\n",
        i);
  write_file_atomically(root_ / "in.jsonl", requests);
  const fs::path answers = root_ / "answers.jsonl";
  const auto batch = [&](const std::string& fault) {
    return saaz({"generate", "--model", model_.string(), "--batch", (root_ / "in.jsonl").string(), "-o",
                 answers.string(), "--parallel", "1", "--context", "64"},
                fault);
  };
  const size_t n_calls = batch("malloc:0:ENOMEM").n_calls;
  size_t n_failed = 0;
  for (const size_t back : {200, 400, 600}) {
    fs::remove(answers);
    ASSERT_GT(n_calls, back);
    const Ended ended = batch(fmt::format("malloc:{}:ENOMEM", n_calls - back));
    n_failed += ended.code == 4 ? 1 : 0;
    EXPECT_TRUE(ended.code == 4 || ended.code == 0) << ended.code << " " << ended.error;
    EXPECT_EQ(batch("").code, 0);
    const std::string text = read_file(answers);
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), kRequests);
    EXPECT_EQ(text.find("\"status_code\": 500"), std::string::npos) << text;
  }
  EXPECT_GT(n_failed, 0u);
}

TEST_F(FaultsOfMemory, EveryAllocationOfMergeFails) {
  const auto expected = merged_contents();
  each_allocation_fails("merge", [&](const std::string& fault) { return merge_through(fault, expected); });
}

}  // namespace
}  // namespace saaz
