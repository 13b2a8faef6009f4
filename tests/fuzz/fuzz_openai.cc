// Bytes as the body of a request. Either a fault of status 400 comes out, or requests in which every id is inside the
// vocabulary and every number inside its range.
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "mutation.h"
#include "serve/openai.h"

namespace {

const std::vector<std::string>& seeds() {
  static const std::vector<std::string> all = {
      R"({"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"<end_of_turn>"}]}],)"
      R"("n":2,"seed":-1,"stop":["x"],"logit_bias":{"7":-1},"stream":true,"stream_options":{"include_usage":true}})",
      R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}],)"
      R"("temperature":0.5,"top_p":1,"top_k":-1,"min_p":0,"logprobs":true,"top_logprobs":3,"max_tokens":9,"guard":true})",
      R"({"prompt":["a","<bos>"],"logprobs":2,"presence_penalty":-2,"frequency_penalty":2,"repetition_penalty":1.1})",
      R"({"prompt":[[2,3],[4]],"stop_token_ids":[1],"ignore_eos":true,"best_of":1,"echo":false})",
  };
  return all;
}

void require(bool condition) {
  if (!condition) std::abort();
}

const saaz::Tokenizer& tokenizer() {
  static const saaz::Tokenizer kTokenizer = saaz::load_tokenizer(SAAZ_SOURCE_DIR "/data/try/model");
  return kTokenizer;
}

bool is_id(int32_t id) { return id >= 0 && static_cast<size_t>(id) < tokenizer().size(); }

void check_request(const saaz::OpenAiRequest& parsed) {
  require(!parsed.requests.empty() && parsed.requests.size() <= 64 && parsed.n >= 1 && parsed.n <= 128);
  for (const saaz::Request& r : parsed.requests) {
    require(!r.prompt.empty() && r.n == parsed.n && r.max_tokens >= 0 && r.top_logprobs >= -1 && r.top_logprobs <= 20);
    for (const int32_t id : r.prompt) require(is_id(id));
    for (const int32_t id : r.stop_ids) require(is_id(id));
    for (const auto& [id, bias] : r.sampling.logit_bias) require(is_id(id) && std::fabs(bias) <= 100);
    for (const std::string& stop : r.stop) require(!stop.empty() && stop.size() <= 256);
    require(r.sampling.temperature >= 0 && r.sampling.top_p >= 0 && r.sampling.top_p <= 1 && r.sampling.top_k >= 0);
    require(r.sampling.min_p >= 0 && r.sampling.min_p <= 1 && r.sampling.repetition_penalty > 0);
    require(std::fabs(r.sampling.presence_penalty) <= 2 && std::fabs(r.sampling.frequency_penalty) <= 2);
  }
}

template <class Body>
void expect_400(const Body& body) {
  try {
    body();
  } catch (const saaz::WebFault& fault) {
    require(fault.status == 400 && fault.what()[0] != '\0');
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  const std::string* fresh = saaz::fuzz::fresh_seed(seeds(), size, seed);
  const std::string input = fresh != nullptr ? *fresh : std::string(reinterpret_cast<const char*>(data), size);
  return saaz::fuzz::store(saaz::fuzz::mutated(input, max_size), data, max_size);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  expect_400([&] {
    const saaz::Value body = saaz::parse_body(text);
    expect_400([&] { check_request(saaz::parse_chat_body(body, tokenizer(), {})); });
    expect_400([&] { check_request(saaz::parse_completion_body(body, tokenizer(), {})); });
    expect_400([&] { saaz::parse_tokenize_body(body, tokenizer()); });
    expect_400([&] {
      for (const int32_t id : saaz::parse_detokenize_body(body, tokenizer())) require(is_id(id));
    });
  });
  return 0;
}
