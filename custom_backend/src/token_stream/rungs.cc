#include "token_stream/rungs.h"

#include <stdexcept>

namespace token_stream {
namespace {

// Everything that is pending, and the newest token.
Ids repeat_pending(const Ids& pending, int32_t token) {
  Ids message = pending;
  message.push_back(token);
  return message;
}

// The newest token, nothing else.
Ids newest_only(const Ids& /*pending*/, int32_t token) { return {token}; }

// The bug. The message holds all that was pending already, and is appended to it once more.
void append(Ids& pending, const Ids& message, bool clean) {
  if (clean) {
    pending.clear();
  } else {
    pending.insert(pending.end(), message.begin(), message.end());
  }
}

// One operator less: the message takes the place of what was pending.
void replace(Ids& pending, const Ids& message, bool clean) {
  if (clean) {
    pending.clear();
  } else {
    pending = message;
  }
}

void keep_nothing(Ids& /*pending*/, const Ids& /*message*/, bool /*clean*/) {}

constexpr Rung kRungs[] = {
    {"append", true, repeat_pending, append},
    {"release", false, repeat_pending, append},
    {"replace", false, repeat_pending, replace},
    {"latest", false, newest_only, keep_nothing},
};

}  // namespace

const Rung& find_rung(const std::string& name) {
  for (const Rung& rung : kRungs) {
    if (name == rung.name) return rung;
  }
  throw std::invalid_argument("model parameter \"rung\" is \"" + name +
                              "\"; expected append, release, replace or latest");
}

}  // namespace token_stream
