#include "token_stream/options.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string_view>

#include "token_bytes.h"

namespace token_stream {
namespace {

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

// As Python would write the value: so both nodes answer a bad request with the same words.
struct Shown {
  std::string operator()(bool value) const { return value ? "True" : "False"; }
  std::string operator()(int64_t value) const { return std::to_string(value); }

  std::string operator()(const std::string& value) const {
    const auto has = [&](char character) { return value.find(character) != value.npos; };
    const char quote = has('\'') && !has('"') ? '"' : '\'';
    std::string shown(1, quote);
    for (const char character : value) shown += escaped(character, quote);
    return shown + quote;
  }

  std::string operator()(double value) const {
    const double size = std::abs(value);
    const bool plain = size == 0 || (size >= 1e-4 && size < 1e16);  // outside, Python writes an exponent
    char text[32];
    const auto form = plain ? std::chars_format::fixed : std::chars_format::scientific;
    const std::string shown(text, std::to_chars(text, text + sizeof text, value, form).ptr);
    return shown.find_first_not_of("-0123456789") == shown.npos ? shown + ".0" : shown;
  }

 private:
  static std::string escaped(char character, char quote) {
    static constexpr std::string_view kNamed = "\n\r\t\\", kNames = "nrt\\";
    if (const size_t which = kNamed.find(character); which != kNamed.npos) return {'\\', kNames[which]};
    if (character == quote) return {'\\', quote};
    const auto byte = static_cast<unsigned char>(character);
    if (byte >= 0x20 && byte != 0x7F) return {character};
    constexpr const char* kDigits = "0123456789abcdef";
    return {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 0xF]};
  }
};

[[noreturn]] void refuse(const std::string& name, const Parameter& given, const std::string& expected) {
  throw std::invalid_argument("request parameter \"" + name + "\" is " + std::visit(Shown{}, given) + "; expected " +
                              expected);
}

std::optional<int64_t> number(const Parameters& given, const std::string& name, int64_t least, int64_t most = kMost) {
  const auto found = given.find(name);
  if (found == given.end()) return std::nullopt;
  const int64_t* value = std::get_if<int64_t>(&found->second);
  if (value == nullptr || *value < least || *value > most) {
    refuse(name, found->second,
           "a whole number from " + std::to_string(least) + " to " + with_commas(static_cast<uint64_t>(most)));
  }
  return *value;
}

bool on(const Parameters& given, const std::string& name) {
  const auto found = given.find(name);
  if (found == given.end()) return false;
  const bool* value = std::get_if<bool>(&found->second);
  if (value == nullptr) refuse(name, found->second, "true or false");
  return *value;
}

// A key names a window, and a request either opens one or grants for one.
void check_window(const Options& options) {
  if (options.window && options.grant) {
    throw std::invalid_argument(
        "request parameters \"window\" and \"grant\" exclude each other; send one of them");
  }
  const bool used = options.window || options.grant;
  if (used && !options.window_key) {
    throw std::invalid_argument(std::string("request parameter \"") + (options.window ? "window" : "grant") +
                                "\" needs a \"window_key\", which says whose window it is");
  }
  if (options.window_key && !used) {
    throw std::invalid_argument(
        "request parameter \"window_key\" needs a \"window\" that it opens, or a \"grant\" for one");
  }
}

}  // namespace

Options read_options(const Parameters& given, const Limits& limits) {
  const auto most = number(given, "max_message_ids", 1, limits.hard_message_ids);
  const Options options{
      most.value_or(limits.default_message_ids),
      on(given, "trace_heap"),
      on(given, "guard"),
      on(given, "log"),
      number(given, "window", 1),
      number(given, "window_key", 1),
      number(given, "grant", 0),
  };
  check_window(options);
  return options;
}

}  // namespace token_stream
