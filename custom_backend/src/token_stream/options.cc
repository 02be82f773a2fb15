#include "token_stream/options.h"

#include <charconv>
#include <limits>
#include <stdexcept>

#include "token_bytes.h"

namespace token_stream {
namespace {

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

// As Python would write the value: so both nodes answer a bad request with the same words.
struct Shown {
  std::string operator()(bool value) const { return value ? "True" : "False"; }
  std::string operator()(int64_t value) const { return std::to_string(value); }
  std::string operator()(const std::string& value) const { return "'" + value + "'"; }
  std::string operator()(double value) const {
    char text[32];
    const auto end = std::to_chars(text, text + sizeof text, value).ptr;
    const std::string shown(text, end);
    return shown.find_first_not_of("-0123456789") == std::string::npos ? shown + ".0" : shown;
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
