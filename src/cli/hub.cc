#include "cli/hub.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "base/check.h"
#include "hub/cache.h"

namespace saaz {
namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// A path from the environment; "~/" is the home folder, as in Hugging Face's tools.
fs::path path_from(const std::string& text) {
  return text.starts_with("~/") ? fs::path(environment("HOME")) / text.substr(2) : fs::path(text);
}

bool is_set(const char* name) {
  std::string value = environment(name);
  std::transform(value.begin(), value.end(), value.begin(), [](char c) { return c >= 'a' && c <= 'z' ? c - 32 : c; });
  return value == "1" || value == "ON" || value == "YES" || value == "TRUE";
}

/// Never shows the text: it may be a token all the same.
Token checked_token(std::string text, const std::string& source) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.pop_back();
  const bool ok = std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7f; });
  check(ok && text.size() <= 1000, ExitCode::usage, "{} holds no token: expected one word like hf_...", source);
  return {std::move(text), source};
}

Token token_from_file(const fs::path& path, const Globals& globals) {
  struct stat info {};
  if (stat(path.c_str(), &info) == 0 && (info.st_mode & (S_IRGRP | S_IROTH)) != 0)
    log_line(globals, fmt::format("note: others can read the token in {}: chmod 600 it", printable(path.string())));
  return checked_token(read_file(path, 4096), path.string());
}

Token find_token(const HubFlags& flags, const Globals& globals) {
  if (!flags.token_file.empty()) return token_from_file(flags.token_file, globals);
  if (const std::string token = environment("HF_TOKEN"); !token.empty()) return checked_token(token, "HF_TOKEN");
  const std::string named = environment("HF_TOKEN_PATH");
  const fs::path path = named.empty() ? hub_home() / "token" : path_from(named);
  std::error_code error;
  return fs::exists(path, error) ? token_from_file(path, globals) : Token();
}

int stall_seconds() {
  const std::string text = environment("HF_HUB_DOWNLOAD_TIMEOUT");
  int seconds = 60;
  if (text.empty()) return seconds;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  check(error == std::errc() && *end == '\0' && seconds > 0 && seconds <= 86400, ExitCode::usage,
        "HF_HUB_DOWNLOAD_TIMEOUT is '{}': expected seconds", printable(text));
  return seconds;
}

/// On a terminal a line that rewrites itself; elsewhere one line a file.
class ProgressLine {
 public:
  explicit ProgressLine(const Globals& globals) : globals_(globals), is_live_(isatty(STDERR_FILENO) == 1) {}

  void operator()(const std::string& file, uint64_t done, uint64_t total) {
    if (globals_.quiet) return;
    const double now = monotonic_seconds();
    if (file != file_) file_ = file, started_ = now, shown_ = 0, first_ = done;
    if (done == total) {
      const double rate = static_cast<double>(done - first_) / std::max(now - started_, 1e-3);
      print_log(fmt::format("{}{}  {}, {}/s{}\n", is_live_ ? "\r" : "", printable(file),
                            bytes_text(static_cast<double>(total)), bytes_text(rate), is_live_ ? "\x1b[K" : ""));
    } else if (is_live_ && now - shown_ > 0.1) {
      shown_ = now;
      print_log(fmt::format("\r{}  {:.1f} % of {}\x1b[K", printable(file, 60),
                            100 * static_cast<double>(done) / static_cast<double>(total),
                            bytes_text(static_cast<double>(total))));
    }
  }

 private:
  const Globals& globals_;
  bool is_live_;
  std::string file_;
  double started_ = 0, shown_ = 0;
  uint64_t first_ = 0;
};

}  // namespace

fs::path hub_home() {
  if (const std::string home = environment("HF_HOME"); !home.empty()) return path_from(home);
  const std::string cache = environment("XDG_CACHE_HOME");
  return (cache.empty() ? path_from("~/.cache") : path_from(cache)) / "huggingface";
}

fs::path hub_cache() {
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"})
    if (const std::string cache = environment(name); !cache.empty()) return path_from(cache);
  return hub_home() / "hub";
}

void declare_hub(Arguments& arguments, HubFlags& flags) {
  arguments.text("--hf-token-file", flags.token_file, Arguments::Need::optional,
                 "a file with the access token (else HF_TOKEN, HF_TOKEN_PATH, $HF_HOME/token)");
  arguments.toggle("--send-token", flags.send_token, "send the token to HF_ENDPOINT though it is not huggingface.co");
}

HubSettings hub_settings(const HubFlags& flags, const Globals& globals) {
  HubSettings settings;
  if (const std::string endpoint = environment("HF_ENDPOINT"); !endpoint.empty()) settings.endpoint = endpoint;
  settings.cache = fs::absolute(hub_cache());
  settings.token = find_token(flags, globals);
  settings.send_token = flags.send_token;
  settings.offline = flags.offline || is_set("HF_HUB_OFFLINE");
  settings.stall_seconds = stall_seconds();
  settings.ca_file = environment("SSL_CERT_FILE");
  settings.log = [&globals](const std::string& line) { log_line(globals, line); };
  settings.progress = ProgressLine(globals);
  return settings;
}

std::string find_fetched(const std::string& name, RepoKind kind) {
  std::error_code error;
  if (fs::exists(name, error) || !looks_like_repo(name)) return name;
  const std::optional<fs::path> snapshot = find_snapshot(fs::absolute(hub_cache()), parse_repo(name, kind));
  return snapshot ? snapshot->string() : name;
}

FetchedNames fetched_names() {
  return {.model = [](const std::string& name) { return find_fetched(name, RepoKind::model); },
          .dataset = [](const std::string& name) { return find_fetched(name, RepoKind::dataset); }};
}

std::string find_model(const std::string& name) {
  const std::string path = find_fetched(name);
  std::error_code error;
  const bool is_lost = looks_like_repo(path) && !path.ends_with(".gguf") && !fs::exists(path, error);
  check(!is_lost, ExitCode::bad_input, "{} does not exist here and was not fetched: 'saaz fetch {}' gets it", name,
        name);
  return path;
}

}  // namespace saaz
