// The fake hub as a program, for tests of the command line and of the real huggingface_hub.
//   fake_hub FOLDER READY_FILE     serves FOLDER as the model test/tiny (commits: 'main', tag v1 without the weights),
//   a
//                                  gated copy as test/gated; writes its address into READY_FILE, then lives until its
//                                  standard input ends. On its way out it prints the requests, one a line: the method,
//                                  the target, and whether a token came along.
#include <cstdio>

#include "base/check.h"
#include "base/system.h"
#include "hub/fake_hub.h"

int main(int argc, char** argv) {
  using namespace saaz;
  if (argc != 3) return std::fprintf(stderr, "usage: fake_hub FOLDER READY_FILE\n"), 2;
  testing_hub::FakeHub hub;
  testing_hub::Files files, early;
  for (const auto& entry : fs::recursive_directory_iterator(argv[1])) {
    if (!entry.is_regular_file()) continue;
    const std::string path = entry.path().lexically_relative(argv[1]).generic_string();
    files[path] = read_file(entry.path());
    if (!path.ends_with(".safetensors")) early[path] = files[path];
  }
  files["notes/خواندنی.md"] = "سلام\n";
  hub.add_commit("models/test/tiny", "v1", early);
  hub.add_commit("models/test/tiny", "main", files);
  hub.add_commit("models/test/gated", "main", early);
  hub.repository("models/test/gated").is_gated = true;
  const std::string row = R"({"prompt": "سلام", "completion": "سلام، خوش آمدی."})"
                          "\n";
  hub.add_commit("datasets/test/chats", "main",
                 {{"train.jsonl", row + row}, {"README.md", "---\nlicense: cc0-1.0\nlanguage: fa\n---\n"}});
  write_file_atomically(argv[2], hub.endpoint());
  while (std::getchar() != EOF) continue;
  for (const testing_hub::Request& request : hub.requests())
    fmt::print("{} {}{} {}\n", request.method, request.on_store ? "store" : "", request.target,
               request.header("authorization").empty() ? "without a token" : "with a token");
}
