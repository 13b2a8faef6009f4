// The engine on the tiny model: every answer's bytes are those of the solo run, whatever runs beside it; memory comes
// back; refusals and limits.
#include "infer/engine.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <new>
#include <stdexcept>
#include <thread>

#include "base/unicode.h"
#include "engine_testing.h"
#include "forwarding_backend.h"
#include "infer/prefix_cache.h"
#include "model/pass.h"

namespace saaz {
namespace {

using test::answers;
using test::expect_same;
using test::TinyModel;

constexpr int64_t kContext = 256;
constexpr const char* kSystem =
    "تو دستیار فارسی هستی. کوتاه، درست و مهربان پاسخ بده. "
    "اگر چیزی را نمی‌دانی، بگو نمی‌دانم. از کسی بد نگو. "
    "پاسخ را با یک جملهٔ کامل بده و چیزی دیگر نگو.";

/// Requests that differ in everything: prompts with and without a common start, sampling, choices, adapters, stops.
std::vector<Request> mixed_requests(const TinyModel& tiny, size_t n, uint32_t seed,
                                    const std::vector<std::string>& adapters) {
  const std::vector<std::string> texts = {
      "سلام",
      "نام تو چیست؟",
      "یک شعر بخوان.",
      "hello there",
      "def f(x): return 1",
      "۱۲۳ و 456",
      "قیمت چند است؟",
      "خداحافظ 👋",
      "بگو: «بله»",
      "می‌خواهم بدانم",
      "پایتخت ایران کجاست؟",
  };
  std::mt19937 random(seed);
  const auto below = [&](uint32_t n_values) { return random() % n_values; };
  std::vector<Request> requests(n);
  for (size_t i = 0; i < n; ++i) {
    Request& r = requests[i];
    std::string text = texts[below(static_cast<uint32_t>(texts.size()))];
    for (uint32_t more = below(4); more > 0; --more) text += " " + texts[below(static_cast<uint32_t>(texts.size()))];
    r.prompt = tiny.chat(below(2) == 0 ? kSystem : "", text);
    r.max_tokens = 1 + below(24);
    r.n = below(8) == 0 ? 3 : 1;
    if (below(4) != 0) r.stop_ids = tiny.tokenizer.stop_ids();
    if (below(3) == 0) r.stop = {"ا", " ."};
    if (below(4) == 0) r.top_logprobs = static_cast<int>(below(4));
    if (!adapters.empty()) r.adapter = adapters[below(static_cast<uint32_t>(adapters.size()))];
    r.client = std::to_string(below(5));
    SamplingOptions& s = r.sampling;
    s.seed = random();
    s.temperature = below(3) == 0 ? 0 : 0.2 + 0.3 * below(5);
    s.top_k = below(2) == 0 ? 0 : 1 + below(60);
    s.top_p = below(2) == 0 ? 1 : 0.5 + 0.1 * below(5);
    s.min_p = below(4) == 0 ? 0.05 : 0;
    s.repetition_penalty = below(3) == 0 ? 1.2 : 1;
    s.presence_penalty = below(4) == 0 ? 0.7 : 0;
    s.frequency_penalty = below(4) == 0 ? 0.4 : 0;
    if (below(4) == 0) s.logit_bias = {{static_cast<int32_t>(below(2048)), 3.0f}, {5, -100.0f}};
  }
  return requests;
}

class Engines : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    tiny_ = new TinyModel;
    adapter_a_ = test::write_adapter(*tiny_, "adapter-a", 1, 8);
    adapter_b_ = test::write_adapter(*tiny_, "adapter-b", 2, 3);
  }
  static void TearDownTestSuite() {
    delete tiny_;
    tiny_ = nullptr;
  }

  static void load_adapters(Engine& engine) {
    engine.load_adapter("a", adapter_a_);
    engine.load_adapter("b", adapter_b_);
  }
  /// Each request for itself: one sequence at a time, nothing kept, whole prompts.
  static std::vector<Completion> solo(const std::vector<Request>& requests) {
    Engine engine(*tiny_->backend, *tiny_->model, &tiny_->tokenizer,
                  {.max_running = 1, .context = kContext, .prefill_chunk = kContext, .prefix_bytes = 0});
    load_adapters(engine);
    std::vector<Completion> out;
    for (const Request& request : requests) out.push_back(complete(engine, request));
    return out;
  }
  static void expect_all_same(const std::vector<Completion>& expected, const std::vector<Completion>& found) {
    ASSERT_EQ(expected.size(), found.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(found[i].outcome.error, "");
      ASSERT_EQ(expected[i].choices.size(), found[i].choices.size());
      for (size_t c = 0; c < expected[i].choices.size(); ++c)
        expect_same(expected[i].choices[c], found[i].choices[c], i);
    }
  }
  static void expect_nothing_held(Engine& engine) {
    ASSERT_TRUE(engine.wait_idle(60));
    const EngineStats stats = engine.stats();
    EXPECT_EQ(stats.running, 0);
    EXPECT_EQ(stats.waiting, 0);
    EXPECT_EQ(stats.kv_rows_used, 0);
    EXPECT_EQ(stats.kv_slots_used, 0);
  }

  static TinyModel* tiny_;
  static fs::path adapter_a_, adapter_b_;
};
TinyModel* Engines::tiny_ = nullptr;
fs::path Engines::adapter_a_, Engines::adapter_b_;

/// The plainest way to an answer: the whole text again for every token, no cache, the adapter attached as in training.
std::vector<int32_t> recomputed(TinyModel& tiny, const Request& request) {
  std::vector<int32_t> ids = request.prompt;
  Sampler sampler(request.sampling, 0, request.prompt);
  for (int64_t i = 0; i < request.max_tokens; ++i) {
    const std::vector<int64_t> starts = {0, static_cast<int64_t>(ids.size())};
    const Batch batch = packed_batch(ids, starts);
    PassMemory memory(*tiny.backend, 1 << 26, 1 << 26);
    const auto last = static_cast<int32_t>(ids.size() - 1);
    std::vector<float> logits = logits_pass(*tiny.backend, memory, *tiny.model, batch, nullptr, {&last, 1});
    sampler.adjust(logits);
    ids.push_back(sampler.sample(logits));
    sampler.accept(ids.back());
  }
  return {ids.begin() + static_cast<std::ptrdiff_t>(request.prompt.size()), ids.end()};
}

TEST_F(Engines, AnswersAreThoseOfRecomputingEverything) {
  for (const char* adapter : {"", "a"}) {
    std::vector<Request> requests = mixed_requests(*tiny_, 6, 3, {adapter});
    for (Request& r : requests) r.stop_ids.clear(), r.stop.clear(), r.n = 1, r.max_tokens = 8;
    const std::vector<Completion> found = solo(requests);
    std::unique_ptr<Adapter> attached;
    if (*adapter != '\0') {
      attached = Adapter::load(*tiny_->backend, *tiny_->model, adapter_a_, ForTraining::no);
      attached->attach();
    }
    for (size_t i = 0; i < requests.size(); ++i)
      EXPECT_EQ(found[i].choices[0].ids, recomputed(*tiny_, requests[i])) << "request " << i << " adapter " << adapter;
  }
}

TEST_F(Engines, ManyTogetherAnswerAsAlone) {
  const std::vector<Request> requests = mixed_requests(*tiny_, 256, 7, {"", "a", "b"});
  const std::vector<Completion> alone = solo(requests);
  for (const int64_t chunk : {5, 48, 256})
    for (const int64_t prefix_bytes : {int64_t{0}, int64_t{1} << 20, int64_t{64} << 20}) {
      if (chunk == 256 && prefix_bytes == 0) continue;
      Engine engine(*tiny_->backend, *tiny_->model, &tiny_->tokenizer,
                    {.max_running = chunk == 48 ? 256 : 24,
                     .context = kContext,
                     .prefill_chunk = chunk,
                     .max_waiting = 300,
                     .prefix_bytes = prefix_bytes});
      load_adapters(engine);
      expect_all_same(alone, answers(engine, requests));
      EXPECT_EQ(engine.stats().cached_tokens > 1000, prefix_bytes > 0);
      expect_nothing_held(engine);
    }
}

TEST_F(Engines, ThreadsDoNotMatter) {
  const std::vector<Request> requests = mixed_requests(*tiny_, 24, 11, {""});
  const std::vector<Completion> expected = solo(requests);
  for (const int threads : {1, 2, 3, 8}) {
    TinyModel tiny(threads);
    Engine engine(*tiny.backend, *tiny.model, &tiny.tokenizer,
                  {.max_running = 8, .context = kContext, .prefill_chunk = 32});
    expect_all_same(expected, answers(engine, requests));
  }
}

TEST_F(Engines, ALaterTurnIsNotComputedAgain) {
  Engine engine(*tiny_->backend, *tiny_->model, &tiny_->tokenizer,
                {.max_running = 2, .context = kContext, .prefill_chunk = 64});
  Request first;
  first.prompt = tiny_->chat(kSystem, "سلام، حال تو چطور است؟");
  first.max_tokens = 40;
  const Completion answer = complete(engine, first);
  EXPECT_EQ(answer.outcome.usage.cached_tokens, 0);
  Request second = first;
  second.prompt.insert(second.prompt.end(), answer.choices[0].ids.begin(), answer.choices[0].ids.end());
  second.prompt.insert(second.prompt.end(), {106, 10, 105, 20, 30});
  const Completion found = complete(engine, second);
  const auto whole = static_cast<int64_t>(first.prompt.size()) + 39;  // the last token was sampled, never computed
  EXPECT_EQ(found.outcome.usage.cached_tokens, whole / PrefixCache::kBlock * PrefixCache::kBlock);
  EXPECT_EQ(found.outcome.usage.prompt_tokens, static_cast<int64_t>(second.prompt.size()));
  expect_same(solo({second})[0].choices[0], found.choices[0], 0);
}

TEST_F(Engines, CancelledRequestsLeaveNothingAndDisturbNobody) {
  const std::vector<Request> requests = mixed_requests(*tiny_, 48, 13, {"", "b"});
  const std::vector<Completion> alone = solo(requests);
  Engine engine(*tiny_->backend, *tiny_->model, &tiny_->tokenizer,
                {.max_running = 8, .context = kContext, .prefill_chunk = 16, .max_waiting = 1000});
  load_adapters(engine);
  std::atomic<bool> done{false};
  std::atomic<int> n_ends{0}, n_sent{0};
  std::thread rude([&] {
    std::mt19937 random(17);
    const std::vector<Request> others = mixed_requests(*tiny_, 64, 19, {"", "a"});
    while (!done) {
      Request request = others[random() % others.size()];
      request.max_tokens = 200;
      const Submitted s = engine.submit(request, {.on_delta = {}, .on_end = [&](const Outcome&) { ++n_ends; }});
      if (s.refusal != Refusal::none) continue;
      ++n_sent;
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 4000));
      engine.cancel(s.id);
      engine.cancel(s.id);
    }
  });
  expect_all_same(alone, answers(engine, requests));
  done = true;
  rude.join();
  expect_nothing_held(engine);
  EXPECT_EQ(n_ends, n_sent);
  EXPECT_GT(engine.stats().cancelled, 0);
}

TEST_F(Engines, ASmallBudgetMakesThemWait) {
  const std::vector<Request> requests = mixed_requests(*tiny_, 64, 23, {""});
  const std::vector<Completion> alone = solo(requests);
  Engine engine(*tiny_->backend, *tiny_->model, &tiny_->tokenizer,
                {.max_running = 64, .context = kContext, .prefill_chunk = 32, .kv_bytes = 3 << 19});
  EXPECT_LE(engine.stats().kv_bytes, 3 << 19);
  EXPECT_LT(engine.options().max_running, 16);
  expect_all_same(alone, answers(engine, requests));
  EXPECT_THROW(Engine(*tiny_->backend, *tiny_->model, nullptr, {.context = kContext, .kv_bytes = 1000}), Error);
}

TEST_F(Engines, AdaptersAreSwappedUnderLoad) {
  const std::vector<Request> requests = mixed_requests(*tiny_, 64, 29, {"", "a", "b"});
  std::vector<Request> swapped = requests;  // a and b exchanged
  for (Request& r : swapped) r.adapter = r.adapter == "a" ? "b" : r.adapter == "b" ? "a" : "";
  const std::vector<Completion> one = solo(requests), other = solo(swapped);
  Engine engine(*tiny_->backend, *tiny_->model, &tiny_->tokenizer, {.max_running = 16, .context = kContext});
  load_adapters(engine);
  std::atomic<bool> done{false};
  std::thread swapper([&] {
    for (bool turned = true; !done; turned = !turned) {
      engine.load_adapter("a", turned ? adapter_b_ : adapter_a_);
      engine.load_adapter("b", turned ? adapter_a_ : adapter_b_);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  });
  const std::vector<Completion> found = answers(engine, requests);
  done = true;
  swapper.join();
  for (size_t i = 0; i < found.size(); ++i)
    for (size_t c = 0; c < found[i].choices.size(); ++c) {
      const std::vector<int32_t>& ids = found[i].choices[c].ids;
      EXPECT_TRUE(ids == one[i].choices[c].ids || ids == other[i].choices[c].ids) << "request " << i;
    }
  EXPECT_EQ(engine.adapters(), (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(engine.unload_adapter("a"));
  EXPECT_FALSE(engine.unload_adapter("a"));
}

TEST_F(Engines, Refusals) {
  Engine engine(*tiny_->backend, *tiny_->model, &tiny_->tokenizer,
                {.max_running = 1, .context = 64, .max_waiting = 2, .prefix_bytes = 0});
  const auto refusal = [&](const std::function<void(Request&)>& change) {
    Request request;
    request.prompt = {2, 5, 6};
    request.max_tokens = 1;
    change(request);
    const Submitted s = engine.submit(std::move(request), {});
    EXPECT_EQ(s.refusal == Refusal::none, s.message.empty());
    return s.refusal;
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(refusal([](Request&) {}), Refusal::none);
  EXPECT_EQ(refusal([](Request& r) { r.prompt.clear(); }), Refusal::invalid);
  EXPECT_EQ(refusal([](Request& r) { r.prompt = {2048}; }), Refusal::invalid);
  EXPECT_EQ(refusal([](Request& r) { r.prompt = {-1}; }), Refusal::invalid);
  EXPECT_EQ(refusal([](Request& r) { r.stop_ids = {1 << 30}; }), Refusal::invalid);
  EXPECT_EQ(refusal([](Request& r) { r.n = 0; }), Refusal::invalid);
  EXPECT_EQ(refusal([](Request& r) { r.n = 129; }), Refusal::invalid);
  EXPECT_EQ(refusal([](Request& r) { r.max_tokens = -1; }), Refusal::invalid);
  EXPECT_EQ(refusal([](Request& r) { r.top_logprobs = 21; }), Refusal::invalid);
  EXPECT_EQ(refusal([](Request& r) { r.stop = {""}; }), Refusal::invalid);
  EXPECT_EQ(refusal([](Request& r) { r.stop = {"\xff"}; }), Refusal::invalid);
  EXPECT_EQ(refusal([&](Request& r) { r.sampling.temperature = nan; }), Refusal::invalid);
  EXPECT_EQ(refusal([](Request& r) { r.sampling.top_p = -1; }), Refusal::invalid);
  EXPECT_EQ(refusal([](Request& r) { r.sampling.logit_bias = {{2048, 1.0f}}; }), Refusal::invalid);
  EXPECT_EQ(refusal([](Request& r) { r.prompt.assign(64, 5); }), Refusal::too_long);
  EXPECT_EQ(refusal([](Request& r) { r.prompt.assign(63, 5); }), Refusal::none);
  EXPECT_EQ(refusal([](Request& r) { r.adapter = "nobody"; }), Refusal::unknown_adapter);
  ASSERT_TRUE(engine.wait_idle(60));
  std::atomic<int> ends{0};
  Request longest;
  longest.prompt = {2, 5, 6};
  int taken = 0;
  for (int i = 0; i < 50; ++i) {
    const Submitted s = engine.submit(longest, {.on_delta = {}, .on_end = [&](const Outcome&) { ++ends; }});
    taken += s.refusal == Refusal::none ? 1 : 0;
    EXPECT_TRUE(s.refusal == Refusal::none || s.refusal == Refusal::queue_full);
  }
  EXPECT_LT(taken, 50);
  engine.drain();
  EXPECT_EQ(refusal([](Request&) {}), Refusal::draining);
  ASSERT_TRUE(engine.wait_idle(60));
  EXPECT_EQ(ends, taken);
}

TEST_F(Engines, StopTextsAreFoundAcrossTokensAndNeverShown) {
  Engine engine(*tiny_->backend, *tiny_->model, &tiny_->tokenizer, {.max_running = 4, .context = kContext});
  Request request;
  request.prompt = tiny_->chat("", "نام تو چیست؟");
  request.max_tokens = 40;
  request.sampling = {.temperature = 1.5, .seed = 5};
  const std::string whole = complete(engine, request).choices[0].text;
  ASSERT_GT(whole.size(), 20u);
  std::mt19937 random(31);
  for (int i = 0; i < 60; ++i) {
    size_t begin = random() % (whole.size() - 1),
           end = begin + 1 + random() % std::min<size_t>(12, whole.size() - begin);
    while (begin > 0 && (whole[begin] & 0xC0) == 0x80) --begin;
    while (end < whole.size() && (whole[end] & 0xC0) == 0x80) ++end;
    request.stop = {whole.substr(begin, end - begin)};
    std::vector<std::string> pieces;
    const Completion found =
        complete_all(engine, {request},
                     {.on_delta = [&](size_t, const Delta& d) { pieces.push_back(d.text); }, .wants_stop = {}})[0];
    EXPECT_EQ(found.choices[0].text, whole.substr(0, whole.find(request.stop[0])));
    EXPECT_EQ(found.choices[0].finish, Finish::stop);
    EXPECT_EQ(found.choices[0].stop, request.stop[0]);
    for (const std::string& piece : pieces) EXPECT_EQ(find_invalid_utf8(piece), std::string::npos);
  }
}

TEST_F(Engines, DestructionEndsEveryRequest) {
  std::atomic<int> ends{0};
  int taken = 0;
  {
    Engine engine(*tiny_->backend, *tiny_->model, &tiny_->tokenizer, {.max_running = 4, .context = kContext});
    for (const Request& request : mixed_requests(*tiny_, 32, 37, {""}))
      taken += engine.submit(request, {.on_delta = {}, .on_end = [&](const Outcome&) { ++ends; }}).id != 0 ? 1 : 0;
  }
  EXPECT_EQ(ends, taken);
}

/// Once told to, every product fails in one way.
class FailingBackend : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  std::function<void(Backend& inner, const Tensor& y)> fail;
  void matmul_nt(const Tensor& y, const Tensor& x, const Weight& w, Write write) override {
    ForwardingBackend::matmul_nt(y, x, w, write);
    if (fail) fail(in_, y);
  }
};

TEST_F(Engines, AFailureSaysWhatItMeansToTheShell) {
  struct Case {
    std::function<void(Backend&, const Tensor&)> fail;
    ExitCode code;
    std::string part;
    bool is_the_end;
  };
  const std::vector<Case> cases = {
      {[](Backend&, const Tensor&) { throw std::bad_alloc(); }, ExitCode::resource, "out of memory: use a smaller",
       true},
      {[](Backend&, const Tensor&) { throw Error(ExitCode::resource, "no room"); }, ExitCode::resource, "no room",
       true},
      {[](Backend&, const Tensor&) { throw Error(ExitCode::bug, "CUDA: lost"); }, ExitCode::io, "CUDA: lost", true},
      {[](Backend&, const Tensor&) { throw std::runtime_error("odd"); }, ExitCode::io, "odd", true},
      {[](Backend& inner, const Tensor& y) { inner.fill(y, std::numeric_limits<float>::quiet_NaN()); },
       ExitCode::diverged, "not finite", false},
  };
  const auto expect_thrown = [](const Case& expected, const auto& body) {
    try {
      body();
      ADD_FAILURE() << expected.part << ": nothing was thrown";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), expected.code) << error.what();
      EXPECT_NE(std::string(error.what()).find(expected.part), std::string::npos) << error.what();
    }
  };
  for (const Case& one : cases) {
    FailingBackend backend(*tiny_->backend);
    Engine engine(backend, *tiny_->model, &tiny_->tokenizer, {.max_running = 1, .context = kContext});
    const Request request{.prompt = tiny_->chat("", "سلام"), .max_tokens = 2};
    EXPECT_NO_THROW(check_answered(complete(engine, request)));
    backend.fail = one.fail;  // the engine's thread sleeps until the next request
    expect_thrown(one, [&] { check_answered(complete(engine, request)); });
    EXPECT_EQ(engine.stats().failure.empty(), !one.is_the_end) << one.part;
    if (one.is_the_end) expect_thrown(one, [&] { complete(engine, request); });
  }
}

}  // namespace
}  // namespace saaz
