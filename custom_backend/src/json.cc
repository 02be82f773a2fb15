#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <stdexcept>

namespace token_stream {
namespace {

constexpr int kDeepest = 64;  // nested arrays and objects: hostile text must not use up the stack

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json whole() {
    Json json = value(0);
    skip_space();
    if (at_ < text_.size()) fail("the end of the text");
    return json;
  }

 private:
  Json value(int depth) {
    if (depth > kDeepest) fail("less nesting");
    skip_space();
    switch (peek()) {
      case '{': return {object(depth)};
      case '[': return {array(depth)};
      case '"': return {string()};
      case 't': return literal("true", {true});
      case 'f': return literal("false", {false});
      case 'n': return literal("null", {nullptr});
      default: return {number()};
    }
  }

  Json::Object object(int depth) {
    Json::Object members;
    expect('{');
    if (skip('}')) return members;
    do {
      skip_space();
      std::string name = string();
      skip_space();
      expect(':');
      members.insert_or_assign(std::move(name), value(depth + 1));
    } while (skip(','));
    expect('}');
    return members;
  }

  Json::Array array(int depth) {
    Json::Array items;
    expect('[');
    if (skip(']')) return items;
    do {
      items.push_back(value(depth + 1));
    } while (skip(','));
    expect(']');
    return items;
  }

  std::string string() {
    std::string out;
    expect('"');
    while (peek() != '"') {
      const char next = text_[at_++];
      if (static_cast<unsigned char>(next) < 0x20) fail("no control character in a string");
      if (next == '\\') {
        escaped(out);
      } else {
        out += next;
      }
    }
    ++at_;
    return out;
  }

  void escaped(std::string& out) {
    const char kind = peek();
    ++at_;
    static constexpr std::string_view kKinds = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    if (kind == 'u') {
      put_utf8(code_point(), out);
    } else if (const size_t which = kKinds.find(kind); which != kKinds.npos) {
      out += kMeant[which];
    } else {
      fail("an escape");
    }
  }

  // Characters past the first 65,536 are written as two escapes, a high surrogate and a low one.
  uint32_t code_point() {
    const uint32_t first = hex4();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first > 0xDBFF || text_.substr(at_, 2) != "\\u") fail("a pair of surrogates");
    at_ += 2;
    const uint32_t second = hex4();
    if (second < 0xDC00 || second > 0xDFFF) fail("a low surrogate");
    return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
  }

  uint32_t hex4() {
    uint32_t code = 0;
    const std::string_view digits = text_.substr(at_, 4);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    if (error != std::errc() || end != digits.data() + 4) fail("four hexadecimal digits");
    at_ += 4;
    return code;
  }

  static void put_utf8(uint32_t code, std::string& out) {
    const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static constexpr unsigned char kLead[] = {0x00, 0xC0, 0xE0, 0xF0};
    out += static_cast<char>(kLead[more] | (code >> (6 * more)));
    for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F));
  }

  double number() {
    double number = 0;
    const char* begin = text_.data() + at_;
    const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), number);
    if (error != std::errc() || !std::isfinite(number)) fail("a value");
    at_ += static_cast<size_t>(end - begin);
    return number;
  }

  Json literal(std::string_view word, Json meant) {
    if (text_.substr(at_, word.size()) != word) fail("a value");
    at_ += word.size();
    return meant;
  }

  void skip_space() { at_ = std::min(text_.find_first_not_of(" \t\n\r", at_), text_.size()); }

  bool skip(char wanted) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  void expect(char wanted) {
    if (!skip(wanted)) fail(std::string("'") + wanted + "'");
  }

  char peek() const {
    if (at_ >= text_.size()) fail("more text");
    return text_[at_];
  }

  [[noreturn]] void fail(const std::string& expected) const {
    throw std::invalid_argument("JSON, character " + std::to_string(at_) + ": expected " + expected);
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

Json Json::parse(std::string_view text) { return Parser(text).whole(); }

size_t Json::size() const {
  constexpr double kExact = 9007199254740992.0;  // 2^53: above it, a double skips whole numbers
  const double given = number();
  if (!(given >= 0 && given <= kExact) || given != std::floor(given)) {
    throw std::invalid_argument("JSON: expected a whole number that is not negative, got " + std::to_string(given));
  }
  return static_cast<size_t>(given);
}

const Json& Json::at(const std::string& name) const {
  const auto found = object().find(name);
  if (found == object().end()) throw std::invalid_argument("JSON: \"" + name + "\" is missing");
  return found->second;
}

template <typename T>
const T& Json::get(const char* expected) const {
  const T* held = std::get_if<T>(&value);
  if (held == nullptr) throw std::invalid_argument(std::string("JSON: expected ") + expected);
  return *held;
}

template const std::string& Json::get(const char*) const;
template const double& Json::get(const char*) const;
template const Json::Array& Json::get(const char*) const;
template const Json::Object& Json::get(const char*) const;

}  // namespace token_stream
