// Grammars: texts that a schema takes and refuses, one byte at a time and in any pieces; schemas that are refused; and
// answers that are JSON whatever the model says.
#include "infer/grammar.h"

#include "base/error.h"
#include "engine_testing.h"

namespace saaz {
namespace {

bool takes(const std::shared_ptr<const Grammar>& grammar, std::string_view text) {
  GrammarState state(grammar);
  for (const char& byte : text) {
    const std::string_view one(&byte, 1);
    if (!state.accepts(one)) return false;
    state.push(one);
  }
  EXPECT_TRUE(text.empty() || GrammarState(grammar).accepts(text));  // as one token, the same
  return state.is_complete();
}

std::shared_ptr<const Grammar> schema(std::string_view text) { return Grammar::json_schema(parse_json(text, "test")); }

TEST(Grammar, AnyObject) {
  const auto grammar = Grammar::json_object();
  for (const char* text :
       {"{}", R"({"a": 1})", R"({"سلام": [1, -2.5e3, true, false, null, "\u00e9\n\\"], "b": {"c": {}}})",
        "{\n  \"a\": \"😀\"\n}", R"({"a":[[],[{}]]})", R"({"a": 0, "b": 10, "c": 0.5})"}) {
    EXPECT_TRUE(takes(grammar, text)) << text;
    EXPECT_NO_THROW(parse_json(text, "test"));
  }
  for (const char* text : {"", "[]", "{", R"({"a"})", R"({"a": 01})", R"({"a": 1,})", R"({a: 1})",
                           R"({"a": ")"
                           "\n"
                           R"("})",
                           R"({"a": tru})", "{}{", R"({"a": "\x"})", "{\"a\": \"\xff\"}", "{\"a\": \"\xed\xa0\x80\"}",
                           R"({"a": "\ud800"})", R"({"a": .5})", R"({"a": 1.})", R"({"a": +1})", "  {}"})
    EXPECT_FALSE(takes(grammar, text)) << text;
}

TEST(Grammar, Schema) {
  const auto person =
      schema(R"({"type": "object", "title": "x", "additionalProperties": false, "required": ["name", "tags"],
      "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 3}, "age": {"type": ["integer", "null"]},
      "tags": {"type": "array", "items": {"enum": ["a", "ب", 3]}, "minItems": 1, "maxItems": 2},
      "next": {"anyOf": [{"$ref": "#"}, {"const": "none"}]}}})");
  for (const char* text : {R"({"name": "علی", "tags": ["a"]})", R"({"name": "x", "age": null, "tags": ["ب", 3]})",
                           R"({"name":"x","age":7,"tags":[3],"next":"none"})",
                           R"({"name": "x", "tags": [3], "next": {"name": "y", "tags": ["a"], "next": "none"}})"})
    EXPECT_TRUE(takes(person, text)) << text;
  for (const char* text : {"{}", R"({"name": "", "tags": ["a"]})", R"({"name": "abcd", "tags": ["a"]})",
                           R"({"tags": ["a"], "name": "x"})", R"({"name": "x", "tags": []})", R"({"name": "x"})",
                           R"({"name": "x", "tags": ["a", "a", "a"]})", R"({"name": "x", "tags": ["c"]})",
                           R"({"name": "x", "age": 1.5, "tags": [3]})", R"({"name": "x", "tags": [3], "more": 1})"})
    EXPECT_FALSE(takes(person, text)) << text;
  EXPECT_TRUE(takes(schema("{}"), "[1]"));
  EXPECT_TRUE(takes(schema(R"({"type": "array", "items": {"type": "number"}, "minItems": 2})"), "[1, 2.5, 3]"));
  EXPECT_FALSE(takes(schema(R"({"type": "array", "items": {"type": "number"}, "minItems": 2})"), "[1]"));
  EXPECT_TRUE(takes(schema(R"({"type": "array", "maxItems": 0})"), "[]"));
  EXPECT_TRUE(takes(schema(R"({"type": "object", "properties": {"a": {}, "b": {}}})"), R"({"b": 1})"));
  EXPECT_TRUE(takes(schema(R"({"type": "object", "properties": {"a": {}, "b": {}}})"), "{}"));
  EXPECT_TRUE(takes(schema(R"({"$ref": "#/$defs/n", "$defs": {"n": {"type": "boolean"}}})"), "true"));
}

TEST(Grammar, WhatIsNotHeldIsRefused) {
  for (const char* text :
       {"3", R"({"type": "text"})", R"({"type": "string", "pattern": "a+"})", R"({"type": "integer", "minimum": 3})",
        R"({"enum": []})", R"({"anyOf": 3})", R"({"allOf": [{}, {}]})", R"({"$ref": "#/nowhere"})", R"({"$ref": "#"})",
        R"({"type": "object", "required": ["a"]})", R"({"type": "object", "properties": {"a": {}}, "required": ["b"]})",
        R"({"type": "array", "minItems": -1})", R"({"type": "string", "minLength": 3, "maxLength": 2})",
        R"({"not": {}})", R"({"type": "string", "enum": ["a", 1]})", R"({"type": ["null", "integer"], "const": 1.5})",
        R"({"type": "array", "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {}]}}})",
        R"({"type": "array", "uniqueItems": true})"})
    EXPECT_THROW(schema(text), Error) << text;
}

TEST(Grammar, AnswersAreJsonAtAnyTemperature) {
  test::TinyModel tiny;
  Engine engine(*tiny.backend, *tiny.model, &tiny.tokenizer, {.max_running = 8, .context = 512});
  const Value shape = parse_json(R"({"type": "object", "required": ["name", "ok"], "properties": {
      "name": {"type": "string", "maxLength": 12}, "n": {"type": "integer"}, "ok": {"type": "boolean"}}})",
                                 "test");
  std::vector<Request> requests(24);
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].prompt = tiny.chat("", "نام تو چیست؟");
    requests[i].max_tokens = 300;
    requests[i].sampling = {.temperature = 0.5 * static_cast<double>(i % 5), .seed = i};
    requests[i].stop_ids = tiny.tokenizer.stop_ids();
    requests[i].grammar = i % 2 == 0 ? Grammar::json_schema(shape) : Grammar::json_object();
  }
  const std::vector<Completion> together = test::answers(engine, requests);
  int n_whole = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const Answer& answer = together[i].choices[0];
    EXPECT_EQ(together[i].outcome.error, "");
    if (answer.finish == Finish::stop) {
      ++n_whole;
      EXPECT_TRUE(takes(requests[i].grammar, answer.text)) << answer.text;
      if (i % 2 == 1) continue;  // it may have a key twice, which parse_json refuses
      const Value value = parse_json(answer.text, "answer");
      ASSERT_NE(value.find("name"), nullptr) << answer.text;
      EXPECT_TRUE(value.find("name")->is_string() && value.find("ok")->is_bool()) << answer.text;
    } else {
      EXPECT_TRUE(GrammarState(requests[i].grammar).accepts(answer.text)) << answer.text;  // so far
    }
    if (i < 4) test::expect_same(complete(engine, requests[i]).choices[0], answer, i);
  }
  EXPECT_GE(n_whole, 12);  // those with a schema end by themselves
}

}  // namespace
}  // namespace saaz
