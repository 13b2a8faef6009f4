// Bytes as a data file, as JSON lines and as one JSON document. Either an Error of kind bad_input comes out, or rows
// that the chat template takes; skipping bad rows never loses count.
#include <cstdlib>
#include <string>
#include <vector>

#include "base/error.h"
#include "data/conversation.h"
#include "mutation.h"

namespace {

const std::vector<std::string>& seeds() {
  static const std::vector<std::string> all = {
      R"({"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"سلام"}]},)"
      R"({"role":"assistant","content":"b"}]})"
      "\n\n{\"messages\":[]}\n",
      R"({"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b\u200c"}],"id":null})",
      R"([{"instruction":"a","input":"i","output":"b"},{"instruction":"a","output":"b"}])",
      R"({"data":[{"prompt":"a","completion":[{"role":"assistant","content":"b"}]},{"inputs":"a","targets":"b"}]})",
      "{\"text\":\"a\"}\r\n{\"text\":1e5}\n",
  };
  return all;
}

void require(bool condition) {
  if (!condition) std::abort();
}

void check_rows(std::string_view text, const std::string& name) {
  for (const int64_t allowed : {int64_t{0}, int64_t{1000}}) {
    saaz::BadRows bad(allowed);
    try {
      for (const saaz::Row& row : saaz::parse_rows(text, name, saaz::DataFormat::automatic, bad)) {
        require(row.number >= 1 && !row.place().empty());
        if (!row.is_text()) saaz::render_chat(row.messages, saaz::AddGenerationPrompt::no);
      }
    } catch (const saaz::Error& error) {
      require(error.code() == saaz::ExitCode::bad_input);
    }
    require(static_cast<int64_t>(bad.reasons().size()) <= allowed);
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  const std::string* fresh = saaz::fuzz::fresh_seed(seeds(), size, seed);
  const std::string input = fresh != nullptr ? *fresh : std::string(reinterpret_cast<const char*>(data), size);
  return saaz::fuzz::store(saaz::fuzz::mutated(input, max_size), data, max_size);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  check_rows(text, "fuzz.jsonl");
  check_rows(text, "fuzz.json");
  return 0;
}
