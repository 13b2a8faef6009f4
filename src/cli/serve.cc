// `saaz serve`: a base model and its adapters behind OpenAI's endpoints, until a signal ends it.
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sstream>
#include <thread>

#include "base/check.h"
#include "base/system.h"
#include "cli/answer.h"
#include "cli/page_files.h"
#include "serve/openai_server.h"

namespace saaz {
namespace {

struct ServeFlags {
  ModelFlags model;
  std::vector<std::string> adapters;  // NAME=DIR
  std::string adapters_folder, model_name, key_file;
  EngineOptions engine;
  WebOptions web;
  OpenAiDefaults defaults;
  int64_t port = 8080;
  double drain_seconds = 30;
  bool allow_anonymous = false, log_requests = false;
};

/// One key a line; empty lines and those that begin with '#' are left out.
std::vector<std::string> read_keys(const std::string& path, const Globals& globals) {
  struct stat info {};
  if (stat(path.c_str(), &info) == 0 && (info.st_mode & (S_IRGRP | S_IROTH)) != 0)
    log_line(globals, fmt::format("note: others can read the keys in {}: chmod 600 it", printable(path)));
  std::vector<std::string> keys;
  std::istringstream lines(read_file(path, 1 << 20));
  for (std::string line; std::getline(lines, line);) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (!line.empty() && line[0] != '#') keys.push_back(line);
  }
  check(!keys.empty(), ExitCode::usage, "{} holds no key", printable(path));
  return keys;
}

WebOptions web_options(const ServeFlags& flags, const Globals& globals) {
  WebOptions options = flags.web;
  options.port = static_cast<int>(flags.port);
  if (flags.allow_anonymous) options.anonymous = WebOptions::Anonymous::anywhere;
  const char* key = std::getenv("SAAZ_API_KEY");
  if (!flags.key_file.empty())
    options.keys = read_keys(flags.key_file, globals);
  else if (key != nullptr && *key != '\0')
    options.keys = {key};
  return options;
}

/// Events as lines of JSON on stderr; the requests among them only when asked for.
std::function<void(const Value&)> event_log(const ServeFlags& flags, const Globals& globals) {
  const auto mutex = std::make_shared<std::mutex>();
  return [mutex, everything = flags.log_requests, &globals](const Value& event) {
    const std::string& name = event.find("event")->as_string();
    if (!everything && (name == "request" || name == "gone")) return;
    const std::lock_guard lock(*mutex);
    log_line(globals, to_json(event));
  };
}

/// "fa=runs/fa" gives fa and its folder; a folder alone is named by its last part.
std::pair<std::string, fs::path> named_folder(const std::string& text) {
  const size_t mark = text.find('=');
  if (mark != std::string::npos) return {text.substr(0, mark), text.substr(mark + 1)};
  const fs::path path = fs::path(text).lexically_normal();
  return {(path.has_filename() ? path : path.parent_path()).filename().string(), path};
}

std::map<std::string, fs::path> adapters_to_load(const ServeFlags& flags) {
  std::map<std::string, fs::path> all;
  if (!flags.adapters_folder.empty())
    for (const fs::path& folder : list_directory(flags.adapters_folder))
      if (fs::exists(folder / "adapter_config.json")) all[folder.filename().string()] = folder;
  for (const std::string& text : flags.adapters) {
    const auto [name, folder] = named_folder(text);
    check(!name.empty() && !folder.empty(), ExitCode::usage, "--adapter {}: expected NAME=DIR", printable(text));
    all[name] = folder;
  }
  return all;
}

void announce(const WebServer& server, const std::string& model_name, const Engine& engine, const Globals& globals) {
  if (globals.json) {
    Value names = Value::array();
    for (const std::string& name : engine.adapters()) names.push_back(name);
    print_event(
        Value::object({{"event", "ready"}, {"address", server.address()}, {"model", model_name}, {"adapters", names}}));
    return;
  }
  log_line(globals, fmt::format("serving '{}' and {} adapters, and a chat page, at {} (Ctrl-C ends)", model_name,
                                engine.adapters().size(), server.address()));
}

void pause_briefly() { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }

/// New requests are refused; what runs ends well, or with a last event that says why not.
void drain(WebServer& server, OpenAiServer& openai, Engine& engine, double seconds, const Globals& globals) {
  constexpr double kLastWords = 5;
  log_line(globals, fmt::format("shutting down: {} requests may end within {:.0f} s", server.counts().calls, seconds));
  server.drain();
  const double start = monotonic_seconds();
  while (server.counts().calls > 0 && monotonic_seconds() - start < seconds) pause_briefly();
  engine.drain();
  openai.cancel_all();
  const double cut = monotonic_seconds();
  while (server.counts().calls > 0 && monotonic_seconds() - cut < kLastWords) pause_briefly();
}

/// The endpoints, and the chat page at "/".
std::vector<WebRoute> all_routes(OpenAiServer& openai) {
  std::vector<WebRoute> routes = openai.routes();
  for (WebRoute& route : page_routes(page_files(), "chat.html")) routes.push_back(std::move(route));
  return routes;
}

int run_serve(const ServeFlags& flags, const Globals& globals) {
  const WebOptions web = web_options(flags, globals);
  Session session(flags.model, globals);
  EngineOptions engine_options = flags.engine;
  engine_options.context = std::min(engine_options.context, session.context());
  const std::map<std::string, fs::path> adapters = adapters_to_load(flags);
  session.load(engine_options.context);
  Engine engine(session.backend(), session.model(), &session.tokenizer(), engine_options);
  for (const auto& [name, folder] : adapters)
    for (const std::string& note : engine.load_adapter(name, folder)) log_line(globals, name + ": " + note);

  const auto log = event_log(flags, globals);
  const std::string model_name = flags.model_name.empty() ? named_folder(flags.model.model).first : flags.model_name;
  check(!adapters.contains(model_name), ExitCode::usage,
        "the adapter '{}' has the name of the model: name one of them otherwise (--adapter NAME=DIR, "
        "--served-model-name)",
        printable(model_name));
  OpenAiServer openai(engine, session.tokenizer(), {model_name, kVersion, flags.defaults, flags.adapters_folder, log});
  WebOptions options = web;
  options.log = log;
  WebServer server(options, all_routes(openai));
  openai.set_counts([&server] { return server.counts(); });
  announce(server, model_name, engine, globals);
  while (stop_signal() == 0 && engine.stats().failure.empty()) pause_briefly();
  const EngineStats stats = engine.stats();
  drain(server, openai, engine, flags.drain_seconds, globals);
  check(stats.failure.empty(), stats.failure_code, "generation failed: {}; start the server again", stats.failure);
  return 0;
}

}  // namespace

Action declare_serve(Arguments& arguments, const Globals& globals) {
  const auto flags = std::make_shared<ServeFlags>();
  constexpr int64_t kMany = 1 << 20;
  constexpr auto kOptional = Arguments::Need::optional;
  declare_base_model(arguments, flags->model);
  arguments.texts("--adapter", flags->adapters, kOptional, "NAME=DIR: a PEFT folder served under NAME; again for more");
  arguments.text("--adapters", flags->adapters_folder, kOptional,
                 "a folder of adapter folders: all are served, and more may be loaded from it while it runs");
  arguments.text("--served-model-name", flags->model_name, kOptional, "what requests call the model (its last part)");
  arguments.text("--host", flags->web.host, kOptional, "the address to listen on (127.0.0.1)");
  arguments.integer("--port", flags->port, 0, 65535, "0: any free one (8080)");
  arguments.text("--api-key-file", flags->key_file, kOptional, "a file with a key a line (else SAAZ_API_KEY)");
  arguments.toggle("--allow-anonymous", flags->allow_anonymous, "no key though other machines can reach --host");
  arguments.texts("--allow-host", flags->web.host_names, kOptional, "a name that requests may call this server by");
  arguments.texts("--allow-origin", flags->web.origins, kOptional, "another page's origin that may use this server");
  arguments.integer("--context", flags->engine.context, 16, kMany, "tokens of a conversation, answer included");
  arguments.integer("--max-running", flags->engine.max_running, 1, 4096, "sequences generated at once");
  arguments.integer("--max-waiting", flags->engine.max_waiting, 1, kMany, "requests in line; one more gets 429");
  arguments.integer("--max-connections", flags->web.limits.n_connections, 8, 65536, "open at once");
  declare_sampling(arguments, flags->defaults.sampling);
  arguments.real("--drain-seconds", flags->drain_seconds, 0, 3600, "that answers may take after a stop signal");
  arguments.toggle("--log-requests", flags->log_requests,
                   "a line of JSON on stderr for every request, without its text");
  return [flags, &globals] { return run_serve(*flags, globals); };
}

}  // namespace saaz
