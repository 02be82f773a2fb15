#include "json.h"

#include <stdexcept>

#include "check.h"

namespace token_stream {
namespace {

using Malformed = std::invalid_argument;

std::string nested(size_t levels) { return std::string(levels, '[') + std::string(levels, ']'); }

TEST(json_values) {
  const Json json = Json::parse(" { \"a\" : [ 1 , -2.5e3 , true, false, null, \"x\" ] ,\n\t\"b\":{} }\r\n");
  const Json::Array& items = json.at("a").array();
  CHECK_EQUAL(items.size(), 6U);
  CHECK_EQUAL(items[0].size(), 1U);
  CHECK_EQUAL(items[1].number(), -2500.0);
  CHECK(std::get<bool>(items[2].value));
  CHECK(!std::get<bool>(items[3].value));
  CHECK(std::holds_alternative<std::nullptr_t>(items[4].value));
  CHECK_EQUAL(items[5].string(), "x");
  CHECK(json.at("b").object().empty());
  CHECK(Json::parse("[]").array().empty());
  CHECK_EQUAL(Json::parse("{\"a\":1,\"a\":2}").at("a").size(), 2U);
}

TEST(json_strings) {
  CHECK_EQUAL(Json::parse(R"("\"\\\/\b\f\n\r\t")").string(), "\"\\/\b\f\n\r\t");
  CHECK_EQUAL(Json::parse(R"("\u0041\u00e9\u8fd9\uFFFF")").string(), "A\xC3\xA9\xE8\xBF\x99\xEF\xBF\xBF");
  CHECK_EQUAL(Json::parse(R"("\ud83d\ude00")").string(), "\xF0\x9F\x98\x80");
  CHECK_EQUAL(Json::parse(R"("\uD800\uDC00")").string(), "\xF0\x90\x80\x80");
  CHECK_EQUAL(Json::parse(R"("\uDBFF\uDFFF")").string(), "\xF4\x8F\xBF\xBF");
  CHECK_EQUAL(Json::parse("\"\\u0000\"").string(), std::string(1, '\0'));
  CHECK_EQUAL(Json::parse("\"\xE8\xBF\x99\"").string(), "\xE8\xBF\x99");
}

TEST(json_of_bad_surrogates) {
  for (const char* text : {R"("\ud83d")", R"("\ud83dx")", R"("\ude00")", R"("\ud83d\n")"}) {
    CHECK_THROWS(Malformed, Json::parse(text), "expected a pair of surrogates");
  }
  for (const char* text : {R"("\ud83d\ud83d")", R"("\ud83d\u0041")"}) {
    CHECK_THROWS(Malformed, Json::parse(text), "expected a low surrogate");
  }
}

TEST(json_that_is_malformed) {
  for (const char* text : {"", " ", "[", "[1", "[1,", "{", "{\"a\"", "{\"a\":", "{\"a\":1", "\"", "\"a", "\"\\"}) {
    CHECK_THROWS(Malformed, Json::parse(text), "JSON, character");
  }
  for (const char* text : {"nul", "tru", "falsy", "x", "+1", ".", "-", "[1,]", "{\"a\":}", "Infinity", "1e999"}) {
    CHECK_THROWS(Malformed, Json::parse(text), "expected a value");
  }
  for (const char* text : {"nan", "inf", "-inf", "-nan"}) {
    CHECK_THROWS(Malformed, Json::parse(text), "expected a value");
  }
  for (const char* text : {"1 2", "[] ]", "{}}", "nullx", "0x10"}) {
    CHECK_THROWS(Malformed, Json::parse(text), "expected the end of the text");
  }
  CHECK_THROWS(Malformed, Json::parse("{a:1}"), "character 1: expected '\"'");
  CHECK_THROWS(Malformed, Json::parse("{\"a\" 1}"), "character 5: expected ':'");
  CHECK_THROWS(Malformed, Json::parse("[1 2]"), "expected ']'");
  CHECK_THROWS(Malformed, Json::parse("{\"a\":1 \"b\":2}"), "expected '}'");
  CHECK_THROWS(Malformed, Json::parse("\"\n\""), "no control character");
  CHECK_THROWS(Malformed, Json::parse(R"("\x")"), "expected an escape");
  for (const char* text : {R"("\u12")", R"("\u12g4")", R"("\u-123")", R"("\u")", R"("\u 123")"}) {
    CHECK_THROWS(Malformed, Json::parse(text), "four hexadecimal digits");
  }
}

TEST(json_that_is_cut_off_anywhere) {
  const std::string whole = R"({"a": [1.5, "\ud83d\ude00 x", {"b": null}], "c": {"d": true}})";
  for (size_t length = 0; length < whole.size(); ++length) {
    CHECK_THROWS(Malformed, Json::parse(std::string_view(whole).substr(0, length)), "JSON, character");
  }
}

TEST(json_that_is_deep) {
  CHECK_EQUAL(Json::parse(nested(65)).array().size(), 1U);
  CHECK_THROWS(Malformed, Json::parse(nested(66)), "expected less nesting");
  CHECK_THROWS(Malformed, Json::parse(std::string(1'000'000, '[')), "expected less nesting");
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  CHECK_THROWS(Malformed, Json::parse(objects), "expected less nesting");
}

TEST(json_of_another_type) {
  const Json json = Json::parse(R"({"text": "x", "half": 0.5, "less": -1, "most": 9007199254740992, "more": 1e16})");
  CHECK_THROWS(Malformed, json.at("text").number(), "expected a number");
  CHECK_THROWS(Malformed, json.at("half").string(), "expected a string");
  CHECK_THROWS(Malformed, json.at("text").array(), "expected an array");
  CHECK_THROWS(Malformed, json.at("text").object(), "expected an object");
  CHECK_THROWS(Malformed, json.at("text").at("x"), "expected an object");
  CHECK_THROWS(Malformed, json.at("other"), "\"other\" is missing");
  for (const char* name : {"half", "less", "more"}) CHECK_THROWS(Malformed, json.at(name).size(), "a whole number");
  CHECK_EQUAL(json.at("most").size(), 9007199254740992U);
}

}  // namespace
}  // namespace token_stream
