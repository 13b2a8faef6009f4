// Value: JSON and YAML in and out. Checks what is accepted, and that every refused text gives its exit code and place.
#include "base/value.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "base/error.h"

namespace saaz {
namespace {

using Parser = Value (*)(std::string_view, const std::string&);

std::string repeat(std::string_view text, size_t n) {
  std::string out;
  for (size_t i = 0; i < n; ++i) out += text;
  return out;
}

void expect_refused(Parser parse, std::string_view text, ExitCode code, std::string_view fragment) {
  try {
    parse(text, "file");
    ADD_FAILURE() << "accepted: " << text.substr(0, 80);
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    EXPECT_NE(std::string_view(error.what()).find(fragment), std::string_view::npos)
        << error.what() << "\n  lacks: " << fragment;
  }
}

TEST(Json, KeepsKindsAndOrder) {
  const Value v = parse_json(R"({"b": 1, "a": [true, null, -2.5, "م\u200c\n"], "big": 18446744073709551615})", "x");
  ASSERT_TRUE(v.is_object());
  EXPECT_EQ(v.members()[0].first, "b");
  EXPECT_EQ(v.find("b")->as_integer(), 1);
  const auto& items = v.find("a")->items();
  EXPECT_TRUE(items[0].as_bool());
  EXPECT_TRUE(items[1].is_null());
  EXPECT_EQ(items[2].as_double(), -2.5);
  EXPECT_EQ(items[3].as_string(), "م\u200c\n");
  EXPECT_EQ(v.find("big")->kind(), Value::Kind::real);
  EXPECT_EQ(v.find("big")->as_double(), 18446744073709551615.0);
  EXPECT_EQ(v.find("absent"), nullptr);
  EXPECT_EQ(items[0].find("a"), nullptr);
}

TEST(Json, WritesWhatItReads) {
  for (const char* text :
       {"null", "[]", "{}", R"({"a": [1, 2.5, "x\"\\\n\u0001"], "b": {}})", "[1.0, 1.0e-06, 1.0e+20]"}) {
    EXPECT_EQ(to_json(parse_json(text, "x")), text);
  }
  EXPECT_EQ(to_json(parse_json(R"({"a":[1,{}],"b":[]})", "x"), 2),
            "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}");
  for (const double d : {0.1, 1e-300, 1.7976931348623157e308, 5e-324, 3.0, -0.0}) {
    const double back = parse_json(to_json(Value(d)), "x").as_double();
    EXPECT_EQ(std::signbit(back), std::signbit(d));
    EXPECT_EQ(back, d);
  }
  EXPECT_EQ(to_json(Value(std::numeric_limits<double>::infinity())), "Infinity");
  EXPECT_EQ(to_json(Value("a\xFF")), "\"a\uFFFD\"");
}

TEST(Json, RefusesWithPlace) {
  const struct {
    std::string text;
    const char* fragment;
  } kCases[] = {
      {"", "file: byte 1: invalid JSON"},
      {"{\"a\": 1,\n \"b\": tru}", "file: line 2, column 10 (byte 19): invalid JSON"},
      {"{\"a\": 1, \"b\": 2, \"a\": 3}", "byte 24: the key 'a' appears twice"},
      {"[1] x", "byte 5: invalid JSON"},
      {"[NaN]", "byte 2: invalid JSON"},
      {"[1e400]", "number overflow"},
      {"\"a\xC3(\"", "ill-formed UTF-8"},
      {std::string("{}\0x", 4), "byte 3: a NUL byte"},
      {repeat("[", 65), "byte 65: nested deeper than 64 levels"},
      {repeat("{\"a\":", 100000), "nested deeper than 64 levels"},
      {"[01]", "invalid JSON"},
      {"['a']", "invalid JSON"},
      {"[1,]", "invalid JSON"},
      {"{1: 2}", "invalid JSON"},
      {"\"\\ud800\"", "invalid JSON"},
  };
  for (const auto& c : kCases) expect_refused(parse_json, c.text, ExitCode::bad_input, c.fragment);
  EXPECT_NO_THROW(parse_json(repeat("[", 64) + repeat("]", 64), "file"));
}

TEST(Json, FindsADuplicateAmongMany) {
  std::string text = "{";
  for (int i = 0; i < 50000; ++i) text += "\"k" + std::to_string(i) + "\": 0, ";
  EXPECT_EQ(parse_json(text + "\"last\": 1}", "x").members().size(), 50001u);
  expect_refused(parse_json, text + "\"k123\": 1}", ExitCode::bad_input, "'k123' appears twice");
}

TEST(Yaml, ResolvesPlainScalarsByTheCoreSchema) {
  const Value v = parse_yaml(
      "t: true\nno: no\non: on\ni: -12\nh: 0x1f\no: 0o17\nr: 1e-4\nr2: 2.0e-5\nr3: +.5\nn:\nn2: ~\nn3: null\n"
      "s: 'true'\nq: \"1\"\nv: 1.2.3\nd: 2026-01-02\nu: 1_000\nport: 127.0.0.1:8080\nz: 0.0\n",
      "x");
  EXPECT_TRUE(v.find("t")->is_bool());
  EXPECT_EQ(v.find("no")->as_string(), "no");
  EXPECT_EQ(v.find("on")->as_string(), "on");
  EXPECT_EQ(v.find("i")->as_integer(), -12);
  EXPECT_EQ(v.find("h")->as_integer(), 31);
  EXPECT_EQ(v.find("o")->as_integer(), 15);
  EXPECT_EQ(v.find("r")->kind(), Value::Kind::real);
  EXPECT_EQ(v.find("r")->as_double(), 1e-4);
  EXPECT_EQ(v.find("r2")->as_double(), 2e-5);
  EXPECT_EQ(v.find("r3")->as_double(), 0.5);
  for (const char* key : {"n", "n2", "n3"}) EXPECT_TRUE(v.find(key)->is_null()) << key;
  for (const char* key : {"s", "q", "v", "d", "u", "port"}) EXPECT_TRUE(v.find(key)->is_string()) << key;
  EXPECT_EQ(v.find("z")->kind(), Value::Kind::real);
}

TEST(Yaml, KnowsThePlaceOfEveryNode) {
  const Value v = parse_yaml("a: 1\nb:\n  c: [x, y]\n  d: 2\n", "x");
  EXPECT_EQ(v.find("a")->line, 1);
  const Value& c = *v.find("b")->find("c");
  EXPECT_EQ(c.line, 3);
  EXPECT_EQ(c.column, 3);
  EXPECT_EQ(c.items()[1].line, 3);
  EXPECT_EQ(c.items()[1].column, 10);
  EXPECT_EQ(v.find("b")->find("d")->line, 4);
}

TEST(Yaml, ReadsBlockAndFlowAndComments) {
  const Value v =
      parse_yaml("\xEF\xBB\xBF# recipe\na: { b: 1, c: [p, \"q r\"] }  # note\ntext: |\n  one\n  two\n", "x");
  EXPECT_EQ(to_json(v), R"({"a": {"b": 1, "c": ["p", "q r"]}, "text": "one\ntwo\n"})");
  EXPECT_TRUE(parse_yaml("", "x").is_null());
  EXPECT_EQ(parse_yaml("5", "x").as_integer(), 5);
}

TEST(Yaml, RefusesWithPlace) {
  const struct {
    std::string text;
    const char* fragment;
  } kCases[] = {
      {"a: 1\nb: 2\na: 3\n", "file:3:1: the key 'a' appears twice; it is already at line 1"},
      {"a: {x: 1, x: 2}\n", "file:1:11: the key 'x' appears twice"},
      {"a: &x 1\n", "anchors (&name) are not allowed"},
      {"a: *x\n", "file:1:4:"},
      {"a: &x [1]\nb: *x\n", "file:1:"},
      {"a: !!int 3\n", "file:1:4: tags ("},
      {"a: !mine {b: 1}\n", "tags (!mine) are not allowed"},
      {"a: [1, 2\nb: 3\n", "invalid YAML"},
      {"a:\n\t- 1\n", "invalid YAML"},
      {"a: .nan\n", "file:1:4: '.nan' is not a finite number"},
      {"a: [1, -.inf]\n", "'-.inf' is not a finite number"},
      {"a: 1e999\n", "does not fit a double"},
      {"a: 1\n---\nb: 2\n", "a second YAML document"},
      {"? [a, b]\n: 1\n", "a list or a map as a key"},
      {"~: 1\n", "an empty or null key"},
      {"a: \xFF\n", "file:1:4: invalid UTF-8"},
      {std::string("a: 1\nb: \0", 9), "file:2:4: the control byte 0x00"},
      {repeat("[", 60000), "file:1:33: nested deeper than 32 levels"},
      {repeat("{a: ", 10000), "nested deeper than 32 levels"},
      {repeat("- ", 1000), "nested deeper than 32 levels"},
      {repeat("? ", 1000), "a list or a map as a key"},
      {std::string(65537, ' '), "a recipe may have at most 65536"},
      {"[" + repeat("1,", 10001) + "]", "more than 10000 values"},
      {std::string(200, 'k') + ": 1\n", "a key longer than 128 bytes"},
      {"%YAML 9.9\n---\na: 1\n", "invalid YAML"},
  };
  for (const auto& c : kCases) expect_refused(parse_yaml, c.text, ExitCode::usage, c.fragment);
  EXPECT_NO_THROW(parse_yaml(repeat("[", 32) + repeat("]", 32), "file"));
}

TEST(Yaml, WritesWhatItReads) {
  const Value v = Value::object(
      {{"list", Value::array({1, "two", Value::array({0.5, Value()}), Value::object({{"k", true}})})},
       {"empty list", Value::array()},
       {"empty", Value::object()},
       {"nested", Value::object({{"path", "runs/a-b"}, {"lr", 1e-6}, {"whole", 2.0}})},
       {"words", Value::array({"no", "true", "null", "~", "1", "1e-4", "a: b", "# c", "", " x ", "-", "y"})},
       {"text", "فارسی‌ها\n\t\"quoted\" \\ \x01 \x7F \uFEFF"},
       {"null", Value()}});
  const std::string text = to_yaml(v);
  EXPECT_EQ(to_json(parse_yaml(text, "x")), to_json(v)) << text;
  EXPECT_NE(text.find("path: runs/a-b\n"), std::string::npos);
  EXPECT_NE(text.find("lr: 1.0e-06\n"), std::string::npos);
  for (const Value& leaf : {Value(1), Value("x"), Value(), Value::array(), Value::object()}) {
    EXPECT_EQ(to_json(parse_yaml(to_yaml(leaf), "x")), to_json(leaf));
  }
}

TEST(Value, SetReplacesAndAppends) {
  Value v = Value::object();
  v.set("a", 1);
  v.set("b", Value::array());
  v.set("a", "new");
  EXPECT_EQ(to_json(v), R"({"a": "new", "b": []})");
  EXPECT_STREQ(v.find("b")->kind_name(), "a list");
}

}  // namespace
}  // namespace saaz
