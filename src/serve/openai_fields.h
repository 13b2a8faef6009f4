// The fields of a request: one row each, with kind and range. Enters: a JSON object. Leaves: the same object, with
// every row checked, or a WebFault (400) that names field, range and what was found. The table is also the schema of
// /openapi.json, so that the two cannot differ.
#pragma once

#include <limits>
#include <span>

#include "serve/http.h"

namespace saaz {

struct BodyField {
  enum class Kind : uint8_t {
    integer,
    number,
    boolean,
    text,
    any,      // checked by its own reader
    ignored,  // says nothing about the answer: taken and left alone
    refused,  // asks for what is not served: only null, false, "" and empty lists pass
  };
  const char* name;
  Kind kind;
  double min, max;  // integer, number: the range; text: bytes
  const char* doc;
};

std::span<const BodyField> chat_fields();
std::span<const BodyField> completion_fields();

/// Checks `body` against the rows; an unknown field is refused, with the nearest name.
void check_fields(const Value& body, std::span<const BodyField> fields);

// Members that are there and not null; for checked bodies.
const Value* find_field(const Value& body, const char* name);
int64_t integer_or(const Value& body, const char* name, int64_t otherwise);
double number_or(const Value& body, const char* name, double otherwise);
bool flag_or(const Value& body, const char* name, bool otherwise);
std::string text_or(const Value& body, const char* name, const char* otherwise);

/// One checked integer or number of a list or map. `where` names it: "logit_bias['7']".
int64_t checked_integer(const Value& value, const std::string& where, double min, double max);
double checked_number(const Value& value, const std::string& where, double min, double max);
const std::string& checked_text(const Value& value, const std::string& where, size_t min_bytes, size_t max_bytes);
const std::vector<Value>& checked_list(const Value& value, const std::string& where, size_t min_items,
                                       size_t max_items);

/// JSON schema of the rows that are served.
Value schema_of(std::span<const BodyField> fields, const std::vector<std::string>& required);

}  // namespace saaz
