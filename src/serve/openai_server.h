// The OpenAI server: endpoints over the engine. Enters: calls of http.h. Leaves: answers, whole or in pieces, from one
// base model and its adapters, each a model name of its own. Parsing and tokenising happen on the workers of the HTTP
// server, formatting on a thread of this one; the engine's thread only hands over. Invariant: every call is answered
// exactly once, and a call whose client is gone stops costing anything. Endpoints and status codes: docs/serving.md.
#pragma once

#include <condition_variable>
#include <mutex>
#include <set>

#include "infer/engine.h"
#include "serve/openai.h"
#include "serve/workers.h"

namespace saaz {

struct OpenAiServerOptions {
  std::string model_name;  // of the base in /v1/models
  std::string version;
  OpenAiDefaults defaults;
  fs::path adapters_folder;  // whose folders may be loaded as adapters; empty: none
  std::function<void(const Value&)> log;
};

class OpenAiServer {
 public:
  /// Engine and tokenizer outlive it.
  OpenAiServer(Engine& engine, const Tokenizer& tokenizer, OpenAiServerOptions options);
  /// Cancels what runs and waits for its end. The WebServer with these routes must be gone.
  ~OpenAiServer();
  OpenAiServer(const OpenAiServer&) = delete;
  OpenAiServer& operator=(const OpenAiServer&) = delete;

  std::vector<WebRoute> routes();
  /// Where /metrics gets the figures of the HTTP server.
  void set_counts(std::function<WebCounts()> counts);
  /// Ends every answer that is being made, with an error in its last event.
  void cancel_all();

 private:
  struct Answering;
  void answer(OpenAiEndpoint endpoint, const std::shared_ptr<WebCall>& call);
  void submit(const std::shared_ptr<Answering>& answering, std::vector<Request> requests);
  template <class Part>
  void attempt(Answering& answering, const Part& part);
  void start(Answering& answering);
  void add(Answering& answering, int index, Delta&& delta);
  void publish(Answering& answering, int index);
  void end(Answering& answering, const Outcome& outcome);
  void finish(Answering& answering);
  void cancel(const std::vector<RequestId>& ids);
  std::string adapter_of(const std::string& model) const;
  Value model_object(const std::string& name) const;
  WebReply list_models() const;
  WebReply load_adapter(const WebRequest& request);
  WebReply unload_adapter(const WebRequest& request);
  WebReply tokenize(const WebRequest& request) const;
  WebReply detokenize(const WebRequest& request) const;
  WebReply health() const;
  WebReply metrics() const;
  void log(const char* event, const std::string& id, const std::string& text) const;

  Engine& engine_;
  const Tokenizer& tokenizer_;
  OpenAiServerOptions options_;
  int64_t started_;
  std::string openapi_;
  std::function<WebCounts()> counts_;
  std::mutex loading_;  // one adapter at a time
  std::mutex mutex_;
  std::condition_variable idle_;
  std::set<RequestId> active_;  // submitted and not ended
  int64_t n_active_ = 0;        // with those whose id is not known yet
  Workers publisher_{1};
};

/// The OpenAPI document of the routes.
Value openapi_document(const std::string& version);
/// Prometheus text.
std::string metrics_text(const EngineStats& engine, const WebCounts& web, size_t n_adapters);

}  // namespace saaz
