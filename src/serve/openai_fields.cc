#include "serve/openai_fields.h"

#include <algorithm>
#include <cmath>

namespace saaz {
namespace {

using Kind = BodyField::Kind;
constexpr double kInt32 = 2147483647, kInt64 = 9223372036854775807.0;

constexpr BodyField kShared[] = {
    {"model", Kind::text, 0, 512, "the served model's name, or an adapter's; left out: the model"},
    {"stream", Kind::boolean, 0, 0, "server-sent events, a piece each"},
    {"stream_options", Kind::any, 0, 0, "{\"include_usage\": true}: a last event with the usage"},
    {"max_tokens", Kind::integer, 1, kInt32, "of each choice; more than there is room for is cut to the room"},
    {"n", Kind::integer, 1, 128, "choices"},
    {"temperature", Kind::number, 0, 100, "0 always takes the most likely token"},
    {"top_p", Kind::number, 0, 1, "draw from the smallest set with this probability"},
    {"top_k", Kind::integer, -1, kInt32, "draw from the k most likely; 0 or -1: all"},
    {"min_p", Kind::number, 0, 1, "drop tokens below this share of the best"},
    {"repetition_penalty", Kind::number, 0.01, 100, "1: off"},
    {"presence_penalty", Kind::number, -2, 2, "off the logits of tokens that the answer has"},
    {"frequency_penalty", Kind::number, -2, 2, "the same, for each time it has them"},
    {"seed", Kind::integer, -kInt64, kInt64, "of the draws: the same request and seed give the same answer"},
    {"stop", Kind::any, 0, 0, "a text, or a list of up to 16, of at most 256 bytes each"},
    {"stop_token_ids", Kind::any, 0, 0, "up to 64 ids that end an answer, too"},
    {"ignore_eos", Kind::boolean, 0, 0, "the model's own end of a turn does not end the answer"},
    {"logit_bias", Kind::any, 0, 0, "{\"id\": bias}: -100 to 100, added to the logits of up to 1024 ids"},
    {"guard", Kind::any, 0, 0, "true, or {\"digits\": \"fa\" | \"en\" | \"keep\"}: clean Persian"},
    {"user", Kind::ignored, 0, 0, ""},
    {"metadata", Kind::ignored, 0, 0, ""},
    {"service_tier", Kind::ignored, 0, 0, ""},
    {"safety_identifier", Kind::ignored, 0, 0, ""},
    {"prompt_cache_key", Kind::ignored, 0, 0, ""},
    {"store", Kind::refused, 0, 0, "nothing is stored"},
    {"chat_template", Kind::refused, 0, 0, "the template is the model's"},
};
constexpr BodyField kChat[] = {
    {"messages", Kind::any, 0, 0, "[{\"role\": \"system\" | \"user\" | \"assistant\", \"content\": text}]"},
    {"max_completion_tokens", Kind::integer, 1, kInt32, "the newer name of max_tokens"},
    {"logprobs", Kind::boolean, 0, 0, "log probabilities of the answer's tokens"},
    {"top_logprobs", Kind::integer, 0, 20, "and of the likeliest beside each; needs logprobs"},
    {"response_format", Kind::any, 0, 0,
     "{\"type\": \"text\" | \"json_object\" | \"json_schema\", \"json_schema\": {\"schema\": {...}}}"},
    {"parallel_tool_calls", Kind::ignored, 0, 0, ""},
    {"tools", Kind::refused, 0, 0, "tools are not served"},
    {"tool_choice", Kind::any, 0, 0, "\"none\" or \"auto\": there are no tools"},
    {"functions", Kind::refused, 0, 0, "functions are not served"},
    {"function_call", Kind::refused, 0, 0, "functions are not served"},
    {"audio", Kind::refused, 0, 0, "sound is not served"},
    {"modalities", Kind::any, 0, 0, "[\"text\"]"},
    {"prediction", Kind::refused, 0, 0, "predicted outputs are not served"},
    {"reasoning_effort", Kind::refused, 0, 0, "the models have no such mode"},
    {"web_search_options", Kind::refused, 0, 0, "nothing is searched"},
};
constexpr BodyField kCompletion[] = {
    {"prompt", Kind::any, 0, 0, "a text, a list of texts, a list of ids, or a list of such lists; up to 64 prompts"},
    {"logprobs", Kind::integer, 0, 20, "log probabilities, and of so many likeliest beside each token"},
    {"echo", Kind::refused, 0, 0, "the prompt is not repeated"},
    {"suffix", Kind::refused, 0, 0, "nothing is filled in before a suffix"},
    {"best_of", Kind::integer, 1, 128, "must be n: nothing is thrown away"},
};

template <size_t N>
std::vector<BodyField> with_shared(const BodyField (&own)[N]) {
  std::vector<BodyField> all(std::begin(own), std::end(own));
  all.insert(all.end(), std::begin(kShared), std::end(kShared));
  return all;
}

[[noreturn]] void refuse(const std::string& where, std::string message) {
  throw WebFault(400, std::move(message), where.substr(0, where.find('[')));
}

std::string range_text(double min, double max) {
  if (max >= kInt64) return "a 64-bit number";
  return fmt::format("{} to {}", min, max);
}

/// Edit distance, for short names.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t same = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({same, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

[[noreturn]] void refuse_unknown(const std::string& name, std::span<const BodyField> fields) {
  std::string message = fmt::format("'{}' is no field of this request", printable(name, 60));
  const BodyField* nearest = nullptr;
  size_t best = 4;
  for (const BodyField& field : fields)
    if (name.size() < 60 && distance(name, field.name) < best) best = distance(name, field.name), nearest = &field;
  if (nearest != nullptr) message += fmt::format("; did you mean '{}'?", nearest->name);
  throw WebFault(400, message, printable(name, 60), "unknown_field");
}

bool says_nothing(const Value& value) {
  if (value.kind() == Value::Kind::boolean) return !value.as_bool();
  if (value.is_string()) return value.as_string().empty();
  if (value.is_array()) return value.items().empty();
  return value.is_null() || (value.is_object() && value.members().empty());
}

void check_field(const Value& value, const BodyField& field) {
  if (value.is_null()) return;
  switch (field.kind) {
    case Kind::integer:
      checked_integer(value, field.name, field.min, field.max);
      break;
    case Kind::number:
      checked_number(value, field.name, field.min, field.max);
      break;
    case Kind::boolean:
      if (value.kind() != Value::Kind::boolean)
        refuse(field.name, fmt::format("{}: expected true or false, found {}", field.name, value.kind_name()));
      break;
    case Kind::text:
      checked_text(value, field.name, static_cast<size_t>(field.min), static_cast<size_t>(field.max));
      break;
    case Kind::refused:
      if (!says_nothing(value)) refuse(field.name, fmt::format("{} is refused: {}", field.name, field.doc));
      break;
    case Kind::any:
    case Kind::ignored:
      break;
  }
}

}  // namespace

std::span<const BodyField> chat_fields() {
  static const std::vector<BodyField> kFields = with_shared(kChat);
  return kFields;
}

std::span<const BodyField> completion_fields() {
  static const std::vector<BodyField> kFields = with_shared(kCompletion);
  return kFields;
}

void check_fields(const Value& body, std::span<const BodyField> fields) {
  if (!body.is_object()) throw WebFault(400, fmt::format("the body must be an object, found {}", body.kind_name()));
  for (const auto& [name, value] : body.members()) {
    const auto field =
        std::find_if(fields.begin(), fields.end(), [&name = name](const BodyField& row) { return name == row.name; });
    if (field == fields.end()) refuse_unknown(name, fields);
    check_field(value, *field);
  }
}

const Value* find_field(const Value& body, const char* name) {
  const Value* value = body.find(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

int64_t integer_or(const Value& body, const char* name, int64_t otherwise) {
  const Value* value = find_field(body, name);
  return value == nullptr ? otherwise : value->as_integer();
}

double number_or(const Value& body, const char* name, double otherwise) {
  const Value* value = find_field(body, name);
  return value == nullptr ? otherwise : value->as_double();
}

bool flag_or(const Value& body, const char* name, bool otherwise) {
  const Value* value = find_field(body, name);
  return value == nullptr ? otherwise : value->as_bool();
}

std::string text_or(const Value& body, const char* name, const char* otherwise) {
  const Value* value = find_field(body, name);
  return value == nullptr ? otherwise : value->as_string();
}

int64_t checked_integer(const Value& value, const std::string& where, double min, double max) {
  const bool is_integer = value.kind() == Value::Kind::integer;
  const auto number = is_integer ? static_cast<double>(value.as_integer()) : 0;
  if (!is_integer || number < min || number > max)
    refuse(where, fmt::format("{}: expected a whole number, {}, found {}", where, range_text(min, max),
                              is_integer ? std::to_string(value.as_integer()) : value.kind_name()));
  return value.as_integer();
}

double checked_number(const Value& value, const std::string& where, double min, double max) {
  const bool is_number = value.kind() == Value::Kind::integer || value.kind() == Value::Kind::real;
  const double number = is_number ? value.as_double() : 0;
  if (!is_number || !(number >= min && number <= max))
    refuse(where, fmt::format("{}: expected a number, {}, found {}", where, range_text(min, max),
                              is_number ? fmt::format("{}", number) : value.kind_name()));
  return number;
}

const std::string& checked_text(const Value& value, const std::string& where, size_t min_bytes, size_t max_bytes) {
  if (!value.is_string()) refuse(where, fmt::format("{}: expected a text, found {}", where, value.kind_name()));
  const size_t size = value.as_string().size();
  if (size < min_bytes || size > max_bytes)
    refuse(where, fmt::format("{}: expected a text of {} to {} bytes, found {}", where, min_bytes, max_bytes, size));
  return value.as_string();
}

const std::vector<Value>& checked_list(const Value& value, const std::string& where, size_t min_items,
                                       size_t max_items) {
  if (!value.is_array()) refuse(where, fmt::format("{}: expected a list, found {}", where, value.kind_name()));
  const size_t size = value.items().size();
  if (size < min_items || size > max_items)
    refuse(where, fmt::format("{}: expected {} to {} items, found {}", where, min_items, max_items, size));
  return value.items();
}

Value schema_of(std::span<const BodyField> fields, const std::vector<std::string>& required) {
  Value properties = Value::object(), names = Value::array();
  for (const BodyField& field : fields) {
    if (field.kind == Kind::refused || field.kind == Kind::ignored) continue;
    Value row = Value::object();
    const char* type = field.kind == Kind::integer   ? "integer"
                       : field.kind == Kind::number  ? "number"
                       : field.kind == Kind::boolean ? "boolean"
                       : field.kind == Kind::text    ? "string"
                                                     : nullptr;
    if (type != nullptr) row.set("type", type);
    if (field.kind == Kind::integer || field.kind == Kind::number) {
      if (field.max < kInt64) row.set("minimum", field.min), row.set("maximum", field.max);
    }
    row.set("description", field.doc);
    properties.set(field.name, row);
  }
  for (const std::string& name : required) names.push_back(name);
  return Value::object(
      {{"type", "object"}, {"properties", properties}, {"required", names}, {"additionalProperties", false}});
}

}  // namespace saaz
