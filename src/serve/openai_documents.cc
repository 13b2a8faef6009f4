#include <algorithm>

#include "serve/openai_server.h"

namespace saaz {
namespace {

Value reference(const char* name) { return Value::object({{"$ref", std::string("#/components/schemas/") + name}}); }

Value json_content(const Value& schema) {
  return Value::object({{"application/json", Value::object({{"schema", schema}})}});
}

Value replies(const char* ok, std::initializer_list<const char*> faults, const Value& content) {
  Value out = Value::object({{"200", Value::object({{"description", ok}, {"content", content}})}});
  const Value fault = Value::object({{"description", "the error"}, {"content", json_content(reference("Error"))}});
  for (const char* status : faults) out.set(status, fault);
  return out;
}

Value any_object() { return Value::object({{"type", "object"}}); }

Value post(const char* summary, const Value& body, std::initializer_list<const char*> faults, const Value& content) {
  const Value request = Value::object({{"required", true}, {"content", json_content(body)}});
  return Value::object({{"post", Value::object({{"summary", summary},
                                                {"requestBody", request},
                                                {"responses", replies("the answer", faults, content)}})}});
}

Value get(const char* summary, std::initializer_list<const char*> faults, const Value& content) {
  return Value::object(
      {{"get", Value::object({{"summary", summary}, {"responses", replies("the answer", faults, content)}})}});
}

Value object_of(std::initializer_list<std::pair<const char*, const char*>> fields, const char* required) {
  Value properties = Value::object(), names = Value::array();
  for (const auto& [name, type] : fields) properties.set(name, Value::object({{"type", type}}));
  if (*required != '\0') names.push_back(required);
  return Value::object({{"type", "object"}, {"properties", properties}, {"required", names}});
}

Value error_schema() {
  return Value::object(
      {{"type", "object"},
       {"required", Value::array({"error"})},
       {"properties",
        Value::object(
            {{"error", object_of({{"message", "string"}, {"type", "string"}, {"param", "string"}, {"code", "string"}},
                                 "message")}})}});
}

Value completion_content() {
  Value content = json_content(any_object());
  content.set("text/event-stream", Value::object({{"schema", Value::object({{"type", "string"}})}}));
  return content;
}

/// A figure in Prometheus's text form.
class Metrics {
 public:
  void add(const char* name, const char* kind, const char* help, double value) {
    begin(name, kind, help);
    sample(name, "", value);
  }
  void begin(const char* name, const char* kind, const char* help) {
    text += fmt::format("# HELP saaz_{} {}\n# TYPE saaz_{} {}\n", name, help, name, kind);
  }
  void sample(const char* name, const std::string& labels, double value) {
    text += fmt::format("saaz_{}{} {}\n", name, labels, value);
  }
  std::string text;
};

double as_real(int64_t n) { return static_cast<double>(n); }

void add_engine(Metrics& out, const EngineStats& s) {
  out.add("sequences_running", "gauge", "Sequences in the batch.", as_real(s.running));
  out.add("requests_waiting", "gauge", "Requests of which nothing runs yet.", as_real(s.waiting));
  out.add("kv_rows_used", "gauge", "Token rows of the full layers' cache in use.", as_real(s.kv_rows_used));
  out.add("kv_rows_total", "gauge", "Token rows of the full layers' cache.", as_real(s.kv_rows_total));
  out.add("kv_slots_used", "gauge", "Rings of the sliding layers' cache in use.", as_real(s.kv_slots_used));
  out.add("kv_slots_total", "gauge", "Rings of the sliding layers' cache.", as_real(s.kv_slots_total));
  out.add("kv_bytes", "gauge", "Bytes of the cache.", as_real(s.kv_bytes));
  out.add("prefix_blocks_used", "gauge", "Blocks of kept prefixes in use.", as_real(s.prefix_blocks_used));
  out.add("prefix_blocks_total", "gauge", "Blocks of kept prefixes.", as_real(s.prefix_blocks_total));
  out.add("prompt_tokens_total", "counter", "Tokens of prompts, kept ones included.", as_real(s.prompt_tokens));
  out.add("cached_tokens_total", "counter", "Tokens of prompts that were not computed again.",
          as_real(s.cached_tokens));
  out.add("completion_tokens_total", "counter", "Tokens sampled.", as_real(s.completion_tokens));
  out.add("prefix_lookups_total", "counter", "Prompts.", as_real(s.prefix_lookups));
  out.add("prefix_hits_total", "counter", "Prompts of which something was kept.", as_real(s.prefix_hits));
  out.add("requests_total", "counter", "Requests taken.", as_real(s.requests));
  out.add("requests_finished_total", "counter", "Requests answered to their end.", as_real(s.finished));
  out.add("requests_cancelled_total", "counter", "Requests cancelled.", as_real(s.cancelled));
  out.add("requests_failed_total", "counter", "Requests that failed.", as_real(s.failed));
  out.add("requests_refused_total", "counter", "Requests refused.", as_real(s.refused));
  out.add("steps_total", "counter", "Forward passes.", as_real(s.steps));
  out.add("step_seconds_total", "counter", "Seconds in forward passes.", s.step_seconds);
  out.add("up", "gauge", "1 while the engine works.", s.failure.empty() ? 1 : 0);
}

}  // namespace

std::string metrics_text(const EngineStats& engine, const WebCounts& web, size_t n_adapters) {
  Metrics out;
  add_engine(out, engine);
  out.add("adapters", "gauge", "Adapters loaded.", static_cast<double>(n_adapters));
  out.add("http_connections", "gauge", "Open connections.", as_real(web.connections));
  out.add("http_calls", "gauge", "Requests that are being answered.", as_real(web.calls));
  out.add("http_connections_total", "counter", "Connections accepted.", as_real(web.accepted));
  out.add("http_connections_refused_total", "counter", "Connections over the limits.",
          as_real(web.refused_connections));
  out.add("http_gone_total", "counter", "Clients that left before their answer was complete.", as_real(web.gone));
  out.begin("http_replies_total", "counter", "Replies by status.");
  for (const auto& [status, n] : web.replies)
    out.sample("http_replies_total", fmt::format("{{status=\"{}\"}}", status), as_real(n));
  return out.text;
}

Value openapi_document(const std::string& version) {
  const Value answer = json_content(any_object()), completion = completion_content();
  const auto generation = {"400", "401", "403", "404", "413", "415", "429", "500", "503"};
  const auto plain = {"400", "401", "403", "415", "503"};
  const auto adapters = {"400", "401", "403", "404", "415", "429", "503"};
  Value paths = Value::object();
  paths.set("/v1/chat/completions", post("answers a conversation", reference("ChatRequest"), generation, completion));
  paths.set("/v1/completions", post("continues a text", reference("CompletionRequest"), generation, completion));
  paths.set("/v1/embeddings", post("always refused", any_object(), plain, answer));
  paths.set("/v1/models", get("the base and its adapters", {"401", "403", "503"}, answer));
  Value one = get("one of them", {"401", "403", "404", "503"}, answer);
  Value name = Value::object({{"name", "model"}, {"in", "path"}, {"required", true}});
  name.set("schema", Value::object({{"type", "string"}}));
  one.set("parameters", Value::array({name}));
  paths.set("/v1/models/{model}", one);
  paths.set(
      "/v1/load_lora_adapter",
      post("loads a PEFT folder of the adapters folder as a model",
           object_of({{"lora_name", "string"}, {"lora_path", "string"}, {"load_inplace", "boolean"}}, "lora_name"),
           adapters, answer));
  paths.set("/v1/unload_lora_adapter", post("forgets it; what runs ends well",
                                            object_of({{"lora_name", "string"}}, "lora_name"), adapters, answer));
  paths.set("/tokenize", post("the ids of a prompt, or of messages",
                              object_of({{"model", "string"},
                                         {"prompt", "string"},
                                         {"messages", "array"},
                                         {"add_special_tokens", "boolean"},
                                         {"add_generation_prompt", "boolean"}},
                                        ""),
                              adapters, answer));
  paths.set("/detokenize",
            post("the text of ids", object_of({{"model", "string"}, {"tokens", "array"}}, "tokens"), plain, answer));
  paths.set("/health", get("open to all; 503 when nothing can be served", {"403", "503"}, answer));
  const Value text = Value::object({{"text/plain", Value::object({{"schema", Value::object({{"type", "string"}})}})}});
  paths.set("/metrics", get("Prometheus", {"401", "403", "503"}, text));
  paths.set("/openapi.json", get("this document; open to all", {"403", "503"}, answer));
  const Value schemas = Value::object(
      {{"ChatRequest", chat_schema()}, {"CompletionRequest", completion_schema()}, {"Error", error_schema()}});
  const Value key = Value::object({{"type", "http"}, {"scheme", "bearer"}});
  return Value::object(
      {{"openapi", "3.1.0"},
       {"info", Value::object({{"title", "Saaz"}, {"version", version}})},
       {"paths", paths},
       {"components", Value::object({{"schemas", schemas}, {"securitySchemes", Value::object({{"key", key}})}})},
       {"security", Value::array({Value::object({{"key", Value::array()}})})}});
}

}  // namespace saaz
