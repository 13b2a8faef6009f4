#include "serve/openai_server.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>

#include "serve/openai_fields.h"

namespace saaz {
namespace {

constexpr RequestId kEnded = ~RequestId{0};  // ended before its id was known
constexpr size_t kHeldBack = 64 << 10;       // what may wait for a client before pieces are put together

int64_t count_code_points(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

}  // namespace

/// One call. Touched by the publisher's thread alone once its requests are submitted.
struct OpenAiServer::Answering {
  std::shared_ptr<WebCall> call;
  OpenAiHead head;
  bool stream = false, include_usage = false, is_started = false, is_refused = false;
  std::vector<OpenAiChoice> choices;  // the whole answers; of a stream, what is still to be sent
  std::vector<int64_t> offsets;       // code points sent
  std::vector<RequestId> ids;
  Usage usage;
  size_t n_left = 0;
  std::string error;
  bool is_cancelled = false, is_broken = false;
};

OpenAiServer::OpenAiServer(Engine& engine, const Tokenizer& tokenizer, OpenAiServerOptions options)
    : engine_(engine),
      tokenizer_(tokenizer),
      options_(std::move(options)),
      started_(time(nullptr)),
      openapi_(to_json(openapi_document(options_.version))) {}

OpenAiServer::~OpenAiServer() {
  constexpr auto kPatience = std::chrono::seconds(10);  // an end that was lost, as there was no memory, never comes
  cancel_all();
  std::unique_lock lock(mutex_);
  idle_.wait_for(lock, kPatience, [&] { return n_active_ == 0; });
}

void OpenAiServer::set_counts(std::function<WebCounts()> counts) { counts_ = std::move(counts); }

void OpenAiServer::cancel_all() {
  std::vector<RequestId> ids;
  {
    const std::lock_guard lock(mutex_);
    ids.assign(active_.begin(), active_.end());
  }
  cancel(ids);
}

void OpenAiServer::cancel(const std::vector<RequestId>& ids) {
  for (const RequestId id : ids) engine_.cancel(id);
}

std::vector<WebRoute> OpenAiServer::routes() {
  using Access = WebRoute::Access;
  const auto at_once = [this](auto member) {
    return answer_at_once([this, member](const WebRequest& request) { return (this->*member)(request); });
  };
  const auto no_embeddings = [](const WebRequest&) -> WebReply {
    throw WebFault(400, "embeddings are not served: this model writes text", "", "not_supported");
  };
  return {
      {"POST", "/v1/chat/completions", Access::keyed, [this](const auto& c) { answer(OpenAiEndpoint::chat, c); }},
      {"POST", "/v1/completions", Access::keyed, [this](const auto& c) { answer(OpenAiEndpoint::text, c); }},
      {"POST", "/v1/embeddings", Access::keyed, answer_at_once(no_embeddings)},
      {"GET", "/v1/models", Access::keyed, answer_at_once([this](const WebRequest&) { return list_models(); })},
      {"GET", "/v1/models/*", Access::keyed, answer_at_once([this](const WebRequest& request) {
         adapter_of(request.tail);
         return json_reply(model_object(request.tail));
       })},
      {"POST", "/v1/load_lora_adapter", Access::keyed, at_once(&OpenAiServer::load_adapter)},
      {"POST", "/v1/unload_lora_adapter", Access::keyed, at_once(&OpenAiServer::unload_adapter)},
      {"POST", "/tokenize", Access::keyed, at_once(&OpenAiServer::tokenize)},
      {"POST", "/detokenize", Access::keyed, at_once(&OpenAiServer::detokenize)},
      {"GET", "/health", Access::open, answer_at_once([this](const WebRequest&) { return health(); })},
      {"GET", "/metrics", Access::keyed, answer_at_once([this](const WebRequest&) { return metrics(); })},
      asset_route("/openapi.json", "application/json; charset=utf-8", openapi_),
  };
}

void OpenAiServer::answer(OpenAiEndpoint endpoint, const std::shared_ptr<WebCall>& call) {
  if (const EngineStats stats = engine_.stats(); stats.waiting >= engine_.options().max_waiting)
    throw retry_later(429, "too many requests are waiting", "queue_full", 1);
  const Value body = parse_body(call->request().body);
  OpenAiRequest parsed = endpoint == OpenAiEndpoint::chat ? parse_chat_body(body, tokenizer_, options_.defaults)
                                                          : parse_completion_body(body, tokenizer_, options_.defaults);
  const std::string adapter = adapter_of(parsed.model);
  const auto answering = std::make_shared<Answering>();
  answering->call = call;
  answering->head = make_head(endpoint, call->request().id, parsed.model.empty() ? options_.model_name : parsed.model);
  answering->head.with_logprobs = parsed.requests[0].top_logprobs >= 0;
  answering->stream = parsed.stream;
  answering->include_usage = parsed.include_usage;
  answering->choices.resize(parsed.requests.size() * static_cast<size_t>(parsed.n));
  answering->offsets.resize(answering->choices.size());
  answering->n_left = parsed.requests.size();
  const std::string client = call->request().peer + " " +
                             std::to_string(std::hash<std::string_view>()(call->request().header("authorization")));
  for (Request& request : parsed.requests) {
    request.adapter = adapter;
    request.client = client;
  }
  submit(answering, std::move(parsed.requests));
}

void OpenAiServer::submit(const std::shared_ptr<Answering>& answering, std::vector<Request> requests) {
  std::vector<RequestId> ids;
  for (size_t k = 0; k < requests.size(); ++k) {
    const int first = static_cast<int>(k) * requests[k].n;
    const auto on_delta = [this, answering, first](const Delta& delta) {
      publisher_.add([this, answering, first, piece = Delta(delta)]() mutable {
        attempt(*answering, [&] { add(*answering, first + piece.choice, std::move(piece)); });
      });
    };
    const auto own_id = std::make_shared<std::atomic<RequestId>>(0);
    const auto on_end = [this, answering, own_id](const Outcome& outcome) {
      publisher_.add([this, answering, own_id, outcome] {
        attempt(*answering, [&] { end(*answering, outcome); });
        const std::lock_guard lock(mutex_);
        if (active_.erase(*own_id) == 0) own_id->store(kEnded);
        if (--n_active_ == 0) idle_.notify_all();
      });
    };
    {
      const std::lock_guard lock(mutex_);
      ++n_active_;
    }
    const Submitted submitted = engine_.submit(std::move(requests[k]), {on_delta, on_end});
    const std::lock_guard lock(mutex_);
    if (submitted.refusal != Refusal::none) {
      if (--n_active_ == 0) idle_.notify_all();
      publisher_.add([answering] { answering->is_refused = true; });
      cancel(ids);
      throw fault_of(submitted);
    }
    if (own_id->exchange(submitted.id) != kEnded) active_.insert(submitted.id);
    ids.push_back(submitted.id);
  }
  answering->call->on_gone([this, ids] { cancel(ids); });
  publisher_.add([this, answering, ids] {
    attempt(*answering, [&] {
      answering->ids = ids;
      start(*answering);
    });
  });
}

/// What cannot be said (there is no memory) costs its call, not the server: it breaks off, and is made no longer.
template <class Part>
void OpenAiServer::attempt(Answering& answering, const Part& part) {
  if (answering.is_broken) return;
  try {
    part();
  } catch (const std::exception& fault) {
    answering.is_broken = true;
    log("failed", answering.call->request().id, fault.what());
    cancel(answering.ids);
    answering.call.reset();  // a call that is dropped tells its client
  }
}

void OpenAiServer::start(Answering& answering) {
  answering.is_started = true;
  if (answering.stream) {
    answering.call->start_events();
    for (int index = 0; index < static_cast<int>(answering.choices.size()); ++index) {
      if (answering.head.endpoint == OpenAiEndpoint::chat)
        answering.call->send({to_json(role_chunk(answering.head, index))});
      publish(answering, index);
    }
  }
  if (answering.n_left == 0) finish(answering);
}

void OpenAiServer::add(Answering& answering, int index, Delta&& delta) {
  answering.is_cancelled |= delta.finish == Finish::cancelled;
  answering.choices[static_cast<size_t>(index)].add(std::move(delta));
  if (answering.stream && answering.is_started) publish(answering, index);
}

/// Sends what a choice has. A client that reads slowly gets fewer, longer pieces.
void OpenAiServer::publish(Answering& answering, int index) {
  OpenAiChoice& piece = answering.choices[static_cast<size_t>(index)];
  if (piece.finish == Finish::cancelled || piece.finish == Finish::failed) return;  // told by the error at the end
  if (piece.text.empty() && piece.logprobs.empty() && !piece.finish) return;
  if (!piece.finish && answering.call->pending_bytes() > kHeldBack) return;
  int64_t& offset = answering.offsets[static_cast<size_t>(index)];
  const std::string text = to_json(chunk_object(answering.head, index, piece, offset, tokenizer_));
  offset += count_code_points(piece.text);
  piece = {};
  if (!answering.call->send({text})) cancel(answering.ids);
}

void OpenAiServer::end(Answering& answering, const Outcome& outcome) {
  answering.usage.prompt_tokens += outcome.usage.prompt_tokens;
  answering.usage.cached_tokens += outcome.usage.cached_tokens;
  answering.usage.completion_tokens += outcome.usage.completion_tokens;
  if (!outcome.error.empty()) {
    answering.error = outcome.error;
    log("failed", answering.call->request().id, outcome.error);
  }
  if (--answering.n_left == 0 && answering.is_started) finish(answering);
}

void OpenAiServer::finish(Answering& answering) {
  WebCall& call = *answering.call;
  std::optional<WebFault> fault;
  if (!answering.error.empty())
    fault = WebFault(500, "generation failed; the server's log has the cause under " + call.request().id);
  else if (answering.is_cancelled)
    fault = retry_later(503, "the server ended this answer: it is shutting down", "shutting_down", 5);
  if (!answering.stream) {
    call.reply(fault ? error_reply(*fault)
                     : json_reply(completion_object(answering.head, answering.choices, answering.usage, tokenizer_)));
    return;
  }
  if (fault) {
    call.send({error_reply(*fault).body});
  } else {
    if (answering.include_usage) call.send({to_json(usage_chunk(answering.head, answering.usage))});
    call.send({"[DONE]"});
  }
  call.finish();
}

/// The adapter that a model name means; empty for the base.
std::string OpenAiServer::adapter_of(const std::string& model) const {
  if (model.empty() || model == options_.model_name) return "";
  const std::vector<std::string> names = engine_.adapters();
  if (!std::binary_search(names.begin(), names.end(), model))
    throw WebFault(404,
                   fmt::format("the model '{}' is not served; /v1/models lists those that are", printable(model, 100)),
                   "model", "model_not_found");
  return model;
}

Value OpenAiServer::model_object(const std::string& name) const {
  const bool is_base = name == options_.model_name;
  return Value::object({{"id", name},
                        {"object", "model"},
                        {"created", started_},
                        {"owned_by", "saaz"},
                        {"root", options_.model_name},
                        {"parent", is_base ? Value() : Value(options_.model_name)},
                        {"max_model_len", engine_.options().context}});
}

WebReply OpenAiServer::list_models() const {
  Value list = Value::array({model_object(options_.model_name)});
  for (const std::string& name : engine_.adapters()) list.push_back(model_object(name));
  return json_reply(Value::object({{"object", "list"}, {"data", list}}));
}

WebReply OpenAiServer::load_adapter(const WebRequest& request) {
  static constexpr BodyField kFields[] = {
      {"lora_name", BodyField::Kind::text, 1, 64, ""},
      {"lora_path", BodyField::Kind::text, 1, 4096, ""},
      {"load_inplace", BodyField::Kind::boolean, 0, 0, ""},
  };
  const Value body = parse_body(request.body);
  check_fields(body, kFields);
  const std::string name = text_or(body, "lora_name", ""), path = text_or(body, "lora_path", name.c_str());
  if (name.empty()) throw WebFault(400, "lora_name is missing", "lora_name");
  if (options_.adapters_folder.empty())
    throw WebFault(403, "this server loads no adapters: it was started without --adapters", "lora_path");
  const std::vector<std::string> loaded = engine_.adapters();
  const bool is_loaded = std::binary_search(loaded.begin(), loaded.end(), name);
  if (name == options_.model_name || (is_loaded && !flag_or(body, "load_inplace", false)))
    throw WebFault(400, fmt::format("'{}' is served already; unload it first, or say \"load_inplace\": true", name),
                   "lora_name");
  // Only folders inside the allowed one, links followed, so that no request opens anything else.
  std::error_code error;
  const fs::path root = fs::canonical(options_.adapters_folder, error);
  const fs::path folder = fs::weakly_canonical(root / path, error);
  const fs::path inside = folder.lexically_relative(root);
  if (error || inside.empty() || *inside.begin() == ".." || *inside.begin() == "." || !fs::is_directory(folder, error))
    throw WebFault(404, "lora_path is no folder in the server's adapters folder", "lora_path");
  const std::unique_lock lock(loading_, std::try_to_lock);
  if (!lock.owns_lock()) throw retry_later(429, "another adapter is being loaded", "busy", 1);
  try {
    engine_.load_adapter(name, folder);
  } catch (const Error& fault) {
    std::string text = fault.what();
    for (size_t at; (at = text.find(root.string() + "/")) != text.npos;) text.erase(at, root.string().size() + 1);
    log("adapter refused", request.id, fault.what());
    throw WebFault(400, text, fault.code() == ExitCode::usage ? "lora_name" : "lora_path");
  }
  log("adapter loaded", request.id, name);
  return json_reply(Value::object({{"id", name}, {"object", "model"}, {"loaded", true}}));
}

WebReply OpenAiServer::unload_adapter(const WebRequest& request) {
  static constexpr BodyField kFields[] = {
      {"lora_name", BodyField::Kind::text, 1, 64, ""},
      {"lora_int_id", BodyField::Kind::ignored, 0, 0, ""},
  };
  const Value body = parse_body(request.body);
  check_fields(body, kFields);
  const std::string name = text_or(body, "lora_name", "");
  if (!engine_.unload_adapter(name))
    throw WebFault(404, fmt::format("there is no adapter '{}'", printable(name, 64)), "lora_name", "model_not_found");
  log("adapter unloaded", request.id, name);
  return json_reply(Value::object({{"id", name}, {"object", "model"}, {"deleted", true}}));
}

WebReply OpenAiServer::tokenize(const WebRequest& request) const {
  const Value body = parse_body(request.body);
  const std::vector<int32_t> ids = parse_tokenize_body(body, tokenizer_);
  adapter_of(text_or(body, "model", ""));
  Value tokens = Value::array();
  for (const int32_t id : ids) tokens.push_back(id);
  return json_reply(
      Value::object({{"count", ids.size()}, {"max_model_len", engine_.options().context}, {"tokens", tokens}}));
}

WebReply OpenAiServer::detokenize(const WebRequest& request) const {
  const std::vector<int32_t> ids = parse_detokenize_body(parse_body(request.body), tokenizer_);
  return json_reply(Value::object({{"prompt", tokenizer_.decode(ids, SkipSpecial::no)}}));
}

WebReply OpenAiServer::health() const {
  const EngineStats stats = engine_.stats();
  const bool ok = stats.failure.empty() && !stats.draining;
  const char* word = ok ? "ok" : stats.draining ? "draining" : "failed";
  WebReply reply =
      json_reply(Value::object({{"status", word}, {"running", stats.running}, {"waiting", stats.waiting}}));
  reply.status = ok ? 200 : 503;
  return reply;
}

WebReply OpenAiServer::metrics() const {
  WebReply reply;
  reply.content_type = "text/plain; version=0.0.4; charset=utf-8";
  reply.body = metrics_text(engine_.stats(), counts_ ? counts_() : WebCounts{}, engine_.adapters().size());
  return reply;
}

void OpenAiServer::log(const char* event, const std::string& id, const std::string& text) const {
  if (options_.log)
    options_.log(Value::object({{"time", utc_timestamp()}, {"event", event}, {"id", id}, {"text", text}}));
}

}  // namespace saaz
