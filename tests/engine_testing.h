// What the tests of generation share: the tiny model of `saaz try`, adapters for it, and requests of every kind.
#pragma once

#include <gtest/gtest.h>

#include <random>

#include "infer/engine.h"
#include "lora/lora.h"
#include "model/base_tokenizer.h"
#include "tokenizer/chat_template.h"

namespace saaz::test {

inline const fs::path& tiny_folder() {
  static const fs::path folder = fs::path(SAAZ_SOURCE_DIR) / "data/try/model";
  return folder;
}

struct TinyModel {
  explicit TinyModel(int n_threads = 2)
      : base(open_base_model(tiny_folder())),
        tokenizer(load_base_tokenizer(base)),
        backend(make_cpu_backend({.n_threads = n_threads})),
        model(load_model(*backend, base, {.max_positions = 1024})) {}

  std::vector<int32_t> chat(const std::string& system, const std::string& text) const {
    std::vector<ChatMessage> messages;
    if (!system.empty()) messages.push_back({"system", {system}});
    messages.push_back({"user", {text}});
    return encode_chat(tokenizer, messages, AddGenerationPrompt::yes).ids;
  }

  BaseModel base;
  Tokenizer tokenizer;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
};

/// Writes an adapter of random weights, strong enough to change every answer. Returns its folder.
inline fs::path write_adapter(TinyModel& tiny, const std::string& name, uint32_t seed, int64_t rank) {
  const fs::path folder = fs::path(SAAZ_BINARY_DIR) / name;
  fs::create_directories(folder);
  const auto adapter =
      Adapter::create(*tiny.backend, *tiny.model, {.targets = AllLinear{}, .r = rank, .alpha = 16}, seed);
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, 0.02f);
  for (const Adapter::Module& module : adapter->modules()) {
    std::vector<float> b(static_cast<size_t>(module.pair.b.size()));
    for (float& value : b) value = normal(generator);
    tiny.backend->upload(module.pair.b, b.data());
  }
  adapter->save(folder, "tiny");
  return folder;
}

inline std::vector<Completion> answers(Engine& engine, const std::vector<Request>& requests) {
  return complete_all(engine, requests, {});
}

inline void expect_same(const Answer& a, const Answer& b, size_t i) {
  EXPECT_EQ(a.ids, b.ids) << "request " << i;
  EXPECT_EQ(a.text, b.text) << "request " << i;
  EXPECT_EQ(a.finish, b.finish) << "request " << i;
  EXPECT_EQ(a.stop, b.stop) << "request " << i;
  ASSERT_EQ(a.logprobs.size(), b.logprobs.size()) << "request " << i;
  for (size_t t = 0; t < a.logprobs.size(); ++t) {
    EXPECT_EQ(a.logprobs[t].logprob, b.logprobs[t].logprob) << "request " << i << " token " << t;
    EXPECT_EQ(a.logprobs[t].top, b.logprobs[t].top) << "request " << i << " token " << t;
  }
}

}  // namespace saaz::test
