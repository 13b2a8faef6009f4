// Recognises Git LFS pointers, HTML pages, pickle weights (never read: they can run code) and the other model
// container.
#include "checkpoint/foreign_file.h"

#include <algorithm>
#include <string_view>

namespace saaz {

namespace {

constexpr const char* kPickleAdvice =
    "this is a PyTorch pickle file, which can run code when loaded and is never read here: convert it in Python with "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')";

/// The first bytes without leading white space, in lower case.
std::string text_start(Bytes bytes) {
  std::string_view text(reinterpret_cast<const char*>(bytes.data()), std::min<size_t>(bytes.size(), 256));
  text.remove_prefix(std::min(text.find_first_not_of(" \t\r\n"), text.size()));
  std::string out(text.substr(0, 64));
  for (char& c : out) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  return out;
}

}  // namespace

std::string describe_foreign_file(Bytes bytes) {
  using namespace std::string_view_literals;
  const std::string_view raw(reinterpret_cast<const char*>(bytes.data()), std::min<size_t>(bytes.size(), 64));
  const std::string text = text_start(bytes);
  if (bytes.empty()) return "the file is empty";
  if (text.starts_with("version https://git-lfs"))
    return "this is a Git LFS pointer, not the file: run 'git lfs pull' in its folder, or download the file itself";
  if (text.starts_with("<!doctype") || text.starts_with("<html"))
    return "this is an HTML page, not a model file: the download was answered by a web page (an error or a login)";
  // A zip (PyTorch's container since 1.6), or a bare pickle: byte 0x80, then its protocol.
  if (raw.starts_with("PK\x03\x04"sv)) return kPickleAdvice;
  if (raw.size() >= 2 && raw[0] == '\x80' && raw[1] >= 2 && raw[1] <= 5) return kPickleAdvice;
  if (raw.starts_with("GGUF"sv)) return "this is a GGUF file: name it with the ending .gguf";
  return {};
}

}  // namespace saaz
